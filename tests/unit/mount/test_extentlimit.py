import os

import trio
from trio.testing import MockClock

from mictlanfs.model import MIB
from mictlanfs_mount.extentlimit import COUNT_FREE, LOOK_EVERY_S, forget_excess
from mictlanfs_mount.extents import Segment
from mictlanfs_mount.inodes import Inode, InodeTable
from tests.support.mount_fakes import open_mount
from tests.support.mount_space import FakeSpace, attributes_of


def table_of(*counts: int) -> tuple[InodeTable, list[Inode]]:
    """Files of so many extents, in order of their numbers."""
    inodes = InodeTable()
    files = []
    for number, count in enumerate(counts):
        inode = inodes.learn(attributes_of(number + 2), 0.0)
        inode.extents.reset(7)
        inode.extents.learn(0, None, (), ())
        segments = [Segment(index * 10, index * 10 + 9) for index in range(count)]
        inode.extents.replace(segments, 8)
        files.append(inode)
    return inodes, files


def known(files: list[Inode]) -> list[int]:
    return [len(inode.extents) for inode in files]


def always(_: Inode) -> bool:
    return True


def test_few_extents_are_left_alone() -> None:
    inodes, files = table_of(10, 20, 30)
    forget_excess(inodes, 60, always)
    assert known(files) == [10, 20, 30]


def test_the_largest_maps_go_first_and_those_of_open_files_last() -> None:
    inodes, files = table_of(COUNT_FREE, 20, 100, 30, 50)
    files[2].open_count = 1
    forget_excess(inodes, 190, always)
    # 10 too many, and a quarter of the limit for later.
    assert known(files) == [COUNT_FREE, 20, 100, 0, 0]
    # What was known to be of which version still is; where it lies has to be asked.
    assert files[3].extents.content_version == 8
    assert files[3].extents.first_unknown(0, 10) == 0
    forget_excess(inodes, 100, always)
    assert known(files) == [COUNT_FREE, 0, 0, 0, 0]


def test_what_the_router_does_not_know_yet_is_not_forgotten() -> None:
    inodes, files = table_of(100, 40)
    forget_excess(inodes, 10, lambda inode: inode is not files[0])
    assert known(files) == [100, 0]


async def test_a_mount_forgets_and_reads_on(autojump_clock: MockClock) -> None:
    space = FakeSpace()
    ino = space.add(space.bucket, b"large")
    for piece in range(20):
        space.write(ino, piece * MIB, bytes([piece]) * MIB)
    async with open_mount(space, extents_max=5) as mount:
        fs = mount.filesystem
        handle = (await fs.open(ino, os.O_RDWR)).handle
        inode = fs.handles.file(handle).inode
        assert bytes(await fs.read(handle, 3 * MIB, 3)) == b"\3\3\3"
        await fs.write(handle, 0, b"dirty")
        mount.content.start_upkeep()
        commit = mount.script.hold("WriteExtents:asked")
        await trio.sleep(LOOK_EVERY_S + 1)
        # What is dirty is about to change what is known.
        assert len(inode.extents) == 20
        commit.release()
        await trio.sleep(LOOK_EVERY_S + 1)
        assert len(inode.extents) == 0
        assert bytes(await fs.read(handle, 4 * MIB, 3)) == b"\4\4\4"
        assert bytes(await fs.read(handle, 0, 7)) == b"dirty\0\0"
