"""write(2), read(2), pwritev(2), lseek(2), fsync(2), O_APPEND, O_DIRECT, O_SYNC."""

from __future__ import annotations

import mmap
import os
import random
import resource
import signal
import struct

import pytest

from tests.integration.posix.calls import (
    ALICE,
    BOB,
    FRIEND,
    OK,
    ROOT,
    User,
    attempt,
    in_child,
    make,
    mode_of,
    read_file,
    times_of,
    touching,
    touching_nothing,
    write_file,
)

pytestmark = pytest.mark.usefixtures("bucket")

APPENDERS, RECORDS = 8, 150
RECORD = struct.Struct("<II120s")


def test_appends_of_many_processes_lose_nothing() -> None:
    write_file("log")

    def append(writer: int) -> None:
        fd = os.open("log", os.O_WRONLY | os.O_APPEND)
        for number in range(RECORDS):
            record = RECORD.pack(writer, number, bytes([writer + 1]) * 120)
            assert os.write(fd, record) == RECORD.size
        os.close(fd)

    pids = []
    for writer in range(APPENDERS):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                append(writer)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * APPENDERS
    content = read_file("log")
    records = [RECORD.unpack_from(content, at) for at in range(0, len(content), RECORD.size)]
    assert len(content) == APPENDERS * RECORDS * RECORD.size
    assert all(filler == bytes([writer + 1]) * 120 for writer, _, filler in records)
    for writer in range(APPENDERS):
        assert [number for who, number, _ in records if who == writer] == list(range(RECORDS))


def test_o_append_writes_at_the_end_wherever_the_position_is() -> None:
    write_file("f", b"first")
    fd = os.open("f", os.O_RDWR | os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b" second")
    assert os.lseek(fd, 0, os.SEEK_CUR) == 12
    # Linux appends with pwrite too.
    os.pwrite(fd, b" third", 0)
    assert os.pread(fd, 100, 0) == b"first second third"
    os.ftruncate(fd, 5)
    os.write(fd, b"!")
    assert read_file("f") == b"first!"
    os.close(fd)


def test_one_reads_what_another_writes() -> None:
    writer = os.open("f", os.O_CREAT | os.O_WRONLY)
    reader = os.open("f", os.O_RDONLY)
    for number in range(50):
        block = bytes([number]) * 997
        os.write(writer, block)
        assert os.read(reader, 2000) == block
        os.pwrite(writer, b"again", number * 10)
        assert os.pread(reader, 5, number * 10) == b"again"
    os.close(writer)
    os.close(reader)


def test_random_writes_read_back_as_in_memory() -> None:
    chance = random.Random(7)
    model = bytearray()
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    for step in range(300):
        offset, size = chance.randrange(300_000), chance.randrange(1, 20_000)
        if chance.random() < 0.5:
            data = chance.randbytes(size)
            model.extend(bytes(max(0, offset + size - len(model))))
            model[offset : offset + size] = data
            assert os.pwrite(fd, data, offset) == size
        else:
            assert os.pread(fd, size, offset) == model[offset : offset + size]
        if step % 40 == 0:
            os.fsync(fd)
    os.close(fd)
    assert read_file("f") == model


def test_several_buffers_at_once() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    assert os.writev(fd, [b"ab", b"", b"cde"]) == 5
    assert os.pwritev(fd, [b"X", b"YZ"], 1) == 3
    buffers = [bytearray(2), bytearray(10)]
    assert os.preadv(fd, buffers, 0) == 5
    assert b"".join(buffers)[:5] == b"aXYZe"
    os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 131_072, 1_048_577, 9_000_001])
def test_any_size_comes_back_whole(size: int) -> None:
    content = random.Random(size).randbytes(size)
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    assert os.write(fd, content) == size
    assert os.pread(fd, size + 10, 0) == content
    assert os.pread(fd, 10, size) == b""
    os.close(fd)
    assert read_file("f") == content


def test_bad_offsets_and_descriptors() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"content")
    with touching_nothing("f"):
        assert attempt(os.pwrite, fd, b"x", -1) == "EINVAL"
        assert attempt(os.pread, fd, 1, -1) == "EINVAL"
        assert attempt(os.lseek, fd, -1, os.SEEK_SET) == "EINVAL"
        assert attempt(os.lseek, fd, -8, os.SEEK_END) == "EINVAL"
        assert attempt(os.pwrite, fd, b"x", 2**63 - 1) == "EINVAL"
        assert os.pread(fd, 1, 2**63 - 2) == b""
    os.close(fd)
    fd = os.open("f", os.O_WRONLY)
    assert attempt(os.read, fd, 1) == "EBADF"
    os.close(fd)
    fd = os.open(".", os.O_RDONLY)
    assert attempt(os.read, fd, 1) == "EISDIR"
    os.close(fd)


def test_the_last_bytes_that_can_be() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    assert os.pwrite(fd, b"end", 2**63 - 1 - 4096) == 3
    assert os.fstat(fd).st_size == 2**63 - 1 - 4096 + 3
    assert os.pread(fd, 10, 2**63 - 1 - 4097) == b"\0end"
    os.close(fd)


def test_the_limit_of_the_process() -> None:
    make("file", "f", 0o666)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        fd = os.open("f", os.O_WRONLY)
        assert os.write(fd, bytes(2000)) == 1000
        os.write(fd, b"more")

    assert in_child(work, BOB) == "EFBIG"
    assert os.stat("f").st_size == 1000


def test_writing_advances_the_times_and_reading_does_not() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    with touching_nothing("."):
        with touching(mtime=["f"]):
            os.write(fd, b"content")
        with touching_nothing("f"):
            os.pread(fd, 7, 0)
            os.write(fd, b"")
        with touching_nothing("f"):
            os.fsync(fd)
        written = times_of("f")
        os.close(fd)
    assert times_of("f").mtime == written.mtime


@pytest.mark.parametrize("user", [ALICE, BOB, FRIEND, ROOT])
@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777, 0o4666, 0o7777])
def test_set_id_bits_go_unless_root_writes(user: User, mode: int) -> None:
    make("file", "f", mode, ALICE)
    fd = os.open("f", os.O_WRONLY)
    assert attempt(os.write, fd, b"x", user=user) == OK
    os.close(fd)
    assert mode_of("f") == (mode if user == ROOT else mode & ~0o6000)


@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC, os.O_DIRECT, os.O_DIRECT | os.O_SYNC])
def test_direct_and_synchronous_writes_and_reads(flags: int) -> None:
    buffer = mmap.mmap(-1, 64 * 1024)
    buffer[:] = random.Random(3).randbytes(len(buffer))
    fd = os.open("f", os.O_CREAT | os.O_RDWR | flags)
    assert os.write(fd, buffer) == len(buffer)
    assert os.pwrite(fd, memoryview(buffer)[:4096], 32 * 1024) == 4096
    expected = bytearray(buffer)
    expected[32 * 1024 : 36 * 1024] = buffer[:4096]
    assert read_file("f") == expected
    found = mmap.mmap(-1, 64 * 1024)
    assert os.preadv(fd, [found], 0) == len(found)
    assert found[:] == expected
    # What is written through the cache is seen by direct reads, and the reverse.
    with open("f", "r+b") as other:
        other.write(b"cached")
        other.flush()
        os.preadv(fd, [found], 0)
        assert found[:6] == b"cached"
        os.pwrite(fd, memoryview(buffer)[:4096], 0)
        other.seek(0)
        assert other.read(4096) == buffer[:4096]
    os.close(fd)


def test_a_full_copy_survives_the_kernels_cache() -> None:
    content = random.Random(5).randbytes(300_000)
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.write(fd, content)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, len(content), 0) == content
    os.close(fd)
