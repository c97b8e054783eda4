"""Buffers for uploads, used again and again.

Fresh memory costs a page fault for every 4 KiB, which is more than receiving into it. Owns the
buffers that nobody uses now, up to a bound; never bounds how many are in use: `store.py` does, by
its budget of bytes. Used in one event loop.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mictlanfs.model import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

# One write and one step of the hash: what a thread is asked to do at a time.
BUFFER_SIZE_BYTES: Final = 1 * MIB
IDLE_MAX: Final = 32


class LentBuffers:
    """The buffers of one upload."""

    def __init__(self, idle: list[memoryview] | None = None) -> None:
        self._idle = [] if idle is None else idle
        self._taken: list[memoryview] = []

    def take(self) -> memoryview:
        """A buffer of 1 MiB with any content."""
        buffer = self._idle.pop() if self._idle else memoryview(bytearray(BUFFER_SIZE_BYTES))
        self._taken.append(buffer)
        return buffer

    def give_back(self) -> None:
        """Let others have the buffers."""
        self._idle.extend(self._taken[: IDLE_MAX - len(self._idle)])
        self._taken = []


class BufferPool:
    """Lends buffers to uploads."""

    def __init__(self) -> None:
        self._idle: list[memoryview] = []

    @property
    def idle_count(self) -> int:
        """Buffers that nobody uses."""
        return len(self._idle)

    @contextmanager
    def lend(self) -> Iterator[LentBuffers]:
        """Buffers until the end of the block; nobody may use them afterwards."""
        lent = LentBuffers(self._idle)
        try:
            yield lent
        finally:
            lent.give_back()
