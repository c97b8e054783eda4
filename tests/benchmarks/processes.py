"""What processes cost: seconds of processors, and the most memory they had. Reads /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mictlanfs_server.space import SpaceDirectory

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# What to write into clear_refs so that the peak is counted anew: proc_pid_clear_refs(5).
_RESET_PEAK = "5"

# Processes by what they are: "mount", "router", "peers".
Processes = Mapping[str, Sequence[int]]


def server_pids(data: Path) -> list[int]:
    """The router's process, and those of the peers, of a supervised space."""
    record = SpaceDirectory(data).read_record()
    assert record is not None
    peers = [process.pid for name, process in record.children.items() if name.startswith("peer-")]
    return [record.children["router"].pid, *peers]


def processor_s(pid: int) -> float:
    """Seconds that a process has used of processors, in user and kernel mode."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS_PER_S


def all_processor_s(processes: Processes) -> dict[str, float]:
    """The same of several, added up by what they are."""
    return {name: sum(map(processor_s, pids)) for name, pids in processes.items()}


def forget_peak(pid: int) -> None:
    """Count the peak of memory anew, where the system lets us."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK, encoding="ascii")


def peak_rss_bytes(pid: int) -> int:
    """The most memory that a process had resident, since it began or `forget_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise AssertionError(f"no peak of process {pid}")
