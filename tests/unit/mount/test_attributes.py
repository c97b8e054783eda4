"""Attributes as the kernel sees them."""

from __future__ import annotations

import stat

import pyfuse3
import pytest

from mictlanfs.model import (
    FILE_SIZE_BYTES_MAX,
    ROOT_INODE,
    TIME_NS_MAX,
    TIME_NS_MIN,
    FileKind,
    InodeNumber,
)
from mictlanfs_mount.attributes import Presentation
from tests.support.mount_space import attributes_of

PLAIN = Presentation(ROOT_INODE)


def test_every_attribute_arrives() -> None:
    shown = PLAIN.entry(
        attributes_of(
            42,
            mode=0o4751,
            uid=1000,
            gid=1001,
            size=12345,
            atime_ns=1_111_111_111_222_333_444,
            mtime_ns=1_222_222_222_333_444_555,
            ctime_ns=1_333_333_333_444_555_666,
            nlink=3,
            allocated=1025,
        ),
        1.5,
        1.5,
    )
    assert shown.st_ino == 42
    assert shown.st_mode == stat.S_IFREG | 0o4751
    assert (shown.st_uid, shown.st_gid, shown.st_nlink) == (1000, 1001, 3)
    assert (shown.st_size, shown.st_blocks) == (12345, 3)
    assert shown.st_atime_ns == 1_111_111_111_222_333_444
    assert shown.st_mtime_ns == 1_222_222_222_333_444_555
    assert shown.st_ctime_ns == 1_333_333_333_444_555_666
    assert (shown.entry_timeout, shown.attr_timeout) == (1.5, 1.5)


@pytest.mark.parametrize("kind", list(FileKind))
def test_kinds_are_those_of_stat(kind: FileKind) -> None:
    shown = PLAIN.entry(attributes_of(5, kind, mode=0o640), 0.0, 0.0)
    assert stat.S_IFMT(shown.st_mode) == kind << 12
    assert stat.S_IMODE(shown.st_mode) == 0o640


@pytest.mark.parametrize("kind", [kind for kind in FileKind if kind is not FileKind.FILE])
def test_only_files_have_blocks(kind: FileKind) -> None:
    assert PLAIN.entry(attributes_of(5, kind, allocated=4096), 0.0, 0.0).st_blocks == 0


def test_device_number_arrives() -> None:
    shown = PLAIN.entry(attributes_of(5, FileKind.BLOCK_DEVICE, rdev=0x0803), 0.0, 0.0)
    assert shown.st_rdev == 0x0803


@pytest.mark.parametrize("time_ns", [TIME_NS_MIN, -1, 0, 1, TIME_NS_MAX])
def test_any_time_that_can_be_stored_can_be_shown(time_ns: int) -> None:
    shown = PLAIN.entry(
        attributes_of(5, atime_ns=time_ns, mtime_ns=time_ns, ctime_ns=time_ns), 0.0, 0.0
    )
    assert (shown.st_atime_ns, shown.st_mtime_ns, shown.st_ctime_ns) == (time_ns,) * 3


def test_largest_file_can_be_shown() -> None:
    size = FILE_SIZE_BYTES_MAX
    shown = PLAIN.entry(attributes_of(5, size=size, allocated=size), 0.0, 0.0)
    assert shown.st_size == size
    assert shown.st_blocks == 2**54


def test_owner_of_the_mount_options_hides_the_stored_one() -> None:
    shown = Presentation(ROOT_INODE, uid=0, gid=77).entry(attributes_of(5, uid=9, gid=9), 0.0, 0.0)
    assert (shown.st_uid, shown.st_gid) == (0, 77)


def test_umask_hides_permission_bits_and_nothing_else() -> None:
    shown = Presentation(ROOT_INODE, umask=0o027).entry(attributes_of(5, mode=0o4777), 0.0, 0.0)
    assert shown.st_mode == stat.S_IFREG | 0o4750


def test_access_control_lists_fit_only_to_what_is_shown_as_stored() -> None:
    assert PLAIN.is_as_stored
    for shown in (
        Presentation(ROOT_INODE, uid=0),
        Presentation(ROOT_INODE, gid=0),
        Presentation(ROOT_INODE, umask=0o022),
    ):
        assert not shown.is_as_stored


def test_mounted_directory_is_the_root_to_the_kernel() -> None:
    shown = Presentation(InodeNumber(900))
    assert shown.to_kernel(InodeNumber(900)) == pyfuse3.ROOT_INODE
    assert shown.from_kernel(pyfuse3.ROOT_INODE) == 900
    assert (
        shown.entry(attributes_of(900, FileKind.DIRECTORY), 0.0, 0.0).st_ino == pyfuse3.ROOT_INODE
    )


@pytest.mark.parametrize("ino", [2, 900, 2**63 - 1])
def test_other_inodes_keep_their_numbers(ino: int) -> None:
    shown = Presentation(ROOT_INODE)
    assert shown.to_kernel(InodeNumber(ino)) == ino
    assert shown.from_kernel(pyfuse3.InodeT(ino)) == ino
