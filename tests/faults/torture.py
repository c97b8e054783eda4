"""The long form of the fault tests: cycles of kills, power cuts, and a report at the end.

`python -m tests.faults.torture --cycles 200 --cuts 120 --seed 7`. Each cycle and each cut prints
its seed. `--first N` begins with cycle N of that seed, so a run that was broken off can be gone on
with; `--cycle SEED` plays one again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults import powercuts
from tests.faults.killing import Cycle, Report, Torture
from tests.faults.namespaces import reason_for_none
from tests.faults.scenarios import PARTITIONS, SCENARIOS
from tests.faults.stage import open_stage
from tests.support.spaces import run

# After so many cycles everything is begun anew, with an empty space.
CYCLES_PER_SPACE = 50
CUTS_PER_RECORDING = 30
# For each cut after which a space is started, so many after which only its stores are opened.
CUTS_IN_PARTS = 8
RECORDED_S = 6.0
# Everything is in memory unless told otherwise: what a disk adds is simulated.
MEMORY = "6G"


def say(text: str) -> None:
    """One line, at once."""
    print(text, flush=True)


def play_cycles(base: Path, seeds: list[str], report: Report) -> Iterator[str]:
    """Play cycles, each of a seed; what is wrong with a space after many, beside its cycles."""
    for start in range(0, len(seeds), CYCLES_PER_SPACE):
        folder = base / f"space-{start}"
        folder.mkdir()
        failed = 0
        with open_stage(folder) as stage:
            torture = Torture(stage)
            for seed in seeds[start : start + CYCLES_PER_SPACE]:
                cycle = torture.play(seed)
                report.cycles.append(cycle)
                failed += bool(cycle.problems)
                _tell(cycle)
            try:
                stage.wait_until_whole()
            except (AssertionError, subprocess.SubprocessError) as error:
                failed += 1
                say(f"NOT WHOLE after {seed}: {error}")
                yield f"not whole after {seed}: {error}"
            else:
                say("all copies are there, orphans are collected, fsck finds nothing")
        if not failed:
            shutil.rmtree(folder)


def _tell(cycle: Cycle) -> None:
    word = "FAILED" if cycle.problems else "ok"
    said = f"usable after {cycle.recovery_s:.1f} s, {cycle.steps} steps"
    say(f"cycle {cycle.seed}: {cycle.fault}: {word}, {said}")
    for problem in cycle.problems:
        say(f"  {problem}")


def play_cuts(base: Path, count: int, seed: int) -> Iterator[str]:
    """Cut the power at so many places; what is wrong afterwards."""
    for part, start in enumerate(range(0, count, CUTS_PER_RECORDING)):
        folder = base / f"recording-{part}"
        folder.mkdir()
        own_seed = seed * 1000 + part
        with powercuts.recorded(folder, own_seed, RECORDED_S) as recording:
            if left := powercuts.unrecorded(recording):
                yield f"the recording of seed {own_seed} lacks what is in {left}"
                return
            whole_count = min(CUTS_PER_RECORDING, count - start)
            cuts = powercuts.drawn_cuts(recording, whole_count * (1 + CUTS_IN_PARTS), own_seed)
            for number, state in enumerate(powercuts.states_after(recording, cuts)):
                where = folder / f"cut-{state.cut.seed}"
                begun_s = time.monotonic()
                if number % (1 + CUTS_IN_PARTS):
                    problems = powercuts.problems_in_parts(where, state)
                else:
                    problems = powercuts.problems_after(where, recording.ports, state)
                    say(f"cut {state.cut}: {time.monotonic() - begun_s:.1f} s")
                for problem in problems:
                    say(f"  FAILED {problem}")
                yield from problems


def play_scenarios(base: Path) -> Iterator[str]:
    """Play the faults that are told step by step; what is wrong afterwards."""
    reason = reason_for_none()
    if reason is not None:
        say(f"no partitions: {reason}")
    for number, scenario in enumerate(SCENARIOS + (() if reason else PARTITIONS)):
        folder = base / f"scenario-{number}"
        folder.mkdir()
        try:
            recovery_s = scenario.play(folder)
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            say(f"{scenario.name}: FAILED: {error}")
            yield f"{scenario.name}: {error}"
        else:
            say(f"{scenario.name}: ok, usable after {recovery_s:.1f} s")
            shutil.rmtree(folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=120)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20))
    parser.add_argument("--first", type=int, default=0, metavar="N", help="cycle to begin with")
    parser.add_argument("--cycle", action="append", metavar="SEED", help="play this cycle only")
    parser.add_argument("--no-scenarios", action="store_true", help="kills and power cuts only")
    parser.add_argument("--keep", action="store_true", help="keep what was made in any case")
    parser.add_argument("--on-disk", action="store_true", help="not in memory: slower")
    given = parser.parse_args(arguments)
    seeds = given.cycle or [f"{given.seed}-{n}" for n in range(given.first, given.cycles)]
    cut_count = 0 if given.cycle else given.cuts
    base = Path(os.path.realpath(tempfile.mkdtemp(prefix="mictlanfs-torture-")))
    base.chmod(0o755)
    if not given.on_disk:
        run("mount", "-t", "tmpfs", "-o", f"mode=755,size={MEMORY}", "tmpfs", base)
    say(f"seed {given.seed}: {len(seeds)} cycles and {cut_count} power cuts in {base}")
    report = Report()
    wrong: list[str] = []
    try:
        wrong += play_cycles(base, seeds, report)
        wrong += play_cuts(base, cut_count, given.seed)
        if not given.cycle and not given.no_scenarios:
            wrong += play_scenarios(base)
    finally:
        print(*report.lines(), *wrong, sep="\n")
    failed = sum(bool(cycle.problems) for cycle in report.cycles) + len(wrong)
    say(f"{len(report.cycles)} cycles and {cut_count} power cuts, {failed} failed")
    if failed or given.keep:
        say(f"what was made is in {base}")
        return int(bool(failed))
    if not given.on_disk:
        run("umount", "-l", base)
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
