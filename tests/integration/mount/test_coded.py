"""An erasure code of 3+2 on five peers, of which any two are lost for good."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from threading import Event, Thread
from urllib.request import urlopen

import pytest

from mictlanfs.model import KIB, MIB
from tests.support.spaces import (
    LooseServers,
    Space,
    free_ports,
    mictlanfs,
    mounted,
    running_space,
    wait_until,
)

pytestmark = pytest.mark.fuse

# Of all sizes: in the metadata, copied, coded, with a last fragment that is filled up.
SIZES = (3_000, 40_000, 64 * KIB, 300_001, 5 * MIB + 7)
FILES_AFTER = 12


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[LooseServers]:
    """A router and five peers that nobody restarts, with a coded bucket `coded`."""
    data = tmp_path / "servers"
    data.mkdir()
    started = LooseServers(data)
    ports = free_ports(6)
    try:
        started.start_router(ports[0])
        for index in range(5):
            started.start_peer(index, ports[index + 1])
        started.wait_for_peers(5)
        mictlanfs("bucket", "create", "coded", "--code", "3+2", "--uri", started.uri)
        yield started
    finally:
        started.stop()


class Work:
    """Reads files until told to stop, and writes some first; an error of the system ends it.

    Attributes:
        bodies: what was written and synced, by name.
        error: what the application saw.
    """

    def __init__(self, folder: Path, count_max: int = 60) -> None:
        self._folder = folder
        self._count_max = count_max
        self._is_stopping = Event()
        self._random = Random(5)
        self._thread = Thread(target=self._run)
        self.bodies: dict[str, bytes] = {}
        self.error: BaseException | None = None

    def __enter__(self) -> Work:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping.set()
        self._thread.join()

    def wait_for(self, count: int) -> None:
        """Return when `count` files are there, or an error is."""
        wait_until(lambda: len(self.bodies) >= count or self.error is not None, "files are written")

    def _run(self) -> None:
        try:
            for number, size in enumerate(cycle(SIZES)):
                if self._is_stopping.is_set():
                    return
                if number < self._count_max:
                    self._write(f"f{number}", self._random.randbytes(size))
                self._read()
        except (OSError, AssertionError) as error:
            self.error = error

    def _write(self, name: str, body: bytes) -> None:
        with (self._folder / name).open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        self.bodies[name] = body

    def _read(self) -> None:
        """A whole file, and a range of another one, past the caches of the kernel."""
        whole, part = self._random.choices(list(self.bodies), k=2)
        assert (self._folder / whole).read_bytes() == self.bodies[whole]
        body = self.bodies[part]
        start = self._random.randrange(len(body))
        end = min(len(body), start + self._random.randrange(1, 200 * KIB))
        descriptor = os.open(self._folder / part, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(descriptor, end - start, start) == body[start:end]
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("lost", [(0, 3), (1, 2)], ids=str)
def test_two_peers_lost_for_good_while_writing_and_reading_cost_no_error(
    servers: LooseServers, tmp_path: Path, lost: tuple[int, int]
) -> None:
    # A cache of almost nothing, so that reads go to the peers.
    with mounted(servers.uri, tmp_path, "memory=64M", "cache_size=16M") as mount:
        with Work(mount.path / "coded") as work:
            for index in lost:
                work.wait_for(len(work.bodies) + len(SIZES))
                servers.kill(f"peer-{index}")
                shutil.rmtree(servers.data / f"peer-{index}")
            work.wait_for(len(work.bodies) + FILES_AFTER)
        assert work.error is None
        assert len(work.bodies) >= 2 * len(SIZES) + FILES_AFTER
        mount.remount_cold()
        for name, body in work.bodies.items():
            assert (mount.path / "coded" / name).read_bytes() == body
    assert servers.status()["lost_count"] == 0


def test_old_data_is_coded_and_read_by_every_door_without_two_peers(
    servers: LooseServers, tmp_path: Path
) -> None:
    def command(*words: str | Path) -> str:
        return mictlanfs(*words, "--uri", servers.uri).stdout

    body = Random(9).randbytes(3 * MIB + 5)
    (tmp_path / "f").write_bytes(body)
    command("bucket", "create", "plain", "--chunk-size", "1M")
    command("put", tmp_path / "f", "plain/f")
    command("bucket", "set", "plain", "--code", "3+2")
    assert command("bucket", "recode", "plain") == "stored 3.0 MiB of 1 file anew\n"
    assert "as fragments" in command("stat", "plain/f")
    for index in (2, 4):
        servers.kill(f"peer-{index}")
    command("get", "plain/f", tmp_path / "g")
    assert (tmp_path / "g").read_bytes() == body
    address = re.search(r"@([^/]+)/", servers.uri)
    assert address is not None
    with urlopen(f"http://{address.group(1)}/api/v4/buckets/plain/f") as answer:
        assert answer.read() == body


@pytest.mark.timeout(300)
def test_two_peers_destroyed_come_back_empty_and_are_filled_again_without_being_asked(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    with running_space(data, 5) as space:
        space.command("bucket", "create", "coded", "--code", "3+2")
        with mounted(space.uri, tmp_path, "memory=64M", "cache_size=16M") as mount:
            with Work(mount.path / "coded", count_max=20) as work:
                work.wait_for(2 * len(SIZES))
                for name in ("peer-0", "peer-3"):
                    destroy(space, name, tmp_path)
                    shutil.rmtree(tmp_path / name)
                wait_until(lambda: is_whole(space), "redundancy is back")
            assert work.error is None
            # Nothing of what two others have is needed now.
            for name in ("peer-1", "peer-2"):
                destroy(space, name, tmp_path)
            mount.remount_cold()
            for name, body in work.bodies.items():
                assert (mount.path / "coded" / name).read_bytes() == body


def destroy(space: Space, name: str, elsewhere: Path) -> None:
    """Take a peer's directory away and kill it; who is started again finds nothing of it."""
    pid = space.pid_of(name)
    (space.data / name).rename(elsewhere / name)
    # It ends by itself when it is first to notice.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def is_whole(space: Space) -> bool:
    """Whether the two peers are back as others, and no chunk is short."""
    status = json.loads(space.command("status", "--json", check=False).stdout)
    numbers = {peer["number"] for peer in status["peers"]}
    return bool({6, 7} <= numbers and status["is_healthy"])
