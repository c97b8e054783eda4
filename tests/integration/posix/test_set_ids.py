"""When set-user-id and set-group-id end: by write, truncate, O_TRUNC, chown.

The expectations are what ext4 does. Who is privileged is root alone.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

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
    write_file,
)

pytestmark = pytest.mark.usefixtures("bucket")

CONTENT = b"x" * 100


def written(fd: int) -> None:
    os.write(fd, b"y")


def mapped(fd: int) -> None:
    with mmap.mmap(fd, len(CONTENT)) as memory:
        memory[:3] = b"abc"
        memory.flush()


def shortened(fd: int) -> None:
    os.ftruncate(fd, 5)


def kept_as_long(fd: int) -> None:
    os.ftruncate(fd, len(CONTENT))


def appended(_: int) -> None:
    with open("node", "ab", buffering=0) as file:
        file.write(b"y")


def sent(fd: int) -> None:
    with open("/etc/passwd", "rb") as source:
        os.sendfile(fd, source.fileno(), 0, 10)


def copied(fd: int) -> None:
    os.copy_file_range(fd, fd, 10, 0, 50)


def truncated_by_path(_: int) -> None:
    os.truncate("node", 7)


def truncated_by_open(_: int) -> None:
    os.close(os.open("node", os.O_WRONLY | os.O_TRUNC))


def created_again(_: int) -> None:
    os.close(os.open("node", os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o644))


TRUNCATIONS = [shortened, kept_as_long, truncated_by_path, truncated_by_open, created_again]
CHANGES = [written, appended, sent, copied, *TRUNCATIONS]
# Who opened the file, and who changes it: FRIEND is in the group of the file.
WRITERS = [(ALICE, ALICE), (FRIEND, FRIEND), (BOB, BOB), (ROOT, BOB), (ROOT, ALICE)]
every_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
every_truncation = pytest.mark.parametrize("change", TRUNCATIONS, ids=lambda c: c.__name__)


def file_with(mode: int, group: User = ALICE) -> None:
    make("file", "node", 0o644)
    write_file("node", CONTENT)
    os.chown("node", ALICE.uid, group.gid)
    os.chmod("node", mode)


def change_as(opener: User, writer: User, change: Callable[[int], None]) -> None:
    """Do it by a descriptor that somebody else may have opened."""
    if opener == writer:
        assert in_child(lambda: change(os.open("node", os.O_RDWR)), writer) == OK
        return
    fd = os.open("node", os.O_RDWR)
    try:
        assert in_child(lambda: change(fd), writer) == OK
    finally:
        os.close(fd)


@every_change
@pytest.mark.parametrize(("opener", "writer"), WRITERS)
@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777])
def test_a_change_by_anybody_but_root_ends_them(
    change: Callable[[int], None], opener: User, writer: User, mode: int
) -> None:
    file_with(mode)
    change_as(opener, writer, change)
    assert mode_of("node") == 0o777


def test_mapped_memory_ends_nothing() -> None:
    """As on ext4: the kernel asks no file system to."""
    file_with(0o6777)
    change_as(BOB, BOB, mapped)
    assert mode_of("node") == 0o6777


@every_change
def test_a_change_by_root_ends_nothing(change: Callable[[int], None]) -> None:
    file_with(0o6777)
    change_as(ROOT, ROOT, change)
    assert mode_of("node") == 0o6777


@every_change
def test_who_is_in_the_group_keeps_set_group_id_of_what_it_may_not_execute(
    change: Callable[[int], None],
) -> None:
    file_with(0o6767)
    change_as(FRIEND, FRIEND, change)
    assert mode_of("node") == 0o2767


@every_truncation
@pytest.mark.parametrize("writer", [ALICE, BOB])
def test_truncation_from_outside_of_the_group_ends_it_all_the_same(
    change: Callable[[int], None], writer: User
) -> None:
    file_with(0o6767, User(0, 65529))
    change_as(writer, writer, change)
    assert mode_of("node") == 0o767


def test_the_owner_gives_to_a_group_and_ends_them() -> None:
    for mode, after in ((0o6777, 0o777), (0o6767, 0o767), (0o4755, 0o755)):
        file_with(mode, User(0, 65529))
        assert attempt(os.chown, "node", -1, ALICE.gid, user=ALICE) == OK
        assert mode_of("node") == after
        os.unlink("node")


def test_root_gives_away_and_ends_them() -> None:
    for mode, after in ((0o6777, 0o777), (0o6767, 0o2767), (0o1777, 0o1777)):
        file_with(mode)
        os.chown("node", BOB.uid, BOB.gid)
        assert mode_of("node") == after
        os.unlink("node")


@pytest.mark.parametrize("user", [BOB, FRIEND])
def test_nobody_ends_those_of_another_by_giving_nothing_away(user: User) -> None:
    file_with(0o6777)
    assert attempt(os.chown, "node", -1, -1, user=user) == "EPERM"
    assert mode_of("node") == 0o6777


@pytest.mark.parametrize("mode", [0o755, 0o711, 0o1770, 0o644, 0])
@pytest.mark.parametrize("user", [BOB, FRIEND])
def test_anybody_may_give_nothing_away_where_nothing_ends(user: User, mode: int) -> None:
    file_with(mode)
    assert attempt(os.chown, "node", -1, -1, user=user) == OK
    assert mode_of("node") == mode


def test_the_owner_ends_them_by_giving_nothing_away() -> None:
    file_with(0o6777)
    assert attempt(os.chown, "node", -1, -1, user=ALICE) == OK
    assert mode_of("node") == 0o777


def test_those_of_a_directory_stay() -> None:
    make("directory", "node", 0o6777, ALICE)
    assert attempt(os.chown, "node", ALICE.uid, ALICE.gid, user=ALICE) == OK
    assert mode_of("node") == 0o6777
