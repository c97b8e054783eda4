"""chmod(2), fchmod(2), fchmodat(2), and what access(2) says of the result."""

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
    every_solid_kind,
    in_child,
    make,
    mode_of,
    path_of,
    touching,
    touching_nothing,
)

pytestmark = pytest.mark.usefixtures("bucket")

MODES = [0, *(1 << bit for bit in range(12)), 0o111, 0o222, 0o444, 0o645, 0o777, 0o4711, 0o7777]


def chmod(path: str) -> None:
    os.chmod(path, 0o111)


@every_solid_kind
@pytest.mark.parametrize("mode", MODES)
def test_every_bit_is_kept_and_the_type_stays(kind: str, mode: int) -> None:
    make(kind)
    kind_bits = os.lstat("node").st_mode & ~0o7777
    with touching(ctime=["node"]), touching_nothing("."):
        os.chmod("node", mode)
    assert os.lstat("node").st_mode == kind_bits | mode


@every_solid_kind
@pytest.mark.parametrize("user", [ROOT, ALICE, BOB, FRIEND, MATE])
def test_only_the_owner_and_root_may(kind: str, user: User) -> None:
    make(kind, "node", 0o777, ALICE)
    if user in {ROOT, ALICE}:
        assert attempt(os.chmod, "node", 0o751, user=user) == OK
        assert mode_of("node") == 0o751
        return
    with touching_nothing("node"):
        assert attempt(os.chmod, "node", 0o751, user=user) == "EPERM"
    assert mode_of("node") == 0o777


@every_solid_kind
@pytest.mark.parametrize("mode", [0o2755, 0o2745, 0o6755, 0o2777])
def test_an_owner_outside_the_group_cannot_set_the_group_id_bit(kind: str, mode: int) -> None:
    make(kind, "node", 0o755)
    os.chown("node", BOB.uid, ALICE.gid)
    assert attempt(os.chmod, "node", mode, user=BOB) == OK
    assert mode_of("node") == mode & ~0o2000
    assert attempt(os.chmod, "node", mode, user=FRIEND) == OK
    assert mode_of("node") == mode


@every_solid_kind
def test_an_owner_may_set_the_sticky_bit(kind: str) -> None:
    make(kind, "node", 0o755, ALICE)
    assert attempt(os.chmod, "node", 0o1755, user=ALICE) == OK
    assert mode_of("node") == 0o1755


@pytest.mark.parametrize("call", ["chmod", "fchmod"])
def test_an_open_file_follows(call: str) -> None:
    make("file", "node", 0o600, ALICE)
    fd = os.open("node", os.O_RDWR)
    if call == "chmod":
        os.chmod("node", 0o40)
    else:
        os.fchmod(fd, 0o40)
    assert os.fstat(fd).st_mode & 0o7777 == mode_of("node") == 0o40
    os.write(fd, b"the descriptor keeps its rights")
    os.close(fd)


def test_a_symlink_is_followed() -> None:
    make("file")
    os.symlink("node", "link")
    with touching(ctime=["node"]), touching_nothing("link"):
        os.chmod("link", 0o321)
    assert (mode_of("node"), mode_of("link")) == (0o321, 0o777)


def test_a_symlink_itself_has_no_mode_to_change() -> None:
    make("symlink")
    fd = os.open("node", os.O_PATH | os.O_NOFOLLOW)
    with touching_nothing("node"):
        assert attempt(os.fchmod, fd, 0o1) == "EBADF"
        assert attempt(os.chmod, f"/proc/self/fd/{fd}", 0o1) == "ENOTSUP"
    os.close(fd)
    assert mode_of("node") == 0o777


def test_symlinks_that_lead_nowhere() -> None:
    os.symlink("missing", "dangling")
    os.symlink("loop", "loop")
    assert attempt(chmod, "dangling") == "ENOENT"
    assert attempt(chmod, "loop") == "ELOOP"


def test_what_is_missing() -> None:
    assert attempt(chmod, "missing") == "ENOENT"
    make("file")
    assert attempt(chmod, "node/") == "ENOTDIR"


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(chmod)


def test_a_long_path_is_fine() -> None:
    make("file", "name")
    os.chmod(path_of(4095), 0o123)
    assert mode_of("name") == 0o123


def test_an_unlinked_file_has_a_mode_still() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR, 0o600)
    os.unlink("f")
    os.fchmod(fd, 0o4321)
    assert os.fstat(fd).st_mode & 0o7777 == 0o4321
    os.close(fd)


@pytest.mark.parametrize(("user", "shift"), [(ALICE, 6), (MATE, 3), (FRIEND, 3), (BOB, 0)])
def test_access_says_what_the_mode_of_the_class_says(user: User, shift: int) -> None:
    os.mkdir("d")
    for bits in range(8):
        make("file", f"d/{bits}", 0, ALICE)
        os.chmod(f"d/{bits}", 0o777 & ~(7 << shift) | bits << shift)

    def ask() -> None:
        for bits in range(8):
            for wanted in range(1, 8):
                is_allowed = bits & wanted == wanted
                assert os.access(f"d/{bits}", wanted) is is_allowed, (bits, wanted)

    assert in_child(ask, user) == OK


@pytest.mark.parametrize("mode", [0, 0o1, 0o644])
def test_root_may_all_but_run_what_nobody_may(mode: int) -> None:
    make("file", "node", mode, ALICE)
    assert os.access("node", os.R_OK | os.W_OK)
    assert os.access("node", os.X_OK) is bool(mode & 0o111)


def test_a_read_only_mount_refuses(read_only: object) -> None:
    assert attempt(chmod, "file") == "EROFS"
    assert attempt(chmod, "directory") == "EROFS"
    assert attempt(chmod, "missing") == "ENOENT"
    assert os.access("file", os.R_OK)
    assert not os.access("file", os.W_OK)
