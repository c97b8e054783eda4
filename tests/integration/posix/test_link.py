"""link(2), linkat(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.posix.calls import (
    ALICE,
    BOB,
    NOT_DIRECTORIES,
    OK,
    Access,
    BadPath,
    attempt,
    every_access,
    every_bad_path,
    every_kind,
    make,
    path_of,
    read_file,
    touching,
    touching_nothing,
    write_file,
)

pytestmark = pytest.mark.usefixtures("bucket")

every_other_kind = pytest.mark.parametrize("kind", NOT_DIRECTORIES)


def link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


@every_other_kind
def test_all_names_are_one_inode(kind: str) -> None:
    make(kind)
    os.mkdir("d")
    for count, name in enumerate(("second", "d/third"), 2):
        with touching(ctime=["node"], mtime=[os.path.dirname(name) or "."]):
            link("node", name)
        assert os.lstat("node").st_nlink == count
        assert os.lstat(name) == os.lstat("node")
    os.lchown("d/third", 1, 2)
    assert os.lstat("node") == os.lstat("second") == os.lstat("d/third")
    for count, name in ((2, "second"), (1, "node")):
        with touching(ctime=["d/third"]):
            os.unlink(name)
        assert os.lstat("d/third").st_nlink == count


def test_content_is_shared_at_once() -> None:
    fd = os.open("a", os.O_CREAT | os.O_RDWR)
    link("a", "b")
    os.write(fd, b"not flushed")
    assert os.stat("b").st_size == 11
    assert read_file("b") == b"not flushed"
    os.close(fd)


def test_a_link_after_a_write_keeps_its_time_of_change() -> None:
    fd = os.open("a", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"not committed yet")
    link("a", "b")
    linked_at = os.stat("b").st_ctime_ns
    os.close(fd)
    assert os.stat("b").st_ctime_ns >= linked_at


@every_other_kind
@pytest.mark.parametrize("target", ["directory", *NOT_DIRECTORIES])
def test_a_name_that_exists_is_refused(kind: str, target: str) -> None:
    make(kind)
    make(target, "target")
    with touching_nothing(".", "node", "target"):
        assert attempt(link, "node", "target") == "EEXIST"


def test_a_directory_has_one_name_only() -> None:
    make("directory", "node", 0o755, ALICE)
    with touching_nothing(".", "node"):
        assert attempt(link, "node", "second") == "EPERM"
        assert attempt(link, "node", "second", user=ALICE) == "EPERM"


@every_bad_path
def test_a_source_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(lambda path: link(path, "new"))


@every_bad_path
def test_a_target_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    make("file", "source", 0o666, bad.user)
    bad.check(lambda path: link("source", path))


@every_access
def test_it_takes_the_right_to_write_and_to_search(access: Access) -> None:
    make("file", "source", 0o666, access.user)
    access.make_directory()
    access.close_directory()
    assert attempt(link, "source", "prefix/new", user=access.user) == access.expected


def test_a_long_path_is_fine() -> None:
    make("file")
    link("node", path_of(4095))
    link(path_of(4095), path_of(4095, "n" * 255))
    assert os.stat("node").st_nlink == 3


def test_symlinks_are_linked_themselves_or_followed() -> None:
    make("file")
    os.symlink("node", "link")
    link("link", "again")
    assert os.readlink("again") == "node"
    os.link("link", "followed", follow_symlinks=True)
    assert os.path.samefile("followed", "node")


def test_buckets_share_a_file(posix_mount: object, bucket: Path) -> None:
    write_file("a", b"shared")
    other = bucket.with_name(f"{bucket.name}-other")
    other.mkdir()
    link("a", f"{other}/b")
    os.unlink("a")
    assert (other / "b").read_bytes() == b"shared"


def test_what_is_missing() -> None:
    assert attempt(link, "missing", "new") == "ENOENT"
    make("file")
    assert attempt(link, "node/", "new") == "ENOTDIR"
    assert attempt(link, "node", "new/") == "ENOENT"


def test_a_file_without_a_name_gets_none() -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.unlink("f")
    assert attempt(os.link, f"/proc/self/fd/{fd}", "again") in {"ENOENT", "EXDEV"}
    os.close(fd)


def test_two_file_systems_share_nothing(tmp_path: Path) -> None:
    make("file")
    assert attempt(link, "node", f"{tmp_path}/new") == "EXDEV"


def test_a_file_that_one_may_read_and_write_may_be_linked() -> None:
    make("file", "node", 0o666, ALICE)
    assert attempt(link, "node", "second", user=BOB) == OK


def test_a_read_only_mount_refuses(read_only: object) -> None:
    assert attempt(link, "file", "new") == "EROFS"
    assert attempt(link, "file", "directory") == "EEXIST"


@every_kind
def test_nothing_is_linked_into_a_directory_that_was_removed(kind: str) -> None:
    make(kind)
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    assert attempt(link, "../node", "new") == "ENOENT"
