"""truncate(2), ftruncate(2)."""

from __future__ import annotations

import os
import resource
import signal

import pytest

from tests.integration.posix.calls import (
    ALICE,
    BOB,
    FRIEND,
    MATE,
    OK,
    ROOT,
    BadPath,
    User,
    attempt,
    every_bad_path,
    in_child,
    make,
    mode_of,
    path_of,
    read_file,
    touching,
    touching_nothing,
    write_file,
)

pytestmark = pytest.mark.usefixtures("bucket")

CONTENT = bytes(range(256)) * 64
SIZES = [0, 1, 4095, 4096, 4097, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 1, 100_000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["path", "descriptor", "descriptor with unwritten bytes"])
def test_what_is_behind_the_new_end_is_gone_and_what_is_new_is_zero(size: int, way: str) -> None:
    write_file("f", CONTENT[:-10] if "unwritten" in way else CONTENT)
    fd = os.open("f", os.O_RDWR)
    if "unwritten" in way:
        os.pwrite(fd, CONTENT[-10:], len(CONTENT) - 10)
    with touching(mtime=["f"]), touching_nothing("."):
        os.truncate("f" if way == "path" else fd, size)
    expected = CONTENT[:size].ljust(size, b"\0")
    assert os.stat("f").st_size == os.fstat(fd).st_size == size
    assert read_file("f") == os.pread(fd, 200_000, 0) == expected
    os.close(fd)
    os.truncate("f", 2 * size)
    assert read_file("f") == expected.ljust(2 * size, b"\0")


def test_shorter_and_longer_again_reads_zeros() -> None:
    write_file("f", b"x" * 10_000)
    os.truncate("f", 5000)
    os.truncate("f", 10_000)
    assert read_file("f") == b"x" * 5000 + bytes(5000)


@pytest.mark.parametrize(
    ("size", "expected"), [(-1, "EINVAL"), (-(2**63), "EINVAL"), (2**63 - 1, OK), (2**62, OK)]
)
def test_impossible_and_huge_sizes(size: int, expected: str) -> None:
    write_file("f", b"content")
    fd = os.open("f", os.O_RDWR)
    for path in ("f", fd):
        assert attempt(os.truncate, path, size) == expected
    assert os.stat("f").st_size == (size if expected == OK else 7)
    assert os.pread(fd, 7, 0) == b"content"
    assert os.stat("f").st_blocks <= 8
    os.close(fd)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("directory", "EISDIR"),
        ("fifo", "EINVAL"),
        ("socket", "EINVAL"),
        ("block", "EINVAL"),
        ("character", "EINVAL"),
    ],
)
def test_only_files_have_a_size(kind: str, expected: str) -> None:
    make(kind)
    with touching_nothing("node"):
        assert attempt(os.truncate, "node", 0) == expected


def test_a_symlink_is_followed() -> None:
    write_file("f", b"content")
    os.symlink("f", "link")
    os.truncate("link", 3)
    assert read_file("f") == b"con"


def test_paths_that_end_nowhere() -> None:
    os.symlink("missing", "dangling")
    os.symlink("loop", "loop")
    make("file")
    for path, expected in (
        ("missing", "ENOENT"), ("dangling", "ENOENT"), ("loop", "ELOOP"), ("node/", "ENOTDIR"),
    ):  # fmt: skip
        assert attempt(os.truncate, path, 1) == expected, path


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(lambda path: os.truncate(path, 1))


def test_a_long_path_is_fine() -> None:
    make("file", "name")
    os.truncate(path_of(4095), 77)
    assert os.stat("name").st_size == 77


@pytest.mark.parametrize(("user", "shift"), [(ALICE, 6), (MATE, 3), (FRIEND, 3), (BOB, 0)])
@pytest.mark.parametrize("bits", range(8))
def test_it_takes_the_right_to_write(user: User, shift: int, bits: int) -> None:
    make("file", "f", 0, ALICE)
    os.chmod("f", 0o777 & ~(7 << shift) | bits << shift)
    with touching_nothing("f") if not bits & 2 else touching(mtime=["f"]):
        assert attempt(os.truncate, "f", 10, user=user) == (OK if bits & 2 else "EACCES")


@pytest.mark.parametrize("user", [ALICE, BOB, ROOT])
@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777, 0o7777])
@pytest.mark.parametrize("way", ["truncate", "ftruncate"])
def test_set_id_bits_go_unless_root_does_it(user: User, mode: int, way: str) -> None:
    make("file", "f", mode, ALICE)
    fd = os.open("f", os.O_WRONLY)
    target = "f" if way == "truncate" else fd
    assert attempt(os.truncate, target, 10, user=user) == OK
    assert mode_of("f") == (mode if user == ROOT else mode & ~0o6000)
    os.close(fd)


def test_a_descriptor_for_reading_is_refused() -> None:
    write_file("f", b"content")
    fd = os.open("f", os.O_RDONLY)
    assert attempt(os.ftruncate, fd, 0) == "EINVAL"
    os.close(fd)
    assert read_file("f") == b"content"


def test_the_limit_of_the_process() -> None:
    make("file", "f", 0o666)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        os.truncate("f", 1000)
        os.truncate("f", 1001)

    assert in_child(work, BOB) == "EFBIG"
    assert os.stat("f").st_size == 1000


def test_a_read_only_mount_refuses(read_only: object) -> None:
    assert attempt(os.truncate, "file", 0) == "EROFS"
    assert read_file("file") == b"content"
