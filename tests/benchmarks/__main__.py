"""Run the workloads on every subject, interleaved, and print rates with their ratios.

Ratios of medians from one run are what may be quoted; absolute figures change with the machine and
what else it does. Needs root and /dev/fuse.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.subjects import Subject, all_subjects
from tests.benchmarks.workloads import WORKLOADS, Result, Stopwatch, Workload


def chosen_workloads(names: Sequence[str]) -> list[Workload]:
    """The workloads of these names, or all; each with what it needs before it."""
    unknown = set(names) - WORKLOADS.keys()
    if unknown:
        raise SystemExit(f"no workload {', '.join(sorted(unknown))}: there are {list(WORKLOADS)}")
    wanted = set(names) or set(WORKLOADS)
    wanted |= {WORKLOADS[name].needs for name in wanted} - {""}
    return [found for name, found in WORKLOADS.items() if name in wanted]


def measure(subject: Subject, found: Workload, scale: float) -> float:
    """The rate of one workload on one subject."""
    directory = subject.directory / (found.needs or found.name)
    if found.needs:
        subject.make_cold()
    else:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
    watch = Stopwatch()
    return found.run(directory, scale, watch) / max(watch.seconds, 1e-9)


def run_rounds(
    subjects: Sequence[Subject], found: Sequence[Workload], rounds: int, scale: float
) -> list[Result]:
    """Every workload on every subject, `rounds` times, the subjects taking turns."""
    results = {one.name: Result(one) for one in found}
    for round_index in range(rounds):
        for one in found:
            for subject in subjects:
                rate = measure(subject, one, scale)
                results[one.name].rates.setdefault(subject.name, []).append(rate)
                print(f"round {round_index + 1}: {one.name} {subject.name}", file=sys.stderr)
    return list(results.values())


def table(results: Sequence[Result], subjects: Sequence[str], subject: str) -> str:
    """Medians, and the ratio of `subject` to each of the others, as Markdown."""
    others = [name for name in subjects if name != subject]
    heads = ["workload", *subjects, *(f"{subject} / {name}" for name in others)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for result in results:
        medians = {name: statistics.median(result.rates[name]) for name in subjects}
        cells = [f"{result.workload.name} ({result.workload.unit})"]
        cells += [f"{medians[name]:,.0f}" for name in subjects]
        cells += [f"{medians[subject] / medians[name]:.2f}" for name in others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the work; default: 1")
    parser.add_argument("--json", type=Path, help="also write every rate to this file")
    chosen = parser.parse_args(arguments)
    found = chosen_workloads(chosen.workloads)
    with (
        tempfile.TemporaryDirectory(prefix="mictlanfs-bench-") as base,
        all_subjects(Path(base)) as subjects,
    ):
        results = run_rounds(subjects, found, chosen.rounds, chosen.scale)
        names = [subject.name for subject in subjects]
    print(table(results, names, "mictlanfs"))
    if chosen.json is not None:
        rates = {result.workload.name: result.rates for result in results}
        chosen.json.write_text(json.dumps(rates, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
