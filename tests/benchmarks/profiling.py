"""Where the time of a workload goes: functions of the mount, the router and the peers, by py-spy.

Without py-spy there is only what each process used of processors, in user and in kernel mode.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.processes import Processes

_SAMPLES_PER_S = 200
_DURATION_S_MAX = 3600
_SHOWN_MAX = 15
_END_S_MAX = 60.0


@contextlib.contextmanager
def profiled(processes: Processes, folder: Path) -> Iterator[list[str]]:
    """Watch processes while the block runs; lines about them are in the list afterwards."""
    program = shutil.which("py-spy")
    lines: list[str] = []
    watched = [(f"{name} {pid}", pid) for name, pids in processes.items() for pid in pids]
    before = {title: _modes_s(pid) for title, pid in watched}
    spies = []
    if program is not None:
        for title, pid in watched:
            spies.append((title, folder / f"{pid}.stacks", _spy(program, pid, folder)))
    yield lines
    for title, pid in watched:
        user_s, system_s = (a - b for a, b in zip(_modes_s(pid), before[title], strict=True))
        lines.append(f"{title}: {user_s:.2f} s in user mode, {system_s:.2f} s in the kernel")
    if program is None:
        lines.append("pip install py-spy, and it says in which functions")
    for title, path, spy in spies:
        spy.send_signal(signal.SIGINT)
        spy.communicate(timeout=_END_S_MAX)
        if path.exists():
            lines += ["", f"{title}: % of its time in a function itself, and with what it calls"]
            lines += report(path.read_text(encoding="utf-8"))


def _spy(program: str, pid: int, folder: Path) -> subprocess.Popen[bytes]:
    words = [program, "record", "--nonblocking", "--format", "raw", "--pid", str(pid)]
    words += ["--rate", str(_SAMPLES_PER_S), "--duration", str(_DURATION_S_MAX)]
    words += ["--output", os.fspath(folder / f"{pid}.stacks")]
    spy = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert spy.stdout is not None
    # Before it samples, an interrupt would not make it write what it has.
    for line in spy.stdout:
        if b"Sampling" in line:
            break
    return spy


def _modes_s(pid: int) -> tuple[float, float]:
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    return int(words[11]) / ticks_per_s, int(words[12]) / ticks_per_s


def report(stacks: str) -> list[str]:
    """The functions with the most samples of their own, from collapsed stacks.

    Each line of those is frames from the outermost on, joined by `;`, and how often it was seen.
    """
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks.splitlines():
        frames, _, number = line.rpartition(" ")
        names = frames.split(";")
        own[names[-1]] += int(number)
        for name in set(names):
            within[name] += int(number)
    total = max(1, own.total())
    return [
        f"{count / total:6.1%} {within[name] / total:6.1%}  {name}"
        for name, count in own.most_common(_SHOWN_MAX)
    ]
