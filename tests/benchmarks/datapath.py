"""The workloads on large files: several writers, copying out, and pages at random with their p99.

Adds them to those of `trees`; `WORKLOADS` here are all. They are run on a space without descriptors
of local chunks, too, and what each costs in processors and memory is told.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks.randomio import PAGE_SIZE_BYTES, PATTERN_PAGE, random_pages
from tests.benchmarks.trees import WORKLOADS
from tests.benchmarks.workloads import BLOCKS, MIB, Stopwatch, workload

__all__ = ["DATA_WORKLOADS", "WORKLOADS"]

REPOSITORY = Path(__file__).parents[2]
WRITERS = 4
READERS = 64
# What each writer writes, as a program: MiB of blocks, from another one on for each.
_WRITER = """
import os, sys
from tests.benchmarks.workloads import BLOCKS
path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
with open(path, "wb", buffering=0) as file:
    for index in range(count):
        file.write(BLOCKS[(first + index) % 8])
    os.fsync(file.fileno())
"""


def _part(number: int) -> str:
    return f"part{number}"


def _check(path: Path, first: int, count: int) -> None:
    """See that a file has the blocks that a writer wrote."""
    with path.open("rb", buffering=0) as file:
        for index in range(count):
            assert file.read(MIB) == BLOCKS[(first + index) % 8]
        assert file.read(1) == b""


@workload("parallel-write", "MiB/s")
def _parallel_write(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = max(1, int(256 * scale))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, directory / _part(number), str(number), str(count)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(WRITERS)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    with watch.running():
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(b"\n")
            writer.stdin.flush()
        statuses = [writer.wait() for writer in writers]
    for writer in writers:
        writer.communicate()
    assert not any(statuses)
    for number in range(WRITERS):
        _check(directory / _part(number), number, count)
    return WRITERS * count


@workload("cp-out", "MiB/s", needs="parallel-write")
def _copy_out(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = max(1, int(256 * scale))
    parts = [directory / _part(number) for number in range(WRITERS)]
    with tempfile.TemporaryDirectory(prefix="mictlanfs-bench-cp-") as folder:
        with watch.running():
            subprocess.run(["cp", *parts, folder], check=True)
        for number in range(WRITERS):
            _check(Path(folder) / _part(number), number, count)
    return WRITERS * count


@workload("read-by-64", "MiB/s", needs="parallel-write")
def _read_by_64(directory: Path, scale: float, watch: Stopwatch) -> float:
    count = max(1, int(256 * scale))
    # Each reads a stretch of its own, in order; all of them together read everything once.
    pieces = [(number, index) for number in range(WRITERS) for index in range(count)]
    each = -(-len(pieces) // READERS)
    stretches = [pieces[start : start + each] for start in range(0, len(pieces), each)]

    def read(stretch: Sequence[tuple[int, int]]) -> int:
        found = 0
        for number, index in stretch:
            with (directory / _part(number)).open("rb", buffering=0) as file:
                body = os.pread(file.fileno(), MIB, index * MIB)
            found += body == BLOCKS[(number + index) % 8]
        return found

    with ThreadPoolExecutor(READERS) as threads, watch.running():
        found = sum(threads.map(read, stretches))
    assert found == len(pieces)
    return found


def _pages_read(directory: Path, scale: float, watch: Stopwatch, jobs: int) -> float:
    path = directory / "stream"
    with watch.running():
        done = random_pages(path, "read", max(jobs, int(8192 * scale)), jobs)
    watch.seconds, watch.p99_s = done.seconds, done.p99_s
    _check(path, 0, path.stat().st_size // MIB)
    return done.count


@workload("pages-read", "reads/s", needs="stream-write")
def _pages_read_by_1(directory: Path, scale: float, watch: Stopwatch) -> float:
    return _pages_read(directory, scale, watch, 1)


@workload("pages-read-by-8", "reads/s", needs="stream-write")
def _pages_read_by_8(directory: Path, scale: float, watch: Stopwatch) -> float:
    return _pages_read(directory, scale, watch, 8)


@workload("pages-write", "writes/s")
def _pages_write(directory: Path, scale: float, watch: Stopwatch) -> float:
    path, size_mib = directory / "pages", max(1, int(128 * scale))
    with path.open("wb", buffering=0) as file:
        for index in range(size_mib):
            file.write(BLOCKS[index % 8])
        os.fsync(file.fileno())
    with watch.running():
        done = random_pages(path, "write", max(1, int(8192 * scale)), 1)
        start_s = time.perf_counter()
        with path.open("rb") as file:
            os.fsync(file.fileno())
        synced_s = time.perf_counter() - start_s
    watch.seconds, watch.p99_s = done.seconds + synced_s, done.p99_s
    _check_pages(path, size_mib)
    return done.count


def _check_pages(path: Path, size_mib: int) -> None:
    """See that every page is as it was, or as it was written, and that some were."""
    written = 0
    with path.open("rb", buffering=0) as file:
        for index in range(size_mib):
            body = file.read(MIB)
            for start in range(0, MIB, PAGE_SIZE_BYTES):
                page = body[start : start + PAGE_SIZE_BYTES]
                written += page == PATTERN_PAGE
                assert page in (PATTERN_PAGE, BLOCKS[index % 8][start : start + PAGE_SIZE_BYTES])
    assert written > 0


# Those that read or write so much that the way of the bytes counts.
DATA_WORKLOADS = (
    *("stream-write", "stream-read", "random-read", "random-write", "fragmented-read"),
    *("parallel-write", "cp-out", "read-by-64"),
    *("pages-read", "pages-read-by-8", "pages-write"),
)
