"""A bounded number of bytes that many tasks share, in the order in which they ask.

Owns a counter and a queue. Used in one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class ByteBudget:
    """At most `size` bytes taken at a time; a task that asks for more than is left waits.

    First come, first served, so that a large request is not starved by small ones.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken(self) -> int:
        """Bytes in use now."""
        return self._size - self._left

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes; a request for more than all of them gets all of them.

        Cancellation: nothing is held.
        """
        size = min(size, self._size)
        await self._acquire(size)
        try:
            yield
        finally:
            self._release(size)

    async def _acquire(self, size: int) -> None:
        if not self._waiting and size <= self._left:
            self._left -= size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                # Whoever is behind may fit where this one did not.
                self._grant()
            else:
                # The bytes were granted in the same step in which the task was cancelled.
                self._release(size)
            raise

    def _release(self, size: int) -> None:
        self._left += size
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.cancelled():
                if size > self._left:
                    return
                self._left -= size
                turn.set_result(None)
            self._waiting.popleft()
