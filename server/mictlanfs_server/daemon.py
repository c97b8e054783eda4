"""Leaving the terminal: a command that goes on in the background once it has said that it works.

::

    launcher                          daemon (own session, same arguments and --ready-fd)
    starts the daemon, waits -------> starts everything, writes to the same terminal
    exits 0       <--- one line ----  is ready, lets go of the terminal, goes on
    exits as the daemon did <-------  could not start and says why

Owns what the two say to each other. Invariants: the launcher succeeds only if the daemon is ready;
a daemon whose launcher is gone before that ends, so that a failed command leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mictlanfs.cli.exits import Exit
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.launching import launched
from mictlanfs_server.child import command_line

# Above the sum of all that a start waits for, and of all that a stop waits for.
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 130.0
_READY = b"ready\n"


def launch(arguments: Sequence[str]) -> int:
    """Run `mictlanfs ARGUMENTS --ready-fd N` as a daemon; its exit status, or 0 once it is ready.

    Ctrl-C stops the daemon again.

    Raises:
        MictlanError: TIMED_OUT; the daemon was ended.
    """

    def command(report_fd: int) -> list[str]:
        return [*command_line(*arguments), "--ready-fd", str(report_fd)]

    with launched(command, end_timeout_s=STOP_TIMEOUT_S) as daemon:
        report = daemon.read_report(START_TIMEOUT_S)
        if report is None:
            detail = f"not ready within {START_TIMEOUT_S:g} s"
            raise MictlanError(Kind.TIMED_OUT, "start", "", detail)
        if report == _READY:
            return Exit.OK
        status = daemon.process.wait(STOP_TIMEOUT_S)
        return status if status > 0 else Exit.FAILED


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
