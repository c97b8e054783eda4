"""Moves inline bytes of a file to the peers when there are many: together, as one chunk.

A log that is flushed after each line grows by one inline chunk of a few KiB after the other, a
database by one for each page it writes. Now and then a flush therefore takes the inline chunks of
its file along. The bytes do not change, only where they lie, and the commit says of which content
version they are: when anybody has written meanwhile the router refuses it, and nothing is undone.
A failure costs nothing but the attempt; the next one comes with as many more writes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio
from cachetools import LRUCache

from mictlanfs import wire
from mictlanfs.errors import MictlanError
from mictlanfs.model import Attributes, Buffer, Chunk, Extent, InodeNumber
from mictlanfs_mount.extents import Segment

if TYPE_CHECKING:
    from mictlanfs_mount.inodes import Inode
    from mictlanfs_mount.writeback import Storage

log = logging.getLogger(__name__)

# Inline chunks written to one file before they are moved.
INLINE_CHUNKS_MAX = 64
# Whoever flushes waits for it, and shall not wait for peers that are away.
COMPACT_S_MAX = 2.0
# Files that are written to in turn.
FILES_MAX = 1024


class Compactor:
    """Counts inline chunks by file and moves them.

    Args:
        read: gives the committed bytes of a segment.
        on_committed: told where the bytes lie now, as after a commit of write-back.
    """

    def __init__(
        self,
        storage: Storage,
        read: Callable[[Segment], Awaitable[Buffer]],
        on_committed: Callable[[InodeNumber, list[Segment], Attributes], None],
    ) -> None:
        self._storage = storage
        self._read = read
        self._on_committed = on_committed
        self._counts: LRUCache[InodeNumber, int] = LRUCache(FILES_MAX)

    def note(self, ino: InodeNumber, segments: Sequence[Segment]) -> None:
        """These were committed; those of inline chunks count."""
        count = sum(segment.is_inline for segment in segments)
        if count:
            self._counts[ino] = self._counts.get(ino, 0) + count

    async def compact_when_due(self, inode: Inode) -> bool:
        """Move the inline chunks of a file if there may be many; whether it was done.

        Never raises a `MictlanError`. Cancellation: it is done or not, nothing is lost.
        """
        if self._counts.get(inode.ino, 0) < INLINE_CHUNKS_MAX:
            return False
        self._counts[inode.ino] = 0
        try:
            with trio.move_on_after(COMPACT_S_MAX):
                return await self._compact(inode)
        except MictlanError as error:
            log.info("inline bytes of inode %d stay where they are: %s", inode.ino, error)
        return False

    async def _compact(self, inode: Inode) -> bool:
        # No await before all of it is taken: it is of one version.
        version = inode.extents.content_version
        segments = inode.extents.inline_segments(inode.policy.chunk_size)
        mtime_ns = inode.attributes.mtime_ns
        size = sum(segment.end - segment.offset for segment in segments)
        if len(segments) < INLINE_CHUNKS_MAX // 2 and size < inode.policy.chunk_size // 2:
            return False
        bodies = [await self._read(segment) for segment in segments]
        chunk = await self._storage.store(bodies, inode.policy)
        moved = _placed(segments, chunk)
        extents = tuple(Extent(s.offset, s.end - s.offset, chunk.id, s.chunk_offset) for s in moved)
        op = wire.WriteExtents(
            inode.ino,
            extents,
            (chunk,),
            moved[-1].end,
            mtime_ns,
            if_content_version=version,
        )
        self._on_committed(inode.ino, moved, await self._storage.commit(op, sync=False))
        return True


def _placed(segments: Sequence[Segment], chunk: Chunk) -> list[Segment]:
    """Where the bytes of `segments` lie in a chunk of all of them, neighbours as one."""
    placed: list[Segment] = []
    position = 0
    for segment in segments:
        length = segment.end - segment.offset
        if placed and placed[-1].end == segment.offset:
            last = placed.pop()
            placed.append(Segment(last.offset, segment.end, chunk, last.chunk_offset))
        else:
            placed.append(Segment(segment.offset, segment.end, chunk, position))
        position += length
    return placed
