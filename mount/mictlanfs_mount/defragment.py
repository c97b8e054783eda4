"""Puts the pieces of much-fragmented files together again, in the background.

A *slice* is one chunk's worth of a file, aligned. One that was written here and there in small
pieces alternates between pieces of old and new chunks: hundreds of extents, which each later reader
has to ask for and to put together. When nobody has written to the file for a while, its bytes are
stored once more, as one chunk, and committed in the place of the pieces::

    noted ----(file quiet)----> bytes read, stored as a chunk ----> committed
      |                              |                                  +--(refused)--> tried again
      +--(lease or file gone)--------+--> forgotten, nothing changed

The bytes do not change, only where they lie, and the commit says of which content version they are:
when anybody has written meanwhile the router refuses it, and nothing is undone. So a crash at any
point costs at most a chunk that nothing names. Holes stay holes, times stay as they are, and the
old chunks go when the last extent that names them does.

Only files under a lease for writing are touched, one slice at a time, no more than half of the
time, and only while the budget of dirty bytes has room to spare.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, Buffer, InodeNumber
from mictlanfs_mount.compaction import moving_op, placed
from mictlanfs_mount.extents import Segment

if TYPE_CHECKING:
    from mictlanfs_mount.budget import Budget
    from mictlanfs_mount.inodes import Inode
    from mictlanfs_mount.writeback import Storage

log = logging.getLogger(__name__)

# A slice is rewritten when it then has so many extents fewer. With 4 KiB pages in slices of 4 MiB
# each byte that was written costs 16 more, at most.
EXTENTS_SAVED_MIN = 64
# Nobody has written to the file for so long.
QUIET_S = 5.0
TICK_S = 0.5
# Slices that are remembered, of all files: 256 GiB of them.
SLICES_MAX = 65_536
# How often a slice is tried whose file somebody writes to meanwhile, or that meets other errors
# than that peers are away.
ATTEMPTS_MAX = 3
SLICE_S_MAX = 10.0
# How long nothing is done after something failed.
PAUSE_S = 10.0
# Nobody can tell any more where the bytes of the file are, or change that.
_GONE = frozenset({Kind.NOT_FOUND, Kind.STALE, Kind.FENCED})


@dataclass(slots=True)
class _Fragmented:
    """The slices of a file that are to be rewritten, each with how often that failed."""

    written_s: float = 0.0
    slices: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class DefragmentStats:
    """What was done since the mount began.

    Attributes:
        slices, bytes: that were rewritten.
        refused: rewritten slices that the router did not take, as somebody had written meanwhile.
        failed: attempts that met another error.
        pending: slices that wait for their file to be quiet.
    """

    slices: int = 0
    bytes: int = 0
    refused: int = 0
    failed: int = 0
    pending: int = 0


class Defragmenter:
    """Notes much-fragmented slices and rewrites them.

    Args:
        changeable: the inode of a file that may be changed from here, None when it may not.
        is_dirty: whether bytes of a file are not committed yet.
        know: makes the extents of a range of a file known, as far as they can be.
        read: gives bytes `[start, end)` of a file, which lie as the segments say.
        on_committed: told where the bytes lie now, as after a commit of write-back.
    """

    def __init__(
        self,
        storage: Storage,
        budget: Budget,
        *,
        changeable: Callable[[InodeNumber], Inode | None],
        is_dirty: Callable[[InodeNumber], bool],
        know: Callable[[Inode, int, int], Awaitable[None]],
        read: Callable[[int, int, Sequence[Segment]], Awaitable[Buffer]],
        on_committed: Callable[[InodeNumber, list[Segment], Attributes], None],
    ) -> None:
        self._storage = storage
        self._budget = budget
        self._changeable = changeable
        self._is_dirty = is_dirty
        self._know = know
        self._read = read
        self._on_committed = on_committed
        self._files: dict[InodeNumber, _Fragmented] = {}
        self._stats = DefragmentStats()
        self._paused_until_s = -math.inf
        # The end of the mount may come while a slice is being rewritten.
        self._lock = trio.Lock()

    def stats(self) -> DefragmentStats:
        """The counters of now."""
        stats = self._stats
        return DefragmentStats(
            stats.slices, stats.bytes, stats.refused, stats.failed, self._pending_count()
        )

    def _pending_count(self) -> int:
        return sum(len(file.slices) for file in self._files.values())

    def note(self, inode: Inode, segments: Sequence[Segment]) -> None:
        """These were committed, and `inode.extents` has them already."""
        size = inode.policy.chunk_size
        file = self._files.get(inode.ino)
        if file is not None:
            file.written_s = trio.current_time()
        for index in {s.offset // size for s in segments if s.end - s.offset < size}:
            count = inode.extents.count(index * size, (index + 1) * size)
            if count <= EXTENTS_SAVED_MIN or self._pending_count() >= SLICES_MAX:
                continue
            if file is None:
                file = self._files[inode.ino] = _Fragmented(trio.current_time())
            file.slices.setdefault(index, 0)

    async def run(self) -> None:
        """Rewrite slices of quiet files, for as long as the mount lives."""
        rest_s = TICK_S
        while True:
            await trio.sleep(rest_s)
            started_s = trio.current_time()
            is_busy = await self.rewrite_one(QUIET_S)
            # Rests for as long as it works.
            rest_s = trio.current_time() - started_s if is_busy else TICK_S

    async def rewrite_all(self) -> None:
        """Rewrite what is noted now, also of files that were written just now.

        Cancellation: what is rewritten stays so.
        """
        while self._files and await self.rewrite_one(0.0):
            pass

    async def rewrite_one(self, quiet_s: float) -> bool:
        """Deal with a slice of a file that nobody has written to for so long; whether there is one.

        Never raises a `MictlanError`. Cancellation: it is rewritten or not.
        """
        async with self._lock:
            return await self._rewrite_first(quiet_s)

    async def _rewrite_first(self, quiet_s: float) -> bool:
        now_s = trio.current_time()
        if now_s < self._paused_until_s:
            return False
        for ino, file in list(self._files.items()):
            inode = self._changeable(ino)
            if inode is None or inode.attributes.nlink == 0 or not file.slices:
                del self._files[ino]
                continue
            room = self._budget.limit_bytes // 2 - self._budget.used_bytes
            if (
                now_s >= file.written_s + quiet_s
                and not self._is_dirty(ino)
                and inode.policy.chunk_size <= room
            ):
                await self._rewrite(inode, file, next(iter(file.slices)))
                return True
        return False

    async def _rewrite(self, inode: Inode, file: _Fragmented, index: int) -> None:
        """Rewrite a slice, or say why not."""
        kind = Kind.TIMED_OUT
        with trio.move_on_after(SLICE_S_MAX):
            try:
                size = await self._try(inode, index)
                file.slices.pop(index, None)
                self._stats.slices += bool(size)
                self._stats.bytes += size
                return
            except MictlanError as error:
                kind = error.kind
        log.info("slice %d of inode %d stays fragmented for now: %s", index, inode.ino, kind)
        if kind in _GONE:
            file.slices.clear()
        else:
            # Behind the others, which may be in better health. Peers come back; what else there
            # is may never end, and each attempt may cost a chunk that nothing names.
            attempts = file.slices.pop(index, 0) + (kind is not Kind.UNAVAILABLE)
            if attempts < ATTEMPTS_MAX:
                file.slices[index] = attempts
        if kind is Kind.CONFLICT:
            self._stats.refused += 1
            file.written_s = trio.current_time()
            # If it was not this mount that wrote, the next attempt has to ask.
            inode.extents.reset(inode.extents.content_version)
        else:
            self._stats.failed += 1
            self._paused_until_s = trio.current_time() + PAUSE_S

    async def _try(self, inode: Inode, index: int) -> int:
        """Rewrite a slice; how many bytes that were, 0 when it is not worth it."""
        start = index * inode.policy.chunk_size
        end = min(start + inode.policy.chunk_size, inode.attributes.size)
        if start >= end:
            return 0
        await self._know(inode, start, end)
        # No await before all of it is taken: it is of one version.
        version = inode.extents.content_version
        if version < 0 or inode.extents.first_unknown(start, end) is not None:
            raise MictlanError(Kind.CONFLICT, "defragment", str(inode.ino), "it keeps changing")
        segments = [s for s in inode.extents.segments(start, end) if s.chunk is not None]
        runs = joined(segments)
        if len(segments) - len(runs) < EXTENTS_SAVED_MIN:
            return 0
        self._budget.reserve(end - start)
        try:
            view = memoryview(await self._read(start, end, segments))
            pieces = [view[first - start : stop - start] for first, stop in runs]
            chunk = await self._storage.store(pieces, inode.policy)
            moved = placed(segments, chunk)
            op = moving_op(inode, moved, chunk, version)
            self._on_committed(inode.ino, moved, await self._storage.commit(op, sync=False))
        finally:
            self._budget.reserve(start - end)
        return chunk.length


def joined(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """The ranges of the file that segments cover, which are in order, neighbours as one."""
    runs: list[tuple[int, int]] = []
    for segment in segments:
        if runs and runs[-1][1] == segment.offset:
            runs[-1] = (runs[-1][0], segment.end)
        else:
            runs.append((segment.offset, segment.end))
    return runs
