"""mkdir(2)."""

from __future__ import annotations

import os

import pytest

from tests.integration.posix.calls import (
    ALICE,
    BOB,
    FRIEND,
    NAME_MAX,
    OK,
    PATH_SIZE_MAX,
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
    touching,
    touching_nothing,
)

pytestmark = pytest.mark.usefixtures("bucket")


@pytest.mark.parametrize("mode", [0, 0o1, 0o20, 0o151, 0o345, 0o700, 0o755, 0o777, 0o1777])
@pytest.mark.parametrize("umask", [0, 0o22, 0o77, 0o345, 0o777])
def test_the_mode_is_that_of_the_call_less_the_umask(mode: int, umask: int) -> None:
    os.umask(umask)
    os.mkdir("d", mode)
    assert mode_of("d") == mode & ~umask


def test_it_belongs_to_the_caller_and_its_group() -> None:
    assert attempt(os.mkdir, "d", user=FRIEND) == OK
    found = os.stat("d")
    assert (found.st_uid, found.st_gid) == (FRIEND.uid, FRIEND.gid)


@pytest.mark.parametrize("user", [ALICE, BOB, FRIEND])
def test_a_set_group_id_directory_passes_group_and_bit_on(user: User) -> None:
    make("directory", "p", 0o2777, ALICE)
    assert attempt(os.mkdir, "p/d", 0o755, user=user) == OK
    found = os.stat("p/d")
    assert (found.st_uid, found.st_gid) == (user.uid, ALICE.gid)
    assert mode_of("p/d") == 0o2755


def test_times_links_and_sizes() -> None:
    with touching(mtime=["."]):
        os.mkdir("d")
    found, above = os.stat("d"), os.stat(".")
    assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns
    assert above.st_mtime_ns == found.st_ctime_ns
    assert (found.st_nlink, above.st_nlink) == (2, 3)


@every_kind
def test_a_name_that_exists_is_refused(kind: str) -> None:
    make(kind)
    with touching_nothing(".", "node"):
        assert attempt(os.mkdir, "node") == "EEXIST"


@pytest.mark.parametrize("path", [".", "..", "/", "d/.", "d/.."])
def test_the_names_of_directories_themselves_exist(path: str) -> None:
    os.mkdir("d")
    assert attempt(os.mkdir, path) == "EEXIST"


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(os.mkdir)


@every_access
def test_it_takes_the_right_to_write_and_to_search(access: Access) -> None:
    access.make_directory()
    access.close_directory()
    assert attempt(os.mkdir, "prefix/d", user=access.user) == access.expected


@pytest.mark.parametrize("name", ["n" * NAME_MAX, path_of(PATH_SIZE_MAX), "d/", "d///", "./d"])
def test_long_names_and_trailing_slashes_are_fine(name: str) -> None:
    os.mkdir(name)
    assert len(os.listdir(".")) == 1


def test_a_dangling_symlink_is_not_followed() -> None:
    os.symlink("missing", "link")
    assert attempt(os.mkdir, "link") == "EEXIST"
    assert not os.path.exists("missing")


def test_nothing_is_made_in_a_directory_that_was_removed() -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    assert attempt(os.mkdir, "d") == "ENOENT"


def test_a_read_only_mount_refuses(read_only: object) -> None:
    assert attempt(os.mkdir, "new") == "EROFS"
    assert attempt(os.mkdir, "directory") == "EEXIST"
    assert attempt(os.mkdir, "missing/new") == "ENOENT"
