"""One supervised process: started, started again when it dies, stopped when told.

::

              +------------- the delay is over -------------+
              v                                             |
    new -> starting -> running -- died, could not start -> waiting
                          |                                 |
                          | stop, or ended by itself        | stop
                          v                                 v
                       stopping -- SIGTERM, SIGKILL -----> gone

Owns the process and its delay between starts. Never decides when to stop: the supervisor does.
Invariants: at most one process at a time; none is left when `run` has returned; every wait for a
process that was told to stop is bounded. A child of a supervisor that was killed learns of it by
its lifeline, the read end of a pipe whose write end only the supervisor holds.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeAlias

import trio

from mictlanfs.cli.exits import Exit
from mictlanfs.lastwords import last_words
from mictlanfs.launching import describe_status, module_command
from mictlanfs.logfiles import open_log, size_of
from mictlanfs.processes import ProcessIdentity, identify
from mictlanfs_server.forking import ForkedProcess

# How long a process that was killed may take to go: only one that hangs in the kernel does not.
KILLED_GRACE_S = 5.0
# What a process says by these, it says again when it is started again.
REFUSALS = frozenset(
    {Exit.USAGE, Exit.NOT_FOUND, Exit.CONFLICT, Exit.NO_SPACE, Exit.NOT_ALLOWED, Exit.CORRUPT}
)


Process: TypeAlias = trio.Process | ForkedProcess


async def _nothing() -> None:
    """The default of what may be done around a process."""


async def _no_fork(_output: int) -> ForkedProcess | None:
    """The default where there is no fork server."""
    return None


def command_line(*arguments: str) -> tuple[str, ...]:
    """The command that runs `mictlanfs` with `arguments`, whatever PATH and directory are."""
    return module_command("mictlanfs.cli.main", *arguments)


def guarded_command_line(lifeline_fd: int, *arguments: str) -> tuple[str, ...]:
    """As `command_line`, for a command that has to be ended when the lifeline is."""
    return module_command("mictlanfs_server.lifeline", str(lifeline_fd), *arguments)


@dataclass(frozen=True, slots=True)
class BackOff:
    """The delay before a process is started again: doubling, until one lived long enough.

    Attributes:
        first_s, last_s: the first delay and the longest.
        reset_s: a process that lived this long is followed after the first delay again.
    """

    first_s: float = 0.1
    last_s: float = 5.0
    reset_s: float = 30.0

    def delay_s(self, previous_s: float, lived_s: float) -> float:
        """The next delay after one of `previous_s` (0: none) and a life of `lived_s`."""
        if previous_s == 0.0 or lived_s >= self.reset_s:
            return self.first_s
        return min(2 * previous_s, self.last_s)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run and how to stop it.

    Attributes:
        name: unique; names the log file too.
        command: program and arguments; paths in it are absolute, it is run in `/`.
        log_path: where standard output and error go.
        fork: starts the same quicker, with output to a descriptor; None: not this way.
        lifeline_fd: read end of a pipe that the process inherits; None: none.
        may_end: an exit status of 0 is its own decision and no reason to start it again.
        before_start: runs before each start and after the last end.
        before_stop: runs before SIGTERM is sent; cut short when hurried. Bounded by itself.
        stop_grace_s: between SIGTERM and the next step.
        insist: what to do then; after `insist_grace_s` more comes SIGKILL.
        hurried_grace_s: what is left of each grace once hurried.
    """

    name: str
    command: tuple[str, ...]
    log_path: Path
    fork: Callable[[int], Awaitable[ForkedProcess | None]] = _no_fork
    lifeline_fd: int | None = None
    may_end: bool = False
    before_start: Callable[[], Awaitable[None]] = _nothing
    before_stop: Callable[[], Awaitable[None]] = _nothing
    stop_grace_s: float = 8.0
    insist: Callable[[], Awaitable[None]] = _nothing
    insist_grace_s: float = 0.0
    hurried_grace_s: float = 1.0


class Change(Enum):
    """What became of a child."""

    STARTED = "started"
    DIED = "died"
    ENDED = "ended"
    STOPPED = "stopped"


@dataclass(eq=False)
class Child:
    """A process that is kept running.

    Attributes:
        on_change: called at each change, in the child's task; must not raise.
        hurry: once set, graces are short.
        process: the process now running, if any.
        refusals: how often in a row it ended with a reason that only a person can remove.
        reason: why the last process died, for people.
        gone: set when it will not be started again and no process is left.
    """

    spec: ChildSpec
    on_change: Callable[[Child, Change], None]
    hurry: trio.Event
    back_off: BackOff = field(default_factory=BackOff)
    process: ProcessIdentity | None = None
    refusals: int = 0
    reason: str = ""
    gone: trio.Event = field(default_factory=trio.Event)
    _stopping: trio.Event = field(default_factory=trio.Event)

    def stop(self) -> None:
        """Ask for the end; `gone` tells when it has come."""
        self._stopping.set()

    async def run(self) -> None:
        """Keep the process running until `stop`.

        Cancellation: the process gets SIGTERM and is waited for, within its grace, not killed.
        """
        delay_s = 0.0
        try:
            while not self._stopping.is_set():
                started_s = trio.current_time()
                change = await self._live()
                self.process = None
                self.on_change(self, change)
                if change is not Change.DIED:
                    break
                delay_s = self.back_off.delay_s(delay_s, trio.current_time() - started_s)
                with trio.move_on_after(delay_s):
                    await self._stopping.wait()
            await self.spec.before_start()
        finally:
            self.gone.set()

    async def _live(self) -> Change:
        """One life of the process, from its start to its end."""
        await self.spec.before_start()
        log_offset = size_of(self.spec.log_path)
        try:
            process = await self._spawn()
        except OSError as error:
            self.reason = f"it cannot be started: {error}"
            return Change.DIED
        try:
            self.process = identify(process.pid)
            self.on_change(self, Change.STARTED)
            status = await self._status(process)
        finally:
            if process.returncode is None:
                process.terminate()
                with trio.CancelScope(shield=True), trio.move_on_after(self.spec.stop_grace_s):
                    await process.wait()
        if self._stopping.is_set():
            return Change.STOPPED
        if status == 0 and self.spec.may_end:
            return Change.ENDED
        self.refusals = self.refusals + 1 if status in REFUSALS else 0
        self.reason = self._reason(status, log_offset)
        return Change.DIED

    def _reason(self, status: int, log_offset: int) -> str:
        # Who is killed has no time for last words: the last line tells of something else.
        if -status in {signal.SIGKILL, signal.SIGTERM}:
            return describe_status(status)
        words = last_words(self.spec.log_path, log_offset)
        if words and status in REFUSALS:
            return words
        how = describe_status(status)
        return f"{words} ({how})" if words else how

    async def _spawn(self) -> Process:
        log = open_log(self.spec.log_path)
        lifeline = self.spec.lifeline_fd
        try:
            if (fork := await self.spec.fork(log)) is not None:
                return fork
            return await trio.lowlevel.open_process(
                list(self.spec.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                pass_fds=() if lifeline is None else (lifeline,),
                # Ctrl-C goes to every process of the terminal's group, but stopping has an order.
                start_new_session=True,
            )
        finally:
            os.close(log)

    async def _status(self, process: Process) -> int:
        """The exit status of `process`; it is stopped when told so."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_when_told, process, nursery.cancel_scope)
            await process.wait()
            nursery.cancel_scope.cancel()
        return -signal.SIGKILL if process.returncode is None else process.returncode

    async def _end_when_told(self, process: Process, waiting: trio.CancelScope) -> None:
        await self._stopping.wait()
        await self._prepare_stop()
        process.terminate()
        await self._grace(self.spec.stop_grace_s)
        await self.spec.insist()
        await self._grace(self.spec.insist_grace_s)
        process.kill()
        await trio.sleep(KILLED_GRACE_S)
        waiting.cancel()

    async def _prepare_stop(self) -> None:
        async def cut_short() -> None:
            await self.hurry.wait()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut_short)
            await self.spec.before_stop()
            nursery.cancel_scope.cancel()

    async def _grace(self, grace_s: float) -> None:
        with trio.move_on_after(grace_s):
            await self.hurry.wait()
            await trio.sleep(self.spec.hurried_grace_s)
