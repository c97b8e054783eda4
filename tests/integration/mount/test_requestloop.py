"""The quick way to wait for requests, on a real mount that answers from memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mictlanfs.mounts.table import find_mount
from mictlanfs.mounts.unmounting import unmount
from tests.support.spaces import Mount, Space, mounted

pytestmark = pytest.mark.fuse

PROGRAM = Path(__file__).parents[2] / "support" / "busy_mount.py"
REQUESTS = 5000
IDLE_S = 0.5


class Busy:
    """The mount, in a process of its own."""

    def __init__(self, path: Path, way: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, path, way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.way = self._line().removeprefix("mounted ")

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def ask(self, what: str = "counts") -> tuple[int, int, float]:
        assert self.process.stdin
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        requests, exchanges, cpu_s = json.loads(self._line())
        return requests, exchanges, cpu_s

    def make_requests(self, count: int) -> None:
        for _ in range(count):
            os.stat(self.path)  # Nothing may cost more than the request.


@contextmanager
def busy(tmp_path: Path, way: str) -> Iterator[Busy]:
    path = tmp_path / "mnt"
    path.mkdir()
    mount = Busy(path, way)
    try:
        yield mount
    finally:
        with mount.process:
            mount.process.communicate(timeout=20)
        if find_mount(path) is not None:
            unmount(path, lazy=True)


@pytest.mark.parametrize("way", ["quick", "plain"])
def test_sockets_are_served_while_requests_come_without_a_pause(tmp_path: Path, way: str) -> None:
    with busy(tmp_path, way) as mount:
        assert mount.way == way
        _, exchanges_before, _ = mount.ask("exchange")
        mount.make_requests(REQUESTS)
        requests, exchanges, _ = mount.ask()
        assert requests >= REQUESTS
        # A request takes some 20 us here, so the other task has its turn every 25 or so.
        assert exchanges - exchanges_before > REQUESTS / 500


def test_an_idle_mount_burns_nothing_after_a_rush(tmp_path: Path) -> None:
    with busy(tmp_path, "quick") as mount:
        mount.make_requests(REQUESTS)
        _, _, before_s = mount.ask()
        time.sleep(IDLE_S)
        _, _, after_s = mount.ask()
        assert after_s - before_s < IDLE_S / 10


def test_a_mount_that_is_unmounted_from_outside_ends(tmp_path: Path) -> None:
    with busy(tmp_path, "quick") as mount:
        mount.make_requests(REQUESTS)
        unmount(mount.path)
        assert find_mount(mount.path) is None


def test_the_kernel_asks_for_capabilities_once_not_before_each_write(
    space: Space, tmp_path: Path
) -> None:
    with mounted(space.uri, tmp_path) as mount:
        (mount.path / "writes").mkdir()
        before = kernel_requests(mount)
        with (mount.path / "writes" / "file").open("wb", buffering=0) as file:
            for _ in range(100):
                file.write(b"line\n")
        counts = kernel_requests(mount) - before
        assert counts["write"] == 100
        assert counts["getxattr"] <= 2


def kernel_requests(mount: Mount) -> Counter[str]:
    stats = json.loads((mount.path / ".mictlanfs" / "stats").read_text(encoding="utf-8"))
    return Counter(stats["kernel_requests"])
