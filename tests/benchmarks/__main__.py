"""Run the workloads on every subject, interleaved, and print rates with their ratios and costs.

Ratios of medians from one run are what may be quoted; absolute figures change with the machine and
what else it does. Needs root and /dev/fuse; the workloads of the v4 door (`v4-…`) do not: they run
on a space without a mount.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypeVar

from tests.benchmarks.datapath import WORKLOADS
from tests.benchmarks.door import DOOR_WORKLOADS, DoorWorkload, door_table, run_door_rounds
from tests.benchmarks.processes import all_processor_s, forget_peak, peak_rss_bytes
from tests.benchmarks.profiling import profiled
from tests.benchmarks.subjects import Subject, all_subjects
from tests.benchmarks.workloads import MIB, Cost, Result, Stopwatch, Workload


class Needing(Protocol):
    """A workload of either kind."""

    @property
    def needs(self) -> str:
        """The workload that has to run before it."""
        ...


Found = TypeVar("Found", bound=Needing)


def chosen_workloads(names: Sequence[str]) -> list[Workload]:
    """The workloads on file systems of these names, or all; each with what it needs before it."""
    return _chosen(names, WORKLOADS)


def chosen_door_workloads(names: Sequence[str]) -> list[DoorWorkload]:
    """The same of the v4 door."""
    return _chosen(names, DOOR_WORKLOADS)


def _chosen(names: Sequence[str], among: Mapping[str, Found]) -> list[Found]:
    known = [*WORKLOADS, *DOOR_WORKLOADS]
    if unknown := set(names) - set(known):
        raise SystemExit(f"no workload {', '.join(sorted(unknown))}: there are {known}")
    wanted = (set(names) & among.keys()) if names else set(among)
    wanted |= {among[name].needs for name in wanted} - {""}
    return [found for name, found in among.items() if name in wanted]


def measure(
    subject: Subject, found: Workload, scale: float, result: Result, *, is_cold: bool = True
) -> None:
    """Run one workload on one subject and note its rate and its requests."""
    directory = subject.directory / (found.needs or found.name)
    if found.needs and is_cold:
        subject.make_cold()
    elif not found.needs:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
    processes = subject.processes()
    for pid in processes.get("mount", ()):
        forget_peak(pid)
    watch = Stopwatch(subject.requests, lambda: all_processor_s(processes))
    count = found.run(directory, scale, watch)
    result.rates.setdefault(subject.name, []).append(count / max(watch.seconds, 1e-9))
    each = {where: max(0, number) / count for where, number in watch.requests.items()}
    result.requests.setdefault(subject.name, []).append(each)
    peak = sum(peak_rss_bytes(pid) for pid in processes.get("mount", ()))
    used = {name: used_s / count for name, used_s in watch.processor_s.items()}
    result.costs.setdefault(subject.name, []).append(Cost(used, peak, watch.p99_s))


def run_rounds(
    subjects: Sequence[Subject],
    found: Sequence[Workload],
    rounds: int,
    scale: float,
    *,
    is_quick: bool = False,
) -> list[Result]:
    """Every workload on every subject, `rounds` times, the subjects taking turns.

    To be quick, each subject is made cold once, for the first workload on files of another.
    """
    results = {one.name: Result(one) for one in found}
    were_cold: set[str] = set()
    for round_index in range(rounds):
        for one in found:
            for subject in (subject for subject in subjects if subject.takes(one.name)):
                is_cold = not is_quick or subject.name not in were_cold
                if one.needs:
                    were_cold.add(subject.name)
                measure(subject, one, scale, results[one.name], is_cold=is_cold)
                print(f"round {round_index + 1}: {one.name} {subject.name}", file=sys.stderr)
    return list(results.values())


def table(results: Sequence[Result], subjects: Sequence[str], subject: str) -> str:
    """Medians, and the ratio of `subject` to each of the others, as Markdown."""
    others = [name for name in subjects if name != subject]
    heads = ["workload", *subjects, *(f"{subject} / {name}" for name in others)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for result in results:
        medians = {name: statistics.median(rates) for name, rates in result.rates.items()}
        cells = [f"{result.workload.name} ({result.workload.unit})"]
        cells += [f"{medians[name]:,.0f}" if name in medians else "" for name in subjects]
        cells += [
            f"{medians[subject] / medians[name]:.2f}" if name in medians else "" for name in others
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def requests_table(results: Sequence[Result], subject: str) -> str:
    """Requests of one subject for each unit of work, medians, as Markdown."""
    lines = [
        "| workload | kernel to mount | mount to router | mount to peers |",
        "|---|---|---|---|",
    ]
    for result in results:
        rounds = result.requests[subject]
        medians = [
            statistics.median(one.get(where, 0.0) for one in rounds)
            for where in ("kernel", "router", "peer")
        ]
        unit = result.workload.unit.removesuffix("/s")
        cells = [f"{result.workload.name} (of {unit})", *(f"{number:,.3f}" for number in medians)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def costs_table(results: Sequence[Result]) -> str:
    """What the spaces cost of processors and memory, and the p99 of single calls, as Markdown.

    Of rates in MiB/s: seconds of processors for each GiB. Of others: milliseconds for each unit.
    """
    lines = [
        "| workload | space | mount | router | peers | peak RSS of the mount | p99 of a call |",
        f"|{'---|' * 7}",
    ]
    for result in results:
        is_bytes = result.workload.unit == "MiB/s"
        factor, unit = (1024, "s/GiB") if is_bytes else (1000, "ms each")
        for name, costs in result.costs.items():
            if not costs[0].processor_s:
                continue
            used = (
                factor * statistics.median(cost.processor_s[part] for cost in costs)
                for part in ("mount", "router", "peers")
            )
            peak = statistics.median(cost.peak_rss_bytes for cost in costs)
            cells = [result.workload.name, name, *(f"{one:.3f} {unit}" for one in used)]
            cells += [f"{peak / MIB:,.0f} MiB", _shown_p99(costs)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown_p99(costs: Sequence[Cost]) -> str:
    found = [cost.p99_s for cost in costs if cost.p99_s is not None]
    return f"{1000 * statistics.median(found):.2f} ms" if found else ""


def run_profiled(
    subjects: Sequence[Subject], found: Sequence[Workload], scale: float, folder: Path
) -> str:
    """Every workload once on the spaces; where the time goes in their processes."""
    parts: list[str] = []
    for one in found:
        for subject in subjects:
            if not subject.processes() or not subject.takes(one.name):
                continue
            result = Result(one)
            if one.needs:
                subject.make_cold()
            with profiled(subject.processes(), folder) as lines:
                measure(subject, one, scale, result, is_cold=False)
            (rate,) = result.rates[subject.name]
            head = f"{one.name}, {subject.name}: {rate:,.0f} {one.unit}"
            parts.append("\n".join([f"== {head}", *lines]))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    known = ", ".join([*WORKLOADS, *DOOR_WORKLOADS])
    parser.add_argument("workloads", nargs="*", help=f"of {known}; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the work; default: 1")
    parser.add_argument("--quick", action="store_true", help="see that all works")
    parser.add_argument(
        "--profile", action="store_true", help="tell where the time of the spaces goes instead"
    )
    parser.add_argument("--json", type=Path, help="also write every rate to this file")
    chosen = parser.parse_args(arguments)
    rounds, scale = (1, 0.02) if chosen.quick else (chosen.rounds, chosen.scale)
    found = chosen_workloads(chosen.workloads)
    door_found = chosen_door_workloads(chosen.workloads)
    tables: list[str] = []
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="mictlanfs-bench-") as base:
        if found:
            with all_subjects(Path(base)) as subjects:
                if chosen.profile:
                    print(run_profiled(subjects, found, scale, Path(base)))
                    return
                results = run_rounds(subjects, found, rounds, scale, is_quick=chosen.quick)
                names = [subject.name for subject in subjects]
            tables += [table(results, names, "mictlanfs"), requests_table(results, "mictlanfs")]
            tables.append(costs_table(results))
            for result in results:
                costs = {
                    name: [asdict(cost) for cost in costs] for name, costs in result.costs.items()
                }
                one = {"rates": result.rates, "requests": result.requests, "costs": costs}
                figures[result.workload.name] = one
        if door_found:
            door_results = run_door_rounds(door_found, rounds, scale, Path(base))
            tables.append(door_table(door_results))
            for door_result in door_results:
                figures[door_result.workload.name] = [asdict(cost) for cost in door_result.costs]
    print("\n\n".join(tables))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
