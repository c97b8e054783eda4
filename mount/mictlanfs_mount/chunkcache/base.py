"""What every level of the chunk cache is, and how it is counted.

A chunk never changes, so a cached byte is never stale: a level may forget anything at any time and
needs no invalidation. A level serves byte ranges of chunks, from memory at once or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mictlanfs.model import KIB, Buffer, Chunk, ChunkId

# The unit of random reads. The kernel asks a buffered file for at most this much at a time unless
# its read-ahead window was raised, so a smaller unit would only cost requests.
BLOCK_SIZE_BYTES = 128 * KIB
_BLOCK_SHIFT = BLOCK_SIZE_BYTES.bit_length() - 1


@dataclass(frozen=True, slots=True)
class LevelStats:
    """What a level holds and what it did since it was opened.

    Attributes:
        hits, misses: lookups that were answered, and that were not.
        evictions: entries given up for space.
        entries: entries held now.
        size_bytes: what they are counted as now.
        budget_bytes: what they may be counted as.
    """

    hits: int
    misses: int
    evictions: int
    entries: int
    size_bytes: int
    budget_bytes: int


class ChunkLevel(Protocol):
    """One level of the cache. Every method returns at once; none ever waits or fails a read."""

    def get(self, chunk: Chunk, start: int, end: int) -> memoryview | None:
        """Bytes `[start, end)` of `chunk`, read-only, or None when they are not at hand.

        `0 <= start < end <= chunk.length` must hold.
        """
        ...

    def has_whole(self, chunk_id: ChunkId) -> bool:
        """Whether the level holds the whole chunk. Does not count as a use of it."""
        ...

    def put_whole(self, chunk: Chunk, body: memoryview) -> None:
        """Take the bytes of a whole chunk, or ignore them when they do not fit.

        The level keeps `body` itself: nobody may change it afterwards (see `owned`).
        """
        ...

    def discard(self, chunk_id: ChunkId) -> None:
        """Forget what is held of a chunk."""
        ...

    def stats(self) -> LevelStats:
        """The counters of now."""
        ...


def block_indices(start: int, end: int) -> range:
    """The blocks that `[start, end)` touches."""
    return range(start >> _BLOCK_SHIFT, ((end - 1) >> _BLOCK_SHIFT) + 1)


def block_bounds(index: int, length: int) -> tuple[int, int]:
    """Where block `index` of a chunk of `length` bytes starts and ends."""
    start = index << _BLOCK_SHIFT
    return start, min(start + BLOCK_SIZE_BYTES, length)


def owned(body: Buffer) -> memoryview:
    """A read-only view of `body` that keeps little more than its own bytes alive.

    A body may be a slice of something larger, such as an answer with many small chunks. Kept as it
    is, it would hold all of that in memory while being counted as a few bytes, so it is copied.
    """
    view = memoryview(body)
    base = view.obj
    if isinstance(base, bytes | bytearray) and len(base) <= view.nbytes + view.nbytes // 8:
        return view.toreadonly()
    return memoryview(view.tobytes())
