"""The router's disk is lost: everything up to the last snapshot comes back from the peers alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.spaces import (
    LooseServers,
    Mount,
    free_ports,
    mictlanfs,
    several_mounted,
    wait_until,
)

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(120)]

# After a restore nothing is granted before this is over.
LEASE_TTL_S = 4.0
ROUTER = ("--lease-ttl", f"{LEASE_TTL_S:g}")


class Servers(LooseServers):
    """A router that can lose its disk, and three peers."""

    def begin(self) -> None:
        self.router_port, *peer_ports = free_ports(4)
        self.start_router(self.router_port, *ROUTER)
        for index, port in enumerate(peer_ports):
            self.start_peer(index, port)
        self.wait_for_peers(3)

    def lose_router(self) -> None:
        self.kill("router")
        shutil.rmtree(self.data / "router")

    def restore(self, *sources: str | Path, status: int = 0) -> dict[str, object]:
        """`server restore`; what it reports."""
        done = mictlanfs(
            *("server", "restore", "--json", "--data", self.data / "router"), *sources, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    def restart_router(self) -> None:
        self.start_router(self.router_port, *ROUTER)
        self.wait_for_peers(3)

    @property
    def peer_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports.values()]

    @property
    def peer_folders(self) -> list[Path]:
        return [self.data / f"peer-{index}" for index in self.ports]

    def command(self, *words: str) -> str:
        return mictlanfs(*words, "--uri", self.uri).stdout


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    data = tmp_path / "servers"
    data.mkdir()
    started = Servers(data)
    try:
        started.begin()
        yield started
    finally:
        started.stop()


@pytest.fixture
def mounts(servers: Servers, tmp_path: Path) -> Iterator[list[Mount]]:
    with several_mounted(servers.uri, tmp_path, 2) as started:
        yield started


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """For files that are open until the test ends, but no longer than the mounts."""
    with contextlib.ExitStack() as opened:
        yield opened


def write_durably(path: Path, body: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(body)
        os.fsync(file.fileno())


def recoveries() -> str:
    """All that the recovery files tell of themselves."""
    found = json.loads(mictlanfs("recover", "list", "--json").stdout)
    return "".join(mictlanfs("recover", "show", str(one["id"])).stdout for one in found)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_everything_up_to_the_snapshot_is_back_and_old_mounts_go_on(
    servers: Servers, mounts: list[Mount], stack: contextlib.ExitStack
) -> None:
    one, two = (mount.path / "bucket" for mount in mounts)
    one.mkdir()
    (one / "deep" / "er").mkdir(parents=True)
    for index in range(40):
        write_durably(one / "deep" / f"f{index}", os.urandom(1 + 7_000 * index))
    write_durably(one / "large", os.urandom(9 * 2**20))
    write_durably(one / "kept", b"as it was")
    (one / "link").symlink_to("kept")
    os.setxattr(one / "kept", "user.colour", b"red")
    expected = content(two)
    made = json.loads(servers.command("meta", "snapshot", "--json"))
    assert len(made["peers"]) == 3

    # What comes later is lost; what is removed later is back, with its chunks.
    (one / "large").unlink()
    shutil.rmtree(one / "deep")
    write_durably(one / "kept", b"changed after the snapshot")
    write_durably(one / "later", b"later")
    later = stack.enter_context((one / "later").open("rb", buffering=0))
    assert "later" in os.listdir(two)

    # This mount has the lease for writing back. The router cannot answer, and nobody knows yet.
    (one / "leased").touch()
    os.kill(servers.processes["router"].pid, signal.SIGSTOP)
    (one / "unsent").write_bytes(b"unsent")
    servers.lose_router()
    report = servers.restore(*(f"--peers={url}" for url in servers.peer_urls))
    assert report["moment_ns"] == made["moment_ns"]
    assert (report["missing_chunks"], report["damage"], report["is_whole"]) == (0, [], True)
    servers.restart_router()

    # The same mounts, without a manual step.
    wait_until(lambda: sorted(os.listdir(two)) == ["deep", "kept", "large", "link"], "it is back")
    for mount in mounts:
        assert content(mount.path / "bucket") == expected
    status = json.loads(servers.command("status", "--json"))
    assert status["metadata"]["restored_to_s"] == pytest.approx(made["moment_ns"] / 1e9)
    assert os.getxattr(two / "kept", "user.colour") == b"red"
    with later, pytest.raises(OSError, match=r"Stale file handle|No such file"):
        os.fstat(later.fileno())
    # What was not sent when the router was lost is kept on this side.
    wait_until(lambda: "unsent" in recoveries(), "it is in a recovery file")

    with pytest.raises(OSError, match="Stale file handle"):
        write_durably(one / "new", b"told once")

    before = {entry.inode() for entry in os.scandir(one) if entry.name != "new"}
    write_durably(one / "new", b"new")
    assert (two / "new").read_bytes() == b"new"
    assert (one / "new").stat().st_ino not in before
    write_durably(two / "kept", b"changed again")
    assert (one / "kept").read_bytes() == b"changed again"
    mounts[0].remount_cold()
    assert content(one) == {**expected, "new": b"new", "kept": b"changed again"} | {
        "link": b"changed again"
    }
