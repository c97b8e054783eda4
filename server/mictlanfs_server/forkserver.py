"""The fork server: a process that has loaded what routers and peers need, and becomes them by fork.

Loading is most of what it takes to start a server, in time as in memory. Here it happens once for
all of a space: a fork is there in milliseconds, and what was loaded is shared::

    supervisor                                fork server
    --- Fork, descriptor of the log --------> fork ----> a server, in a session of its own
    <-- Forked(pid) --------------------------
    <-- Ended(pid, status) ------------------- waits for all of them

`forking.py` is the supervisor's end. Owns the exit status of its forks, nothing else: signals are
sent by the supervisor, and forks learn of its end by their lifeline. Invariants: one thread, no
event loop and no child but forks, so that a fork finds nothing half done; it ends when the
supervisor does, which closes the connection.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Final, TypeAlias

import msgspec
import setproctitle

from mictlanfs.cli.main import PROGRAM, run

# What a server loads when it is started by its command.
LOADED: Final = (
    "mictlanfs_server.cli",
    "mictlanfs_server.logsettings",
    "mictlanfs_server.peer.app",
    "mictlanfs_server.router.app",
)
MESSAGE_SIZE_BYTES_MAX: Final = 64 * 1024


class Fork(msgspec.Struct, tag=True):
    """Become `mictlanfs ARGUMENT...`, which writes to the descriptor that comes along.

    Attributes:
        number: of the request, for its answer.
    """

    number: int
    arguments: tuple[str, ...]


class Forked(msgspec.Struct, tag=True):
    """The answer to a `Fork`.

    Attributes:
        number: of the request.
        pid: of the fork; 0: there is none.
        trouble: why there is none.
    """

    number: int
    pid: int
    trouble: str = ""


class Ended(msgspec.Struct, tag=True):
    """A fork has ended; comes after its `Forked`.

    Attributes:
        status: as `subprocess` has it: the exit code, or the negative number of a signal.
    """

    pid: int
    status: int


Told: TypeAlias = Forked | Ended


def main() -> None:
    """Serve the connection whose descriptor is the argument, or be what it asked for."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    setproctitle.setproctitle(f"{PROGRAM} fork server")
    for module in LOADED:
        import_module(module)
    # What the collector leaves alone stays in memory that all forks share.
    gc.collect()
    gc.freeze()
    arguments = _serve(connection)
    if arguments is not None:
        sys.exit(run(arguments))


def _serve(connection: socket.socket) -> Sequence[str] | None:
    """Fork until the supervisor has gone: None. In a fork: what it is to run."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    # Does nothing, but without a handler nothing comes through the pipe.
    signal.signal(signal.SIGCHLD, _ignore)
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    with suppress(ConnectionError):
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if wake_read in ready:
                os.read(wake_read, MESSAGE_SIZE_BYTES_MAX)
                _tell_ended(connection)
            if connection.fileno() not in ready:
                continue
            packet, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_SIZE_BYTES_MAX, 1)
            if not packet:
                break
            request = msgspec.json.decode(packet, type=Fork)
            try:
                forked = Forked(request.number, os.fork())
            except OSError as error:
                forked = Forked(request.number, 0, str(error))
            else:
                if forked.pid == 0:
                    connection.close()
                    os.close(wake_read)
                    _become_a_server(request.arguments, descriptors[0], wake_write)
                    return request.arguments
            os.close(descriptors[0])
            connection.send(msgspec.json.encode(forked))
    return None


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal that is only to be noticed."""


def _tell_ended(connection: socket.socket) -> None:
    """Tell of all forks that have ended."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            pid, status = ended
            message = Ended(pid, os.waitstatus_to_exitcode(status))
            connection.send(msgspec.json.encode(message))


def _become_a_server(arguments: Sequence[str], output: int, wake_write: int) -> None:
    """Be as a process that was started by its command."""
    signal.set_wakeup_fd(-1)
    os.close(wake_write)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    setproctitle.setproctitle(" ".join([PROGRAM, *arguments]))


if __name__ == "__main__":
    main()
