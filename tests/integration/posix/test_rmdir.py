"""rmdir(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.posix.calls import (
    NOT_DIRECTORIES,
    OK,
    Access,
    BadPath,
    Sticky,
    attempt,
    every_access,
    every_bad_path,
    every_kind,
    every_sticky,
    make,
    path_of,
    remove,
    touching,
    touching_nothing,
)

pytestmark = pytest.mark.usefixtures("bucket")


def test_an_empty_directory_goes() -> None:
    os.mkdir("d")
    assert os.stat(".").st_nlink == 3
    with touching(mtime=["."]):
        os.rmdir("d")
    assert attempt(os.lstat, "d") == "ENOENT"
    assert os.stat(".").st_nlink == 2


@every_kind
def test_one_with_anything_in_it_stays_until_that_goes(kind: str) -> None:
    os.mkdir("d")
    make(kind, "d/node")
    with touching_nothing(".", "d"):
        assert attempt(os.rmdir, "d") == "ENOTEMPTY"
    remove(kind, "d/node")
    os.rmdir("d")


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_other_kinds_are_refused(kind: str) -> None:
    make(kind)
    with touching_nothing(".", "node"):
        assert attempt(os.rmdir, "node") == "ENOTDIR"


def test_a_symlink_to_a_directory_is_none() -> None:
    os.mkdir("d")
    os.symlink("d", "link")
    assert attempt(os.rmdir, "link") == "ENOTDIR"
    assert attempt(os.rmdir, "link/") == "ENOTDIR"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("d/.", "EINVAL"), ("d/..", "ENOTEMPTY"), (".", "EINVAL"), ("missing", "ENOENT")],
)
def test_dots_and_what_is_missing(path: str, expected: str) -> None:
    os.mkdir("d")
    with touching_nothing(".", "d"):
        assert attempt(os.rmdir, path) == expected


def test_the_mount_itself_is_busy(bucket: Path) -> None:
    assert attempt(os.rmdir, str(bucket.parent)) == "EBUSY"


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(os.rmdir)


@every_access
def test_it_takes_the_right_to_write_and_to_search(access: Access) -> None:
    access.make_directory()
    os.mkdir("prefix/d", 0)
    access.close_directory()
    assert attempt(os.rmdir, "prefix/d", user=access.user) == access.expected


@every_sticky
def test_only_owners_take_from_a_sticky_directory(sticky: Sticky) -> None:
    sticky.make("directory", "sticky/d")
    expected = OK if sticky.is_allowed else "EPERM"
    assert attempt(os.rmdir, "sticky/d", user=sticky.caller) == expected
    assert os.path.exists("sticky/d") is not sticky.is_allowed


def test_long_paths_are_fine() -> None:
    os.mkdir("name")
    os.rmdir(path_of(4095))
    os.mkdir("n" * 255)
    os.rmdir("n" * 255 + "/")
    assert os.listdir(".") == []


def test_one_that_is_open_or_worked_in_stays_for_its_users() -> None:
    os.mkdir("gone")
    fd = os.open("gone", os.O_RDONLY)
    with touching(ctime=[fd]):
        os.rmdir("gone")
    assert os.fstat(fd).st_nlink == 0
    assert os.listdir(fd) == []
    os.fchdir(fd)
    assert attempt(os.stat, ".") == OK
    for call in (os.mkdir, os.mkfifo):
        assert attempt(call, "new") == "ENOENT"
    assert attempt(os.open, "new", os.O_CREAT | os.O_WRONLY) == "ENOENT"
    os.chdir("/")
    os.close(fd)


def test_a_read_only_mount_refuses(read_only: object) -> None:
    assert attempt(os.rmdir, "directory") == "EROFS"
