"""chown(2), fchown(2), lchown(2)."""

from __future__ import annotations

import os

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
    every_kind,
    every_solid_kind,
    make,
    mode_of,
    path_of,
    touching,
    touching_nothing,
)

pytestmark = pytest.mark.usefixtures("bucket")

UID_MAX = 2**32 - 2
IDS = [0, 1, 65534, 65536, 2**31 - 1, 2**31, UID_MAX]


def owners_of(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


@every_kind
@pytest.mark.parametrize("number", IDS)
def test_root_gives_anything_to_anybody(kind: str, number: int) -> None:
    make(kind, "node", 0o644, ALICE)
    with touching(ctime=["node"]), touching_nothing("."):
        os.lchown("node", number, -1)
    assert owners_of("node") == (number, ALICE.gid)
    os.lchown("node", -1, number)
    assert owners_of("node") == (number, number)
    os.lchown("node", 5, 6)
    assert owners_of("node") == (5, 6)


@every_kind
@pytest.mark.parametrize(
    ("user", "uid", "gid", "expected"),
    [
        (FRIEND, -1, ALICE.gid, OK),
        (FRIEND, BOB.uid, ALICE.gid, OK),
        (FRIEND, BOB.uid, -1, OK),
        (FRIEND, -1, BOB.gid, OK),
        (FRIEND, -1, -1, OK),
        (BOB, -1, ALICE.gid, "EPERM"),
        (BOB, -1, 0, "EPERM"),
        (BOB, ALICE.uid, -1, "EPERM"),
        (BOB, ALICE.uid, BOB.gid, "EPERM"),
        (BOB, 0, 0, "EPERM"),
        (ALICE, ALICE.uid, -1, "EPERM"),
        (ALICE, -1, ALICE.gid, "EPERM"),
        (ALICE, BOB.uid, -1, "EPERM"),
        (MATE, -1, BOB.gid, "EPERM"),
        (ROOT, 0, 0, OK),
    ],
)
def test_an_owner_gives_it_to_groups_of_its_own_only(
    kind: str, user: User, uid: int, gid: int, expected: str
) -> None:
    make(kind, "node", 0o777, BOB)
    before = os.lstat("node")
    assert attempt(os.lchown, "node", uid, gid, user=user) == expected
    if expected == OK:
        wanted = (BOB.uid if uid == -1 else uid, BOB.gid if gid == -1 else gid)
        assert owners_of("node") == wanted
    else:
        after = os.lstat("node")
        assert after.st_ctime_ns == before.st_ctime_ns
        assert owners_of("node") == (BOB.uid, BOB.gid)


@every_solid_kind
@pytest.mark.parametrize("user", [ROOT, FRIEND])
@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6755, 0o6777, 0o6555, 0o4644, 0o1777, 0o7777])
@pytest.mark.parametrize("gid", [ALICE.gid, -1])
def test_set_id_bits_go_from_all_but_directories(
    kind: str, user: User, mode: int, gid: int
) -> None:
    make(kind, "node", mode, BOB)
    assert mode_of("node") == mode
    assert attempt(os.chown, "node", -1, gid, user=user) == OK
    assert mode_of("node") == (mode if kind == "directory" else mode & ~0o6000)


def test_the_group_id_bit_without_execution_is_no_privilege_and_stays() -> None:
    make("file", "node", 0o2745, BOB)
    os.chown("node", -1, BOB.gid)
    assert mode_of("node") == 0o2745


def test_a_refused_change_leaves_set_id_bits() -> None:
    make("file", "node", 0o6777, BOB)
    assert attempt(os.chown, "node", ALICE.uid, -1, user=ALICE) == "EPERM"
    assert mode_of("node") == 0o6777


def test_a_symlink_is_followed_by_chown_only() -> None:
    make("file")
    os.symlink("node", "link")
    os.chown("link", 3, 4)
    assert (owners_of("node"), owners_of("link")) == ((3, 4), (0, 0))
    os.lchown("link", 5, 6)
    assert (owners_of("node"), owners_of("link")) == ((3, 4), (5, 6))


def test_an_open_and_an_unlinked_file_follow() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.fchown(fd, 7, 8)
    assert owners_of("f") == (7, 8)
    os.unlink("f")
    os.fchown(fd, 9, 10)
    assert (os.fstat(fd).st_uid, os.fstat(fd).st_gid) == (9, 10)
    os.close(fd)


def test_rights_follow_at_once() -> None:
    make("file", "node", 0o600, ALICE)
    assert attempt(read := lambda: os.close(os.open("node", os.O_RDONLY)), user=BOB) == "EACCES"
    os.chown("node", BOB.uid, -1)
    assert attempt(read, user=BOB) == OK
    assert attempt(read, user=ALICE) == "EACCES"


def test_paths_that_end_nowhere() -> None:
    os.symlink("missing", "dangling")
    os.symlink("loop", "loop")
    make("file")
    for path, expected in (
        ("missing", "ENOENT"), ("dangling", "ENOENT"), ("loop", "ELOOP"), ("node/", "ENOTDIR"),
    ):  # fmt: skip
        assert attempt(os.chown, path, 1, 1) == expected, path


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(lambda path: os.chown(path, 1, 1))


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused_by_lchown(bad: BadPath) -> None:
    bad.check(lambda path: os.lchown(path, 1, 1))


def test_a_long_path_is_fine() -> None:
    make("file", "name")
    os.chown(path_of(4095), 1, 2)
    assert owners_of("name") == (1, 2)


def test_a_read_only_mount_refuses(read_only: object) -> None:
    assert attempt(os.chown, "file", 1, 1) == "EROFS"
    assert attempt(os.lchown, "link", 1, 1) == "EROFS"
    assert attempt(os.chown, "missing", 1, 1) == "ENOENT"
