"""How long a space took to recover from each fault, as last measured: `measured.json`.

`python -m tests.faults.measured LOG…` takes the times from what `make torture` printed; faults that
were not played keep theirs. docs/reliability.md is made from it by `tests.docs.generate`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

PATH = Path(__file__).with_name("measured.json")
# A line of `torture`, of a cycle or of a scenario.
_LINE = re.compile(r"(?:cycle \S+: )?(?P<fault>.+): ok, usable after (?P<time>[0-9.]+) s")


@dataclass(frozen=True, slots=True)
class Range:
    """The recoveries from one fault, in seconds.

    Attributes:
        day: on which they were measured, as 2026-11-30.
    """

    count: int
    shortest_s: float
    median_s: float
    longest_s: float
    day: str

    def __str__(self) -> str:
        """For a table, as short as it can be."""
        if self.count == 1:
            return f"{self.longest_s:.1f} s"
        return f"{self.shortest_s:.1f}\u2013{self.longest_s:.1f} s, median {self.median_s:.1f} s"


def range_of(times_s: Iterable[float], day: str) -> Range:
    """The range of some recoveries; at least one."""
    found = sorted(times_s)
    return Range(len(found), found[0], statistics.median(found), found[-1], day)


def ranges_in(lines: Iterable[str], day: str) -> dict[str, Range]:
    """What a run of `torture` has printed, by fault; a fault that was not survived has no time."""
    times_s: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        if (found := _LINE.match(line)) is not None:
            times_s[found["fault"]].append(float(found["time"]))
    return {fault: range_of(found, day) for fault, found in times_s.items()}


def read(path: Path = PATH) -> dict[str, Range]:
    """What was last measured, by fault."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {fault: Range(**values) for fault, values in found.items()}


def write(ranges: Mapping[str, Range], path: Path = PATH) -> None:
    """Keep what was measured."""
    found = {fault: asdict(ranges[fault]) for fault in sorted(ranges)}
    text = json.dumps(found, indent=2, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tests.faults.measured", description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG")
    given = parser.parse_args(arguments)
    ranges = read() if PATH.exists() else {}
    for log in given.logs:
        day = time.strftime("%Y-%m-%d", time.gmtime(log.stat().st_mtime))
        ranges |= ranges_in(log.read_text(encoding="utf-8").splitlines(), day)
    write(ranges)


if __name__ == "__main__":
    main()
