"""Where the kernel may believe that files end."""

from __future__ import annotations

from mictlanfs.model import InodeNumber
from mictlanfs_mount.fileends import ENDS_MAX, FILES_MAX, FileEnds
from mictlanfs_mount.inodes import Inode
from tests.support.mount_space import attributes_of


def inode_of(number: int, kernel_size: int) -> Inode:
    inode = Inode(attributes_of(number))
    inode.kernel_size = kernel_size
    return inode


def test_the_end_that_the_kernel_was_told_last_is_one() -> None:
    ends, inode = FileEnds(), inode_of(5, 100)
    assert ends.may_be_end(inode, 100)
    assert not ends.may_be_end(inode, 99)
    assert not ends.is_contested(inode.ino)


def test_former_ends_are_remembered_and_forgotten() -> None:
    ends, inode = FileEnds(), inode_of(5, 100)
    ends.note(inode.ino, 10, 20)
    assert ends.is_contested(inode.ino)
    assert [end for end in (0, 10, 15, 20, 100) if ends.may_be_end(inode, end)] == [10, 20, 100]
    ends.forget([inode.ino, InodeNumber(6)])
    assert [end for end in (10, 20, 100) if ends.may_be_end(inode, end)] == [100]


def test_the_last_ends_of_the_last_files_are_remembered() -> None:
    ends, inode = FileEnds(), inode_of(5, 0)
    for end in range(1, ENDS_MAX + 1):
        ends.note(inode.ino, end)
    # One that is noted again is the last.
    ends.note(inode.ino, 1)
    ends.note(inode.ino, ENDS_MAX + 1)
    assert [end for end in range(1, ENDS_MAX + 2) if not ends.may_be_end(inode, end)] == [2]
    for number in range(100, 100 + FILES_MAX - 1):
        ends.note(InodeNumber(number), 1)
    assert ends.is_contested(inode.ino)
    ends.note(InodeNumber(99), 1)
    assert not ends.is_contested(inode.ino)
