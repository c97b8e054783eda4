"""What the kernel keeps of this mount, and how it is made to forget it in time.

Names are the difficult part. To expire one the kernel takes the lock of its directory, which a
request that this mount has not answered yet may hold, and that request may be waiting for the very
lease that is being given up. So the lock is waited for in a thread and for a moment only; then, or
when there are many names, the kernel is told to look up every name of the mount anew, which takes
no lock. A kernel that cannot do that (before 6.16) is not told to keep names at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from mictlanfs.model import Buffer, InodeNumber
from mictlanfs_mount.notify import KernelInode, KernelNotifier

log = logging.getLogger(__name__)

# Each takes 4 us, while another mount waits. Above it everybody's names, and with them the pages of
# all files that are not open, are given up instead.
EXPIRED_COUNT_MAX = 16_384
# So many names have this time for their locks.
EXPIRED_PER_WAIT = 512
LOCK_WAIT_S_MAX = 0.05
# The same for names that are given up to save memory.
PATIENT_WAIT_S_MAX = 0.5
# A read under way locks its page; what it returns was true when it began.
PAGES_WAIT_S_MAX = 0.25
# Inodes named in one message.
PRUNED_COUNT_MAX = 512
# Messages between two points at which other tasks may run.
MESSAGES_PER_TURN = 256


class NotifiedKernel:
    """The kernel's cache of a mount.

    Args:
        notifier: sends the messages.
        to_kernel: the number by which the kernel knows an inode.
    """

    def __init__(
        self, notifier: KernelNotifier, to_kernel: Callable[[InodeNumber], KernelInode]
    ) -> None:
        self._notifier = notifier
        self._to_kernel = to_kernel
        # Threads that wait for a lock longer than anybody waits for them.
        self._limiter = trio.CapacityLimiter(8)

    @property
    def keeps_names(self) -> bool:
        """Whether names may be told to be kept: whether they can be made forgotten at any time."""
        return self._notifier.has_epoch

    def attributes_changed(self, ino: InodeNumber) -> None:
        """The kernel must ask for the attributes of an inode again; never waits."""
        self._invalidate(ino)

    def _invalidate(self, ino: InodeNumber) -> None:
        # Whatever the kernel has against it: at worst the mount is going.
        with suppress(OSError):
            self._notifier.invalidate_attributes(self._to_kernel(ino))

    def store(self, ino: InodeNumber, body: Buffer) -> bool:
        """The kernel keeps the content of a file of which it has nothing; whether it does."""
        return self._notifier.store(self._to_kernel(ino), 0, memoryview(body))

    async def forget(
        self,
        names: Sequence[tuple[InodeNumber, bytes]],
        inodes: Sequence[InodeNumber],
        *,
        is_awaited: bool = True,
        is_locked: bool = False,
    ) -> None:
        """Nothing of these is used any more when this returns.

        When the lock of a directory is known to be held by a request that this mount has not
        answered (`is_locked`), it is not waited for. When nobody waits for the forgetting each name
        is expired by itself, however many they are, so that the kernel need not look up the others
        again.
        """
        for index, ino in enumerate(inodes):
            self._invalidate(ino)
            if index % MESSAGES_PER_TURN == MESSAGES_PER_TURN - 1:
                await trio.lowlevel.checkpoint()
        if not names or not self._notifier.has_epoch:
            return
        if not is_awaited or (len(names) <= EXPIRED_COUNT_MAX and not is_locked):
            wait_s = LOCK_WAIT_S_MAX if is_awaited else PATIENT_WAIT_S_MAX
            if await self._expire_in_time(names, wait_s):
                return
        with suppress(OSError):
            self._notifier.increment_epoch()

    async def _expire_in_time(
        self, names: Sequence[tuple[InodeNumber, bytes]], wait_s: float
    ) -> bool:
        """Expire each name by itself; False: a lock was not to be had within `wait_s`."""
        for start in range(0, len(names), EXPIRED_PER_WAIT):
            part = names[start : start + EXPIRED_PER_WAIT]
            expired = [(self._to_kernel(parent), name) for parent, name in part]
            is_expired = False
            with trio.move_on_after(wait_s), suppress(OSError):
                await trio.to_thread.run_sync(
                    self._expire, expired, abandon_on_cancel=True, limiter=self._limiter
                )
                is_expired = True
            if not is_expired:
                return False
        return True

    async def drop(self, names: Sequence[tuple[InodeNumber, bytes]]) -> None:
        """Names that nobody uses are kept no more: their inodes take memory, here too.

        In a thread, however long it takes.
        """
        dropped = [(self._to_kernel(parent), name) for parent, name in names]
        with suppress(OSError):
            await trio.to_thread.run_sync(
                self._drop, dropped, abandon_on_cancel=True, limiter=self._limiter
            )

    async def prune(self, inodes: Sequence[InodeNumber]) -> None:
        """Have the kernel drop those of these inodes that nothing uses, if it knows how.

        In a thread, however long it takes.
        """
        if not self._notifier.has_prune:
            return
        numbers = [self._to_kernel(ino) for ino in inodes]
        for start in range(0, len(numbers), PRUNED_COUNT_MAX):
            part = numbers[start : start + PRUNED_COUNT_MAX]
            with suppress(OSError):
                await trio.to_thread.run_sync(
                    self._notifier.prune, part, abandon_on_cancel=True, limiter=self._limiter
                )

    def _drop(self, names: Sequence[tuple[KernelInode, bytes]]) -> None:
        for parent, name in names:
            self._notifier.drop_entry(parent, name)

    def _expire(self, names: Sequence[tuple[KernelInode, bytes]]) -> None:
        for parent, name in names:
            self._notifier.expire_entry(parent, name)

    async def forget_pages(self, inodes: Sequence[InodeNumber]) -> None:
        """Cached content of these is not used any more, but for reads under way."""
        for ino in inodes:
            with trio.move_on_after(PAGES_WAIT_S_MAX):
                await trio.to_thread.run_sync(
                    self._drop_pages,
                    self._to_kernel(ino),
                    abandon_on_cancel=True,
                    limiter=self._limiter,
                )

    def _drop_pages(self, ino: KernelInode) -> None:
        with suppress(OSError):
            self._notifier.invalidate_pages(ino)
