"""symlink(2), readlink(2)."""

from __future__ import annotations

import os

import pytest

from tests.integration.posix.calls import (
    ALICE,
    BOB,
    OK,
    Access,
    BadPath,
    attempt,
    every_access,
    every_bad_path,
    every_kind,
    every_solid_kind,
    make,
    mode_of,
    path_of,
    read_file,
    touching,
    touching_nothing,
    write_file,
)

pytestmark = pytest.mark.usefixtures("bucket")

TARGETS = [
    b"a",
    b"missing",
    b"../..",
    b"/",
    b"/absolute/path",
    b"a//b/./c/",
    b"with blanks \t\n and \\ quotes \" '",
    bytes(range(1, 256)),
    b"\xff\xfe not UTF-8",
    b"t" * 255,
    b"t" * 256,
    b"t" * 1023,
    b"t" * 1024,
    b"t" * 4095,
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{len(t)}-{t[:8]!r}")
def test_any_target_is_kept_to_the_byte(target: bytes) -> None:
    with touching(mtime=["."]):
        os.symlink(target, b"link")
    assert os.readlink(b"link") == target
    found = os.lstat("link")
    assert (found.st_size, found.st_nlink, mode_of("link")) == (len(target), 1, 0o777)
    assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns


@pytest.mark.parametrize(
    ("target", "expected"), [("", "ENOENT"), ("t" * 4096, "ENAMETOOLONG")], ids=["none", "4096"]
)
def test_targets_that_cannot_be(target: str, expected: str) -> None:
    with touching_nothing("."):
        assert attempt(os.symlink, target, "link") == expected


def test_the_umask_does_not_matter_and_the_group_is_inherited() -> None:
    os.umask(0o777)
    os.mkdir("p")
    os.chown("p", ALICE.uid, ALICE.gid)
    os.chmod("p", 0o2777)
    assert attempt(os.symlink, "t", "p/link", user=BOB) == OK
    found = os.lstat("p/link")
    assert (found.st_uid, found.st_gid, mode_of("p/link")) == (BOB.uid, ALICE.gid, 0o777)


@every_kind
def test_a_name_that_exists_is_refused(kind: str) -> None:
    make(kind)
    with touching_nothing(".", "node"):
        assert attempt(os.symlink, "t", "node") == "EEXIST"


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(lambda path: os.symlink("t", path))


@every_bad_path
def test_readlink_follows_no_bad_path(bad: BadPath) -> None:
    bad.check(os.readlink)


@every_access
def test_it_takes_the_right_to_write_and_to_search(access: Access) -> None:
    access.make_directory()
    access.close_directory()
    assert attempt(os.symlink, "t", "prefix/link", user=access.user) == access.expected


@every_solid_kind
def test_only_a_symlink_can_be_read_as_one(kind: str) -> None:
    make(kind)
    assert attempt(os.readlink, "node") == "EINVAL"
    os.symlink("node", "link")
    assert os.stat("link").st_ino == os.stat("node").st_ino


def test_anybody_reads_a_symlink() -> None:
    os.symlink("t", "link")
    assert attempt(os.readlink, "link", user=BOB) == OK


def test_a_chain_of_forty_is_followed_and_a_longer_one_is_a_loop() -> None:
    write_file("0", b"end")
    for number in range(1, 42):
        os.symlink(str(number - 1), str(number))
    assert read_file("40") == b"end"
    assert attempt(read_file, "41") == "ELOOP"


def test_long_paths_are_fine() -> None:
    os.symlink("t", path_of(4095))
    os.symlink("t", "n" * 255)
    assert os.readlink("name") == os.readlink("n" * 255) == "t"


def test_a_path_through_a_long_symlink_may_be_longer_than_path_max() -> None:
    os.mkdir("d")
    write_file("d/f", b"found")
    os.symlink("./" * 2047 + "d", "link")
    assert read_file("link/" + "./" * 2000 + "f") == b"found"


def test_a_read_only_mount_refuses(read_only: object) -> None:
    assert attempt(os.symlink, "t", "new") == "EROFS"
    assert attempt(os.symlink, "t", "file") == "EEXIST"
    assert os.readlink("link") == "file"
