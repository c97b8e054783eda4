"""A real space with mounts and workloads, faults that are played on it, and waiting for its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mictlanfs.processes import ProcessIdentity, identify, is_running, send_signal, wait_ended
from mictlanfs_server.space import SpaceDirectory
from tests.faults.journal import Step, read_steps
from tests.faults.model import Promise
from tests.faults.verifier import Orphans, find_orphans, metadata_problems, problems_of
from tests.support.spaces import Mount, Space, is_mounted, mictlanfs, run

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "bucket"
# Several chunks a file, and several files that are one chunk.
CHUNK_SIZE = "128K"
# A mount that was killed holds up others for so long: shorter than usual, for many cycles an hour.
LEASE_TTL_S = 3.0
# A space is usable again within this after the end of a fault, without anybody's help but that a
# mount that was killed is mounted anew. The supervisor starts a process that dies often after 5 s.
# Far more than it takes: other programs may have the processors.
USABLE_WITHIN_S = 60.0
PROBE_TIMEOUT_S = 30.0
# For the same reason calls wait for longer than they do by default before they fail.
MOUNT_OPTIONS = ("deadline=90",)
STOP_TIMEOUT_S = 90.0
# All copies are back, and what is dead is gone, so long after the last fault of many.
WHOLE_WITHIN_S = 120.0
# Orphans are looked for at once, and dead chunks deleted soon: far sooner than is usual, so that
# deletions meet faults as well.
VARIABLES = {"MICTLANFS_ORPHAN_AGE": "0.005", "MICTLANFS_GC_GRACE": "10"}


@dataclass
class Worker:
    """A workload: its process, its folder on a mount and its journal elsewhere."""

    folder: str
    mount: Mount
    journal: Path
    process: subprocess.Popen[bytes]
    errors: Path

    def stop(self) -> int:
        """Let it finish its step and end; its exit status."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(STOP_TIMEOUT_S)

    def steps(self) -> list[Step]:
        """What it has journalled."""
        return read_steps(self.journal)

    def problems(self, mount: Mount, promise: Promise) -> list[str]:
        """What is wrong with its folder, seen through a mount."""
        return problems_of(mount.path / BUCKET / self.folder, self.steps(), promise)


@dataclass
class Workplace:
    """Mounts of a space, workloads on them, and what is asked when a fault is over.

    Attributes:
        base: what is not part of the space, such as journals.
        data: of the space: `router`, `peer-0`, …
    """

    base: Path
    data: Path
    mounts: list[Mount]
    workers: list[Worker] = field(default_factory=list)

    # --- workloads -------------------------------------------------------------------------------

    def start_worker(self, name: str, seed: int, mount: Mount | None = None) -> Worker:
        """Start a workload in a new folder of the bucket."""
        mount = mount or self.mounts[0]
        folder = mount.path / BUCKET / name
        folder.mkdir()
        journal, errors = self.base / f"{name}.journal", self.base / f"{name}.errors"
        words = [folder, journal, "--seed", str(seed)]
        with errors.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.workload", *map(str, words)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
            )
        worker = Worker(name, mount, journal, process, errors)
        self.workers.append(worker)
        return worker

    def folder_of(self, worker: Worker, mount: Mount | None = None) -> Path:
        """The folder of a workload, seen through a mount."""
        return (mount or self.mounts[0]).path / BUCKET / worker.folder

    def wait_for_steps(self, worker: Worker, count: int, deadline_s: float = 60.0) -> None:
        """Return when a workload has done so many steps."""
        give_up_at_s = time.monotonic() + deadline_s
        while len(worker.steps()) < count:
            assert worker.process.poll() is None, worker.errors.read_text()
            assert time.monotonic() < give_up_at_s, f"{worker.folder} does not get on"
            time.sleep(0.05)

    # --- after a fault ---------------------------------------------------------------------------

    def wait_until_usable(self, mount: Mount | None = None) -> float:
        """Return when a file can be stored and read; seconds since the call.

        Raises:
            AssertionError: it took longer than is promised.
        """
        mount = mount or self.mounts[0]
        begun_s = time.monotonic()
        said = ""
        while time.monotonic() - begun_s < USABLE_WITHIN_S:
            probe = [sys.executable, "-m", "tests.faults.probe", str(mount.path / BUCKET)]
            try:
                done = run(*probe, check=False, cwd=ROOT, timeout=PROBE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                said = "a probe hangs"
                continue
            if done.returncode == 0:
                return time.monotonic() - begun_s
            said = done.stderr.strip().rpartition("\n")[2]
            time.sleep(0.2)
        raise AssertionError(f"not usable after {USABLE_WITHIN_S:g} s: {said}")

    def problems(self, promises: Sequence[tuple[Worker, Promise]]) -> list[str]:
        """Everything that is wrong: through each mount, and in the metadata itself."""
        found = []
        for mount in self.mounts:
            for worker, promise in promises:
                found += [f"{mount.path.parent.name}: {p}" for p in worker.problems(mount, promise)]
        return found + metadata_problems(self.data / "router")

    def orphans(self) -> Orphans:
        """What peers and metadata do not agree on."""
        peers = sorted(path for path in self.data.glob("peer-*") if path.is_dir())
        return find_orphans(self.data / "router", peers)

    def remount(self, mount: Mount) -> None:
        """Mount anew what was killed, as a user would: once more while the router is away."""
        give_up_at_s = time.monotonic() + USABLE_WITHIN_S
        while True:
            try:
                return mount.mount()
            except AssertionError as error:
                if "exited 5" not in str(error) or time.monotonic() > give_up_at_s:
                    raise
                time.sleep(0.5)

    def remove(self, worker: Worker) -> None:
        """Remove the folder and the journal of a workload that has ended."""
        run("rm", "-rf", self.mounts[0].path / BUCKET / worker.folder)
        worker.journal.unlink(missing_ok=True)
        worker.errors.unlink(missing_ok=True)
        _close_input(worker)
        self.workers.remove(worker)

    def end(self) -> None:
        """End what still runs of the workloads."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
            _close_input(worker)


@dataclass
class Stage(Workplace):
    """A supervised space: the mount that workloads use, and others."""

    space: Space = field(kw_only=True)

    def start(self, *options: str) -> None:
        """Start the servers, also anew when all were killed."""
        self.space.start("--lease-ttl", str(LEASE_TTL_S), *options)

    def server(self, name: str) -> ProcessIdentity | None:
        """The process of `router`, `peer-0`, … or `supervisor`; None while there is none."""
        record = SpaceDirectory(self.space.data).read_record()
        assert record is not None
        found = record.supervisor if name == "supervisor" else record.children.get(name)
        return found if found is not None and is_running(found) else None

    def server_names(self) -> list[str]:
        """Router and peers."""
        return ["router", *(f"peer-{number}" for number in range(self.space.peer_count))]

    def signal_server(self, name: str, number: signal.Signals) -> bool:
        """Send a signal; whether there was a process. One that is killed has ended on return."""
        process = self.server(name)
        if process is None:
            return False
        send_signal(process, number)
        if number is signal.SIGKILL:
            assert not wait_ended([process], 10.0), f"{name} does not end"
        return True

    def mount_process(self, mount: Mount) -> ProcessIdentity:
        """The process of a mount."""
        pid = mount.pid()
        found = None if pid is None else identify(pid)
        assert found is not None, f"nothing serves {mount.path}"
        return found

    def wait_until_whole(self) -> None:
        """Return when nothing is left of any fault, while nothing works on the space.

        All peers are up and every chunk has all of its copies; none is set aside as bad; what
        uploads left behind is collected, and deleted from the peers; a deep `fsck` is content.

        Raises:
            AssertionError: something is left, or it takes longer than it may.
        """
        self._wait_until(self._what_is_short, WHOLE_WITHIN_S)
        bad = [path for path in self.data.glob("peer-*/quarantine/*") if path.is_file()]
        assert not bad, f"copies were found bad that nobody damaged: {bad}"
        # What is younger than an orphan may be is left alone: it may take more than one look.
        self._wait_until(self._what_is_orphaned, WHOLE_WITHIN_S)
        found = self.space.command("fsck", "--deep", "--json", timeout=PROBE_TIMEOUT_S * 2)
        told = json.loads(found.stdout)
        assert told["is_sound"], found.stdout
        assert not told["missing_count"] + told["bad_count"], found.stdout

    def _what_is_short(self) -> str:
        done = self.space.command("status", "--json", check=False)
        try:
            told = json.loads(done.stdout)
        except ValueError:
            return done.stdout + done.stderr
        states = {peer["state"] for peer in told["peers"]}
        counts = ("lost_count", "under_replicated_count", "damaged_count")
        is_short = any(told[name] for name in counts) or told["upkeep"]["short_count"]
        return done.stdout if states != {"up"} or is_short else ""

    def _what_is_orphaned(self) -> str:
        told = self.space.command("gc", "--json", check=False).stdout
        found = self.orphans()
        return f"{found} {told}" if found.count or found.missing or found.dead else ""

    @staticmethod
    def _wait_until(what_is_left: Callable[[], str], deadline_s: float) -> None:
        begun_s = time.monotonic()
        while left := what_is_left():
            assert time.monotonic() - begun_s < deadline_s, f"not whole: {left}"
            time.sleep(0.5)


@contextlib.contextmanager
def open_stage(
    base: Path, *options: str, mounts: int = 2, peers: int = 3, mount_options: Sequence[str] = ()
) -> Iterator[Stage]:
    """A space below `base` with its mounts, gone on leaving.

    Args:
        options: of `server start`.
    """
    space = Space(base / "data", peers, variables=VARIABLES)
    found = []
    for number in range(mounts):
        own = base / f"mount-{number}"
        options_of_mount = (*MOUNT_OPTIONS, *mount_options)
        found.append(Mount(space.uri, own / "mnt", own / "cache", options_of_mount))
    stage = Stage(base, space.data, found, space=space)
    try:
        stage.start(*options)
        for mount in found:
            mount.uri = space.uri
            mount.mount()
        space.command("bucket", "create", BUCKET, "--chunk-size", CHUNK_SIZE)
        yield stage
    finally:
        stage.end()
        for mount in found:
            if is_mounted(mount.path):
                mount.end()
        mictlanfs("server", "stop", "--data", space.data, check=False)


def kill_mount(mount: Mount) -> None:
    """kill -9 the process of a mount, which stays in the kernel's table and is dead."""
    pid = mount.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        if stat.rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)


def _close_input(worker: Worker) -> None:
    """What a workload is told to stop by."""
    if worker.process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.close()
