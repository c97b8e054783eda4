"""Reads that end before the kernel believes the file does, without a kernel."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from mictlanfs.model import InodeNumber
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.shortreads import DOUBT_S, SETTLE_S, WATCHED_MAX, ShortReads
from tests.support.mount_fakes import FakeClock
from tests.support.mount_space import attributes_of

PAGE = 4096
INO = InodeNumber(5)


def opened(ino: int = 5, told: int = 8) -> Inode:
    inode = Inode(attributes_of(ino))
    inode.open_count = 1
    inode.kernel_size = told
    return inode


@pytest.fixture
def reads() -> ShortReads:
    return ShortReads(FakeClock())


def is_refused(reads: ShortReads, inode: Inode, size: int, offset: int = 0) -> bool:
    """Whether a READ of one page is, of a file of so many bytes."""
    try:
        body_size = min(max(0, size - offset), PAGE)
        reads.check(inode, offset, offset + PAGE, body_size, size)
    except InterruptedError:
        return True
    return False


async def test_read_that_ends_where_the_kernel_believes_is_answered(
    reads: ShortReads, autojump_clock: MockClock
) -> None:
    assert not is_refused(reads, opened(told=8), 8)
    assert not is_refused(reads, opened(told=8), 9)
    assert reads.refused_count == 0


async def test_read_that_ends_before_is_refused_once(
    reads: ShortReads, autojump_clock: MockClock
) -> None:
    inode = opened(told=8)
    assert is_refused(reads, inode, 3)
    assert not is_refused(reads, inode, 3)
    # The kernel has taken note.
    assert inode.kernel_size == 3
    assert not is_refused(reads, inode, 3)
    assert reads.refused_count == 1


async def test_read_of_other_pages_may_be_older_and_is_refused_too(
    reads: ShortReads, autojump_clock: MockClock
) -> None:
    inode = opened(told=3 * PAGE)
    assert is_refused(reads, inode, PAGE, PAGE)
    assert is_refused(reads, inode, 0, 0)
    assert not is_refused(reads, inode, 0, 0)


async def test_smaller_size_that_was_told_a_moment_ago_may_not_be_believed_yet(
    reads: ShortReads, autojump_clock: MockClock
) -> None:
    inode = opened(told=8)
    reads.on_told(inode, 0)
    assert is_refused(reads, inode, 0)
    assert not is_refused(reads, inode, 0)
    other = opened(6, told=8)
    reads.on_told(other, 0)
    await trio.sleep(DOUBT_S + 0.1)
    assert not is_refused(reads, other, 0)


async def test_what_the_kernel_forgets_meanwhile_makes_the_repetition_as_old(
    reads: ShortReads, autojump_clock: MockClock
) -> None:
    inode = opened(told=8)
    assert is_refused(reads, inode, 0)
    reads.on_forgotten(inode)
    assert is_refused(reads, inode, 0)
    with reads.forgetting_pages([inode.ino]):
        assert is_refused(reads, inode, 0)
    assert not is_refused(reads, inode, 0)


async def test_larger_size_that_is_told_meanwhile_makes_the_repetition_as_old(
    reads: ShortReads, autojump_clock: MockClock
) -> None:
    inode = opened(told=8)
    assert is_refused(reads, inode, 0)
    reads.on_told(inode, 8)
    assert is_refused(reads, inode, 0)
    reads.on_written(inode, 5)
    assert not is_refused(reads, inode, 0)


async def test_empty_answer_behind_the_end_would_move_the_end(
    reads: ShortReads, autojump_clock: MockClock
) -> None:
    inode = opened(told=3 * PAGE)
    for _ in range(3):
        assert is_refused(reads, inode, 10, PAGE)
    assert is_refused(reads, inode, 10)
    assert not is_refused(reads, inode, 10)
    assert is_refused(reads, inode, 10, PAGE)
    # Not for ever: the program repeats it as well.
    await trio.sleep(DOUBT_S + 0.1)
    assert not is_refused(reads, inode, 10, PAGE)


async def test_file_that_a_program_here_cuts_is_known_to_the_kernel(
    reads: ShortReads, autojump_clock: MockClock
) -> None:
    inode = opened(told=8)
    reads.on_cut(inode, 2)
    assert not is_refused(reads, inode, 2)
    reads.on_written(inode, 6)
    assert is_refused(reads, inode, 2)


async def test_nothing_is_forgotten_before_an_answer_is_taken_note_of(
    reads: ShortReads, autojump_clock: MockClock
) -> None:
    inode = opened(told=8)
    assert reads.unsettled_s([inode.ino]) == 0
    assert is_refused(reads, inode, 0)
    assert reads.unsettled_s([inode.ino]) == 0
    assert not is_refused(reads, inode, 0)
    assert 0 < reads.unsettled_s([InodeNumber(4), inode.ino]) <= SETTLE_S
    assert reads.unsettled_s([InodeNumber(4)]) == 0
    await trio.sleep(SETTLE_S)
    assert reads.unsettled_s([inode.ino]) == 0


async def test_so_many_files_are_watched_and_no_more(
    reads: ShortReads, autojump_clock: MockClock
) -> None:
    inodes = [opened(2 + index, told=8) for index in range(WATCHED_MAX + 1)]
    for inode in inodes:
        assert is_refused(reads, inode, 0)
    # That of the first is forgotten, so it is refused as for the first time.
    assert is_refused(reads, inodes[0], 0)
    assert not is_refused(reads, inodes[-1], 0)


async def test_who_tells_a_size_waits_for_the_reads_that_are_under_way(
    reads: ShortReads, autojump_clock: MockClock
) -> None:
    order: list[str] = []

    async def read(until: trio.Event) -> None:
        with reads.reading(INO):
            await until.wait()
            order.append("read")

    async def tell() -> None:
        await reads.until_read(INO)
        order.append("told")

    ends = [trio.Event(), trio.Event()]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, ends[0])
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(tell)
        await trio.testing.wait_all_tasks_blocked()
        # This one comes later, and is not waited for.
        nursery.start_soon(read, ends[1])
        await trio.testing.wait_all_tasks_blocked()
        ends[0].set()
        await trio.testing.wait_all_tasks_blocked()
        ends[1].set()
    assert order == ["read", "told", "read"]
    with trio.fail_after(1):
        await reads.until_read(INO)
