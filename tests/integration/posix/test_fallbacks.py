"""What pyfuse3 cannot do, and what the kernel and the C library make of it.

fallocate(2), posix_fallocate(3), SEEK_HOLE, copy_file_range(2), ioctl(2), flock(2), fcntl(2) locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import struct
from collections.abc import Iterator

import pytest

from tests.integration.posix.calls import (
    OK,
    attempt,
    fallocate,
    in_child,
    read_file,
    touching_nothing,
    write_file,
)

pytestmark = pytest.mark.usefixtures("bucket")

KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE, INSERT = 1, 2, 8, 16, 32
FICLONE, FS_IOC_GETFLAGS = 0x40049409, 0x80086601
OFD_SETLK = 37


@contextlib.contextmanager
def opened(path: str = "f", flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "mode",
    [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, COLLAPSE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, INSERT],
)
def test_fallocate_is_refused_and_damages_nothing(mode: int) -> None:
    write_file("f", b"x" * 8192)
    with opened() as fd, touching_nothing("f"):
        assert attempt(fallocate, fd, mode, 0, 4096) == "ENOTSUP"
    assert read_file("f") == b"x" * 8192


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 100_000), (5000, 20_000), (8192, 4096)])
def test_the_c_library_emulates_posix_fallocate(offset: int, length: int) -> None:
    content = random.Random(1).randbytes(8192)
    write_file("f", content)
    with opened() as fd:
        os.posix_fallocate(fd, offset, length)
    size = max(8192, offset + length)
    assert read_file("f") == content.ljust(size, b"\0")


def test_posix_fallocate_of_nonsense() -> None:
    write_file("f", b"content")
    with opened() as fd, touching_nothing("f"):
        assert attempt(os.posix_fallocate, fd, 0, 0) == "EINVAL"
        assert attempt(os.posix_fallocate, fd, -1, 10) == "EINVAL"


def test_all_of_a_file_is_data_to_seek() -> None:
    write_file("f", b"data")
    os.truncate("f", 10_000_000)
    with opened() as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 5_000_000, os.SEEK_DATA) == 5_000_000
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 10_000_000
        assert attempt(os.lseek, fd, 10_000_000, os.SEEK_DATA) == "ENXIO"
        assert attempt(os.lseek, fd, 10_000_001, os.SEEK_HOLE) == "ENXIO"


def test_copy_file_range_copies() -> None:
    content = random.Random(2).randbytes(700_000)
    write_file("f", content)
    with opened() as source, opened("g", os.O_CREAT | os.O_RDWR) as target:
        done = 0
        while done < len(content):
            count = os.copy_file_range(source, target, len(content) - done)
            assert count > 0
            done += count
        # From bytes that are not committed yet, to an offset that leaves a hole.
        os.pwrite(source, b"FRESH", 0)
        assert os.copy_file_range(source, target, 5, 0, 1_000_000) == 5
    assert read_file("g") == content + bytes(300_000) + b"FRESH"


def test_a_clone_is_refused() -> None:
    write_file("f", b"content")
    with opened() as source, opened("g", os.O_CREAT | os.O_RDWR) as target:
        assert attempt(fcntl.ioctl, target, FICLONE, source) == "ENOTSUP"
    assert read_file("g") == b""


@pytest.mark.parametrize("request_number", [FS_IOC_GETFLAGS, 0x5401, 0x12345678])
def test_ioctl_is_refused(request_number: int) -> None:
    write_file("f", b"content")
    with opened() as fd:
        assert attempt(fcntl.ioctl, fd, request_number, bytes(256)) in {"ENOTTY", "ENOSYS"}


def test_flock_keeps_descriptors_apart() -> None:
    write_file("f")
    with opened() as first, opened() as second:
        fcntl.flock(first, fcntl.LOCK_SH)
        fcntl.flock(second, fcntl.LOCK_SH)
        assert attempt(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB) == "EAGAIN"
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert attempt(fcntl.flock, first, fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN"


def test_fcntl_locks_keep_processes_apart_range_by_range() -> None:
    write_file("f", bytes(100))
    with opened() as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)

        def try_range(start: int, length: int) -> str:
            def work() -> None:
                with opened() as other:
                    fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)

            return in_child(work)

        assert try_range(0, 20) == OK
        assert try_range(30, 70) == OK
        assert try_range(29, 1) == "EAGAIN"
        assert try_range(0, 0) == "EAGAIN"
        fcntl.lockf(fd, fcntl.LOCK_UN, 10, 20)
        assert try_range(0, 0) == OK


def test_open_file_description_locks_keep_descriptors_apart() -> None:
    write_file("f", bytes(100))
    # struct flock of 64 bits: type, whence, start, length, pid.
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with opened() as first, opened() as second:
        fcntl.fcntl(first, OFD_SETLK, lock)
        assert attempt(fcntl.fcntl, second, OFD_SETLK, lock) == "EAGAIN"
    with opened() as third:
        fcntl.fcntl(third, OFD_SETLK, lock)


def test_a_lock_ends_with_its_process() -> None:
    write_file("f")

    def work() -> None:
        fcntl.flock(os.open("f", os.O_RDWR), fcntl.LOCK_EX)

    assert in_child(work) == OK
    with opened() as fd:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_leases_are_refused_or_granted_and_nothing_hangs() -> None:
    write_file("f")
    with opened("f", os.O_RDONLY) as fd:
        assert attempt(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_RDLCK) in {"EINVAL", "EAGAIN", OK}
