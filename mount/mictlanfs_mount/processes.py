"""Processes named so that a later one of the same number is never taken for them.

Owns no state. A process is its number and the moment it started: `identify` reads both, and every
signal and every wait goes through a descriptor that stands for that very process (pidfd_open(2)).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# proc_pid_stat(5): fields behind the name, counted from 0.
_STATE_INDEX, _START_INDEX = 0, 19
_ENDED_STATES = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process.

    Attributes:
        pid: its number.
        started_ticks: clock ticks from the boot of the machine to its start.
    """

    pid: int
    started_ticks: int


def identify(pid: int) -> ProcessIdentity | None:
    """Who has the number `pid` now; None: nobody, or a process that has ended."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may hold some itself.
    fields = text.rpartition(")")[2].split()
    if fields[_STATE_INDEX] in _ENDED_STATES:
        return None
    return ProcessIdentity(pid, int(fields[_START_INDEX]))


def is_running(process: ProcessIdentity) -> bool:
    """Whether `process` has not ended."""
    return identify(process.pid) == process


def wait_ended(process: ProcessIdentity, timeout_s: float) -> bool:
    """Wait until `process` has ended; False when it had not after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    with _descriptor_of(process) as descriptor:
        if descriptor is None:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000))


def send_signal(process: ProcessIdentity, number: signal.Signals) -> None:
    """Signal `process`, unless it has ended.

    Raises:
        PermissionError: it belongs to another user.
    """
    with _descriptor_of(process) as descriptor:
        if descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)


@contextmanager
def _descriptor_of(process: ProcessIdentity) -> Iterator[int | None]:
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Compared after opening: from here on the number may be reused, the descriptor may not.
        yield descriptor if is_running(process) else None
    finally:
        os.close(descriptor)
