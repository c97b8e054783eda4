"""Moves inline bytes of a file to the peers: when there are many, or too large ones for long.

A log that is flushed after each line grows by one inline chunk of a few KiB after the other, a
database by one for each page it writes. Now and then a flush therefore takes the inline chunks of
its file along. The bytes do not change, only where they lie, and the commit says of which content
version they are: when anybody has written meanwhile the router refuses it, and nothing is undone.
A failure costs nothing but the attempt; the next one comes with as many more writes.

Bytes that are inline only because an fsync waited for them are *owed* to the peers. They are moved
when nobody has written to their file for a while, and there is a bound on how many may be owed::

    committed --(file quiet, or the mount ends)--> moved
        +-----(file removed)---------------------> gone, as most journals of databases
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from cachetools import LRUCache

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB, Attributes, Buffer, Chunk, Extent, InodeNumber
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
# What is owed of a file is moved when nobody has written to it for so long.
QUIET_S = 2.0
TICK_S = 0.5
OWED_SIZE_BYTES_MAX = 64 * MIB
# How long nothing is moved after peers took nothing.
PAUSE_S = 10.0
# Somebody else has written: where the bytes are now is not known here.
_CHANGED = frozenset({Kind.CONFLICT, Kind.NOT_FOUND, Kind.STALE, Kind.FENCED})


@dataclass(slots=True)
class _Owed:
    """Bytes of a file that are to be moved, counted as often as they were written."""

    inode: Inode
    size: int = 0
    written_s: float = 0.0


class Compactor:
    """Counts inline chunks by file and moves them.

    Args:
        read: gives the committed bytes of a segment.
        on_committed: told where the bytes lie now, as after a commit of write-back.

    Attributes:
        owed_bytes: how many bytes are owed, of all files.
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
        self._owed: dict[InodeNumber, _Owed] = {}
        self.owed_bytes = 0
        self._paused_until_s = -math.inf

    def note(self, inode: Inode, segments: Sequence[Segment], inline_size_max: int) -> None:
        """These were committed; those of inline chunks count.

        More than `inline_size_max` bytes are owed to the peers.
        """
        inline = [segment for segment in segments if segment.is_inline]
        if not inline:
            return
        ino = inode.ino
        self._counts[ino] = self._counts.get(ino, 0) + len(inline)
        size = sum(segment.end - segment.offset for segment in inline)
        owed = self._owed.get(ino)
        if owed is None and size <= inline_size_max:
            return
        if owed is None or owed.inode is not inode:
            self._forgive(ino)
            owed = self._owed[ino] = _Owed(inode)
        owed.size += size
        owed.written_s = trio.current_time()
        self.owed_bytes += size

    def owes(self, ino: InodeNumber) -> bool:
        """Whether bytes of a file are still to be moved."""
        return ino in self._owed

    def _forgive(self, ino: InodeNumber) -> None:
        """Nothing is owed of a file any more."""
        owed = self._owed.pop(ino, None)
        if owed is not None:
            self.owed_bytes -= owed.size

    async def move_owed(self, quiet_s: float = QUIET_S) -> list[InodeNumber]:
        """Move what is owed of the files that are quiet; returns those of which some was moved.

        Errors and cancellation: as for `compact_when_due`.
        """
        moved = []
        for ino, owed in list(self._owed.items()):
            inode = owed.inode
            if inode.attributes.nlink == 0:
                self._forgive(ino)
                continue
            due_s = max(owed.written_s + quiet_s, self._paused_until_s)
            if trio.current_time() >= due_s and await self._move(inode):
                moved.append(ino)
        return moved

    async def _move(self, inode: Inode) -> bool:
        """Move what is owed of a file. What the peers do not take stays owed."""
        kind: Kind | None = Kind.TIMED_OUT
        is_moved = False
        with trio.move_on_after(COMPACT_S_MAX):
            try:
                is_moved = await self._compact(inode, size_min=1)
                kind = None
            except MictlanError as error:
                kind = error.kind
        if kind is None or kind in _CHANGED:
            self._forgive(inode.ino)
        else:
            log.info("inline bytes of inode %d are not moved yet: %s", inode.ino, kind)
            self._paused_until_s = trio.current_time() + PAUSE_S
        return is_moved

    async def compact_when_due(self, inode: Inode) -> bool:
        """Move the inline chunks of a file if there may be many; whether it was done.

        Never raises a `MictlanError`. Cancellation: it is done or not, nothing is lost.
        """
        if self._counts.get(inode.ino, 0) < INLINE_CHUNKS_MAX:
            return False
        self._counts[inode.ino] = 0
        if not await self._try(inode, size_min=inode.policy.chunk_size // 2):
            return False
        self._forgive(inode.ino)
        return True

    async def _try(self, inode: Inode, *, size_min: int) -> bool:
        try:
            with trio.move_on_after(COMPACT_S_MAX):
                return await self._compact(inode, size_min)
        except MictlanError as error:
            log.info("inline bytes of inode %d stay where they are: %s", inode.ino, error)
        return False

    async def _compact(self, inode: Inode, size_min: int) -> bool:
        # No await before all of it is taken: it is of one version.
        version = inode.extents.content_version
        segments = inode.extents.inline_segments(inode.policy.chunk_size)
        size = sum(segment.end - segment.offset for segment in segments)
        if len(segments) < INLINE_CHUNKS_MAX // 2 and size < size_min:
            return False
        bodies = [await self._read(segment) for segment in segments]
        chunk = await self._storage.store(bodies, inode.policy)
        moved = placed(segments, chunk)
        op = moving_op(inode, moved, chunk, version)
        self._on_committed(inode.ino, moved, await self._storage.commit(op, sync=False))
        return True


def moving_op(
    inode: Inode, moved: Sequence[Segment], chunk: Chunk, content_version: int
) -> wire.WriteExtents:
    """The operation by which bytes of a content version lie in `chunk` from now on.

    It has no effect on another version, and changes neither content nor times.
    """
    return wire.WriteExtents(
        inode.ino,
        tuple(Extent(s.offset, s.end - s.offset, chunk.id, s.chunk_offset) for s in moved),
        (chunk,),
        moved[-1].end,
        # As it is now: it may have been set since.
        inode.attributes.mtime_ns,
        if_content_version=content_version,
    )


def placed(segments: Sequence[Segment], chunk: Chunk) -> list[Segment]:
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
