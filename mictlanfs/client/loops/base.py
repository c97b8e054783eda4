"""The narrow interface between the bulk transport and an event loop, the same for every loop.

All errors are the same as well: OSError for the network, `TooLateError` for a deadline. Cancelling
any of the waits takes effect at once; the stream it was about can then only be closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Protocol

from mictlanfs.model import Buffer

# The limit of sendmsg(2) on Linux: UIO_MAXIOV.
BUFFERS_PER_SEND_MAX = 1024
# RFC 8305, section 8: how long one address is tried alone before the next is tried as well.
NEXT_ADDRESS_AFTER_S: Final = 0.25


class TooLateError(Exception):
    """A deadline is over."""


class ByteStream(Protocol):
    """One TCP connection. One task at a time receives or sends."""

    async def receive(self, size_max: int) -> bytes:
        """Wait for bytes, and give at most `size_max` of them; none when the other side ended.

        Raises:
            OSError: the connection broke.
        """
        ...

    async def fill(self, buffer: memoryview) -> int:
        """Receive into `buffer` until it is full; fewer bytes than that when the other side ended.

        Raises:
            OSError: the connection broke.
        """
        ...

    async def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Send `buffers` one after the other, without copying; they must not change meanwhile.

        Raises:
            OSError: the connection broke.
        """
        ...

    def is_readable(self) -> bool:
        """Whether bytes, the end or an error can be received without waiting."""
        ...

    def close(self) -> None:
        """End the connection at once; twice is once."""
        ...


class Deadline(Protocol):
    """A time by which a block must be done; the block is cancelled then.

    The block ends with `TooLateError` instead of the cancellation.
    """

    def move(self, timeout_s: float) -> None:
        """Let the block take `timeout_s` from now on."""
        ...

    async def __aenter__(self) -> Deadline: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Loop(Protocol):
    """What an adapter module offers."""

    def deadline(self, timeout_s: float) -> Deadline:
        """A deadline that is `timeout_s` away when its block begins."""
        ...

    def limiter(self, count: int) -> AbstractAsyncContextManager[None]:
        """Lets `count` tasks into its block at a time, the others in the order they came."""
        ...

    async def connect(self, host: str, port: int) -> ByteStream:
        """Connect by TCP, with the small delays of Nagle's algorithm turned off.

        Of several addresses that `host` has, the first to answer is taken; the next is tried when
        one fails, or does not answer within `NEXT_ADDRESS_AFTER_S`.

        Raises:
            OSError: `host` is not known, or no address answers: why the first of them does not.
        """
        ...


class Outgoing:
    """Buffers that are being sent: what is left of them. Copies nothing."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._waiting = [memoryview(buffer) for buffer in buffers if len(buffer)]

    def next(self) -> list[memoryview]:
        """As much as one system call takes; empty when all is sent."""
        return self._waiting[:BUFFERS_PER_SEND_MAX]

    def sent(self, count: int) -> bool:
        """Note that `count` bytes of `next` have left; whether that was all."""
        waiting = self._waiting
        index = 0
        while index < len(waiting) and count >= len(waiting[index]):
            count -= len(waiting[index])
            index += 1
        del waiting[:index]
        if count:
            waiting[0] = waiting[0][count:]
        return not waiting
