"""unlink(2): names go, what is open stays."""

from __future__ import annotations

import json
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
    every_sticky,
    make,
    path_of,
    touching,
    touching_nothing,
    write_file,
)
from tests.support.spaces import Space, wait_until

pytestmark = pytest.mark.usefixtures("bucket")

every_other_kind = pytest.mark.parametrize("kind", NOT_DIRECTORIES)


@every_other_kind
def test_the_name_is_gone(kind: str) -> None:
    make(kind)
    size = os.stat(".").st_size
    with touching(mtime=["."]):
        os.unlink("node")
    assert attempt(os.lstat, "node") == "ENOENT"
    assert os.listdir(".") == []
    assert os.stat(".").st_size == size - 1


def test_a_directory_is_refused() -> None:
    os.mkdir("d")
    with touching_nothing(".", "d"):
        assert attempt(os.unlink, "d") == "EISDIR"
        assert attempt(os.unlink, ".") in {"EISDIR", "EINVAL"}
        assert attempt(os.unlink, "..") == "EISDIR"


@every_sticky
@every_other_kind
def test_only_owners_take_from_a_sticky_directory(sticky: Sticky, kind: str) -> None:
    sticky.make(kind, "sticky/node")
    expected = OK if sticky.is_allowed else "EPERM"
    assert attempt(os.unlink, "sticky/node", user=sticky.caller) == expected
    assert os.path.lexists("sticky/node") is not sticky.is_allowed


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(os.unlink)


@every_access
def test_it_takes_the_right_to_write_and_to_search(access: Access) -> None:
    access.make_directory()
    make("file", "prefix/f", 0)
    access.close_directory()
    assert attempt(os.unlink, "prefix/f", user=access.user) == access.expected


def test_what_is_missing() -> None:
    make("file")
    assert attempt(os.unlink, "missing") == "ENOENT"
    assert attempt(os.unlink, "node/") == "ENOTDIR"


def test_long_paths_are_fine() -> None:
    make("file", "name")
    os.unlink(path_of(4095))
    make("file", "n" * 255)
    os.unlink("n" * 255)
    assert os.listdir(".") == []


def test_an_open_file_works_on_without_a_name() -> None:
    write_file("f", b"some content")
    fd = os.open("f", os.O_RDWR)
    with touching(ctime=[fd]):
        os.unlink("f")
    assert os.fstat(fd).st_nlink == 0
    assert os.pread(fd, 100, 0) == b"some content"
    os.pwrite(fd, b"SOME", 0)
    os.pwrite(fd, b"!", 5000)
    os.fsync(fd)
    os.ftruncate(fd, 6000)
    assert os.pread(fd, 6, 0) == b"SOME c"
    assert os.fstat(fd).st_size == 6000
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.read(again, 4) == b"SOME"
    os.close(fd)
    assert os.read(again, 4) == b" con"
    os.close(again)
    assert attempt(os.stat, "f") == "ENOENT"


def test_a_new_file_takes_the_name_of_an_open_one() -> None:
    write_file("f", b"old")
    with open("f", "rb") as old:
        os.unlink("f")
        write_file("f", b"new")
        assert old.read() == b"old"
        assert os.fstat(old.fileno()).st_ino != os.stat("f").st_ino
    with open("f", "rb") as new:
        assert new.read() == b"new"


def test_space_of_an_open_file_is_freed_when_it_is_closed(
    posix_space: Space,
) -> None:
    def bytes_logical() -> int:
        status = json.loads(posix_space.command("status", "--json").stdout)
        return int(status["bytes_logical"])

    start = bytes_logical()
    size = 3 * 1024 * 1024
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.write(fd, os.urandom(size))
    os.fsync(fd)
    assert bytes_logical() >= start + size
    os.unlink("f")
    assert os.pread(fd, 10, size - 10) != b""
    assert bytes_logical() >= start + size
    os.close(fd)
    wait_until(lambda: bytes_logical() < start + size, "the space is free again")


def test_a_read_only_mount_refuses(read_only: Path) -> None:
    assert attempt(os.unlink, "file") == "EROFS"
    assert attempt(os.unlink, "link") == "EROFS"
