"""The cache on demand: what of a file is at hand, putting it into the disk cache, forgetting it.

Owns nothing: it walks over the extents of a file and asks the chunk cache for each chunk. Works on
committed content; what is not committed yet is in memory and of no concern here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Chunk, ChunkId
from mictlanfs.mounts import cachewords
from mictlanfs.mounts.cachewords import Cleared, Held, Warmed
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs_mount.chunkcache.cache import ChunkCache, Warmth
from mictlanfs_mount.inodes import Inode

# Chunks of one request that are fetched at the same time.
_AT_ONCE_MAX: Final = 8
# Of a large file, so much is looked at in one step; what it takes in memory is bounded so.
_STEP_SIZE_BYTES: Final = 1 << 30

Know = Callable[[Inode, int, int], Awaitable[None]]


@dataclass(slots=True)
class _Use:
    """A chunk, and how many bytes of a range of a file are of it."""

    chunk: Chunk
    size: int = 0


class Warming:
    """Answers requests about the cache; see `mictlanfs.mounts.cachewords`.

    Args:
        know: makes the extents of a range known, as far as they can be of a file that changes.
    """

    def __init__(self, cache: ChunkCache, know: Know) -> None:
        self._cache = cache
        self._know = know

    async def answer(self, inode: Inode, name: bytes) -> bytes:
        """The answer to a request about a file.

        Raises:
            MictlanError: NO_DATA when `name` is no request; what keeps bytes from being had.
        """
        offset = cachewords.offset_of(name)
        if offset is not None:
            return cachewords.encode(await self.warm(inode, offset))
        if name == cachewords.HELD:
            return cachewords.encode(await self.held(inode))
        if name == cachewords.CLEAR:
            return cachewords.encode(await self.clear(inode))
        raise MictlanError(Kind.NO_DATA, "getxattr", str(inode.ino))

    async def held(self, inode: Inode) -> Held:
        """What of a file is where."""
        size = inode.attributes.size
        disk = memory = near = inline = used = 0
        for start in range(0, size, _STEP_SIZE_BYTES):
            for use in await self._uses(inode, start, min(size, start + _STEP_SIZE_BYTES)):
                places = self._cache.places(use.chunk)
                used += use.size
                inline += 0 if use.chunk.peers else use.size
                disk += use.size if places.disk else 0
                memory += use.size if places.memory else 0
                near += use.size if places.near else 0
        return Held(size, disk, memory, near, inline, size - used)

    async def warm(self, inode: Inode, offset: int) -> Warmed:
        """Put a part of a file into the disk cache; returns when it is there.

        Cancellation: some of it is.
        """
        size = inode.attributes.size
        end = min(size, offset + cachewords.PART_SIZE_BYTES)
        if offset >= size:
            return Warmed(size)
        uses = await self._uses(inode, offset, end)
        sizes = dict.fromkeys(Warmth, 0)
        sizes[Warmth.INLINE] += end - offset - sum(use.size for use in uses)
        limiter = trio.CapacityLimiter(_AT_ONCE_MAX)

        async def warm(use: _Use) -> None:
            async with limiter:
                sizes[await self._cache.warm(use.chunk)] += use.size

        with raising_single_errors():
            async with trio.open_nursery() as nursery:
                for use in uses:
                    nursery.start_soon(warm, use)
        return Warmed(
            end,
            stored=sizes[Warmth.STORED],
            kept=sizes[Warmth.KEPT],
            near=sizes[Warmth.NEAR],
            inline=sizes[Warmth.INLINE],
            small=sizes[Warmth.SMALL],
            refused=sizes[Warmth.REFUSED],
        )

    async def clear(self, inode: Inode) -> Cleared:
        """Forget a file; returns when it is gone from the disk. Other files may lose chunks too."""
        size, forgotten = inode.attributes.size, 0
        for start in range(0, size, _STEP_SIZE_BYTES):
            uses = await self._uses(inode, start, min(size, start + _STEP_SIZE_BYTES))
            forgotten += await self._cache.forget([use.chunk for use in uses])
        return Cleared(forgotten)

    async def clear_all(self) -> Cleared:
        """Forget everything that is cached."""
        return Cleared(await self._cache.clear())

    async def _uses(self, inode: Inode, start: int, end: int) -> Sequence[_Use]:
        """The chunks of a range, each once, with how many bytes of the range are of it."""
        await self._know(inode, start, end)
        if inode.extents.first_unknown(start, end) is not None:
            raise MictlanError(Kind.BUSY, "cache", str(inode.ino), "the file keeps changing")
        uses: dict[ChunkId, _Use] = {}
        for segment in inode.extents.segments(start, end):
            if segment.chunk is not None:
                use = uses.setdefault(segment.chunk.id, _Use(segment.chunk))
                use.size += segment.end - segment.offset
        return list(uses.values())
