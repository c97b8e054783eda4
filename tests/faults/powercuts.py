"""Power cuts that are simulated: what router, peers and mount wrote is recorded, cut, and started.

::

    record:  servers and a mount with the recorder, workloads with marks     -> a log
    cut:     the log up to a place, and of what was not synced as `Form` says -> disks
    start:   router, peers and a mount on those disks                        -> verified

Every process is on one disk here, but each loses another part of what was not synced: so a cut of
one machine and that of all are both among them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import recording
from tests.faults.disks import Disk, Form, differences, read_tree, write_tree
from tests.faults.journal import SYNCS, Step, read_steps
from tests.faults.model import Expected, FileNode, Names, Promise
from tests.faults.parts import open_parts
from tests.faults.recording import Kind, Record, read_records
from tests.faults.stage import BUCKET, CHUNK_SIZE, ROOT
from tests.faults.verifier import (
    database_problems,
    find_orphans,
    metadata_problems,
    problems_of,
    without_database,
)
from tests.faults.workload import DATABASE
from tests.support.spaces import (
    MICTLANFS,
    Mount,
    free_ports,
    is_mounted,
    is_running,
    mictlanfs,
    run,
    wait_until,
)

PEERS = 2
PARTS = ("router", *(f"peer-{number}" for number in range(PEERS)), "cache")
LEASE_TTL_S = "1"
# So that other things happen while a sync is under way.
SYNC_DELAY_US = 2000
MOUNT_TIMEOUT_S = 30.0


@dataclass
class Machine:
    """Router, peers and a mount, all with their data below `disk`.

    Attributes:
        ports: of the router and the peers; the same in all lives of a space.
        environment: for the processes, on top of ours.
    """

    disk: Path
    ports: Sequence[int]
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    mount: Mount = field(init=False)

    def __post_init__(self) -> None:
        base = self.disk.parent
        self.mount = Mount(self.uri, base / "mnt", self.disk / "cache", ("memory=16M",))

    @property
    def uri(self) -> str:
        return f"mictlanx://mictlanx-router-0@127.0.0.1:{self.ports[0]}/?protocol=http&http2=0"

    def start(self) -> None:
        """Start everything; returns when the mount answers."""
        self._spawn("router", "--port", str(self.ports[0]), "--lease-ttl", LEASE_TTL_S)
        for number in range(PEERS):
            self._spawn(
                *(f"peer-{number}", "--port", str(self.ports[1 + number])),
                *("--id", f"mictlanx-peer-{number}", "--router", self.uri),
            )
        self._wait_for_peers()
        self.mount.path.mkdir(exist_ok=True)
        options = ",".join([f"cache_dir={self.mount.cache}", *self.mount.options])
        mictlanfs("mount", self.uri, self.mount.path, "-o", options, env=self._environment())

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def _spawn(self, name: str, *words: str) -> None:
        kind = name.partition("-")[0]
        with (self.disk.parent / f"{name}.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [MICTLANFS, "server", kind, *words, "--data", os.fspath(self.disk / name)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment(),
                )
            )

    def _wait_for_peers(self) -> None:
        def are_up() -> bool:
            assert all(one.poll() is None for one in self.processes), self.logs()
            url = f"http://127.0.0.1:{self.ports[0]}/mictlanfs/v1/status"
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    peers = json.load(answer)["peers"]
            except (OSError, ValueError):
                return False
            return [peer["state"] for peer in peers] == PEERS * ["up"]

        wait_until(are_up, "the peers are up")

    def logs(self) -> str:
        """The last that each server said."""
        return "\n".join(
            f"{path.name}: {path.read_text(encoding='utf-8')[-400:]}"
            for path in sorted(self.disk.parent.glob("*.log"))
        )

    def stop(self) -> None:
        """Stop everything in order."""
        if is_mounted(self.mount.path):
            self.mount.umount()
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait(30)
        self.processes.clear()

    def kill(self) -> None:
        """kill -9 everything."""
        pid = self.mount.pid()
        if pid is not None:
            os.kill(pid, 9)
            wait_until(lambda: not is_running(pid), "the mount process ended")
        run("umount", "-l", self.mount.path, check=False)
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes.clear()


@dataclass(frozen=True)
class Recording:
    """What was recorded.

    Attributes:
        journals: of the workloads; a mark tells the number of lines of which there were.
    """

    disk: Path
    log: Path
    ports: Sequence[int]
    journals: Sequence[Path]

    def records(self) -> Iterator[Record]:
        """The records in order."""
        return read_records(self.log)


@contextlib.contextmanager
def recorded(base: Path, seed: int, work_s: float) -> Iterator[Recording]:
    """Record a space at work, below `base`."""
    log, disk = base / "recording", base / "recorded" / "disk"
    disk.mkdir(parents=True)
    library = recording.build(base)
    variables = recording.environment(library, disk, log, SYNC_DELAY_US)
    machine = Machine(disk, free_ports(1 + PEERS), variables)
    try:
        machine.start()
        mictlanfs("bucket", "create", BUCKET, "--chunk-size", CHUNK_SIZE, "--uri", machine.uri)
        journal = _work(base, machine, seed, work_s, log)
        machine.stop()
    finally:
        machine.kill()
    yield Recording(disk, log, machine.ports, [journal])


def _work(base: Path, machine: Machine, seed: int, work_s: float, log: Path) -> Path:
    folder = machine.mount.path / BUCKET / "work"
    folder.mkdir()
    journal = base / "journal"
    words = [str(folder), str(journal), "--seed", str(seed), "--marks", str(log)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.workload", *words], cwd=ROOT, stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    time.sleep(work_s)
    process.stdin.close()
    assert process.wait(60) == 0
    return journal


# --- cutting -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """Where the power went, and what each part of the disk lost.

    Attributes:
        place: so many records are there.
    """

    place: int
    seed: str
    forms: Mapping[str, Form]

    def __str__(self) -> str:
        forms = ", ".join(f"{part} {form.name}" for part, form in self.forms.items())
        return f"{self.seed}: record {self.place}, {forms}"


def drawn_cuts(recording: Recording, count: int, seed: int) -> list[Cut]:
    """Places between the first and the last mark, in order."""
    marks = [n for n, record in enumerate(recording.records()) if record.kind is Kind.MARK]
    chance = random.Random(seed)
    places = sorted(chance.sample(range(marks[0], marks[-1] + 1), count))
    cuts = []
    for number, place in enumerate(places):
        own = random.Random(f"{seed}-{number}")
        # All alike, as when one machine loses power, or each its own.
        form = own.choice(list(Form))
        is_one = own.random() < 0.5
        forms = {part: form if is_one else own.choice(list(Form)) for part in PARTS}
        cuts.append(Cut(place, f"{seed}-{number}", forms))
    return cuts


@dataclass(frozen=True)
class State:
    """What is left after a cut: the content of the disk, and what was promised until then."""

    cut: Cut
    content: dict[str, bytes | None]
    steps: Sequence[Step]

    @property
    def promise(self) -> Promise:
        """A router that kept everything was only killed."""
        kept_all = self.cut.forms["router"] is Form.MOST
        return Promise.COMMITTED if kept_all else Promise.SYNCED


def states_after(recording: Recording, cuts: Sequence[Cut]) -> Iterator[State]:
    """What is left after each of `cuts`, which are in order."""
    disk = Disk(recording.disk)
    records = recording.records()
    done = lines = 0
    for cut in cuts:
        while done < cut.place:
            record = next(records)
            disk.apply(record)
            if record.kind is Kind.MARK:
                lines = record.offset + 1
            done += 1
        chance = random.Random(cut.seed)
        steps = read_steps(recording.journals[0], lines)
        yield State(cut, disk.content(cut.forms, chance), steps)


def unrecorded(recording: Recording) -> list[str]:
    """Paths at which the whole recording does not lead to what is on the disk."""
    disk = Disk(recording.disk)
    for record in recording.records():
        disk.apply(record)
    return differences(disk.content({}, random.Random(0)), read_tree(recording.disk))


def problems_after(base: Path, ports: Sequence[int], state: State) -> list[str]:
    """Start a space on what is left, and look at it."""
    base.mkdir()
    machine = Machine(base / "disk", ports)
    write_tree(state.content, machine.disk)
    try:
        machine.start()
        problems = _problems(machine, state)
    except AssertionError as error:
        problems = [f"it does not start: {error}\n{machine.logs()}"]
    finally:
        machine.kill()
    if not problems:
        shutil.rmtree(base)
    return [f"power cut {state.cut}: {problem}" for problem in problems]


def problems_in_parts(base: Path, state: State) -> list[str]:
    """Open the stores of the servers on what is left, and look at them: see `parts`."""
    disk = base / "disk"
    write_tree(state.content, disk)
    with open_parts(disk) as parts:
        problems = parts.problems()
        names = parts.folder((BUCKET.encode(), b"work"))
    if names is None:
        problems += _folder_problems(state)
    else:
        expected = Expected(state.steps, state.promise)
        difference = expected.difference(without_database(names))
        problems += [difference] if difference is not None else []
        problems += _database_problems(base / "database", names, state.steps)
    if not problems:
        shutil.rmtree(base)
    return [f"power cut {state.cut}: {problem}" for problem in problems]


def _database_problems(folder: Path, names: Names, steps: Sequence[Step]) -> list[str]:
    """Copy the database of a workload to where SQLite can recover it, and look at it."""
    folder.mkdir()
    for name, node in names.items():
        # What it keeps in shared memory it makes anew.
        if name.startswith(DATABASE) and not name.endswith("-shm") and isinstance(node, FileNode):
            (folder / name).write_bytes(node.content)
    return database_problems(folder, steps)


def _folder_problems(state: State) -> list[str]:
    is_promised = any(step.is_done and step.verb in SYNCS for step in state.steps)
    return ["the folder of the workload is gone"] if is_promised else []


def _problems(machine: Machine, state: State) -> list[str]:
    router = machine.disk / "router"
    peers = [machine.disk / f"peer-{number}" for number in range(PEERS)]
    problems = metadata_problems(router)
    missing = find_orphans(router, peers).missing
    if missing:
        problems.append(f"{missing} copies that the metadata names are not on their peers")
    folder = machine.mount.path / BUCKET / "work"
    if not folder.is_dir():
        return problems + _folder_problems(state)
    problems += problems_of(folder, state.steps, state.promise)
    probe = [sys.executable, "-m", "tests.faults.probe", str(folder)]
    done = run(*probe, check=False, cwd=ROOT, timeout=60)
    if done.returncode:
        problems.append(f"it cannot be used: {done.stderr}")
    return problems
