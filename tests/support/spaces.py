"""Real spaces for tests: servers as processes on loopback, real mounts, taken down on failure too.

Everything goes through the command line, as a user would, so the tests hold it to its contract.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

MICTLANFS = str(Path(sys.executable).parent / "mictlanfs")
COMMAND_TIMEOUT_S = 60.0
# For what other processes do, also when other tests take the processors from them.
DEADLINE_S = 60.0
POLL_S = 0.05


def run(
    *args: str | Path, check: bool = True, **kwargs: object
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with its output captured; a failure shows that output."""
    words = [os.fspath(arg) for arg in args]
    options: dict[str, object] = {"timeout": COMMAND_TIMEOUT_S, **kwargs}
    done = subprocess.run(  # type: ignore[call-overload]  # Options are passed through.
        words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **options
    )
    assert isinstance(done, subprocess.CompletedProcess)
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join(words)} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done


def mictlanfs(
    *args: str | Path, check: bool = True, **kwargs: object
) -> subprocess.CompletedProcess[str]:
    """Run our command line."""
    return run(MICTLANFS, *args, check=check, **kwargs)


def wait_until(condition: object, what: str, deadline_s: float = DEADLINE_S) -> None:
    """Call `condition` until it is true; fail with `what` after the deadline."""
    assert callable(condition)
    give_up_at = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"{what}: not within {deadline_s:g} s")
        time.sleep(POLL_S)


def is_mounted(path: Path) -> bool:
    """Whether something is mounted at exactly `path`."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return os.fspath(path) in {line.split()[4].replace("\\040", " ") for line in lines}


def is_running(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@dataclass
class Space:
    """A supervised space.

    Attributes:
        data: its data directory.
        uri: filled by `start`.
        variables: of the environment of the servers, beside those of the tests.
    """

    data: Path
    peer_count: int = 3
    uri: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)

    def start(self, *options: str) -> None:
        """Start router and peers; returns when all are healthy."""
        done = mictlanfs(
            "server", "start", "--data", self.data, "--peers", str(self.peer_count),
            "--port", "0", "--peer-port", "0", "--detach", *options,
            env={**os.environ, **self.variables},
        )  # fmt: skip
        found = re.search(r"^mictlanx://\S+$", done.stdout, re.MULTILINE)
        assert found, done.stdout + done.stderr
        self.uri = found.group()

    def stop(self) -> None:
        """Stop everything; no error when nothing runs."""
        mictlanfs("server", "stop", "--data", self.data)

    def restart(self) -> None:
        """Stop and start again on the same data."""
        self.stop()
        self.start()

    def pid_of(self, name: str) -> int:
        """The process of `router`, `peer-0`, …"""
        # Degraded is not a failure here: what was killed just before may not be back yet.
        done = self.command("server", "status", "--data", self.data, "--json", check=False)
        status = json.loads(done.stdout)
        for process in status["processes"]:
            if process["name"] == name:
                return int(process["pid"])
        raise AssertionError(f"no process {name} in {status}")

    def kill(self, name: str) -> None:
        """kill -9 one of the processes."""
        os.kill(self.pid_of(name), signal.SIGKILL)

    def command(
        self, *args: str | Path, check: bool = True, **kwargs: object
    ) -> subprocess.CompletedProcess[str]:
        """Run our command line on this space."""
        env = {**os.environ, "MICTLANX_CLIENT_URI": self.uri}
        return mictlanfs(*args, check=check, env=env, **kwargs)


@contextlib.contextmanager
def running_space(data: Path, peer_count: int = 3, *options: str) -> Iterator[Space]:
    """A supervised space that is stopped on leaving; the options are those of `server start`."""
    space = Space(data, peer_count)
    try:
        space.start(*options)
        yield space
    finally:
        space.stop()


@dataclass
class Mount:
    """A mount of a space."""

    uri: str
    path: Path
    cache: Path
    options: Sequence[str] = ()

    def mount(self) -> None:
        """Mount; returns when the mount answers."""
        if not is_mounted(self.path):
            # Looking at a dead mount is an error.
            self.path.mkdir(parents=True, exist_ok=True)
        options = ",".join([f"cache_dir={self.cache}", *self.options])
        mictlanfs("mount", self.uri, self.path, "-o", options)
        assert is_mounted(self.path)

    def umount(self) -> None:
        """Unmount; returns when everything is durable and the process has ended."""
        pid = self.pid()
        mictlanfs("umount", self.path)
        assert not is_mounted(self.path)
        assert pid is None or not is_running(pid)

    def remount_cold(self) -> None:
        """Unmount, remove the cache, mount again.

        What the kernel had of the mount goes with it. All else that it has, such as the programs
        of other tests, stays.
        """
        self.umount()
        run("rm", "-rf", self.cache)
        self.mount()

    def pid(self) -> int | None:
        """The process that serves the mount."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(self.path) in words and any(b"mictlanfs" in w for w in words):
                return int(entry.name)
        return None

    def kill(self) -> None:
        """kill -9 the process that serves the mount."""
        pid = self.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid), "the mount process ended")

    def end(self) -> None:
        """Leave nothing mounted, whatever happened."""
        mictlanfs("umount", self.path, check=False)
        if is_mounted(self.path):
            run("umount", "-l", self.path, check=False)

    @property
    def bucket(self) -> Path:
        """A bucket for tests to work in, made on first use."""
        bucket = self.path / "bucket"
        bucket.mkdir(exist_ok=True)
        return bucket


@contextlib.contextmanager
def mounted(uri: str, base: Path, *options: str) -> Iterator[Mount]:
    """A mount below `base` that is gone on leaving, whatever happened."""
    mount = Mount(uri, base / "mnt", base / "cache", options)
    try:
        mount.mount()
        yield mount
    finally:
        mount.end()


@contextlib.contextmanager
def several_mounted(uri: str, base: Path, count: int, *options: str) -> Iterator[list[Mount]]:
    """Mounts of one space, each with a cache of its own, that are gone on leaving."""
    mounts = [
        Mount(uri, base / f"mount-{index}" / "mnt", base / f"mount-{index}" / "cache", options)
        for index in range(count)
    ]
    with ThreadPoolExecutor(count) as pool:
        try:
            list(pool.map(Mount.mount, mounts))
            yield mounts
        finally:
            list(pool.map(Mount.end, mounts))


@dataclass
class LooseServers:
    """A router and peers without a supervisor, so that what is killed stays dead."""

    data: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    uri: str = ""
    ports: dict[int, int] = field(default_factory=dict)

    def start_router(self, port: int, *options: str) -> None:
        """Start the router on a port of ours."""
        self.uri = f"mictlanx://mictlanx-router-0@127.0.0.1:{port}/?protocol=http&api_version=4"
        self._spawn("router", "router", "--port", str(port), *options)

    def start_peer(self, index: int, port: int, *options: str) -> None:
        """Start one peer."""
        self.ports[index] = port
        name = f"peer-{index}"
        self._spawn(
            name, "peer", "--router", self.uri, "--port", str(port), "--id",
            f"mictlanx-peer-{index}", *options,
        )  # fmt: skip

    def _spawn(self, name: str, *words: str) -> None:
        log = (self.data / f"{name}.log").open("ab")
        with log:
            self.processes[name] = subprocess.Popen(
                [MICTLANFS, "server", *words, "--data", os.fspath(self.data / name)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def status(self) -> dict[str, object]:
        """What `mictlanfs status --json` says; empty while there is no answer."""
        done = mictlanfs("status", "--json", "--uri", self.uri, check=False)
        try:
            status = json.loads(done.stdout)
        except ValueError:
            return {}
        return status if isinstance(status, dict) else {}

    def wait_for_peers(self, count: int) -> None:
        """Wait until `count` peers are up."""

        def are_up() -> bool:
            peers = self.status().get("peers", [])
            assert isinstance(peers, list)
            return [peer["state"] for peer in peers].count("up") == count

        wait_until(are_up, f"{count} peers are up")

    def kill(self, name: str) -> None:
        """kill -9 one of the processes and wait for its end."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Stop everything that runs."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are free now, below the range the kernel gives to clients."""
    import random
    import socket

    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = random.randrange(12_000, 32_000)
            probe = stack.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found
