"""Servers started by a fork server: the supervisor's end of `forkserver.py`.

Owns the connection to it and what is known of its forks. Whatever goes wrong with the fork server
is no error here: the answer is "not this way", and the caller starts the server by its command.
Invariants: a fork that nobody waits for any more is killed as soon as it is known; a fork is
signalled and waited for by a descriptor that stands for it, so that both go on without the fork
server, and nobody else is ever meant.
"""

from __future__ import annotations

import array
import itertools
import logging
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import trio

from mictlanfs.cli.exits import Exit
from mictlanfs.launching import module_command
from mictlanfs.logfiles import open_log
from mictlanfs_server.forkserver import MESSAGE_SIZE_BYTES_MAX, Ended, Fork, Forked, Told

log = logging.getLogger(__name__)

# It loads for half a second, and for several where all processors are busy.
ANSWER_TIMEOUT_S: Final = 15.0
# Between the end of a fork and word of how it ended.
STATUS_TIMEOUT_S: Final = 2.0


class ForkedProcess:
    """A fork, as `trio.Process` has a child.

    Attributes:
        returncode: how it ended; None while nobody has waited for its end.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status: int | None = None
        self._told = trio.Event()
        try:
            self._descriptor: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            # It has ended, and was waited for.
            self._descriptor = None

    async def wait(self) -> int:
        """Wait until it has ended; returns its exit code, or the negative number of a signal.

        Nobody knows that of a fork that outlived the fork server: `Exit.FAILED`.
        """
        if self._descriptor is not None:
            await trio.lowlevel.wait_readable(self._descriptor)
            self._close()
        with trio.move_on_after(STATUS_TIMEOUT_S):
            await self._told.wait()
        self.returncode = Exit.FAILED if self._status is None else self._status
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM; nothing when it has ended."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL; nothing when it has ended."""
        self._send(signal.SIGKILL)

    def abandon(self) -> None:
        """Kill it; for who has never waited for it, and never will."""
        self.kill()
        self._close()

    def tell(self, status: int | None) -> None:
        """How it ended; None: nobody will ever know."""
        self._status = status
        self._told.set()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _send(self, number: signal.Signals) -> None:
        if self._descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)


class _Request:
    """A `Fork` that was sent.

    Attributes:
        answered: set when it is known what became of it.
        process: the fork, if there is one.
    """

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.process: ForkedProcess | None = None
        self._is_abandoned = False

    def answer(self, process: ForkedProcess | None) -> None:
        """Say what became of it."""
        self.process = process
        self.answered.set()
        if self._is_abandoned:
            self.abandon()

    def abandon(self) -> None:
        """Nobody wants the fork any more, nor waits for it."""
        self._is_abandoned = True
        if self.process is not None:
            self.process.abandon()


@asynccontextmanager
async def open_fork_server(lifeline_fd: int, log_path: Path) -> AsyncIterator[ForkServer]:
    """A fork server that loads meanwhile; it ends with the block, its forks do not.

    Args:
        lifeline_fd: what forks inherit, beside their logs.
        log_path: where the fork server says why it fails.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with trio.socket.from_stdlib_socket(ours) as connection:
        with theirs:
            process = await _started(theirs.fileno(), lifeline_fd, log_path)
        forks = ForkServer(connection, None if process is None else process.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forks.listen)
            try:
                yield forks
            finally:
                nursery.cancel_scope.cancel()
                if process is not None:
                    # It has nothing to lose, and may still load.
                    process.kill()
                    with trio.CancelScope(shield=True):
                        await process.wait()


async def _started(connection: int, lifeline_fd: int, log_path: Path) -> trio.Process | None:
    try:
        output = open_log(log_path)
        try:
            return await trio.lowlevel.open_process(
                list(module_command("mictlanfs_server.forkserver", str(connection))),
                stdin=subprocess.DEVNULL,
                # Not ours: who waits for the end of our output would wait for its end, too.
                stdout=output,
                stderr=output,
                cwd="/",
                pass_fds=(connection, lifeline_fd),
                start_new_session=True,
            )
        finally:
            os.close(output)
    except OSError as error:
        log.info("there is no fork server: %s", error)
        return None


class ForkServer:
    """Starts servers by forking; made by `open_fork_server`.

    Attributes:
        pid: of the fork server; None: there is none.
        forked_count: forks that it made.
    """

    def __init__(self, connection: trio.socket.SocketType, pid: int | None) -> None:
        self.pid = pid
        self.forked_count = 0
        self._connection = connection
        self._numbers = itertools.count()
        # Also of some that were never sent: whether one was, a cancelled task cannot tell.
        self._requests: dict[int, _Request] = {}
        self._forks: dict[int, ForkedProcess] = {}
        self._is_usable = True

    async def start(self, arguments: Sequence[str], output: int) -> ForkedProcess | None:
        """Start `mictlanfs ARGUMENT...`, which writes to `output`; None: not this way.

        Cancellation: what comes of it is killed.
        """
        if not self._is_usable:
            return None
        number, request = next(self._numbers), _Request()
        self._requests[number] = request
        packet = msgspec.json.encode(Fork(number, tuple(arguments)))
        rights = array.array("i", [output])
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                await self._connection.sendmsg(
                    [packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                )
                await request.answered.wait()
        except (OSError, trio.TooSlowError) as error:
            request.abandon()
            self._give_up(str(error) or "it does not answer")
        except BaseException:
            request.abandon()
            raise
        return request.process

    async def listen(self) -> None:
        """Hear what becomes of forks, until the fork server ends."""
        try:
            while packet := await self._connection.recv(MESSAGE_SIZE_BYTES_MAX):
                self._hear(msgspec.json.decode(packet, type=Told))
            self._give_up("it has ended")
        except OSError as error:
            self._give_up(str(error))
        for request in self._requests.values():
            request.answer(None)
        for process in self._forks.values():
            process.tell(None)

    def _hear(self, told: Told) -> None:
        match told:
            case Forked(pid=0):
                log.warning("the fork server cannot fork: %s", told.trouble)
                self._requests.pop(told.number).answer(None)
            case Forked():
                self.forked_count += 1
                process = self._forks[told.pid] = ForkedProcess(told.pid)
                self._requests.pop(told.number).answer(process)
            case Ended():
                self._forks.pop(told.pid).tell(told.status)

    def _give_up(self, why: str) -> None:
        """From now on servers are started by their commands."""
        if self._is_usable:
            self._is_usable = False
            log.warning("servers are started without the fork server: %s", why)
