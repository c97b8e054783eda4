"""stat(2), lstat(2), fstat(2), statvfs(3)."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.integration.posix.calls import (
    BadPath,
    attempt,
    every_bad_path,
    every_kind,
    make,
    path_of,
    write_file,
)
from tests.support.spaces import Mount, Space, mounted

pytestmark = pytest.mark.usefixtures("bucket")

TYPES = {
    "directory": stat.S_IFDIR,
    "file": stat.S_IFREG,
    "fifo": stat.S_IFIFO,
    "block": stat.S_IFBLK,
    "character": stat.S_IFCHR,
    "socket": stat.S_IFSOCK,
    "symlink": stat.S_IFLNK,
}


@every_kind
def test_every_kind_is_what_it_is(kind: str) -> None:
    make(kind)
    found = os.lstat("node")
    assert stat.S_IFMT(found.st_mode) == TYPES[kind]
    assert found.st_dev == os.stat(".").st_dev
    assert found.st_nlink == (2 if kind == "directory" else 1)
    assert found.st_ino not in {0, 1, os.stat(".").st_ino}
    assert os.stat("node", follow_symlinks=False) == found


def test_inode_numbers_are_never_used_again() -> None:
    seen = set()
    for _ in range(50):
        make("file")
        seen.add(os.stat("node").st_ino)
        os.unlink("node")
    assert len(seen) == 50


def test_sizes_and_blocks() -> None:
    write_file("f", b"x" * 10_000)
    found = os.stat("f")
    assert (found.st_size, found.st_blocks) == (10_000, 20)
    assert found.st_blksize >= 4096


def test_links_of_a_directory_count_the_directories_in_it() -> None:
    os.mkdir("d")
    for number in range(5):
        os.mkdir(f"d/{number}")
        make("file", f"d/f{number}")
        assert os.stat("d").st_nlink == 3 + number
    os.rmdir("d/0")
    os.unlink("d/f0")
    assert os.stat("d").st_nlink == 6
    assert os.stat("d").st_size == 8


def test_bytes_on_their_way_count_at_once() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    for count in range(1, 20):
        os.write(fd, b"x" * 1000)
        assert os.fstat(fd).st_size == os.stat("f").st_size == 1000 * count
    assert os.stat("f").st_mtime_ns == os.fstat(fd).st_mtime_ns
    os.close(fd)


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(os.stat)


@every_bad_path
def test_lstat_and_statvfs_refuse_it_too(bad: BadPath) -> None:
    bad.check(os.lstat)
    assert attempt(os.statvfs, bad.path, user=bad.user) == bad.error


def test_a_long_path_is_fine() -> None:
    make("file", "name")
    assert os.stat(path_of(4095)).st_size == 0


def test_names_of_other_users_are_shown() -> None:
    make("file")
    os.chown("node", 4_000_000_000, 3_000_000_000)
    assert (os.stat("node").st_uid, os.stat("node").st_gid) == (4_000_000_000, 3_000_000_000)


def test_statvfs_tells_what_the_space_tells(posix_space: Space) -> None:
    found = os.statvfs(".")
    status = json.loads(posix_space.command("status", "--json").stdout)
    # What fits in copies, two of everything.
    capacity = sum(peer["capacity"] for peer in status["peers"]) // 2
    assert found.f_namemax == 255
    assert found.f_blocks * found.f_frsize == pytest.approx(capacity, rel=0.01)
    assert 0 < found.f_bavail <= found.f_bfree <= found.f_blocks
    assert 0 < found.f_favail <= found.f_ffree < found.f_files
    fd = os.open(".", os.O_RDONLY)
    assert os.fstatvfs(fd).f_blocks == found.f_blocks
    os.close(fd)


def test_a_subdirectory_mounted_with_other_owners_and_a_umask(
    posix_space: Space, bucket: Path, tmp_path: Path
) -> None:
    os.makedirs("sub/inner", 0o777)
    make("file", "sub/f", 0o666)
    options = (f"subdir={bucket.name}/sub", "uid=1234", "gid=2345", "umask=027")
    with mounted(posix_space.uri, tmp_path, *options) as other:
        assert sorted(os.listdir(other.path)) == ["f", "inner"]
        found = os.stat(other.path / "f")
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 2345, 0o640)
        assert os.stat(other.path).st_ino == 1
        assert os.listdir(other.path / "inner/..") == os.listdir(other.path)
        write_file(str(other.path / "new"), b"through the other mount")
        assert attempt(os.mkdir, other.path / ".mictlanfs-not-reserved") == "OK"
    assert Path("sub/new").read_bytes() == b"through the other mount"


def test_a_read_only_mount_says_so(read_only: Path, posix_mount: Mount) -> None:
    assert os.statvfs(".").f_flag & os.ST_RDONLY
    assert not os.statvfs(posix_mount.path).f_flag & os.ST_RDONLY
