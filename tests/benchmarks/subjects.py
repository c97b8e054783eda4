"""What is measured: a local directory, a pass-through, plain and tuned, and a space of three peers.

The space is there twice: with its defaults, and with every chunk through the network.

Each subject gives a directory to work in and can make itself cold: everything the client has
cached is gone, the servers' files are in the page cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

from tests.benchmarks.datapath import DATA_WORKLOADS
from tests.benchmarks.processes import Processes, server_pids
from tests.support import kernelcaches
from tests.support.spaces import Mount, Space, is_mounted, run, wait_until

REPOSITORY = Path(__file__).parents[2]


class Subject(Protocol):
    """A file system under measurement."""

    name: str

    @property
    def directory(self) -> Path:
        """Where workloads run."""
        ...

    def make_cold(self) -> None:
        """Lose every cache of the client."""
        ...

    def requests(self) -> dict[str, int]:
        """Requests so far, by where they go; empty where nobody counts them."""
        ...

    def processes(self) -> Processes:
        """Those that serve it, by what they are; empty where they do not matter."""
        ...

    def takes(self, workload: str) -> bool:
        """Whether a workload is worth running on it."""
        ...


def _read_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass


class _Uncounted:
    """Nobody counts its requests."""

    def requests(self) -> dict[str, int]:
        """Nothing."""
        return {}

    def processes(self) -> Processes:
        """Nothing."""
        return {}

    def takes(self, workload: str) -> bool:
        """Every one."""
        return True


class LocalDirectory(_Uncounted):
    """The local file system itself: the upper bound."""

    name = "local"

    def __init__(self, base: Path) -> None:
        self.directory = base / "local"
        self.directory.mkdir()

    def make_cold(self) -> None:
        """The files stay in the page cache, as those of the servers do."""
        kernelcaches.drop()
        _read_all(self.directory)


class PassThroughMount(_Uncounted):
    """The local file system behind pyfuse3, by the program `tests.benchmarks.NAME`."""

    def __init__(self, base: Path, name: str) -> None:
        self.name = name
        self._source = base / f"{name}-source"
        self._source.mkdir()
        self.directory = base / name
        self.directory.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def mount(self) -> None:
        """Start serving."""
        words = [sys.executable, "-m", f"tests.benchmarks.{self.name}"]
        self._process = subprocess.Popen(
            [*words, os.fspath(self._source), os.fspath(self.directory)], cwd=REPOSITORY
        )
        wait_until(lambda: is_mounted(self.directory), f"{self.name} is mounted")

    def unmount(self) -> None:
        """Stop serving."""
        if is_mounted(self.directory):
            run("umount", self.directory)
        if self._process is not None:
            self._process.wait(20)
            self._process = None

    def make_cold(self) -> None:
        """Mount anew."""
        self.unmount()
        kernelcaches.drop()
        _read_all(self._source)
        self.mount()


class SpaceMount:
    """A space with its defaults: two copies of every chunk, on three peers.

    Args:
        only: the workloads that are worth running; none: all.
    """

    def __init__(
        self, space: Space, mount: Mount, name: str = "mictlanfs", only: Collection[str] = ()
    ) -> None:
        self._space = space
        self._mount = mount
        self._only = only
        self.name = name
        self.directory = mount.path / name
        self.directory.mkdir()

    def make_cold(self) -> None:
        """Mount anew with an empty cache."""
        self._mount.umount()
        shutil.rmtree(self._mount.cache, ignore_errors=True)
        kernelcaches.drop()
        _read_all(self._space.data)
        self._mount.mount()

    def requests(self) -> dict[str, int]:
        """From the kernel, to the router, to peers: what the mount tells of itself."""
        stats = json.loads((self._mount.path / ".mictlanfs" / "stats").read_bytes())
        return {
            "kernel": sum(stats["kernel_requests"].values()),
            "router": stats["router_requests"],
            "peer": stats["peer_requests"],
        }

    def processes(self) -> Processes:
        """The mount, the router and the peers."""
        router, *peers = server_pids(self._space.data)
        mount = self._mount.pid()
        assert mount is not None
        return {"mount": [mount], "router": [router], "peers": peers}

    def takes(self, workload: str) -> bool:
        """Whether it is one of those that were chosen."""
        return not self._only or workload in self._only


@contextlib.contextmanager
def all_subjects(base: Path) -> Iterator[list[Subject]]:
    """Every subject, taken down afterwards whatever happened."""
    passthroughs = [PassThroughMount(base, name) for name in ("passthrough", "tuned")]
    space = Space(base / "data")
    mount = Mount("", base / "mnt", base / "cache")
    network = Mount("", base / "network", base / "network-cache", ("noshort_circuit",))
    try:
        for passthrough in passthroughs:
            passthrough.mount()
        space.start()
        for one in (mount, network):
            one.uri = space.uri
            one.mount()
        yield [
            LocalDirectory(base),
            *passthroughs,
            SpaceMount(space, mount),
            SpaceMount(space, network, "mictlanfs-tcp", DATA_WORKLOADS),
        ]
    finally:
        for passthrough in passthroughs:
            passthrough.unmount()
        for one in (mount, network):
            if is_mounted(one.path):
                one.end()
        space.stop()
