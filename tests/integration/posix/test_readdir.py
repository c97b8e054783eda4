"""readdir(3), getdents64(2), seekdir(3): what a listing shows, also while the directory changes."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterator

import pytest

from mictlanfs.model import InodeNumber
from tests.integration.posix.calls import (
    ALICE,
    BOB,
    KINDS,
    OK,
    BadPath,
    attempt,
    every_bad_path,
    make,
    touching_nothing,
)
from tests.support.batches import make_files
from tests.support.spaces import Space

pytestmark = pytest.mark.usefixtures("bucket")

_libc = ctypes.CDLL(None, use_errno=True)
SYS_GETDENTS64 = 217
BUFFER_SIZE = 4096
ODD_NAMES = [
    b" ",
    b"\t\n",
    b"-rf",
    b"*",
    b"...",
    b"..x",
    b"\\",
    b"\xff\xfe\x80",
    b"\xc3\x28 broken UTF-8",
    "ä".encode(),
    "a\N{COMBINING DIAERESIS}".encode(),
    bytes(byte for byte in range(1, 256) if byte != ord("/")),
    b"n" * 255,
    *(bytes([byte]) + b"x" for byte in range(1, 256) if byte != ord("/")),
]


def entries(fd: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, inode and position behind each entry from here on, read 4 KiB at a time."""
    buffer = ctypes.create_string_buffer(BUFFER_SIZE)
    while True:
        size = _libc.syscall(SYS_GETDENTS64, fd, buffer, BUFFER_SIZE)
        assert size >= 0, os.strerror(ctypes.get_errno())
        if size == 0:
            return
        start = 0
        while start < size:
            ino, position, length = struct.unpack_from("<QqH", buffer, start)
            name = buffer.raw[start + 19 : start + length].split(b"\0")[0]
            yield name, ino, position
            start += length


def fill(count: int) -> set[bytes]:
    names = {f"name-{number:04}".encode() for number in range(count)}
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    return names


def test_every_kind_is_told_with_its_inode() -> None:
    for kind in KINDS:
        make(kind, kind)
    found = {entry.name: entry for entry in os.scandir(".")}
    assert set(found) == set(KINDS)
    for kind, entry in found.items():
        assert entry.inode() == os.lstat(kind).st_ino
        assert entry.is_symlink() is (kind == "symlink")
        assert entry.is_dir(follow_symlinks=False) is (kind == "directory")
        assert entry.is_file(follow_symlinks=False) is (kind == "file")


def test_dot_and_dot_dot_come_first() -> None:
    os.makedirs("d/e")
    fd = os.open("d/e", os.O_RDONLY)
    found = {name: ino for name, ino, _ in entries(fd)}
    os.close(fd)
    assert found == {b".": os.stat("d/e").st_ino, b"..": os.stat("d").st_ino}


def test_any_byte_may_be_in_a_name() -> None:
    for name in ODD_NAMES:
        os.mkdir(name)
    assert set(os.listdir(b".")) == set(ODD_NAMES)
    for name in ODD_NAMES:
        assert stat.S_ISDIR(os.lstat(name).st_mode)
        moved = name[:254] + b"~"
        os.rename(name, moved)
        os.rmdir(moved)
    assert os.listdir(".") == []


def test_names_that_differ_in_case_or_form_are_apart() -> None:
    for name in ("a", "A", "ä", "Ä", "a\N{COMBINING DIAERESIS}"):
        os.mkdir(name)
    assert len(os.listdir(".")) == 5


def test_what_stays_is_seen_once_while_the_rest_changes() -> None:
    names = fill(250)
    fd = os.open(".", os.O_RDONLY)
    found: list[bytes] = []
    for count, (name, _, _) in enumerate(entries(fd)):
        found.append(name)
        if count % 3 == 0 and count > 2:
            # What was seen goes, and something comes.
            if found[-1].startswith(b"name") and found[-1] in names:
                os.unlink(found[-1])
            os.mkdir(b"new-%d" % count)
    os.close(fd)
    assert len(found) == len(set(found))
    assert set(found) >= names
    assert len(os.listdir(".")) == 250


def test_every_name_can_be_removed_while_it_is_listed() -> None:
    fill(200)
    with os.scandir(".") as listing:
        for entry in listing:
            os.unlink(entry.name)
    assert os.listdir(".") == []


def test_a_position_leads_back_to_its_entry() -> None:
    fill(200)
    fd = os.open(".", os.O_RDONLY)
    listed = list(entries(fd))
    for index in (0, 1, 2, 150, 199):
        os.lseek(fd, listed[index][2], os.SEEK_SET)
        assert next(entries(fd)) == listed[index + 1]
    os.lseek(fd, listed[-1][2], os.SEEK_SET)
    assert list(entries(fd)) == []
    os.close(fd)


def test_rewinding_shows_what_is_there_now() -> None:
    fill(5)
    fd = os.open(".", os.O_RDONLY)
    assert len(os.listdir(fd)) == 5
    os.unlink("name-0003")
    os.mkdir("new")
    os.lseek(fd, 0, os.SEEK_SET)
    found = {name for name, _, _ in entries(fd)}
    os.close(fd)
    assert b"new" in found
    assert b"name-0003" not in found


def test_listing_changes_no_times() -> None:
    fill(3)
    with touching_nothing("."):
        os.listdir(".")


@pytest.mark.parametrize("bits", range(8))
def test_listing_takes_the_right_to_read_and_use_the_right_to_search(bits: int) -> None:
    make("directory", "d", 0o777, ALICE)
    make("file", "d/f")
    os.chmod("d", 0o770 | bits)
    assert attempt(os.listdir, "d", user=BOB) == (OK if bits & 4 else "EACCES")
    assert attempt(os.stat, "d/f", user=BOB) == (OK if bits & 1 else "EACCES")
    assert attempt(os.chdir, "d", user=BOB) == (OK if bits & 1 else "EACCES")


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(os.listdir)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_directory_of_100_000_entries(posix_space: Space) -> None:
    os.mkdir("many")
    descriptor = os.open("many", os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    names = [b"%06d" % number for number in range(100_000)]
    make_files(posix_space.uri, InodeNumber(os.stat("many").st_ino), names)
    assert {entry.name for entry in os.scandir(b"many")} == set(names)
    assert os.stat("many").st_size == 100_000
    assert os.stat("many/099999").st_size == 0
    os.rename("many/050000", "many/new")
    assert len(os.listdir("many")) == 100_000
    assert attempt(os.rmdir, "many") == "ENOTEMPTY"
