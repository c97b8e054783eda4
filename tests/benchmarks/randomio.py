"""Pages of 4 KiB at random, by several jobs at once: by fio where there is one, else by ourselves.

Run as a program it is one job: `python -m tests.benchmarks.randomio PATH read|write COUNT SEED`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE_SIZE_BYTES = 4096
# What is written, all over each page.
PATTERN = bytes.fromhex("5ca1ab1e")
PATTERN_PAGE = PATTERN * (PAGE_SIZE_BYTES // len(PATTERN))
REPOSITORY = Path(__file__).parents[2]
_JOB_S_MAX = 300.0


@dataclass(frozen=True)
class Done:
    """What all jobs did together.

    Attributes:
        count: pages read or written.
        seconds: from the first to the last.
        p99_s: of single calls, the longest of the shortest 99 %.
    """

    count: int
    seconds: float
    p99_s: float


def random_pages(path: Path, kind: str, count: int, jobs: int) -> Done:
    """Read or write `count` pages of the file `path`, spread over `jobs`; `kind` says which."""
    program = shutil.which("fio")
    each = max(1, count // jobs)
    return _by_fio(program, path, kind, each, jobs) if program else _by_jobs(path, kind, each, jobs)


def _by_fio(program: str, path: Path, kind: str, each: int, jobs: int) -> Done:
    words = [
        program,
        "--name=pages",
        f"--filename={path}",
        f"--rw=rand{kind}",
        f"--bs={PAGE_SIZE_BYTES}",
        f"--size={path.stat().st_size}",
        f"--numjobs={jobs}",
        f"--number_ios={each}",
        f"--buffer_pattern=0x{PATTERN.hex()}",
        "--ioengine=psync",
        "--thread",
        "--norandommap",
        "--group_reporting",
        "--fallocate=none",
        "--output-format=json",
    ]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=path.parent)
    told: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][kind]
    p99_s = told["clat_ns"]["percentile"]["99.000000"] / 1e9
    # Whole milliseconds, and none for very little.
    return Done(told["total_ios"], max(told["runtime"], 1) / 1000, p99_s)


def _by_jobs(path: Path, kind: str, each: int, jobs: int) -> Done:
    words = [sys.executable, "-m", __name__, path, kind, each]
    processes = [
        subprocess.Popen(
            [*map(str, words), str(seed)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(jobs)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start_s = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    times_s: list[float] = []
    for process in processes:
        output, _ = process.communicate(timeout=_JOB_S_MAX)
        assert process.returncode == 0
        times_s += json.loads(output)
    seconds = time.perf_counter() - start_s
    times_s.sort()
    return Done(len(times_s), seconds, times_s[len(times_s) * 99 // 100])


def main() -> None:
    """One job: says that it is ready, waits for a line, and tells how long each call took."""
    path, kind, count, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    descriptor = os.open(path, os.O_RDONLY if kind == "read" else os.O_WRONLY)
    draw, pages = random.Random(seed), os.fstat(descriptor).st_size // PAGE_SIZE_BYTES
    offsets = [draw.randrange(pages) * PAGE_SIZE_BYTES for _ in range(count)]
    times_s = []
    print("ready", flush=True)
    sys.stdin.readline()
    for offset in offsets:
        start_s = time.perf_counter()
        if kind == "read":
            assert len(os.pread(descriptor, PAGE_SIZE_BYTES, offset)) == PAGE_SIZE_BYTES
        else:
            os.pwrite(descriptor, PATTERN_PAGE, offset)
        times_s.append(time.perf_counter() - start_s)
    os.close(descriptor)
    print(json.dumps(times_s))


if __name__ == "__main__":
    main()
