"""The clock by which a kernel stamps files, so that what it stamps and what the mount stamps agree.

A change of attributes arrives with the time that the kernel put into it (utimensat(2) with
UTIME_NOW, truncate(2)). That is the time of its last tick, up to 10 ms ago, and so with an exact
clock in the mount a file that was written and then touched would become older by it.

Since Linux 6.13 there is more (Documentation/filesystems/multigrain-ts.rst): a local file system
stamps a change by the exact time if somebody has looked at the stamp before, and from then on no
stamp that the kernel gives to anything is older. So the mount has its stamps made by the kernel, on
a file in memory: they grow each time, and what the kernel stamps afterwards is not behind them. On
older kernels two of the same tick are equal, as on local file systems there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mictlanfs.clock import SystemClock


class KernelClock(SystemClock):
    """Wall time as the kernel stamps files; durations as the system measures them.

    Args:
        descriptor: an open file of nobody else, on a local file system; it stays the caller's.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch; about 2 µs."""
        os.utime(self._descriptor)
        return os.fstat(self._descriptor).st_ctime_ns


@contextmanager
def open_kernel_clock() -> Iterator[KernelClock]:
    """Such a clock, over a file in memory that has no name."""
    descriptor = os.memfd_create("clock")
    try:
        yield KernelClock(descriptor)
    finally:
        os.close(descriptor)
