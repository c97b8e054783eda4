"""A mount that stood still too long loses its session, and nothing of what it had."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.spaces import Mount, Space, mictlanfs, mounted, wait_until

LEASE_TTL_S = 1
pytestmark = pytest.mark.usefixtures("own_state")


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    state = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    return state


@pytest.fixture
def quick_space(tmp_path: Path) -> Iterator[Space]:
    """A space that soon takes leases away from those who do not answer."""
    space = Space(tmp_path / "data")
    try:
        space.start("--lease-ttl", str(LEASE_TTL_S))
        yield space
    finally:
        space.stop()


@pytest.fixture
def two_mounts(quick_space: Space, tmp_path: Path) -> Iterator[tuple[Mount, Mount]]:
    with (
        mounted(quick_space.uri, tmp_path / "a") as one,
        mounted(quick_space.uri, tmp_path / "b") as other,
    ):
        yield one, other


def recoveries() -> list[dict[str, object]]:
    found = json.loads(mictlanfs("recover", "list", "--json").stdout)
    assert isinstance(found, list)
    return found


def recovery_of(mount: Mount) -> str:
    wait_until(recoveries, "what was lost is kept")
    (found,) = recoveries()
    assert found["mountpoint"] == str(mount.path)
    return str(found["id"])


class Stopped:
    """A mount that stands still with changes that it has not told anybody."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.bucket = mount.bucket
        (self.bucket / "shared").write_bytes(b"base " * 2)
        (self.bucket / "mine").write_bytes(b"base")
        (self.bucket / "doomed").write_bytes(b"to be removed")
        self.shared = os.open(self.bucket / "shared", os.O_RDWR)
        self.mine = os.open(self.bucket / "mine", os.O_RDWR)
        os.fsync(self.shared)
        os.fsync(self.mine)
        pid = mount.pid()
        assert pid is not None
        self.pid = pid
        os.pwrite(self.shared, b"LOST!", 5)
        os.pwrite(self.mine, b" and more", 4)
        (self.bucket / "new").write_bytes(b"made by the stopped one")
        (self.bucket / "folder").mkdir()
        (self.bucket / "folder" / "inside").write_bytes(b"deep")
        (self.bucket / "doomed").unlink()
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        self.go_on()
        os.close(self.shared)
        os.close(self.mine)


@pytest.fixture
def stopped(two_mounts: tuple[Mount, Mount]) -> Iterator[Stopped]:
    stopped = Stopped(two_mounts[0])
    try:
        yield stopped
    finally:
        stopped.close()


def test_what_a_fenced_mount_had_is_kept_and_can_be_applied(
    two_mounts: tuple[Mount, Mount], stopped: Stopped, own_state: Path, tmp_path: Path
) -> None:
    one, other = two_mounts
    (other.bucket / "shared").write_bytes(b"by another mount")
    (other.bucket / "new").write_bytes(b"also by another")
    stopped.go_on()
    # Reported once. (No child may be started before: its copies of the descriptors are closed, and
    # so told.) Afterwards the file is as the space has it.
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        os.fsync(stopped.shared)
    os.fsync(stopped.shared)
    assert (one.bucket / "shared").read_bytes() == b"by another mount"
    assert (one.bucket / "new").read_bytes() == b"also by another"
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        os.pwrite(stopped.mine, b"x", 0)
    assert (one.bucket / "mine").read_bytes() == b"base"
    assert (one.bucket / "doomed").exists()

    recovery_id = recovery_of(one)
    (kept,) = (own_state / "mictlanfs" / "recovery").glob("*.recovery")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700

    shown = mictlanfs("recover", "show", recovery_id).stdout
    assert "make file bucket/new" in shown
    assert "make directory bucket/folder" in shown
    assert "remove bucket/doomed" in shown
    assert "bucket/shared: 5 bytes in 1 range, file size 10" in shown

    mictlanfs("recover", "export", recovery_id, tmp_path / "out")
    files = tmp_path / "out" / "files" / "bucket"
    assert (files / "new").read_bytes() == b"made by the stopped one"
    assert (files / "shared").read_bytes() == bytes(5) + b"LOST!"
    assert (files / "folder" / "inside").read_bytes() == b"deep"

    done = mictlanfs("recover", "apply", recovery_id)
    bucket = other.bucket
    assert (bucket / "shared").read_bytes() == b"by another mount", done.stdout
    assert (bucket / f"shared.recovered-{recovery_id}").read_bytes() == bytes(5) + b"LOST!"
    assert (bucket / "new").read_bytes() == b"also by another"
    beside = bucket / f"new.recovered-{recovery_id}"
    assert beside.read_bytes() == b"made by the stopped one"
    assert (bucket / "mine").read_bytes() == b"base and more"
    assert (bucket / "folder" / "inside").read_bytes() == b"deep"
    assert not (bucket / "doomed").exists()

    before = sorted(os.listdir(bucket))
    again = mictlanfs("recover", "apply", recovery_id)
    assert "all of it was applied before" in again.stdout
    assert sorted(os.listdir(bucket)) == before
    mictlanfs("recover", "remove", recovery_id)
    assert recoveries() == []


def test_a_router_that_is_only_started_again_loses_nothing(
    quick_space: Space, two_mounts: tuple[Mount, Mount]
) -> None:
    one, other = two_mounts
    bucket = one.bucket
    (bucket / "first").write_bytes(b"committed")
    os.sync()
    (bucket / "second").write_bytes(b"not yet")
    quick_space.kill("router")
    (bucket / "second").write_bytes(b"written while it is away")
    with (bucket / "second").open("rb") as file:
        os.fsync(file.fileno())
    assert (other.bucket / "second").read_bytes() == b"written while it is away"
    assert recoveries() == []
