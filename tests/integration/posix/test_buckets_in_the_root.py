"""The rule of docs/semantics.md for each call on the root and on buckets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.posix.calls import (
    ALICE,
    BOB,
    NOT_DIRECTORIES,
    OK,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    attempt,
    make,
    mode_of,
    read_file,
    renameat2,
    touching,
    touching_nothing,
    write_file,
)

RESERVED = ".mictlanfs"


@pytest.fixture
def root(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The root as the working directory; the prefix of names of this test's own in it."""
    monkeypatch.chdir(bucket.parent)
    return f"{bucket.name}-"


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_nothing_but_a_bucket_is_made_in_the_root(root: str, kind: str) -> None:
    with touching_nothing("."):
        assert attempt(make, kind, f"{root}new") == "EPERM"
        assert not os.path.lexists(f"{root}new")


def test_open_makes_nothing_in_the_root(root: str) -> None:
    for flags in (os.O_CREAT | os.O_WRONLY, os.O_CREAT | os.O_EXCL | os.O_RDWR):
        assert attempt(os.open, f"{root}new", flags) == "EPERM"
    assert attempt(os.open, ".", os.O_TMPFILE | os.O_RDWR) == "ENOTSUP"


def test_a_bucket_is_made_and_removed_like_a_directory(root: str) -> None:
    links = os.stat(".").st_nlink
    with touching(mtime=["."]):
        os.mkdir(f"{root}a", 0o751)
    assert mode_of(f"{root}a") == 0o751
    assert os.stat(".").st_nlink == links + 1
    assert attempt(os.mkdir, f"{root}a") == "EEXIST"
    write_file(f"{root}a/f")
    assert attempt(os.rmdir, f"{root}a") == "ENOTEMPTY"
    os.unlink(f"{root}a/f")
    with touching(mtime=["."]):
        os.rmdir(f"{root}a")
    assert attempt(os.rmdir, f"{root}a") == "ENOENT"
    assert attempt(os.unlink, root.removesuffix("-")) == "EISDIR"


def test_a_bucket_is_renamed_within_the_root(root: str) -> None:
    a, b, c = (f"{root}{letter}" for letter in "abc")
    for name in (a, b):
        os.mkdir(name)
        write_file(f"{name}/f", name.encode())
    assert attempt(os.rename, a, b) == "ENOTEMPTY"
    assert attempt(renameat2, a, b, RENAME_NOREPLACE) == "EEXIST"
    renameat2(a, b, RENAME_EXCHANGE)
    assert read_file(f"{a}/f") == b.encode()
    os.mkdir(c)
    os.rename(a, c)
    assert read_file(f"{c}/f") == b.encode()
    assert attempt(os.stat, a) == "ENOENT"
    write_file(f"{c}/new", b"written after the rename")
    assert read_file(f"{c}/new") == b"written after the rename"


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE])
def test_a_bucket_stays_in_the_root_and_all_else_out_of_it(root: str, flags: int) -> None:
    own = root.removesuffix("-")
    os.mkdir(f"{root}a")
    os.mkdir(f"{own}/d")
    write_file(f"{own}/f")
    with touching_nothing(".", own):
        assert attempt(renameat2, f"{root}a", f"{own}/a", flags) == "EPERM"
        assert attempt(renameat2, f"{own}/d", f"{root}d", flags) == "EPERM"
        assert attempt(renameat2, f"{own}/f", f"{root}f", flags) == "EPERM"


def test_a_bucket_is_not_exchanged_with_a_directory(root: str) -> None:
    own = root.removesuffix("-")
    os.mkdir(f"{root}a")
    os.mkdir(f"{own}/d")
    assert attempt(renameat2, f"{root}a", f"{own}/d", RENAME_EXCHANGE) == "EPERM"
    assert attempt(renameat2, f"{own}/d", f"{root}a", RENAME_EXCHANGE) == "EPERM"
    assert attempt(os.rename, f"{own}/d", f"{root}a") == "EPERM"


def test_a_bucket_does_not_go_into_itself(root: str) -> None:
    own = root.removesuffix("-")
    os.mkdir(f"{own}/d")
    assert attempt(os.rename, own, f"{own}/d/x") == "EINVAL"


def test_nothing_is_linked_into_the_root(root: str) -> None:
    own = root.removesuffix("-")
    write_file(f"{own}/f")
    assert attempt(os.link, f"{own}/f", f"{root}f") == "EPERM"
    assert attempt(os.link, own, f"{root}f") == "EPERM"


def reserved_calls(own: str) -> dict[str, Callable[[], object]]:
    return {
        "mkdir": lambda: os.mkdir(RESERVED),
        "mkfifo": lambda: os.mkfifo(RESERVED),
        "symlink": lambda: os.symlink("t", RESERVED),
        "link": lambda: os.link(f"{own}/f", RESERVED),
        "rename to": lambda: os.rename(f"{own}-a", RESERVED),
        "rename of": lambda: os.rename(RESERVED, f"{own}-b"),
        "exchange": lambda: renameat2(f"{own}-a", RESERVED, RENAME_EXCHANGE),
        "rmdir": lambda: os.rmdir(RESERVED),
        "create": lambda: os.close(os.open(RESERVED, os.O_CREAT | os.O_WRONLY)),
    }


@pytest.mark.parametrize("call", reserved_calls(""))
def test_the_reserved_name_is_not_to_be_had(root: str, call: str) -> None:
    own = root.removesuffix("-")
    write_file(f"{own}/f")
    os.mkdir(f"{root}a")
    refused = {"EPERM", "EEXIST", "EISDIR", "ENOENT", "EROFS", "ENOTEMPTY", "EACCES"}
    assert attempt(reserved_calls(own)[call]) in refused
    assert RESERVED not in os.listdir(".")
    assert os.path.isdir(f"{root}a")


def test_the_reserved_name_is_free_inside_a_bucket(root: str) -> None:
    bucket = root.removesuffix("-")
    os.mkdir(f"{bucket}/{RESERVED}")
    assert RESERVED in os.listdir(bucket)


def test_owner_mode_times_and_attributes_of_a_bucket(root: str) -> None:
    own = root.removesuffix("-")
    os.chown(own, ALICE.uid, ALICE.gid)
    os.chmod(own, 0o2750)
    os.setxattr(own, "user.a", b"value")
    os.utime(own, ns=(5, 7))
    found = os.stat(own)
    assert (found.st_uid, found.st_gid, mode_of(own)) == (ALICE.uid, ALICE.gid, 0o2750)
    assert (found.st_atime_ns, found.st_mtime_ns) == (5, 7)
    assert os.getxattr(own, "user.a") == b"value"
    assert attempt(os.listdir, own, user=BOB) == "EACCES"
    assert attempt(os.mkdir, f"{own}/d", user=ALICE) == OK


def test_users_make_buckets_only_where_the_mode_of_the_root_lets_them(root: str) -> None:
    mode = mode_of(".")
    try:
        os.chmod(".", 0o755)
        assert attempt(os.mkdir, f"{root}a", user=BOB) == "EACCES"
        os.chmod(".", 0o1777)
        assert attempt(os.mkdir, f"{root}a", user=BOB) == OK
        assert attempt(os.rmdir, f"{root}a", user=ALICE) == "EPERM"
        assert attempt(os.rmdir, f"{root}a", user=BOB) == OK
    finally:
        os.chmod(".", mode)


def test_the_root_itself_can_be_neither_removed_nor_renamed(root: str, bucket: Path) -> None:
    path = str(bucket.parent)
    assert attempt(os.rmdir, path) == "EBUSY"
    assert attempt(os.rename, path, f"{path}-x") == "EBUSY"
    assert attempt(os.unlink, path) in {"EISDIR", "EBUSY"}
