"""rename(2), renameat2(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.posix.calls import (
    ALICE,
    BOB,
    KINDS,
    OK,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Access,
    BadPath,
    Sticky,
    attempt,
    every_access,
    every_bad_path,
    every_kind,
    every_sticky,
    make,
    path_of,
    read_file,
    renameat2,
    touching,
    touching_nothing,
    write_file,
)

pytestmark = pytest.mark.usefixtures("bucket")

every_target = pytest.mark.parametrize("target", [*KINDS, "full directory"])


def make_target(kind: str, path: str) -> None:
    make(kind.removeprefix("full "), path)
    if kind == "full directory":
        make("file", f"{path}/inside")


def expected_over(kind: str, target: str) -> str:
    """What a rename of `kind` over `target` says."""
    if kind == "directory" and "directory" not in target:
        return "ENOTDIR"
    if kind != "directory" and "directory" in target:
        return "EISDIR"
    return "ENOTEMPTY" if target == "full directory" else OK


@every_kind
@pytest.mark.parametrize("place", [".", "e"])
def test_a_name_moves_and_the_inode_stays(kind: str, place: str) -> None:
    make(kind)
    os.mkdir("e")
    before = os.lstat("node")
    changed = {".", place}
    with touching(ctime=[], mtime=sorted(changed)):
        os.rename("node", f"{place}/new")
    after = os.lstat(f"{place}/new")
    assert (after.st_ino, after.st_mode, after.st_nlink) == (
        before.st_ino, before.st_mode, before.st_nlink,
    )  # fmt: skip
    assert after.st_mtime_ns == before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns
    assert attempt(os.lstat, "node") == "ENOENT"
    directories = int(kind == "directory")
    assert os.stat("e").st_nlink == 2 + directories * (place == "e")
    assert os.stat(".").st_nlink == 3 + directories * (place == ".")


@every_kind
@every_target
@pytest.mark.parametrize("place", [".", "e"])
def test_over_every_kind(kind: str, target: str, place: str) -> None:
    make(kind)
    os.mkdir("e")
    new = f"{place}/new"
    make_target(target, new)
    ino, links = os.lstat("node").st_ino, os.stat(place).st_nlink
    expected = expected_over(kind, target)
    if expected == OK:
        with touching(mtime=sorted({".", place})):
            os.rename("node", new)
        assert os.lstat(new).st_ino == ino
        assert not os.path.lexists("node")
        came, went = kind == "directory" and place == "e", target == "directory"
        assert os.stat(place).st_nlink == links + came - went
    else:
        with touching_nothing(".", place, "node", new):
            assert attempt(os.rename, "node", new) == expected


@every_kind
@every_target
def test_noreplace_and_exchange_over_every_kind(kind: str, target: str) -> None:
    make(kind)
    os.mkdir("e")
    make_target(target, "e/new")
    inos = os.lstat("node").st_ino, os.lstat("e/new").st_ino
    with touching_nothing(".", "e", "node", "e/new"):
        assert attempt(renameat2, "node", "e/new", RENAME_NOREPLACE) == "EEXIST"
    with touching(mtime=[".", "e"]):
        renameat2("node", "e/new", RENAME_EXCHANGE)
    assert (os.lstat("e/new").st_ino, os.lstat("node").st_ino) == inos
    assert os.stat("e").st_nlink == 2 + (kind == "directory")
    assert os.stat(".").st_nlink == 3 + ("directory" in target)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (RENAME_EXCHANGE, "ENOENT"),
        (RENAME_NOREPLACE | RENAME_EXCHANGE, "EINVAL"),
        (RENAME_WHITEOUT, "EINVAL"),
        (RENAME_WHITEOUT | RENAME_EXCHANGE, "EINVAL"),
        (1 << 20, "EINVAL"),
        (RENAME_NOREPLACE, OK),
    ],
)
def test_flags_on_a_name_that_is_free(flags: int, expected: str) -> None:
    make("file")
    assert attempt(renameat2, "node", "new", flags) == expected


def test_two_names_of_one_inode_stay_as_they_are() -> None:
    make("file")
    os.link("node", "second")
    with touching_nothing(".", "node", "second"):
        os.rename("node", "second")
        os.rename("node", "node")
    assert sorted(os.listdir(".")) == ["node", "second"]


def test_a_replaced_file_loses_a_link() -> None:
    make("file", "a")
    make("file", "b")
    os.link("b", "c")
    with touching(ctime=["c"]):
        os.rename("a", "b")
    assert os.stat("c").st_nlink == 1


@pytest.mark.parametrize("target", ["d/e", "d/e/f", "d/new"])
def test_a_directory_does_not_go_into_itself(target: str) -> None:
    os.makedirs("d/e/f")
    with touching_nothing(".", "d", "d/e"):
        assert attempt(os.rename, "d", target) == "EINVAL"
        if target != "d/new":
            assert attempt(renameat2, "d", target, RENAME_EXCHANGE) == "EINVAL"


def test_a_directory_does_not_go_over_one_above_it() -> None:
    os.makedirs("d/e/f")
    assert attempt(os.rename, "d/e/f", "d") == "ENOTEMPTY"
    assert attempt(renameat2, "d/e/f", "d", RENAME_EXCHANGE) == "EINVAL"


@pytest.mark.parametrize("path", [".", "..", "d/.", "d/.."])
def test_dots_are_busy_or_invalid(path: str) -> None:
    os.makedirs("d/e")
    assert attempt(os.rename, path, "new") in {"EBUSY", "EINVAL"}
    assert attempt(os.rename, "d/e", path) in {"EBUSY", "EINVAL"}


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("missing", "new", "ENOENT"),
        ("f/", "new", "ENOTDIR"),
        ("f", "new/", "ENOTDIR"),
        ("d/", "new/", OK),
        ("f", "d/", "EISDIR"),
        ("link", "new", OK),
    ],
)
def test_slashes_and_what_is_missing(source: str, target: str, expected: str) -> None:
    make("file", "f")
    os.mkdir("d")
    os.symlink("missing", "link")
    found = attempt(os.rename, source, target)
    assert found == expected or (found, expected) == ("ENOTDIR", "EISDIR")


@every_bad_path
def test_a_source_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(lambda path: os.rename(path, "new"))


@every_bad_path
def test_a_target_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    make("file", "source", 0o666, bad.user)
    bad.check(lambda path: os.rename("source", path))


@every_access
def test_taking_a_name_takes_the_right_to_write_and_to_search(access: Access) -> None:
    access.make_directory()
    make("file", "prefix/f", 0)
    access.close_directory()
    assert attempt(os.rename, "prefix/f", "new", user=access.user) == access.expected


@every_access
def test_giving_a_name_takes_the_right_to_write_and_to_search(access: Access) -> None:
    make("file", "f", 0)
    access.make_directory()
    access.close_directory()
    assert attempt(os.rename, "f", "prefix/new", user=access.user) == access.expected


@every_sticky
@every_kind
def test_only_owners_take_from_a_sticky_directory(sticky: Sticky, kind: str) -> None:
    sticky.make(kind, "sticky/node")
    expected = OK if sticky.is_allowed else "EPERM"
    if kind == "directory" and sticky.caller not in {sticky.node_owner, (0, 0, ())}:
        # Its `..` would change, which takes the right to write to it.
        expected = "EACCES" if expected == OK else expected
    assert attempt(os.rename, "sticky/node", "new", user=sticky.caller) == expected
    assert os.path.lexists("new") is (expected == OK)


@every_sticky
@every_kind
def test_only_owners_replace_in_a_sticky_directory(sticky: Sticky, kind: str) -> None:
    sticky.make(kind, "sticky/node")
    make(kind, "new", 0o755, sticky.caller)
    expected = OK if sticky.is_allowed else "EPERM"
    with_inode = os.lstat("new").st_ino
    assert attempt(os.rename, "new", "sticky/node", user=sticky.caller) == expected
    assert (os.lstat("sticky/node").st_ino == with_inode) is (expected == OK)


def test_moving_a_directory_takes_the_right_to_write_to_it() -> None:
    os.mkdir("e")
    os.chmod("e", 0o777)
    make("directory", "d", 0o755, ALICE)
    assert attempt(os.rename, "d", "e/d", user=BOB) == "EACCES"
    assert attempt(os.rename, "d", "renamed", user=BOB) == OK
    assert attempt(os.rename, "renamed", "e/d", user=ALICE) == OK


def test_long_paths_are_fine() -> None:
    make("file", "name")
    os.rename(path_of(4095), path_of(4095, "n" * 255))
    os.rename("n" * 255, "short")
    assert os.listdir(".") == ["short"]


def test_what_was_replaced_stays_for_those_who_have_it_open() -> None:
    write_file("old", b"old content")
    write_file("new", b"new")
    fd = os.open("old", os.O_RDWR)
    with touching(ctime=[fd]):
        os.rename("new", "old")
    assert os.fstat(fd).st_nlink == 0
    os.pwrite(fd, b"OLD", 0)
    os.fsync(fd)
    assert os.pread(fd, 100, 0) == b"OLD content"
    os.close(fd)
    assert read_file("old") == b"new"


def test_a_file_with_unwritten_bytes_moves_with_them() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"first ")
    os.rename("f", "g")
    os.write(fd, b"second")
    assert read_file("g") == b"first second"
    assert os.stat("g").st_size == 12
    os.close(fd)
    assert read_file("g") == b"first second"


def test_names_below_a_moved_directory_are_found_at_once() -> None:
    os.makedirs("a/b/c")
    write_file("a/b/c/f", b"deep")
    os.rename("a/b", "z")
    assert read_file("z/c/f") == b"deep"
    assert attempt(os.stat, "a/b/c/f") == "ENOENT"
    os.chdir("z/c")
    assert os.path.samefile("../..", "../../z/..")


def test_rename_between_buckets_and_out_of_the_space(bucket: Path, tmp_path: Path) -> None:
    other = bucket.with_name(f"{bucket.name}-other")
    other.mkdir()
    os.makedirs("d/e")
    write_file("d/e/f", b"moved")
    os.rename("d", other / "d")
    assert (other / "d/e/f").read_bytes() == b"moved"
    make("file")
    assert attempt(os.rename, "node", tmp_path / "node") == "EXDEV"


def test_nothing_moves_into_a_directory_that_was_removed() -> None:
    make("file")
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    assert attempt(os.rename, "../node", "node") == "ENOENT"


def test_a_read_only_mount_refuses(read_only: object) -> None:
    assert attempt(os.rename, "file", "new") == "EROFS"
    assert attempt(os.rename, "file", "link") == "EROFS"
    assert attempt(renameat2, "file", "link", RENAME_NOREPLACE) in {"EROFS", "EEXIST"}
