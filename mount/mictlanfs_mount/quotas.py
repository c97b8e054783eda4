"""What may still be written into buckets that have a quota: so that `write` itself says EDQUOT.

The router decides, when it is told of what was written; that is late for a program. So the mount
keeps, for a second, what it was told a bucket has left, less what it accepted since. While that
suffices a write costs nothing. Otherwise the dirty files are committed first and the router is
asked, and the answer is exact but for what other mounts write at that moment. What the router
refuses after all stays dirty, as after any other failure; see `writeback`.

Never drops a byte and never refuses one that takes no room: what overwrites something, or is
written again before it was committed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from mictlanfs import wire
from mictlanfs.client.router import RouterClient
from mictlanfs.config import format_size
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.intervals import merge
from mictlanfs.model import InodeNumber
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.writeback import WriteBack

VALIDITY_S = 1.0
# No quota: what is left of a bucket that has lost its own a moment ago.
_UNLIMITED_SIZE_BYTES = 2**63

# Makes the extents of `[start, end)` of a file known.
KnowExtents = Callable[[Inode, int, int], Awaitable[None]]


@dataclass(slots=True)
class _Allowance:
    """What may be written into a bucket without asking, until a time (monotonic)."""

    left: int
    until_s: float


class Quotas:
    """The allowances of all buckets that this mount writes into.

    Args:
        deadline_s: how long a write that is nearly too much waits for earlier ones to be stored.
    """

    def __init__(
        self,
        router: RouterClient,
        writeback: WriteBack,
        know_extents: KnowExtents,
        deadline_s: float,
    ) -> None:
        self._router = router
        self._writeback = writeback
        self._know_extents = know_extents
        self._deadline_s = deadline_s
        self._allowances: dict[InodeNumber, _Allowance] = {}
        # Held by the one write that finds out whether it fits.
        self._asking = trio.Lock()

    async def inherit(self, inode: Inode, directory: Inode) -> None:
        """A new inode is in the bucket of its directory: one question for all files made there."""
        if not inode.policy.quota:
            return
        await self.find_bucket(directory)
        inode.bucket = directory.bucket

    async def find_bucket(self, directory: Inode) -> None:
        """Know in which bucket a directory lies."""
        if not directory.bucket:
            directory.bucket = (await self._use_of(directory)).bucket

    async def admit(self, inode: Inode, offset: int, length: int) -> None:
        """Take note that `[offset, offset + length)` of a file is about to be written.

        The caller writes it without suspending in between.

        Raises:
            MictlanError: QUOTA_EXCEEDED when it does not fit; or the router does not answer.
        """
        if not inode.policy.quota or self._admit_now(inode, offset, offset + length):
            return
        async with self._asking:
            if self._admit_now(inode, offset, offset + length):
                return
            await self._ask(inode)
            if not inode.bucket:
                # It lies in none, or nowhere any more: nothing limits it, or nobody will read it.
                return
            if self._admit_now(inode, offset, offset + length):
                return
            await self._admit_exactly(inode, offset, offset + length)

    def _admit_now(self, inode: Inode, start: int, end: int) -> bool:
        """Whether the range fits into what is known to be left; takes it from that."""
        growth = self._growth(inode, start, end)
        allowance = self._allowances.get(inode.bucket)
        if growth == 0:
            return True
        if allowance is None or trio.current_time() >= allowance.until_s:
            return False
        if growth > allowance.left:
            return False
        allowance.left -= growth
        return True

    def _growth(self, inode: Inode, start: int, end: int) -> int:
        """The bytes of a range that are in no extent; all of them where that is not known."""
        if inode.extents.first_unknown(start, end) is not None:
            return end - start
        segments = inode.extents.segments(start, end)
        return sum(s.end - s.offset for s in segments if s.chunk is None)

    async def _use_of(self, inode: Inode) -> wire.BucketUse:
        """What the bucket of a file uses; of the one it was made in if the router misses the file.

        The router may not have been told of it yet, or another mount may have removed it.
        """
        for ino in (inode.ino, inode.bucket):
            try:
                if ino:
                    return await self._router.bucket_use(ino)
            except MictlanError as error:
                if error.kind is not Kind.NOT_FOUND:
                    raise
        return wire.BucketUse()

    async def _ask(self, inode: Inode) -> None:
        """Learn what the bucket of a file has left when all that is dirty is new in it."""
        budget = self._writeback.budget
        # Whatever is committed meanwhile may or may not be in the answer: counted in any case.
        dirty = self._writeback.dirty_bytes_with_quota()
        charged_before = budget.charged_bytes
        use = await self._use_of(inode)
        self._note(inode, use, dirty + budget.charged_bytes - charged_before)

    def _note(self, inode: Inode, use: wire.BucketUse, dirty: int) -> None:
        inode.bucket = use.bucket
        if not use.bucket:
            return
        left = use.quota - use.used - dirty if use.quota else _UNLIMITED_SIZE_BYTES
        self._allowances[use.bucket] = _Allowance(left, trio.current_time() + VALIDITY_S)

    async def _admit_exactly(self, inode: Inode, start: int, end: int) -> None:
        """Commit what is dirty, ask, and accept the range or refuse it."""
        # Others wait until this is decided, so that little becomes dirty meanwhile.
        self._allowances.clear()
        await self._writeback.settle_with_quota(self._deadline_s)
        await self._know_extents(inode, start, end)
        refused = self._writeback.refused_bytes()
        charged_before = self._writeback.budget.charged_bytes
        use = await self._use_of(inode)
        charged = self._writeback.budget.charged_bytes - charged_before
        self._note(inode, use, refused + charged)
        if not use.bucket:
            return
        growth = self._growth_beyond_dirty(inode, start, end)
        allowance = self._allowances[use.bucket]
        if growth > max(0, allowance.left):
            detail = (
                f"the bucket uses {format_size(use.used)} of its quota, {format_size(use.quota)}"
            )
            raise MictlanError(Kind.QUOTA_EXCEEDED, "write", str(inode.ino), detail)
        allowance.left -= growth

    def _growth_beyond_dirty(self, inode: Inode, start: int, end: int) -> int:
        """The bytes of a range that are neither in an extent nor dirty already."""
        covered: list[tuple[int, int]] = []
        writer = self._writeback.get(inode.ino)
        if writer is not None:
            dirty = writer.collect(start, end)
            covered = merge([(offset, offset + len(data)) for offset, data in dirty])
        growth, position = 0, start
        for low, high in [*covered, (end, end)]:
            if position < low:
                growth += self._growth(inode, position, low)
            position = high
        return growth


async def within_quota(router: RouterClient, root: Inode | None, space: wire.StatFs) -> wire.StatFs:
    """Space and counts as a mount of `root` shows them: of its bucket, if that has a quota."""
    if root is None or not root.policy.quota:
        return space
    use = await router.bucket_use(root.ino)
    if not use.quota:
        return space
    free = min(space.free, max(0, use.quota - use.used))
    return wire.StatFs(use.quota, free, space.inode_count, space.chunk_count)
