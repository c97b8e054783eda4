"""Peers that are lost, emptied or removed under a mount in use: no error, all copies back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mictlanfs.model import KIB, MIB
from tests.support.spaces import (
    LooseServers,
    Mount,
    Space,
    free_ports,
    mictlanfs,
    mounted,
    running_space,
    wait_until,
)

pytestmark = pytest.mark.fuse


def copies_by_chunk(folders: list[Path]) -> Counter[bytes]:
    """How many peers hold each chunk, from the indexes on their disks."""
    copies: Counter[bytes] = Counter()
    for folder in folders:
        path = folder / "index.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as rows:
            copies.update(row[0] for row in rows.execute("SELECT id FROM chunks"))
    return copies


@dataclass
class Busy:
    """Programs that write and read on a mount, until they are told to stop.

    Attributes:
        bodies: what was written and synced, by name.
        errors: whatever a program was told.
    """

    bucket: Path
    bodies: dict[str, bytes] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    passes: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def write(self, name: str, size: int) -> None:
        body = os.urandom(size)
        with (self.bucket / name).open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        self.bodies[name] = body

    def check(self) -> None:
        for name, body in list(self.bodies.items()):
            if (self.bucket / name).read_bytes() != body:
                self.errors.append(f"{name} is not what was written")

    def _write_on(self) -> None:
        index = 0
        while not self._stop.is_set():
            try:
                self.write(f"new{index}", 20 * KIB * (1 + index % 20))
            except OSError as error:
                self.errors.append(f"new{index}: {error}")
            index += 1

    def _read_on(self) -> None:
        while not self._stop.is_set():
            try:
                self.check()
            except OSError as error:
                self.errors.append(f"reading: {error}")
            self.passes += 1

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        threads = [threading.Thread(target=work) for work in (self._write_on, self._read_on)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()


def test_peer_destroyed_while_it_is_written_and_read_costs_no_error_and_heals_by_itself(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    old = {f"old{n}": os.urandom(30 * KIB + 200 * KIB * (n % 5)) for n in range(20)}
    (tmp_path / "bucket").mkdir()
    for name, body in old.items():
        (tmp_path / "bucket" / name).write_bytes(body)
    with running_space(data) as space:
        space.command("bucket", "create", "bucket")
        # By another process, so that the mount has none of it.
        space.command("put", "-r", tmp_path / "bucket", "bucket")
        destroy_peer_under_a_mount(space, data, tmp_path, old)
        space.command("heal")
        copies = copies_by_chunk([data / f"peer-{index}" for index in range(3)])
        assert len(copies) > 20
        # One that was stored under the old number may have become a third.
        assert min(copies.values()) >= 2


def destroy_peer_under_a_mount(
    space: Space, data: Path, tmp_path: Path, old: dict[str, bytes]
) -> None:
    with mounted(space.uri, tmp_path) as mount:
        busy = Busy(next(path for path in mount.path.rglob("old0")).parent, dict(old))
        with busy.at_work():
            wait_until(lambda: busy.passes, "everything was read once")
            process = space.pid_of("peer-1")
            # As one step, or the one that is started again might find a part of it.
            (data / "peer-1").rename(tmp_path / "gone")
            # It may have met that its data is gone, and ended.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            shutil.rmtree(tmp_path / "gone")

            def is_healthy() -> bool:
                done = space.command("status", "--json", check=False)
                status = json.loads(done.stdout)
                return bool(
                    status["is_healthy"] and any(peer["number"] == 4 for peer in status["peers"])
                )

            wait_until(is_healthy, "redundancy is back")
            assert space.pid_of("peer-1") != process
        assert busy.errors == []
        mount.remount_cold()
        busy.check()
        assert busy.errors == []


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LooseServers]:
    """A router that waits for nothing long, and four peers that nobody starts again."""
    started = LooseServers(tmp_path_factory.mktemp("servers"))
    ports = free_ports(6)
    started.ports = {index: ports[index + 1] for index in range(5)}
    try:
        started.start_router(ports[0], "--gc-grace", "0.5", "--heal-delay", "0.5")
        for index in range(4):
            started.start_peer(index, ports[index + 1])
        started.wait_for_peers(4)
        yield started
    finally:
        started.stop()


@pytest.fixture
def mount(servers: LooseServers, tmp_path: Path) -> Iterator[Mount]:
    with mounted(servers.uri, tmp_path) as started:
        yield started


def command(servers: LooseServers, *words: str) -> str:
    return mictlanfs(*words, "--uri", servers.uri).stdout


def copies_on(servers: LooseServers, *indices: int) -> Counter[bytes]:
    return copies_by_chunk([servers.data / f"peer-{index}" for index in indices])


def test_files_that_move_under_an_open_descriptor_are_read_on(
    servers: LooseServers, mount: Mount
) -> None:
    body = os.urandom(40 * MIB)
    (mount.bucket / "file").write_bytes(body)
    mount.remount_cold()
    with (mount.bucket / "file").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert file.read(4 * KIB) == body[: 4 * KIB]
        for index in (0, 1):
            said = command(servers, "peer", "drain", f"mictlanx-peer-{index}")
            assert "is empty" in said
        # Until the last of the old copies is gone.
        wait_until(lambda: not copies_on(servers, 0, 1), "what was given up is deleted")
        assert set(copies_on(servers, 2, 3).values()) == {2}
        read = b"".join(os.pread(file.fileno(), MIB, at * MIB) for at in range(40))
        assert read == body
    # They are used again, and rebalancing brings chunks back to them.
    for index in (0, 1):
        command(servers, "peer", "drain", f"mictlanx-peer-{index}", "--undo")
    assert "moved" in command(servers, "rebalance")
    assert copies_on(servers, 0, 1)
    wait_until(
        lambda: set(copies_on(servers, 0, 1, 2, 3).values()) == {2}, "surplus copies are gone"
    )
    assert (mount.bucket / "file").read_bytes() == body


def test_peer_that_stops_for_good_is_healed_and_can_be_removed(
    servers: LooseServers, mount: Mount
) -> None:
    busy = Busy(mount.bucket)
    for index in range(10):
        busy.write(f"f{index}", 100 * KIB * (1 + index))
    process = servers.processes.pop("peer-3")
    process.terminate()
    process.wait()
    wait_until(
        lambda: (
            "nothing is left to heal" in mictlanfs("heal", "--uri", servers.uri, check=False).stdout
        ),
        "what it had is copied",
    )
    shutil.rmtree(servers.data / "peer-3")
    copies = copies_on(servers, 0, 1, 2)
    assert set(copies.values()) == {2}
    assert "is removed" in command(servers, "peer", "rm", "mictlanx-peer-3")
    status = servers.status()
    assert status["is_healthy"], status
    mount.remount_cold()
    busy.check()
    assert busy.errors == []


def test_only_copies_are_not_thrown_away_by_accident(servers: LooseServers, mount: Mount) -> None:
    command(servers, "bucket", "create", "once", "--replicas", "1")
    for index in range(8):
        (mount.path / "once" / f"f{index}").write_bytes(os.urandom(100 * KIB))
    mount.umount()
    process = servers.processes.pop("peer-2")
    process.terminate()
    process.wait()
    try:
        refused = mictlanfs("peer", "rm", "mictlanx-peer-2", "--uri", servers.uri, check=False)
        assert refused.returncode == 4
        assert "only copy" in refused.stderr
        assert "--force-lost" in refused.stderr
    finally:
        servers.start_peer(2, servers.ports[2])
        servers.wait_for_peers(3)
    mount.mount()
    for index in range(8):
        assert len((mount.path / "once" / f"f{index}").read_bytes()) == 100 * KIB
