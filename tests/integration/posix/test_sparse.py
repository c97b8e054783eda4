"""Holes, and files of many TiB that hold little."""

from __future__ import annotations

import os

import pytest

from tests.integration.posix.calls import read_file

pytestmark = pytest.mark.usefixtures("bucket")

TIB = 2**40
OFFSETS = [0, 4095, 5 * 2**20 + 17, 2**31 - 1, 2**32 + 3, TIB, 100 * TIB, 4000 * TIB, 2**62]


def test_a_few_bytes_far_apart() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    for offset in OFFSETS:
        os.pwrite(fd, b"here", offset)
    os.fsync(fd)
    for offset in OFFSETS:
        assert os.pread(fd, 4, offset) == b"here"
        assert os.pread(fd, 8, offset + 4) == (b"" if offset == OFFSETS[-1] else bytes(8))
    assert os.fstat(fd).st_size == OFFSETS[-1] + 4
    assert os.fstat(fd).st_blocks <= len(OFFSETS) * 8
    os.close(fd)
    with open("f", "rb") as file:
        file.seek(100 * TIB - 2)
        assert file.read(8) == b"\0\0here\0\0"


@pytest.mark.parametrize("size", [1, 4096, 3 * 2**20, TIB, 8000 * TIB, 2**63 - 1])
def test_a_file_that_is_one_hole(size: int) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, size)
    assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks) == (size, 0)
    for offset in {0, size // 2, max(0, size - 10)}:
        expected = bytes(min(10, size - offset))
        assert os.pread(fd, 10, offset) == expected
    os.close(fd)


def test_writing_into_a_hole_and_cutting_it_off() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, TIB)
    os.pwrite(fd, b"middle", TIB // 2)
    os.pwrite(fd, b"start", 0)
    os.ftruncate(fd, TIB // 2 + 3)
    assert os.pread(fd, 10, TIB // 2 - 1) == b"\0mid"
    os.ftruncate(fd, 8)
    assert read_file("f") == b"start\0\0\0"
    os.ftruncate(fd, TIB)
    assert os.pread(fd, 6, TIB // 2) == bytes(6)
    os.close(fd)
    assert os.stat("f").st_blocks <= 8


def test_a_write_behind_the_end_leaves_zeros_between() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"a")
    os.lseek(fd, 100_000, os.SEEK_END)
    os.write(fd, b"b")
    assert read_file("f") == b"a" + bytes(100_000) + b"b"
    os.close(fd)


def test_many_small_extents_read_as_one_file() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    for number in range(0, 400, 2):
        os.pwrite(fd, b"%04d" % number, number * 4)
    os.close(fd)
    expected = b"".join(b"%04d" % n if n % 2 == 0 else bytes(4) for n in range(399))
    assert read_file("f") == expected
