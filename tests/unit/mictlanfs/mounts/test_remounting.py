import ctypes
import errno
import os
from pathlib import Path

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.mounts.remounting import remount, remounted_flags
from mictlanfs.mounts.table import Mount


@pytest.mark.parametrize(
    ("now", "changes", "then"),
    [
        ("rw,nosuid,relatime", "ro", "ro,nosuid,relatime"),
        ("ro,nosuid,relatime", "rw", "nosuid,relatime"),
        ("ro", "", "ro"),
        ("rw", "ro,rw", ""),
        ("rw", "rw,ro", "ro"),
        ("rw,nosuid,nodev,noexec", "suid,dev,exec", ""),
        ("rw", "nosuid,nodev,noexec", "nosuid,nodev,noexec"),
        ("rw,nosuid", "suid,nosuid", "nosuid"),
        # What remount(2) would drop has to be given again.
        ("rw,noatime,nodiratime,sync,user_id=0", "ro", "ro,noatime,nodiratime,sync"),
        # These are not for a remount.
        ("rw", "noatime,sync,relatime,colour", ""),
    ],
)
def test_flags_after_changes(now: str, changes: str, then: str) -> None:
    flags = remounted_flags(now.split(","), changes.split(","))
    assert flags == frozenset(filter(None, then.split(",")))


class FakeLibc:
    """Stands in for libc: keeps the flags that mount(2) was called with."""

    def __init__(self, error: int) -> None:
        self.flags: list[int] = []
        self.error = error

    def mount(self, source: bytes, target: bytes, kind: None, flags: object, data: None) -> int:
        self.flags.append(getattr(flags, "value"))  # noqa: B009
        return -1 if self.error else 0


def test_the_flags_reach_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = FakeLibc(0)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)
    remount(Mount(Path("/m"), "fuse.mictlanfs", "s", (0, 1), frozenset({"nosuid"})), ["ro"])
    # MS_RDONLY, MS_NOSUID and MS_REMOUNT, from mount(2).
    assert libc.flags == [1 | 2 | 32]


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (errno.EBUSY, Kind.BUSY, "open for writing"),
        (errno.EPERM, Kind.NOT_PERMITTED, "/m"),
    ],
)
def test_a_refusal_of_the_kernel_is_told(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: Kind, text: str
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: FakeLibc(code))
    monkeypatch.setattr(ctypes, "get_errno", lambda: code)
    with pytest.raises(MictlanError, match=text) as caught:
        remount(Mount(Path("/m"), "fuse.mictlanfs", "s", (0, 1)), ["ro"])
    assert caught.value.kind is kind


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may call mount(2)")
def test_a_path_that_is_no_mountpoint_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(MictlanError):
        remount(Mount(tmp_path, "fuse.mictlanfs", "s", (0, 1)), ["ro"])
