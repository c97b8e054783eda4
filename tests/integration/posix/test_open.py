"""open(2), openat(2), creat(2)."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.posix.calls import (
    ALICE,
    BOB,
    FRIEND,
    MATE,
    OK,
    ROOT,
    Access,
    BadPath,
    User,
    attempt,
    every_access,
    every_bad_path,
    every_kind,
    make,
    mode_of,
    path_of,
    read_file,
    touching,
    touching_nothing,
    write_file,
)

pytestmark = pytest.mark.usefixtures("bucket")

READ, WRITE, BOTH = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
CREATE, EXCLUSIVE, TRUNCATE = os.O_CREAT, os.O_EXCL, os.O_TRUNC


def opened(path: str, flags: int, mode: int = 0o644) -> None:
    os.close(os.open(path, flags, mode))


# --- making --------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o22, 0o77, 0o151, 0o777])
@pytest.mark.parametrize("mode", [0, 0o151, 0o644, 0o666, 0o777, 0o4755, 0o1644])
def test_the_mode_of_a_new_file_is_that_of_the_call_less_the_umask(mode: int, umask: int) -> None:
    os.umask(umask)
    opened("f", CREATE | BOTH, mode)
    assert mode_of("f") == mode & ~umask


def test_times_and_links_of_a_new_file() -> None:
    with touching(mtime=["."]):
        opened("f", CREATE | EXCLUSIVE | WRITE)
    found = os.stat("f")
    assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns
    assert found.st_mtime_ns == os.stat(".").st_mtime_ns
    assert (found.st_size, found.st_blocks, found.st_nlink) == (0, 0, 1)


@pytest.mark.parametrize("set_group_id", [0, 0o2000])
def test_the_owner_of_a_new_file(set_group_id: int) -> None:
    make("directory", "p", 0o777 | set_group_id, ALICE)
    assert attempt(opened, "p/f", CREATE | WRITE, user=BOB) == OK
    found = os.stat("p/f")
    assert (found.st_uid, found.st_gid) == (BOB.uid, ALICE.gid if set_group_id else BOB.gid)


def test_the_set_group_id_bit_of_a_new_file_needs_its_group() -> None:
    make("directory", "p", 0o2777, ALICE)
    assert attempt(opened, "p/f", CREATE | WRITE, 0o2755, user=BOB) == OK
    assert mode_of("p/f") == 0o755
    assert attempt(opened, "p/g", CREATE | WRITE, 0o2755, user=FRIEND) == OK
    assert mode_of("p/g") == 0o2755


@pytest.mark.parametrize("flags", [READ, WRITE, BOTH])
@pytest.mark.parametrize("mode", [0, 0o200, 0o400])
def test_a_new_file_is_open_as_asked_whatever_its_mode(flags: int, mode: int) -> None:
    assert attempt(opened, "f", CREATE | flags, mode, user=ALICE) == OK
    assert mode_of("f") == mode


@every_kind
def test_o_excl_refuses_whatever_exists(kind: str) -> None:
    make(kind)
    with touching_nothing(".", "node"):
        for flags in (0, TRUNCATE, os.O_APPEND):
            assert attempt(opened, "node", CREATE | EXCLUSIVE | WRITE | flags) == "EEXIST"


@pytest.mark.parametrize("target", ["missing", "loop"])
def test_o_excl_does_not_follow_symlinks(target: str) -> None:
    os.symlink(target, "loop")
    assert attempt(opened, "loop", CREATE | EXCLUSIVE | WRITE) == "EEXIST"


def test_o_creat_makes_what_a_symlink_names() -> None:
    os.symlink("made", "link")
    opened("link", CREATE | WRITE)
    assert sorted(os.listdir(".")) == ["link", "made"]


def test_o_creat_of_what_exists_changes_nothing() -> None:
    write_file("f", b"content")
    with touching_nothing(".", "f"):
        opened("f", CREATE | WRITE, 0o777)
    assert read_file("f") == b"content"


@every_access
def test_making_takes_the_right_to_write_and_to_search(access: Access) -> None:
    access.make_directory()
    access.close_directory()
    assert attempt(opened, "prefix/f", CREATE | WRITE, user=access.user) == access.expected


@pytest.mark.parametrize("flags", [READ, CREATE | WRITE])
@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath, flags: int) -> None:
    bad.check(lambda path: opened(path, flags))


def test_long_paths_are_fine() -> None:
    opened(path_of(4095), CREATE | WRITE)
    opened("n" * 255, CREATE | WRITE)
    opened(path_of(4095), READ)
    assert sorted(os.listdir(".")) == ["name", "n" * 255]


def test_no_file_is_made_in_a_directory_that_was_removed() -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    assert attempt(opened, "f", CREATE | WRITE) == "ENOENT"


def test_o_tmpfile_is_not_supported() -> None:
    assert attempt(opened, ".", os.O_TMPFILE | BOTH) == "ENOTSUP"


# --- rights --------------------------------------------------------------------------------------

CLASSES = [(ALICE, 6), (MATE, 3), (FRIEND, 3), (BOB, 0)]


@pytest.mark.parametrize(("user", "shift"), CLASSES)
@pytest.mark.parametrize("bits", range(8))
def test_the_bits_of_the_class_decide(user: User, shift: int, bits: int) -> None:
    make("file", "f", 0, ALICE)
    os.chmod("f", 0o777 & ~(7 << shift) | bits << shift)
    for flags, needed in (
        (READ, 4), (WRITE, 2), (BOTH, 6), (READ | TRUNCATE, 6), (WRITE | TRUNCATE, 2),
        (WRITE | CREATE, 2), (WRITE | os.O_APPEND, 2),
    ):  # fmt: skip
        expected = OK if bits & needed == needed else "EACCES"
        assert attempt(opened, "f", flags, user=user) == expected, (flags, bits)


@pytest.mark.parametrize("kind", ["directory", "fifo"])
@pytest.mark.parametrize("bits", range(8))
def test_the_bits_of_other_kinds_decide_too(kind: str, bits: int) -> None:
    make(kind, "node", 0o770, ALICE)
    os.chmod("node", 0o770 | bits)
    expected = OK if bits & 4 else "EACCES"
    assert attempt(opened, "node", READ | os.O_NONBLOCK, user=BOB) == expected


def test_root_opens_everything() -> None:
    make("file", "f", 0, ALICE)
    for flags in (READ, WRITE, BOTH):
        assert attempt(opened, "f", flags) == OK


# --- kinds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [WRITE, BOTH, WRITE | TRUNCATE, CREATE | READ, CREATE | WRITE])
def test_a_directory_is_only_read(flags: int) -> None:
    os.mkdir("d")
    with touching_nothing(".", "d"):
        assert attempt(opened, "d", flags) == "EISDIR"
        opened("d", READ)


@every_kind
def test_o_directory_takes_nothing_else(kind: str) -> None:
    make(kind)
    expected = {"directory": OK, "symlink": "ENOENT"}.get(kind, "ENOTDIR")
    assert attempt(opened, "node", READ | os.O_DIRECTORY) == expected


def test_o_creat_with_o_directory_is_invalid() -> None:
    assert attempt(opened, "new", CREATE | os.O_DIRECTORY | READ) == "EINVAL"
    assert os.listdir(".") == []


def test_o_nofollow_refuses_a_symlink_at_the_end_only() -> None:
    os.mkdir("d")
    opened("d/f", CREATE | WRITE)
    os.symlink("d", "link")
    os.symlink("f", "d/link")
    assert attempt(opened, "d/link", READ | os.O_NOFOLLOW) == "ELOOP"
    assert attempt(opened, "link", READ | os.O_NOFOLLOW | os.O_DIRECTORY) == "ENOTDIR"
    opened("link/f", READ | os.O_NOFOLLOW)


def test_a_fifo_without_a_partner() -> None:
    os.mkfifo("fifo")
    assert attempt(opened, "fifo", WRITE | os.O_NONBLOCK) == "ENXIO"
    opened("fifo", READ | os.O_NONBLOCK)
    opened("fifo", BOTH | os.O_NONBLOCK)


def test_a_socket_cannot_be_opened() -> None:
    make("socket")
    assert attempt(opened, "node", READ) == "ENXIO"
    assert attempt(opened, "node", WRITE) == "ENXIO"


def test_a_device_that_nobody_drives() -> None:
    for kind in ("block", "character"):
        os.mknod(kind, 0o600 | {"block": 0o060000, "character": 0o020000}[kind], os.makedev(511, 7))
        assert attempt(opened, kind, READ) == "ENXIO"


def test_a_program_that_runs_is_busy() -> None:
    program = os.path.realpath("/bin/sleep")
    write_file("program", read_file(program))
    os.chmod("program", 0o755)
    with subprocess.Popen(["./program", "100"]) as running:
        for flags in (WRITE, BOTH, WRITE | TRUNCATE):
            assert attempt(opened, "program", flags) == "ETXTBSY"
        assert attempt(os.truncate, "program", 1) == "ETXTBSY"
        opened("program", READ)
        running.kill()
    opened("program", BOTH)


def test_symlinks_that_lead_nowhere() -> None:
    os.symlink("loop", "loop")
    os.symlink("missing", "dangling")
    assert attempt(opened, "loop", READ) == "ELOOP"
    assert attempt(opened, "dangling", READ) == "ENOENT"
    assert attempt(opened, "dangling", CREATE | EXCLUSIVE | READ) == "EEXIST"


# --- truncation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"some content"])
def test_o_trunc_empties_a_file_and_changes_its_times(content: bytes) -> None:
    write_file("f", content)
    with touching(mtime=["f"]), touching_nothing("."):
        opened("f", WRITE | TRUNCATE)
    assert read_file("f") == b""
    assert os.stat("f").st_blocks == 0


@pytest.mark.parametrize("user", [ALICE, BOB, FRIEND, ROOT])
@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777, 0o6766, 0o2767, 0o7777])
def test_o_trunc_ends_set_ids_unless_root_does_it(user: User, mode: int) -> None:
    make("file", "f", mode, ALICE)
    assert attempt(opened, "f", WRITE | TRUNCATE, user=user) == OK
    # Who is not of the group ends the set-group-id also where it only stands for locking.
    cleared = 0o4000 | (0o2000 if mode & 0o10 or user == BOB else 0)
    assert mode_of("f") == (mode if user == ROOT else mode & ~cleared)


def test_opening_alone_changes_nothing() -> None:
    make("file", "f", 0o6777, ALICE)
    with touching_nothing("f"):
        for flags in (READ, WRITE, BOTH, CREATE | BOTH):
            assert attempt(opened, "f", flags, user=BOB) == OK
    assert mode_of("f") == 0o6777


def test_others_who_have_it_open_see_the_truncation() -> None:
    write_file("f", b"some content")
    with open("f", "rb") as reader:
        assert reader.read(4) == b"some"
        opened("f", WRITE | TRUNCATE)
        assert os.fstat(reader.fileno()).st_size == 0
        assert reader.raw.read() == b""


# --- the rest ------------------------------------------------------------------------------------


def test_o_path_needs_no_right() -> None:
    make("file", "f", 0, ALICE)
    assert attempt(opened, "f", os.O_PATH, user=BOB) == OK


def test_descriptors_are_apart() -> None:
    write_file("f", b"0123456789")
    first, second = os.open("f", READ), os.open("f", BOTH)
    assert os.read(first, 5) == b"01234"
    assert os.write(second, b"ab") == 2
    assert os.read(first, 5) == b"56789"
    assert os.read(second, 3) == b"234"
    assert attempt(os.write, first, b"x") == "EBADF"
    os.close(first)
    os.close(second)


def test_a_read_only_mount_refuses(read_only: Path) -> None:
    for access, flags in itertools.product((WRITE, BOTH), (0, CREATE, TRUNCATE)):
        assert attempt(opened, "file", access | flags) == "EROFS"
    assert attempt(opened, "new", CREATE | READ) == "EROFS"
    assert attempt(opened, "file", CREATE | EXCLUSIVE | READ) in {"EEXIST", "EROFS"}
    assert read_file("file") == b"content"
