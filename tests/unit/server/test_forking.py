"""Servers that are forks, of a real fork server."""

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from mictlanfs import __version__
from mictlanfs.cli.exits import Exit
from mictlanfs.launching import module_command
from mictlanfs.processes import identify
from mictlanfs_server import forking
from mictlanfs_server.forking import ForkedProcess, ForkServer, open_fork_server
from mictlanfs_server.lifeline import lifeline
from tests.support.waiting import DEADLINE_S, until


class Lab:
    """A fork server and what its forks write."""

    def __init__(self, forks: ForkServer, lifeline_fd: int, folder: Path) -> None:
        self.forks = forks
        self.lifeline_fd = lifeline_fd
        self.folder = folder

    @property
    def pid(self) -> int:
        assert self.forks.pid is not None
        return self.forks.pid

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    async def start(self, *arguments: str) -> ForkedProcess | None:
        with (self.folder / "log").open("ab") as output:
            return await self.forks.start(arguments, output.fileno())

    async def fork(self, *arguments: str) -> ForkedProcess:
        process = await self.start(*arguments)
        assert process is not None
        return process

    async def router(self) -> ForkedProcess:
        """A fork that goes on."""
        data = self.folder / "router"
        words = ("--data", str(data), "--port", "0", "--lifeline-fd", str(self.lifeline_fd))
        return await self.fork("server", "router", *words)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Lab]:
    with trio.fail_after(2 * DEADLINE_S), lifeline() as lifeline_fd:
        async with open_fork_server(lifeline_fd, folder / "supervisor.log") as forks:
            yield Lab(forks, lifeline_fd, folder)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with opened(tmp_path) as lab:
        yield lab


def runs_of(folder: Path) -> list[int]:
    """Processes that were told of `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.fsencode(folder) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def is_there(pid: int) -> bool:
    return identify(pid) is not None


# --- what a fork is -----------------------------------------------------------------------------


async def test_a_fork_runs_a_command_line_and_writes_where_it_was_told(lab: Lab) -> None:
    process = await lab.fork("--version")
    assert await process.wait() == 0
    assert process.returncode == 0
    assert lab.log == f"mictlanfs {__version__}\n"


async def test_a_fork_ends_with_the_exit_code_of_its_command(lab: Lab) -> None:
    process = await lab.fork("server", "router", "--nonsense")
    assert await process.wait() == Exit.USAGE
    assert "--nonsense" in lab.log


async def test_forks_that_run_at_once_are_told_apart(lab: Lab) -> None:
    good, bad = await lab.fork("--version"), await lab.fork("nonsense")
    assert (await bad.wait(), await good.wait()) == (Exit.USAGE, 0)


async def test_a_fork_looks_like_what_it_runs(lab: Lab) -> None:
    process = await lab.router()
    command = Path(f"/proc/{process.pid}/cmdline")
    await until(lambda: command.read_bytes().startswith(b"mictlanfs server router --data "))
    process.kill()
    await process.wait()


async def test_a_fork_has_what_a_process_of_its_own_has(lab: Lab) -> None:
    process = await lab.router()
    await until(lambda: os.getsid(process.pid) == process.pid)
    descriptors = Path(f"/proc/{process.pid}/fd")
    await until(lambda: os.readlink(descriptors / "2") == str(lab.folder / "log"))
    assert os.readlink(descriptors / "0") == "/dev/null"
    assert os.readlink(f"/proc/{process.pid}/cwd") == "/"
    # Of a handler that was left nothing would be seen but children that are never waited for.
    ignored = Path(f"/proc/{process.pid}/status").read_text().partition("SigIgn:")[2].split()[0]
    assert int(ignored, 16) & (1 << (signal.SIGTERM - 1)) == 0
    await until(lambda: "Application startup complete" in lab.log)
    process.terminate()
    assert await process.wait() == 0


async def test_a_fork_that_is_killed_says_so(lab: Lab) -> None:
    process = await lab.router()
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    # Nobody is left to be meant.
    process.terminate()


# --- when things go wrong -----------------------------------------------------------------------


async def test_forks_outlive_the_fork_server(lab: Lab) -> None:
    process = await lab.router()
    os.kill(lab.pid, signal.SIGKILL)
    await until(lambda: not is_there(lab.pid))
    assert await lab.start("--version") is None
    assert is_there(process.pid)
    process.kill()
    assert await process.wait() == Exit.FAILED


async def test_who_waits_for_a_fork_learns_that_the_fork_server_has_ended(lab: Lab) -> None:
    os.kill(lab.pid, signal.SIGSTOP)
    started: list[ForkedProcess | None] = []

    async def start() -> None:
        started.append(await lab.start("--version"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await trio.testing.wait_all_tasks_blocked()
        os.kill(lab.pid, signal.SIGKILL)
    assert started == [None]


async def test_a_fork_server_that_stands_still_is_not_waited_for(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await lab.fork("--version")).wait()
    os.kill(lab.pid, signal.SIGSTOP)
    monkeypatch.setattr(forking, "ANSWER_TIMEOUT_S", 0.05)
    assert await lab.start("server", "router", "--data", str(lab.folder / "late")) is None
    # What it was asked for must not run beside what is started in its place.
    os.kill(lab.pid, signal.SIGCONT)
    await until(lambda: lab.forks.forked_count == 2)
    await until(lambda: not runs_of(lab.folder))
    assert await lab.start("--version") is None


async def test_a_fork_that_nobody_waits_for_is_killed(lab: Lab) -> None:
    os.kill(lab.pid, signal.SIGSTOP)
    with trio.move_on_after(0.05):
        await lab.router()
    os.kill(lab.pid, signal.SIGCONT)
    await until(lambda: lab.forks.forked_count == 1)
    await until(lambda: not runs_of(lab.folder))
    # It is still of use.
    assert await (await lab.fork("--version")).wait() == 0


async def test_a_request_that_was_never_sent_gets_the_answer_of_no_other(lab: Lab) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await lab.router()
    assert scope.cancelled_caught
    assert await (await lab.fork("--version")).wait() == 0
    assert lab.forks.forked_count == 1


async def test_abandoned_forks_leave_no_descriptor_open(lab: Lab) -> None:
    await (await lab.fork("--version")).wait()
    before = len(os.listdir("/proc/self/fd"))
    os.kill(lab.pid, signal.SIGSTOP)
    for _ in range(3):
        with trio.move_on_after(0.02):
            await lab.router()
    os.kill(lab.pid, signal.SIGCONT)
    await until(lambda: lab.forks.forked_count == 4)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_fork_server_ends_with_its_block(tmp_path: Path) -> None:
    async with opened(tmp_path) as lab:
        pid = lab.pid
        assert is_there(pid)
    assert not is_there(pid)


def test_a_fork_server_ends_when_nobody_is_connected() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        words = module_command("mictlanfs_server.forkserver", str(theirs.fileno()))
        process = subprocess.Popen(words, pass_fds=(theirs.fileno(),))
    assert process.wait(DEADLINE_S) == 0


async def test_no_fork_server_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "module_command", lambda *_: ("/nowhere/python",))
    async with opened(tmp_path) as lab:
        assert lab.forks.pid is None
        assert await lab.start("--version") is None
