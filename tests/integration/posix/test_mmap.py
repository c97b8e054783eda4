"""mmap(2), msync(2): shared and private mappings."""

from __future__ import annotations

import mmap
import os

import pytest

from tests.integration.posix.calls import OK, in_child, read_file, times_of, write_file

pytestmark = pytest.mark.usefixtures("bucket")

SIZE = 5 * mmap.PAGESIZE


@pytest.fixture
def fd(bucket: object) -> int:
    """A file of some pages, open for both; closed by each test."""
    write_file("f", b"." * SIZE)
    return os.open("f", os.O_RDWR)


def test_a_shared_mapping_and_descriptors_see_each_other(fd: int) -> None:
    with mmap.mmap(fd, SIZE) as mapping:
        mapping[10:16] = b"mapped"
        assert os.pread(fd, 6, 10) == b"mapped"
        os.pwrite(fd, b"written", 5000)
        assert mapping[5000:5007] == b"written"
        mapping.flush()
    os.close(fd)
    content = read_file("f")
    assert content[10:16] == b"mapped"
    assert content[5000:5007] == b"written"
    assert len(content) == SIZE


def test_msync_and_unmapping_change_the_time(fd: int) -> None:
    before = times_of("f")
    with mmap.mmap(fd, SIZE) as mapping:
        mapping[0] = 1
        mapping.flush()
        assert times_of("f").mtime > before.mtime
    os.close(fd)


def test_a_mapping_outlives_its_descriptor_and_its_name(fd: int) -> None:
    mapping = mmap.mmap(fd, SIZE)
    os.close(fd)
    mapping[100:104] = b"late"
    mapping.flush()
    assert read_file("f")[100:104] == b"late"
    os.unlink("f")
    mapping[200:204] = b"gone"
    assert mapping[100:104] == b"late"
    assert mapping[200:204] == b"gone"
    mapping.close()


def test_what_a_mapping_wrote_is_there_after_unmapping_alone(fd: int) -> None:
    mapping = mmap.mmap(fd, SIZE)
    os.close(fd)
    mapping[-4:] = b"tail"
    mapping.close()
    assert read_file("f")[-4:] == b"tail"


def test_a_private_mapping_keeps_its_changes(fd: int) -> None:
    before = times_of("f")
    with mmap.mmap(fd, SIZE, access=mmap.ACCESS_COPY) as mapping:
        mapping[0:7] = b"private"
        assert mapping[0:7] == b"private"
        assert os.pread(fd, 7, 0) == b"." * 7
    os.close(fd)
    assert read_file("f") == b"." * SIZE
    assert times_of("f") == before


def test_two_processes_share_a_mapping(fd: int) -> None:
    with mmap.mmap(fd, SIZE) as mapping:

        def work() -> None:
            other = os.open("f", os.O_RDWR)
            with mmap.mmap(other, SIZE) as theirs:
                theirs[0:5] = b"child"

        assert in_child(work) == OK
        assert mapping[0:5] == b"child"
    os.close(fd)


def test_a_file_that_grew_can_be_mapped_further(fd: int) -> None:
    os.ftruncate(fd, 2 * SIZE)
    with mmap.mmap(fd, 2 * SIZE) as mapping:
        assert mapping[SIZE:] == bytes(SIZE)
        mapping[-3:] = b"end"
    os.close(fd)
    assert read_file("f")[-3:] == b"end"


def test_a_mapping_to_read_follows_a_truncation(fd: int) -> None:
    with mmap.mmap(fd, SIZE, access=mmap.ACCESS_READ) as mapping:
        os.ftruncate(fd, 100)
        assert mapping[:100] == b"." * 100
        assert mapping[100 : mmap.PAGESIZE] == bytes(mmap.PAGESIZE - 100)
        os.ftruncate(fd, SIZE)
        assert mapping[mmap.PAGESIZE :] == bytes(SIZE - mmap.PAGESIZE)
    os.close(fd)
