"""A long run: mixed work on three mounts, a fault every 20 s, and whether anything grows.

`python -m tests.faults.soak --minutes 30`. One mount is killed now and then; the other two live all
the time. In the last part no server is killed any more, so that router and peers are old enough at
the end to be judged. Memory (RSS) and descriptors of every process are sampled; a process that is
old enough must have stopped growing. Files of chunks, which a mount keeps open for a minute after
their last use, come and go with the work: they are not counted with the other descriptors, but must
all be closed a while after it has ended.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.killing import FAULTS, Fault, Report, Torture
from tests.faults.stage import Stage, open_stage
from tests.faults.torture import say

MOUNTS = 3
FAULT_EVERY_S = 20.0
SAMPLE_EVERY_S = 5.0
# The part of the run in which servers are killed; they are judged by the rest.
KILLING_SHARE = 0.5
# So that the caches of mounts are full early.
MEMORY = "memory=64M"
KILLS_SERVERS = frozenset(
    {
        *("router killed", "peer killed", "router and peers killed"),
        *("mount and servers killed", "everything killed"),
    }
)
# What a process may have grown by in the second half of its later life: allocators do not give
# everything back, and a few connections come and go.
GROWTH_MAX = 0.06
GROWTH_BYTES_MAX = 8 * 1024 * 1024
DESCRIPTORS_MAX = 12
# Younger ones fill their caches still.
AGE_MIN_SHARE = 0.3


# A mount closes files of chunks that were not used for a minute, and looks every few seconds.
CHUNKS_CLOSED_WITHIN_S = 90.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process took at a moment.

    Attributes:
        descriptors: without those of chunk files.
    """

    time_s: float
    rss_bytes: int
    descriptors: int


@dataclass
class Life:
    """The samples of one process."""

    name: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def age_s(self) -> float:
        """From the first sample to the last."""
        return self.samples[-1].time_s - self.samples[0].time_s

    def halves(self) -> tuple[Sample, Sample]:
        """Medians of the two halves of the last two thirds of its life."""
        later = self.samples[len(self.samples) // 3 :]
        middle = len(later) // 2
        return _median(later[:middle]), _median(later[middle:])

    def growth(self) -> str | None:
        """What has grown; None when nothing has."""
        before, after = self.halves()
        grown = after.rss_bytes - before.rss_bytes
        if grown > max(GROWTH_BYTES_MAX, GROWTH_MAX * before.rss_bytes):
            return f"{self.name} grew by {grown >> 20} MiB to {after.rss_bytes >> 20} MiB"
        if after.descriptors - before.descriptors > DESCRIPTORS_MAX:
            return f"{self.name} went from {before.descriptors} to {after.descriptors} descriptors"
        return None


def _median(samples: list[Sample]) -> Sample:
    middle = len(samples) // 2
    return Sample(
        samples[middle].time_s,
        sorted(sample.rss_bytes for sample in samples)[middle],
        sorted(sample.descriptors for sample in samples)[middle],
    )


class Watcher:
    """Samples every process of a space and its mounts, in a thread."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher")
        self.lives: dict[tuple[str, int], Life] = {}

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(SAMPLE_EVERY_S):
            for name, pid in self._processes():
                sample = sampled(pid)
                if sample is not None:
                    life = self.lives.setdefault((name, pid), Life(name, pid))
                    life.samples.append(sample)

    def _processes(self) -> list[tuple[str, int]]:
        found = []
        for name in ("supervisor", *self._stage.server_names()):
            process = self._stage.server(name)
            if process is not None:
                found.append((name, process.pid))
        for number, mount in enumerate(self._stage.mounts):
            pid = mount.pid()
            if pid is not None:
                found.append((f"mount-{number}", pid))
        return found


def sampled(pid: int) -> Sample | None:
    """What a process takes now; None when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        names = opened(pid)
    except OSError:
        return None
    descriptors = len(names) - sum(map(is_chunk, names))
    return Sample(time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE"), descriptors)


def opened(pid: int) -> list[str]:
    """What the descriptors of a process lead to. Raises OSError when it is gone."""
    names = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        # It may have been closed since.
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return names


def is_chunk(name: str) -> bool:
    """Whether a file that is open is that of a chunk, there or deleted."""
    return "/chunks/" in name


def wait_until_chunks_are_closed(stage: Stage) -> None:
    """Return when no mount has a file of a chunk open. Raises AssertionError after a while."""
    give_up_at_s = time.monotonic() + CHUNKS_CLOSED_WITHIN_S
    pids = [pid for mount in stage.mounts if (pid := mount.pid()) is not None]
    while left := [name for pid in pids for name in opened(pid) if is_chunk(name)]:
        assert time.monotonic() < give_up_at_s, f"{len(left)} chunk files stay open: {left[:3]}"
        time.sleep(1.0)


def drawn(chance: random.Random, *, may_kill_servers: bool) -> Fault:
    """The next fault."""
    usable = [one for one in FAULTS if may_kill_servers or one[0].name not in KILLS_SERVERS]
    faults, weights = zip(*usable, strict=True)
    found = chance.choices(faults, weights)[0]
    assert isinstance(found, Fault)
    return found


def soak(stage: Stage, duration_s: float, seed: int, report: Report) -> list[Life]:
    """Work and strike until the time is over; the processes that were seen."""
    chance = random.Random(seed)
    torture = Torture(stage, range(MOUNTS))
    begun_s = time.monotonic()
    with Watcher(stage) as watcher:
        while (passed_s := time.monotonic() - begun_s) < duration_s:
            round_s = time.monotonic()
            fault = drawn(chance, may_kill_servers=passed_s < KILLING_SHARE * duration_s)
            lead_s = chance.uniform(2, FAULT_EVERY_S / 2)
            cycle = torture.play(f"{seed}-{len(report.cycles)}", fault, lead_s, after_s=2.0)
            report.cycles.append(cycle)
            word = "FAILED" if cycle.problems else "ok"
            say(f"{passed_s:5.0f} s: {fault.name}: {word}, usable after {cycle.recovery_s:.1f} s")
            for problem in cycle.problems:
                say(f"  {problem}")
            time.sleep(max(0.0, FAULT_EVERY_S - (time.monotonic() - round_s)))
    return list(watcher.lives.values())


def judged(lives: list[Life], duration_s: float) -> tuple[list[str], list[str]]:
    """A table of the processes that are old enough, and what has grown of them."""
    old = [life for life in lives if life.age_s >= AGE_MIN_SHARE * duration_s]
    table = ["process       age     RSS before   after  descriptors before  after"]
    for life in sorted(old, key=lambda life: life.name):
        before, after = life.halves()
        table.append(
            f"{life.name:12} {life.age_s:4.0f} s {before.rss_bytes / 2**20:9.1f} MiB"
            f" {after.rss_bytes / 2**20:7.1f} MiB {before.descriptors:12} {after.descriptors:9}"
        )
    return table, [growth for life in old if (growth := life.growth()) is not None]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20))
    given = parser.parse_args(arguments)
    base = Path(os.path.realpath(tempfile.mkdtemp(prefix="mictlanfs-soak-")))
    base.chmod(0o755)
    duration_s = given.minutes * 60
    say(f"seed {given.seed}: {given.minutes:g} minutes in {base}")
    report = Report()
    with open_stage(base, mounts=MOUNTS, mount_options=(MEMORY,)) as stage:
        lives = soak(stage, duration_s, given.seed, report)
        stage.wait_until_whole()
        say("all copies are there, orphans are collected, fsck finds nothing")
        wait_until_chunks_are_closed(stage)
        say("no mount has a file of a chunk open any more")
    table, grown = judged(lives, duration_s)
    print(*report.lines(), "", *table, "", *grown, sep="\n")
    failed = sum(bool(cycle.problems) for cycle in report.cycles)
    say(f"{len(report.cycles)} faults, {failed} failed; {len(grown)} processes grew")
    if failed or grown:
        say(f"what was made is in {base}")
        return 1
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
