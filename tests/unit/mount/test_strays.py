"""Inodes that only the kernel remembers: which they are, and when they are taken from it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from mictlanfs.model import InodeNumber
from mictlanfs.wire import LeaseMode
from mictlanfs_mount.inodes import Inode, InodeTable
from mictlanfs_mount.leases import Lease
from mictlanfs_mount.strays import LOOK_EVERY_S, keep_strays_few
from tests.support.mount_space import attributes_of

COUNT_MAX = 8


class Kernel:
    """Forgets what it is told to, but for what it uses."""

    def __init__(self, table: InodeTable) -> None:
        self._table = table
        self.used: set[int] = set()
        self.pruned: list[list[int]] = []

    async def prune(self, inodes: Sequence[InodeNumber]) -> None:
        self.pruned.append(list(inodes))
        for ino in inodes:
            if ino not in self.used:
                self._table.forget(ino, 1)


@pytest.fixture
def table() -> InodeTable:
    return InodeTable()


@pytest.fixture
def kernel(table: InodeTable) -> Kernel:
    return Kernel(table)


def looked_up(table: InodeTable, ino: int) -> Inode:
    inode = table.learn(attributes_of(ino), 0.0)
    inode.lookup_count = 1
    return inode


async def look(table: InodeTable, kernel: Kernel, times: int = 1) -> None:
    with trio.move_on_after(LOOK_EVERY_S * (times + 0.5)):
        await keep_strays_few(table, kernel, COUNT_MAX)


async def test_as_many_as_may_stay_are_left_alone(
    table: InodeTable, kernel: Kernel, autojump_clock: MockClock
) -> None:
    for ino in range(2, 2 + COUNT_MAX):
        looked_up(table, ino)
    await look(table, kernel)
    assert kernel.pruned == []


async def test_the_oldest_go_until_there_is_room_again(
    table: InodeTable, kernel: Kernel, autojump_clock: MockClock
) -> None:
    for ino in range(2, 12):
        looked_up(table, ino)
    await look(table, kernel)
    assert kernel.pruned == [[2, 3, 4, 5]]
    assert [inode.ino for inode in table] == [6, 7, 8, 9, 10, 11]


async def test_what_the_kernel_uses_is_tried_again_later(
    table: InodeTable, kernel: Kernel, autojump_clock: MockClock
) -> None:
    kernel.used = {2, 3, 4, 5}
    for ino in range(2, 12):
        looked_up(table, ino)
    await look(table, kernel, times=2)
    assert kernel.pruned == [[2, 3, 4, 5]] * 2


def test_who_is_used_here_or_covered_is_no_stray(table: InodeTable) -> None:
    stray, named, opened, pending, dirty, covered, ended, root = (
        looked_up(table, ino) for ino in range(2, 10)
    )
    named.name_count = opened.open_count = pending.pending_count = 1
    dirty.is_dirty = True
    covered.lease = Lease(covered.ino, LeaseMode.READ, 1)
    ended.lease = Lease(ended.ino, LeaseMode.NONE, 1)
    table.root = root.ino
    assert table.strays() == [stray.ino, ended.ino]
