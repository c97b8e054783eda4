"""Programs of ours as daemons: processes that go on alone once they have said that they work.

::

    launcher                               daemon (a session of its own)
    starts it, waits ------------------->  starts what it has to
    lets it go  <------- one line -------  works, and goes on
    learns it by the end of the pipe <---  ended before that

Owns the pipe between the two and the end of a daemon that was not let go; what the line says, and
where errors are told, is up to them. Invariants: a daemon outlives the block that launched it only
when the block ends without an error; it is signalled as the child that it is, never by number.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

REPORT_SIZE_BYTES_MAX = 64 * 1024
# How long a process that was killed may take to go: only one that hangs in the kernel does not.
_KILLED_TIMEOUT_S = 5.0


def module_command(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module of ours, whatever PATH and the current directory are."""
    # -P: a module of ours must not be shadowed by a file in the directory the user is in.
    return (sys.executable, "-P", "-m", module, *arguments)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process that was launched, as its launcher sees it.

    Attributes:
        report_fd: where its line is read.
    """

    process: subprocess.Popen[bytes]
    report_fd: int

    def read_report(self, timeout_s: float) -> bytes | None:
        """The line that the daemon reports; None: the time is over.

        It is short of its end, or empty, when the daemon closed the pipe or ended before.
        """
        deadline_s = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self.report_fd, select.POLLIN)
        line = b""
        while not line.endswith(b"\n") and len(line) < REPORT_SIZE_BYTES_MAX:
            if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
                return None
            data = os.read(self.report_fd, REPORT_SIZE_BYTES_MAX)
            if not data:
                break
            line += data
        return line


@contextmanager
def launched(
    command: Callable[[int], Sequence[str]], *, end_timeout_s: float, output: int | None = None
) -> Iterator[Daemon]:
    """Start a daemon, and let it go at the end of the block; end it when the block raises.

    Args:
        command: what to run, for the number of the descriptor that it reports on.
        end_timeout_s: how long it may take to end after SIGTERM; then it is killed.
        output: descriptor of its standard output and error; None: those of this process.

    Raises:
        OSError: it cannot be started.
    """
    report_fd, child_fd = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                command(child_fd),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(child_fd,),
                start_new_session=True,
            )
        finally:
            os.close(child_fd)
        try:
            yield Daemon(process, report_fd)
        except BaseException:
            _end(process, end_timeout_s)
            raise
    finally:
        os.close(report_fd)
    if process.returncode is None:
        # It lives on without us: its parent need not wait for it, nor warn that it does not.
        process.returncode = 0


def describe_status(status: int) -> str:
    """An exit status as Popen gives it, for people: "exit status 3", "killed by SIGKILL"."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_KILLED_TIMEOUT_S)
