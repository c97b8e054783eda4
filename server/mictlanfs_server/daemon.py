"""Leaving the terminal: a command that goes on in the background once it has said that it works.

::

    launcher                          daemon (own session, same arguments and --ready-fd)
    starts the daemon, waits -------> starts everything, writes to the same terminal
    exits 0       <--- one byte ----  is ready, lets go of the terminal, goes on
    exits as the daemon did <-------  could not start and says why

Owns that protocol. Invariants: the launcher succeeds only if the daemon is ready; a daemon whose
launcher is gone before that ends, so that a failed command leaves nothing behind.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Sequence

from mictlanfs.cli.exits import Exit
from mictlanfs.errors import Kind, MictlanError
from mictlanfs_server.child import command_line

# Above the sum of all that a start waits for, and of all that a stop waits for.
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 130.0
_READY = b"r"


def launch(arguments: Sequence[str]) -> int:
    """Run `mictlanfs ARGUMENTS --ready-fd N` as a daemon; its exit status, or 0 once it is ready.

    Ctrl-C stops the daemon again.

    Raises:
        MictlanError: TIMED_OUT; the daemon was killed.
    """
    ready, report = os.pipe()
    try:
        process = subprocess.Popen(
            [*command_line(*arguments), "--ready-fd", str(report)],
            stdin=subprocess.DEVNULL,
            pass_fds=(report,),
            start_new_session=True,
        )
    except OSError:
        os.close(ready)
        raise
    finally:
        os.close(report)
    try:
        return _outcome(process, ready)
    except KeyboardInterrupt:
        _end(process)
        raise
    finally:
        os.close(ready)


def _outcome(process: subprocess.Popen[bytes], ready: int) -> int:
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    if not poll.poll(START_TIMEOUT_S * 1000):
        _end(process)
        raise MictlanError(Kind.TIMED_OUT, "start", "", f"not ready within {START_TIMEOUT_S:g} s")
    if os.read(ready, 1) == _READY:
        # It lives on without us: its parent need not wait for it, nor warn that it does not.
        process.returncode = Exit.OK
        return Exit.OK
    status = process.wait(STOP_TIMEOUT_S)
    return status if status > 0 else Exit.FAILED


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def report_ready(report: int) -> None:
    """Tell the launcher that all works, and let go of its terminal.

    Raises:
        BrokenPipeError: the launcher is gone.
    """
    os.write(report, _READY)
    os.close(report)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
