"""Attaching to the kernel, as far as no kernel is needed; the rest is in `tests/integration`."""

from __future__ import annotations

import os
from pathlib import Path

import pyfuse3
import pytest

from mictlanfs_mount import attaching
from mictlanfs_mount.attaching import Attachment, attach, mount_flags

NOSUID_NODEV = 2 | 4


class Inits:
    """Stands for `pyfuse3.init`: keeps what it was given, and raises what it was told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.given: list[tuple[str, set[str]]] = []

    def __call__(self, _: pyfuse3.Operations, where: str, options: set[str]) -> None:
        self.given.append((where, options))
        if self.error is not None:
            raise self.error


class WithLists(pyfuse3.Operations):
    enable_acl = True


@pytest.fixture
def inits(monkeypatch: pytest.MonkeyPatch) -> Inits:
    made = Inits()
    monkeypatch.setattr(pyfuse3, "init", made)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return made


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ((), NOSUID_NODEV),
        (("suid", "dev", "default_permissions"), 0),
        (("dev", "ro", "noexec"), 2 | 1 | 8),
        (("sync", "dirsync", "noatime"), NOSUID_NODEV | 16 | 128 | 1024),
        (("exec", "nodev"), NOSUID_NODEV),
    ],
)
def test_words_are_the_flags_that_libfuse_makes_of_them(words: tuple[str, ...], flags: int) -> None:
    assert mount_flags(words) == flags


def test_libfuse_is_handed_the_device_of_a_mount_made_here(
    inits: Inits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(attaching, "_mounted", lambda *_: 99)
    assert attach(WithLists(), tmp_path, "a,b", {"ro"}) == Attachment(tmp_path, 99)
    assert inits.given == [("/dev/fd/99", {"ro", "fsname=a\\,b", "subtype=mictlanfs"})]


def test_libfuse_mounts_where_mount_is_refused(
    inits: Inits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(attaching, "_mounted", lambda *_: None)
    assert attach(WithLists(), tmp_path, "s", set()).device_fd is None
    assert inits.given[0][0] == os.fspath(tmp_path)


@pytest.mark.parametrize(("uid", "operations"), [(1000, WithLists()), (0, pyfuse3.Operations())])
def test_libfuse_mounts_for_others_than_root_and_without_lists(
    inits: Inits,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    uid: int,
    operations: pyfuse3.Operations,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(attaching, "_mounted", lambda *_: pytest.fail("mounted"))
    assert attach(operations, tmp_path, "s", set()).device_fd is None


def test_what_was_mounted_is_unmounted_when_libfuse_refuses(
    inits: Inits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device, other = os.pipe()
    unmounted: list[Path] = []
    inits.error = RuntimeError("refused")
    monkeypatch.setattr(attaching, "_mounted", lambda *_: device)
    monkeypatch.setattr(attaching, "unmount", lambda path, *, lazy: unmounted.append(path))
    with pytest.raises(RuntimeError):
        attach(WithLists(), tmp_path, "s", set())
    assert unmounted == [tmp_path]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(device)
    os.close(other)
