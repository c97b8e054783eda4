"""Processes that outlive the one who looks at them: named so that nobody else is ever signalled.

Owns the identity of a process across runs: a pid alone may by now belong to a stranger, a pid with
the moment its process started may not. Never starts a process and keeps no state. Every signal and
every wait goes through a descriptor that stands for that very process: pidfd_open(2).
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from mictlanfs.identifiers import boot_id

log = logging.getLogger(__name__)

PROC = Path("/proc")
# Fields of /proc/PID/stat behind the name, which may hold blanks and brackets: proc_pid_stat(5).
_STATE_INDEX = 0
_START_INDEX = 19
_ENDED_STATES = frozenset("ZXx")


class ProcessIdentity(msgspec.Struct, frozen=True):
    """A process, distinguished from any later one of the same number.

    Attributes:
        pid: its number, at least 1.
        started_ticks: clock ticks between the boot of the machine and the start of the process.
        boot_id: of the kernel it runs on: ticks of another boot mean nothing.
    """

    pid: int
    started_ticks: int
    boot_id: str


def identify(pid: int) -> ProcessIdentity | None:
    """Who has the number `pid` now; None when nobody has, or a process that has ended."""
    fields = _stat_fields(pid)
    if fields is None or fields[_STATE_INDEX] in _ENDED_STATES:
        return None
    return ProcessIdentity(pid, int(fields[_START_INDEX]), boot_id())


def current_process() -> ProcessIdentity:
    """The process that asks."""
    process = identify(os.getpid())
    assert process is not None, "a process that asks has not ended"
    return process


def is_running(process: ProcessIdentity) -> bool:
    """Whether `process` has not ended. One that ended and waits for its parent counts as ended."""
    return identify(process.pid) == process


def started_at_s(process: ProcessIdentity) -> float:
    """When `process` started, in seconds since the epoch, right to about a second."""
    uptime_s = float((PROC / "uptime").read_text().split()[0])
    return time.time() - uptime_s + process.started_ticks / os.sysconf("SC_CLK_TCK")


def send_signal(process: ProcessIdentity, number: signal.Signals) -> bool:
    """Signal `process` and nobody else. False when it has ended.

    Raises:
        PermissionError: it belongs to another user.
    """
    with _descriptor_of(process) as descriptor:
        if descriptor is None:
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
            return True
    return False


def wait_ended(processes: Iterable[ProcessIdentity], timeout_s: float) -> list[ProcessIdentity]:
    """Block until all of `processes` have ended; those that had not after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    return [process for process in processes if not _wait_one(process, deadline_s)]


def _wait_one(process: ProcessIdentity, deadline_s: float) -> bool:
    with _descriptor_of(process) as descriptor:
        if descriptor is None:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000))


@contextmanager
def _descriptor_of(process: ProcessIdentity) -> Iterator[int | None]:
    """A descriptor that stands for `process` and never for a successor; None when it has ended."""
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


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def collect_garbage_rarely() -> None:
    """Look for cycles of dead objects less often, for processes that keep very many live ones.

    By default every 700 new objects are looked at, and all there are whenever a quarter has come:
    with 100,000 names in memory that stops a mount for 50 ms at a time. Nearly all that dies here
    dies without the collector.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


def raise_descriptor_limit() -> None:
    """Let this process open as many files and connections as the system allows.

    Programs on a mount open thousands of files, and a server has as many clients.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.warning("the limit of open files stays at %d: %s", soft, error)
