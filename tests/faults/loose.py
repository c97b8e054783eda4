"""A space whose servers are started one by one, with mounts and workloads."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.namespaces import Machines
from tests.faults.stage import BUCKET, CHUNK_SIZE, LEASE_TTL_S, MOUNT_OPTIONS, Workplace
from tests.support.spaces import MICTLANFS, Mount, free_ports, run, wait_until

PEERS = 3
POLICY = ("--replicas", "2")
START_DEADLINE_S = 30.0


@dataclass
class LooseStage(Workplace):
    """Servers without a supervisor: what is killed stays dead until it is started.

    Attributes:
        ports: of the router and the peers.
        advertised: ports by which others reach peers, by number, where those are not their own.
        router_seen_at: the port by which mounts reach the router.
        machines: where everything runs; None: here.
        router_options: of `server router`.
    """

    ports: Sequence[int] = ()
    advertised: Mapping[int, int] = field(default_factory=dict)
    router_seen_at: int = 0
    machines: Machines | None = None
    router_options: Sequence[str] = ()
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def address(self, name: str) -> str:
        """Where a server listens."""
        return self.machines.address(name) if self.machines is not None else "127.0.0.1"

    def uri(self, port: int) -> str:
        """The space, by a port of the router."""
        where = f"{self.address('router')}:{port}"
        return f"mictlanx://mictlanx-router-0@{where}/?protocol=http&http2=0"

    def start_router(self) -> None:
        """Start the router on its port."""
        self._spawn("router", self.ports[0], "--lease-ttl", str(LEASE_TTL_S), *self.router_options)

    def start_peer(self, number: int) -> None:
        """Start a peer on its port."""
        name, port = f"peer-{number}", self.ports[1 + number]
        words = ["--id", f"mictlanx-{name}", "--router", self.uri(self.ports[0])]
        if number in self.advertised:
            words += ["--advertise", f"http://127.0.0.1:{self.advertised[number]}"]
        self._spawn(name, port, *words)

    def _spawn(self, name: str, port: int, *words: str) -> None:
        command = [MICTLANFS, "server", name.partition("-")[0], "--port", str(port), *words]
        command += ["--data", os.fspath(self.data / name)]
        if self.machines is not None:
            command += ["--host", self.address(name), "--insecure"]
            command = self.machines.words(name, *command)
        with (self.base / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """kill -9 a server, and wait for its end."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run our command line on this space, from where the router is."""
        command = [MICTLANFS, *words, "--uri", self.uri(self.ports[0])]
        if self.machines is not None:
            command = self.machines.words("router", *command)
        return run(*command, check=check)

    def wait_for_peers(self, count: int) -> None:
        """Return when so many peers are up."""

        def are_up() -> bool:
            found = re.search(r"(\d+) of \d+ up", self.command("status", check=False).stdout)
            return found is not None and int(found[1]) == count

        wait_until(are_up, f"{count} peers are up", START_DEADLINE_S)

    def told(self) -> dict[str, Any]:
        """What `status` says; empty while there is no answer."""
        done = self.command("status", "--json", check=False)
        try:
            return dict(json.loads(done.stdout))
        except ValueError:
            return {}

    def end(self) -> None:
        """End workloads, mounts and servers."""
        super().end()
        for mount in self.mounts:
            mount.end()
        for process in self.processes.values():
            process.kill()
            process.wait()


@contextlib.contextmanager
def open_loose(
    base: Path,
    *,
    ports: Sequence[int] = (),
    advertised: Mapping[int, int] | None = None,
    router_seen_at: int = 0,
    mounts: int = 2,
    mount_options: Sequence[str] = (),
    peers: int = PEERS,
    policy: Sequence[str] = POLICY,
    router_options: Sequence[str] = (),
) -> Iterator[LooseStage]:
    """A space below `base`, all in this network, gone on leaving.

    `data` is made when missing: who wants a server on another disk mounts it there before.

    Args:
        policy: options of `bucket create`, of the bucket that workloads use.
        router_options: of `server router`.
    """
    found = []
    for number in range(mounts):
        own = base / f"mount-{number}"
        options = (*MOUNT_OPTIONS, *mount_options)
        found.append(Mount("", own / "mnt", own / "cache", options))
    data = base / "data"
    data.mkdir(exist_ok=True)
    stage = LooseStage(
        base,
        data,
        found,
        ports=ports or free_ports(1 + peers),
        advertised=advertised or {},
        router_options=router_options,
    )
    try:
        stage.start_router()
        for number in range(peers):
            stage.start_peer(number)
        stage.wait_for_peers(peers)
        for mount in found:
            mount.uri = stage.uri(router_seen_at or stage.ports[0])
            mount.mount()
        make_bucket(stage, policy)
        yield stage
    finally:
        stage.end()


def make_bucket(stage: LooseStage, policy: Sequence[str] = POLICY) -> None:
    """Make the bucket that workloads use."""
    stage.command("bucket", "create", BUCKET, "--chunk-size", CHUNK_SIZE, *policy)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A tmpfs at `path`, of a size as `300M`, gone on leaving."""
    path.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", f"mode=755,size={size}", "tmpfs", path)
    try:
        yield path
    finally:
        # Lazily, since a failure may have left files open.
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(disk: Path) -> Path:
    """Take all that is free on a disk; the file that has it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    return filler
