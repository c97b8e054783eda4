"""The adapter for trio; see `base.Loop`."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import trio

from mictlanfs.client.loops.base import NEXT_ADDRESS_AFTER_S, ByteStream, Outgoing, TooLateError
from mictlanfs.model import Buffer


class TrioStream:
    """A `ByteStream` over a connected socket, which it owns."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock

    async def receive(self, size_max: int) -> bytes:
        """See `ByteStream`."""
        return await self._socket.recv(size_max)

    async def fill(self, buffer: memoryview) -> int:
        """See `ByteStream`."""
        start = 0
        while start < len(buffer):
            count = await self._socket.recv_into(buffer[start:])
            if count == 0:
                break
            start += count
        return start

    async def send_all(self, buffers: Sequence[Buffer]) -> None:
        """See `ByteStream`."""
        outgoing = Outgoing(buffers)
        while not outgoing.sent(await self._socket.sendmsg(outgoing.next())):
            pass

    def is_readable(self) -> bool:
        """See `ByteStream`."""
        return self._socket.is_readable()

    def close(self) -> None:
        """See `ByteStream`."""
        self._socket.close()


class TrioDeadline:
    """A `Deadline` by a cancel scope."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._scope = trio.CancelScope()

    def move(self, timeout_s: float) -> None:
        """See `Deadline`."""
        self._scope.deadline = trio.current_time() + timeout_s

    async def __aenter__(self) -> TrioDeadline:
        self.move(self._timeout_s)
        self._scope.__enter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            raise TooLateError from error


deadline = TrioDeadline


def limiter(count: int) -> AbstractAsyncContextManager[None]:
    """See `Loop`."""
    return trio.CapacityLimiter(count)


async def connect(host: str, port: int) -> ByteStream:
    """See `Loop`."""
    try:
        stream = await trio.open_tcp_stream(host, port, happy_eyeballs_delay=NEXT_ADDRESS_AFTER_S)
    except OSError as error:
        raise _first_reason(error) from None
    stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return TrioStream(stream.socket)


def _first_reason(error: OSError) -> OSError:
    """Trio sums up why each address failed, in its own words; the summary gives no reason."""
    causes = error.__cause__.exceptions if isinstance(error.__cause__, ExceptionGroup) else ()
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno is not None:
            return OSError(cause.errno, os.strerror(cause.errno))
    return error
