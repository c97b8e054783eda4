"""The workloads. Each runs in an empty directory, checks what it wrote or read, and returns a rate.

`scale` is 1.0 for real figures; tests use a small part of it. Rates are per second, so more is
better everywhere. What is written counts until it is durable.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
BLOCKS = [random.Random(seed).randbytes(MIB) for seed in range(8)]


def no_requests() -> dict[str, int]:
    """Where nobody counts them."""
    return {}


def nothing_used() -> dict[str, float]:
    """Where nobody knows whose processors are used."""
    return {}


@dataclass
class Stopwatch:
    """Time spent, and requests made, in the parts that count.

    Attributes:
        observe: requests made so far, by where they go; it may itself make the same few each time.
        use: seconds of processors used so far, by what used them.
        p99_s: of single calls, where a workload measures them.
    """

    observe: Callable[[], Mapping[str, int]] = no_requests
    use: Callable[[], Mapping[str, float]] = nothing_used
    seconds: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    processor_s: dict[str, float] = field(default_factory=dict)
    p99_s: float | None = None

    def __post_init__(self) -> None:
        before, after = Counter(self.observe()), Counter(self.observe())
        after.subtract(before)
        self._own = after

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside the block."""
        before, used_before = self.observe(), self.use()
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start
        for name, used_s in self.use().items():
            self.processor_s[name] = self.processor_s.get(name, 0.0) + used_s - used_before[name]
        self.requests.update(self.observe())
        self.requests.subtract(before)
        self.requests.subtract(self._own)


@dataclass(frozen=True)
class Workload:
    """A workload.

    Attributes:
        run: works in a directory at a scale; returns how many units it did.
        unit: of the rate.
        needs: the workload whose files it uses, made before; it is then measured cold.
    """

    name: str
    run: Callable[[Path, float, Stopwatch], float]
    unit: str
    needs: str = ""


WORKLOADS: dict[str, Workload] = {}


def workload(
    name: str, unit: str, needs: str = ""
) -> Callable[[Callable[[Path, float, Stopwatch], float]], None]:
    """Register a workload."""

    def register(run: Callable[[Path, float, Stopwatch], float]) -> None:
        WORKLOADS[name] = Workload(name, run, unit, needs)

    return register


def make_durable(directory: Path) -> None:
    """Have everything that was made in a directory stored."""
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@workload("create", "files/s")
def _create(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = int(1000 * scale)
    with watch.running():
        for index in range(count):
            os.close(os.open(directory / f"e{index}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        make_durable(directory)
    return count


@workload("stat-empty", "files/s", needs="create")
def _stat_empty(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = int(1000 * scale)
    with watch.running():
        sizes = [os.stat(directory / f"e{index}").st_size for index in range(count)]
    assert not any(sizes)
    return count


@workload("unlink", "files/s", needs="create")
def _unlink(directory: Path, scale: float, watch: Stopwatch) -> float:
    names = os.listdir(directory)
    with watch.running():
        for name in names:
            os.unlink(directory / name)
    assert os.listdir(directory) == []
    return len(names)


@workload("small-write", "files/s")
def _small_write(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = int(600 * scale)
    with watch.running():
        for index in range(count):
            descriptor = os.open(directory / f"s{index}", os.O_CREAT | os.O_WRONLY)
            os.write(descriptor, BLOCKS[index % 8][index : index + 4096])
            os.close(descriptor)
        make_durable(directory)
    return count


@workload("small-read", "files/s", needs="small-write")
def _small_read(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = int(600 * scale)
    bodies = []
    with watch.running():
        for index in range(count):
            descriptor = os.open(directory / f"s{index}", os.O_RDONLY)
            bodies.append(os.read(descriptor, 8192))
            os.close(descriptor)
    assert all(body == BLOCKS[i % 8][i : i + 4096] for i, body in enumerate(bodies))
    return count


_READER = """
import os, sys
names = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for name in names:
    descriptor = os.open(name, os.O_RDONLY)
    assert len(os.read(descriptor, 8192)) == 4096
    os.close(descriptor)
"""


@workload("small-read-by-8", "files/s", needs="small-write")
def _small_read_by_8(directory: Path, scale: float, watch: Stopwatch) -> float:
    names = [f"s{index}" for index in range(int(600 * scale))]
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", _READER, *names[index::8]],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for index in range(8)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"ready\n"
    with watch.running():
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.write(b"\n")
            reader.stdin.flush()
        statuses = [reader.wait() for reader in readers]
    for reader in readers:
        reader.communicate()
    assert not any(statuses)
    return len(names)


@workload("stat", "files/s", needs="small-write")
def _stat(directory: Path, scale: float, watch: Stopwatch) -> float:
    with watch.running():
        sizes = [entry.stat().st_size for entry in os.scandir(directory)]
    assert set(sizes) == {4096}
    return len(sizes)


@workload("stream-write", "MiB/s")
def _stream_write(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = int(256 * scale)
    with watch.running(), (directory / "stream").open("wb", buffering=0) as file:
        for index in range(count):
            file.write(BLOCKS[index % 8])
        os.fsync(file.fileno())
    return count


@workload("stream-read", "MiB/s", needs="stream-write")
def _stream_read(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = 0
    with (directory / "stream").open("rb", buffering=0) as file:
        buffer = bytearray(MIB)
        while True:
            with watch.running():
                read = file.readinto(buffer)
            if not read:
                return count
            assert buffer == BLOCKS[count % 8]
            count += 1


@workload("random-read", "reads/s", needs="stream-write")
def _random_read(directory: Path, scale: float, watch: Stopwatch) -> float:
    count, draw = int(500 * scale), random.Random(3)
    descriptor = os.open(directory / "stream", os.O_RDONLY)
    pages = os.fstat(descriptor).st_size // 4096
    offsets = [draw.randrange(pages) * 4096 for _ in range(count)]
    with watch.running():
        bodies = [os.pread(descriptor, 4096, offset) for offset in offsets]
    os.close(descriptor)
    for offset, body in zip(offsets, bodies, strict=True):
        start = offset % MIB
        assert body == BLOCKS[offset // MIB % 8][start : start + 4096]
    return count


# How long a file system may take to put pieces together before the reading is measured.
SETTLE_S_MAX = 300.0


def _pages(scale: float) -> Iterator[tuple[int, bytes]]:
    """What is written at random into a file: offsets and pages."""
    draw, count = random.Random(4), max(1, int(128 * scale)) * MIB // 4096
    for _ in range(int(8192 * scale)):
        yield draw.randrange(count) * 4096, draw.randbytes(4096)


def _settle(directory: Path) -> None:
    """Wait until a mount has put together what was written in pieces; others do no such thing."""
    for parent in directory.parents:
        stats = parent / ".mictlanfs" / "stats"
        if stats.exists():
            give_up_at = time.monotonic() + SETTLE_S_MAX
            while json.loads(stats.read_bytes())["defragmented"]["pending"]:
                assert time.monotonic() < give_up_at, "pieces are not put together"
                time.sleep(0.5)


@workload("random-write", "writes/s")
def _random_write(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = 0
    with (directory / "pieces").open("w+b", buffering=0) as file:
        for index in range(max(1, int(128 * scale))):
            file.write(BLOCKS[index % 8])
        os.fsync(file.fileno())
        pages = list(_pages(scale))
        with watch.running():
            for offset, page in pages:
                count += os.pwrite(file.fileno(), page, offset) // 4096
            os.fsync(file.fileno())
    _settle(directory)
    return count


@workload("fragmented-read", "MiB/s", needs="random-write")
def _fragmented_read(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = max(1, int(128 * scale))
    expected = bytearray(b"".join(BLOCKS[index % 8] for index in range(count)))
    for offset, page in _pages(scale):
        expected[offset : offset + 4096] = page
    buffer = bytearray(MIB)
    with (directory / "pieces").open("rb", buffering=0) as file:
        for index in range(count):
            with watch.running():
                read = file.readinto(buffer)
            assert read == MIB
            assert buffer == expected[index * MIB : (index + 1) * MIB]
    return count


def _append(directory: Path, count: int, synced_each: int, watch: Stopwatch) -> float:
    with watch.running(), (directory / "log").open("ab", buffering=0) as log:
        for index in range(count):
            log.write(b"%099d\n" % index)
            if index % synced_each == synced_each - 1:
                os.fsync(log.fileno())
    assert (directory / "log").read_bytes() == b"".join(b"%099d\n" % i for i in range(count))
    return count


@workload("append-fsync", "appends/s")
def _append_fsync(directory: Path, scale: float, watch: Stopwatch) -> float:
    return _append(directory, int(100 * scale), 1, watch)


@workload("append-log", "appends/s")
def _append_log(directory: Path, scale: float, watch: Stopwatch) -> float:
    return _append(directory, int(5000 * scale), 100, watch)


@workload("sqlite", "transactions/s")
def _sqlite(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = int(1000 * scale)
    with closing(sqlite3.connect(directory / "db")) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)")
        with watch.running():
            for index in range(count):
                with connection:
                    connection.execute("INSERT INTO t VALUES (?, ?)", (index, BLOCKS[0][:500]))
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (count,)
    return count


@dataclass(frozen=True)
class Cost:
    """What one run of a workload took besides time.

    Attributes:
        processor_s: seconds of processors for each unit, by what used them.
        peak_rss_bytes: the most memory that the mount had.
        p99_s: of single calls; None: not measured.
    """

    processor_s: Mapping[str, float]
    peak_rss_bytes: int
    p99_s: float | None


@dataclass
class Result:
    """Rates of one workload, requests for each of its units, and costs, by subject and round."""

    workload: Workload
    rates: dict[str, list[float]] = field(default_factory=dict)
    requests: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    costs: dict[str, list[Cost]] = field(default_factory=dict)
