"""mkfifo(3), mknod(2)."""

from __future__ import annotations

import os
import stat

import pytest

from tests.integration.posix.calls import (
    ALICE,
    BOB,
    MKNOD_TYPES,
    OK,
    RDEV,
    Access,
    BadPath,
    attempt,
    every_access,
    every_bad_path,
    every_kind,
    make,
    mode_of,
    path_of,
    touching,
    touching_nothing,
)

pytestmark = pytest.mark.usefixtures("bucket")

every_type = pytest.mark.parametrize("kind", MKNOD_TYPES)
DEVICES = {"block", "character"}


def mknod(kind: str, path: str, mode: int = 0o644) -> None:
    os.mknod(path, MKNOD_TYPES[kind] | mode, RDEV)


@every_type
@pytest.mark.parametrize("mode", [0, 0o1, 0o151, 0o644, 0o777, 0o4755, 0o2755, 0o1644])
def test_the_mode_is_that_of_the_call_less_the_umask(kind: str, mode: int) -> None:
    os.umask(0o022)
    mknod(kind, "node", mode)
    assert os.lstat("node").st_mode == MKNOD_TYPES[kind] | mode & ~0o022


@every_type
def test_only_a_device_node_has_a_device_number(kind: str) -> None:
    mknod(kind, "node")
    assert os.lstat("node").st_rdev == (RDEV if kind in DEVICES else 0)


@pytest.mark.parametrize("rdev", [(0, 0), (1, 3), (255, 255), (4095, 1048575), (8, 256)])
@pytest.mark.parametrize("kind", sorted(DEVICES))
def test_device_numbers_are_kept(kind: str, rdev: tuple[int, int]) -> None:
    os.mknod("node", MKNOD_TYPES[kind] | 0o600, os.makedev(*rdev))
    found = os.lstat("node").st_rdev
    assert (os.major(found), os.minor(found)) == rdev


@every_type
def test_only_root_makes_device_nodes(kind: str) -> None:
    expected = "EPERM" if kind in DEVICES else OK
    assert attempt(mknod, kind, "node", user=BOB) == expected
    if expected == OK:
        found = os.lstat("node")
        assert (found.st_uid, found.st_gid) == (BOB.uid, BOB.gid)


@every_type
def test_a_set_group_id_directory_passes_its_group_on(kind: str) -> None:
    make("directory", "p", 0o2777, ALICE)
    mknod(kind, "p/node")
    assert os.lstat("p/node").st_gid == ALICE.gid
    assert mode_of("p/node") == 0o644


@every_type
def test_times_and_links(kind: str) -> None:
    with touching(mtime=["."]):
        mknod(kind, "node")
    found, above = os.lstat("node"), os.lstat(".")
    assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns == above.st_mtime_ns
    assert (found.st_nlink, above.st_nlink, found.st_size) == (1, 2, 0)


@every_kind
@pytest.mark.parametrize("new", MKNOD_TYPES)
def test_a_name_that_exists_is_refused(kind: str, new: str) -> None:
    make(kind)
    with touching_nothing(".", "node"):
        assert attempt(mknod, new, "node") == "EEXIST"


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused_by_mkfifo(bad: BadPath) -> None:
    bad.check(os.mkfifo)


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused_by_mknod(bad: BadPath) -> None:
    bad.check(lambda path: mknod("socket", path))


@every_access
@pytest.mark.parametrize("kind", ["file", "fifo", "socket"])
def test_it_takes_the_right_to_write_and_to_search(access: Access, kind: str) -> None:
    access.make_directory()
    access.close_directory()
    assert attempt(mknod, kind, "prefix/node", user=access.user) == access.expected


def test_long_paths_are_fine() -> None:
    os.mkfifo("n" * 255)
    os.mkfifo(path_of(4095))
    assert sorted(os.listdir(".")) == ["name", "n" * 255]


def test_a_trailing_slash_is_refused() -> None:
    assert attempt(os.mkfifo, "fifo/") == "ENOENT"


def test_bytes_flow_through_a_fifo() -> None:
    os.mkfifo("fifo")
    fd = os.open("fifo", os.O_RDWR)
    os.write(fd, b"through")
    assert os.read(fd, 100) == b"through"
    os.close(fd)
    assert os.stat("fifo").st_size == 0


def test_a_device_node_works_on_a_mount_with_devices() -> None:
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with open("null", "r+b", buffering=0) as file:
        assert file.write(b"lost") == 4
        assert file.read(10) == b""


def test_a_read_only_mount_refuses(read_only: object) -> None:
    for kind in MKNOD_TYPES:
        assert attempt(mknod, kind, "new") == "EROFS"
    assert attempt(mknod, "fifo", "file") == "EEXIST"
