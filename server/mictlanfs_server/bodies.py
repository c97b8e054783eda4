"""The body of a large request, received straight into buffers of the application.

ASGI hands bodies over as `bytes`, which uvicorn makes by copying each byte four times. A server
that was started with `direct_bodies` gives its application a `RequestBody` as the extension
`EXTENSION` of the scope of every request with a large body; the application may use it in the place
of `receive`.

Owns the hand-over of one body between a connection and a task. Never knows HTTP: `serving.py` finds
out where a body begins and how long it is. Used in one event loop; at most one task reads.

::

    waiting ----read_into----> filling ----buffer full, or body over----> waiting
       |  ^                       |
       |  +------cancelled--------+                    in any state: lost -> reads fail
       +---abandon---> discarding                      nothing is received while waiting
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

EXTENSION: Final = "mictlanfs.body"
# Smaller bodies arrive with one or two reads, and copying them costs less than going another way.
LARGE_BODY_SIZE_BYTES: Final = 128 * 1024
_SCRATCH_SIZE_BYTES: Final = 64 * 1024


class Flow(Protocol):
    """What holds a connection's reading back."""

    def pause_reading(self) -> None:
        """Receive nothing; twice is once."""
        ...

    def resume_reading(self) -> None:
        """Receive again; twice is once."""
        ...


class RequestBody:
    """One body on its way.

    Args:
        length: bytes, at least 1.
        flow: of its connection.
        on_wanted: called before each read, when the application is ready for the body.

    Attributes:
        left: bytes that the connection has not received yet.
    """

    def __init__(self, length: int, flow: Flow, on_wanted: Callable[[], None]) -> None:
        self.left = length
        self._flow = flow
        self._on_wanted = on_wanted
        # What came in the same read as the head of the request.
        self._early = memoryview(b"")
        self._target: memoryview | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_lost = False
        self._is_abandoned = False

    # --- the application's side ----------------------------------------------------------------

    @property
    def unread(self) -> int:
        """Bytes that were not read yet, received or not."""
        return len(self._early) + self.left

    async def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the body goes; the number of bytes filled in.

        Cancellation: bytes may be lost; the body cannot be read on.

        Raises:
            ConnectionError: the client hung up.
        """
        size = min(len(buffer), self.unread)
        early = min(size, len(self._early))
        buffer[:early] = self._early[:early]
        self._early = self._early[early:]
        if early < size:
            await self._receive(buffer[early:size])
        return size

    async def _receive(self, target: memoryview) -> None:
        if self._is_lost:
            raise ConnectionError("the client hung up")
        assert self._waiter is None, "two tasks read one body"
        self._waiter = asyncio.get_running_loop().create_future()
        self._target = target
        self._on_wanted()
        self._flow.resume_reading()
        try:
            await self._waiter
        finally:
            self._target = self._waiter = None

    # --- the connection's side -----------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes that were received together with the head."""
        self.left -= len(data)
        self._early = memoryview(bytes(self._early) + data)

    def hold(self) -> None:
        """Receive nothing until somebody reads."""
        if self.left and self._target is None and not self._is_abandoned:
            self._flow.pause_reading()

    def target(self) -> memoryview:
        """Where the next bytes of the body go."""
        if self._target is None:
            # Nobody wants them: a read was cancelled, or the answer is given.
            return memoryview(bytearray(min(self.left, _SCRATCH_SIZE_BYTES)))
        return self._target

    def received(self, count: int) -> None:
        """Take note of `count` bytes in `target`."""
        self.left -= count
        if self._target is None:
            return
        self._target = self._target[count:]
        if not self._target:
            assert self._waiter is not None
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._target = None
            self.hold()

    def abandon(self) -> None:
        """What is left is received and thrown away: the answer is given already."""
        self._is_abandoned = True

    def lost(self) -> None:
        """The connection is gone."""
        self._is_lost = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionError("the client hung up"))
