"""utimensat(2), futimens(3), and which times other calls leave alone."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from functools import partial

import pytest

from tests.integration.posix.calls import (
    ALICE,
    AT_SYMLINK_NOFOLLOW,
    BOB,
    OK,
    ROOT,
    UTIME_NOW,
    UTIME_OMIT,
    BadPath,
    User,
    attempt,
    every_bad_path,
    every_kind,
    every_solid_kind,
    make,
    path_of,
    times_of,
    touching_nothing,
    utimensat,
    write_file,
)

pytestmark = pytest.mark.usefixtures("bucket")

NOW, OMIT = (0, UTIME_NOW), (0, UTIME_OMIT)
FIRST, SECOND = (1_000_000_000, 123_456_789), (1_100_000_000, 987_654_321)
SECOND_NS = 1_000_000_000
# The kernel's "now" is that of its last tick.
TICK_NS = 20_000_000


def ns(moment: tuple[int, int]) -> int:
    return moment[0] * SECOND_NS + moment[1]


MOMENTS = [
    (0, 0),
    (0, 1),
    (1, 999_999_999),
    (-1, 0),
    (-1, 999_999_999),
    (-86_400 * 365 * 60, 5),
    (2**31 - 1, 999_999_999),
    (2**31, 0),
    (2**32, 1),
    (-(2**31) - 1, 1),
    (9_000_000_000, 123_456_789),
    (-9_000_000_000, 1),
]


@every_kind
def test_every_moment_is_kept_to_the_nanosecond(kind: str) -> None:
    make(kind)
    for moment in MOMENTS:
        changed_at = times_of("node").ctime
        other = (moment[0] - 1, 7)
        with touching_nothing("."):
            utimensat("node", moment, other, AT_SYMLINK_NOFOLLOW)
        found = times_of("node")
        assert (found.atime, found.mtime) == (ns(moment), ns(other))
        assert found.ctime > changed_at


@pytest.mark.parametrize(
    "seconds",
    [2**33, -(2**33) - 2**31, 2**34, 2**40, -(2**40), 2**62, -(2**62), 2**63 - 1, -(2**63)],
)
def test_a_moment_that_cannot_be_kept_becomes_the_nearest(seconds: int) -> None:
    make("file")
    utimensat("node", (seconds, 5), (seconds, 999_999_999))
    found = times_of("node")
    wanted = seconds * SECOND_NS
    limits = -(2**63), 2**63 - 1
    assert found.atime == min(max(wanted + 5, limits[0]), limits[1])
    assert found.mtime == min(max(wanted + 999_999_999, limits[0]), limits[1])


@every_solid_kind
@pytest.mark.parametrize(("atime", "mtime"), list(itertools.product([FIRST, NOW, OMIT], repeat=2)))
@pytest.mark.parametrize(
    ("user", "may_write"), [(ROOT, True), (ALICE, False), (BOB, True), (BOB, False)]
)
def test_who_may_set_what(
    kind: str, atime: tuple[int, int], mtime: tuple[int, int], user: User, *, may_write: bool
) -> None:
    make(kind, "node", 0o666 if may_write else 0o444, ALICE)
    utimensat("node", SECOND, SECOND)
    if user in {ROOT, ALICE} or (atime, mtime) == (OMIT, OMIT):
        expected = OK
    elif (atime, mtime) == (NOW, NOW):
        expected = OK if may_write else "EACCES"
    else:
        expected = "EPERM"
    before, start_ns = times_of("node"), time.time_ns() - TICK_NS
    assert attempt(utimensat, "node", atime, mtime, user=user) == expected
    found = times_of("node")
    if expected != OK or (atime, mtime) == (OMIT, OMIT):
        assert found == before
        return
    for value, asked in ((found.atime, atime), (found.mtime, mtime)):
        if asked == NOW:
            assert start_ns <= value <= time.time_ns()
        else:
            assert value == ns(SECOND if asked == OMIT else asked)
    assert found.ctime > before.ctime


@pytest.mark.parametrize("bad", [1_000_000_000, -1, 2**31, UTIME_NOW + 10])
def test_nanoseconds_that_are_none(bad: int) -> None:
    make("file")
    with touching_nothing("node"):
        assert attempt(utimensat, "node", (1, bad), FIRST) == "EINVAL"
        assert attempt(utimensat, "node", FIRST, (1, bad)) == "EINVAL"


def test_a_symlink_is_followed_or_not() -> None:
    make("file")
    os.symlink("node", "link")
    utimensat("link", FIRST, SECOND)
    assert times_of("node")[:2] == (ns(FIRST), ns(SECOND))
    with touching_nothing("node"):
        utimensat("link", SECOND, FIRST, AT_SYMLINK_NOFOLLOW)
    assert times_of("link")[:2] == (ns(SECOND), ns(FIRST))


def test_an_open_file_keeps_the_time_it_was_given_over_writes_before() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"written before")
    os.utime(fd, ns=(ns(FIRST), ns(SECOND)))
    assert times_of(fd)[:2] == (ns(FIRST), ns(SECOND))
    os.fsync(fd)
    assert times_of("f")[:2] == (ns(FIRST), ns(SECOND))
    os.close(fd)
    assert times_of("f")[:2] == (ns(FIRST), ns(SECOND))
    fd = os.open("f", os.O_RDWR)
    os.write(fd, b"written after")
    assert times_of("f").mtime > ns(SECOND)
    os.close(fd)
    assert times_of("f").mtime > ns(SECOND)


def test_reading_leaves_the_access_time() -> None:
    write_file("f", b"content")
    utimensat("f", FIRST, SECOND)
    with touching_nothing("f"), open("f", "rb") as file:
        assert file.read() == b"content"


def test_paths_that_end_nowhere() -> None:
    os.symlink("missing", "dangling")
    os.symlink("loop", "loop")
    make("file")
    for path, expected in (
        ("missing", "ENOENT"), ("dangling", "ENOENT"), ("loop", "ELOOP"), ("node/", "ENOTDIR"),
    ):  # fmt: skip
        assert attempt(utimensat, path, FIRST, SECOND) == expected, path


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(lambda path: utimensat(path, FIRST, SECOND))


def test_a_long_path_is_fine() -> None:
    make("file", "name")
    utimensat(path_of(4095), FIRST, SECOND)
    assert times_of("name")[:2] == (ns(FIRST), ns(SECOND))


def test_a_read_only_mount_refuses(read_only: object) -> None:
    assert attempt(utimensat, "file", FIRST, SECOND) == "EROFS"
    assert attempt(utimensat, "link", NOW, NOW, AT_SYMLINK_NOFOLLOW) == "EROFS"


def test_time_never_goes_back_when_calls_that_the_kernel_stamps_follow_those_of_the_mount() -> None:
    for _ in range(30):
        descriptor = os.open("file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        steps: list[Callable[[], object]] = [
            partial(os.write, descriptor, b"written"),
            partial(os.utime, "file"),
            partial(os.truncate, "file", 3),
            partial(os.utime, "file"),
            partial(os.ftruncate, descriptor, 0),
            partial(os.utime, descriptor),
        ]
        before_ns = os.stat("file").st_mtime_ns
        for number, step in enumerate(steps):
            step()
            after_ns = os.stat("file").st_mtime_ns
            assert after_ns >= before_ns, f"after step {number}"
            before_ns = after_ns
        os.close(descriptor)
        os.unlink("file")
