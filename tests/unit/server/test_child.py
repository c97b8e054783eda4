import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from mictlanfs.processes import is_running
from mictlanfs_server.child import (
    BackOff,
    Change,
    Child,
    ChildSpec,
    command_line,
    guarded_command_line,
)
from tests.support.waiting import DEADLINE_S, until

QUICK = BackOff(first_s=0.01, last_s=0.02)
FOR_EVER = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


@dataclass
class Watcher:
    """Notes the changes of a child, and lets a test wait for them."""

    changes: list[Change] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)

    def __call__(self, child: Child, change: Change) -> None:
        self.changes.append(change)
        if child.process is not None:
            self.pids.append(child.process.pid)

    async def seen(self, change: Change, count: int = 1) -> None:
        await until(lambda: self.changes.count(change) >= count)


class Lab:
    """Makes children that run small programs."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.watcher = Watcher()
        self.hurry = trio.Event()

    def child(self, program: str, *, back_off: BackOff = QUICK, **spec: object) -> Child:
        return Child(
            ChildSpec(
                name="peer-0",
                command=(sys.executable, "-c", program),
                log_path=self.tmp_path / "log" / "peer-0.log",
                **spec,  # type: ignore[arg-type]  # Passed through.
            ),
            self.watcher,
            self.hurry,
            back_off,
        )

    @property
    def log(self) -> str:
        return (self.tmp_path / "log" / "peer-0.log").read_text()

    async def written(self, text: str) -> None:
        """Wait until the child has written `text` to its log."""
        await until(lambda: text in self.log)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@asynccontextmanager
async def running(child: Child) -> AsyncIterator[None]:
    """Run `child` until the block ends, and fail when it is not gone soon."""
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.run)
            yield
            child.stop()
            await child.gone.wait()


def mark(marks: list[str], text: str) -> Callable[[], Awaitable[None]]:
    async def note() -> None:
        marks.append(text)

    return note


# --- delays -------------------------------------------------------------------------------------


def test_delays_double_up_to_the_longest() -> None:
    back_off, delays, delay_s = BackOff(), list[float](), 0.0
    for _ in range(8):
        delay_s = back_off.delay_s(delay_s, lived_s=1.0)
        delays.append(delay_s)
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_long_life_makes_the_next_delay_short_again() -> None:
    assert BackOff().delay_s(5.0, lived_s=29.9) == 5.0
    assert BackOff().delay_s(5.0, lived_s=30.0) == 0.1


# --- life ---------------------------------------------------------------------------------------


async def test_a_child_that_dies_is_started_again(lab: Lab) -> None:
    child = lab.child(FOR_EVER)
    async with running(child):
        await lab.watcher.seen(Change.STARTED)
        os.kill(lab.watcher.pids[0], signal.SIGKILL)
        await lab.watcher.seen(Change.STARTED, 2)
        assert child.reason == "killed by SIGKILL"
        assert child.process is not None
        assert is_running(child.process)
    assert lab.watcher.changes == [Change.STARTED, Change.DIED, Change.STARTED, Change.STOPPED]
    assert child.process is None


async def test_a_child_that_ends_without_being_told_is_started_again(lab: Lab) -> None:
    async with running(lab.child("pass")):
        await lab.watcher.seen(Change.DIED, 2)


async def test_a_child_that_may_end_is_left_alone_then(lab: Lab) -> None:
    child = lab.child("pass", may_end=True)
    async with running(child):
        await child.gone.wait()
    assert lab.watcher.changes == [Change.STARTED, Change.ENDED]


async def test_a_child_that_may_end_is_started_again_when_it_fails(lab: Lab) -> None:
    async with running(lab.child("raise SystemExit(1)", may_end=True)):
        await lab.watcher.seen(Change.DIED, 2)


async def test_a_child_that_cannot_be_started_is_tried_again(lab: Lab) -> None:
    child = lab.child(FOR_EVER)
    child.spec = ChildSpec("peer-0", ("/nowhere/python",), lab.tmp_path / "log" / "peer-0.log")
    async with running(child):
        await lab.watcher.seen(Change.DIED, 2)
    assert "cannot be started" in child.reason
    assert "/nowhere/python" in child.reason


async def test_the_last_words_and_the_status_are_the_reason(lab: Lab) -> None:
    child = lab.child("import sys; sys.exit('mictlanfs: the disk is full')")
    async with running(child):
        await lab.watcher.seen(Change.DIED)
        assert child.reason == "the disk is full (exit status 1)"
        assert child.refusals == 0


async def test_what_a_killed_child_said_last_is_no_reason(lab: Lab) -> None:
    child = lab.child("print('at work', flush=True); " + FOR_EVER)
    async with running(child):
        await lab.watcher.seen(Change.STARTED)
        await lab.written("at work")
        os.kill(lab.watcher.pids[0], signal.SIGKILL)
        await lab.watcher.seen(Change.DIED)
        assert child.reason == "killed by SIGKILL"


async def test_refusals_are_counted_and_told_in_their_own_words(lab: Lab) -> None:
    child = lab.child("import sys; print('mictlanfs: no such disk'); sys.exit(2)")
    async with running(child):
        await lab.watcher.seen(Change.DIED, 3)
        assert child.refusals >= 3
        assert child.reason == "no such disk"


async def test_a_refusal_is_forgotten_after_another_end(lab: Lab) -> None:
    flag = lab.tmp_path / "flag"
    program = f"import os, sys; sys.exit(1 if os.path.exists({str(flag)!r}) else 2)"
    child = lab.child(program)
    async with running(child):
        await lab.watcher.seen(Change.DIED)
        assert child.refusals > 0
        flag.touch()
        await until(lambda: child.refusals == 0)


async def test_a_child_inherits_its_lifeline_and_nothing_else(lab: Lab) -> None:
    # fstat, not /proc/self/fd: the listing of a directory has a descriptor itself.
    program = """if True:
        import os
        def is_open(descriptor):
            try: os.fstat(descriptor)
            except OSError: return False
            return True
        print([n for n in range(3, 256) if is_open(n)], os.getcwd(), os.getsid(0) == os.getpid())
        os.read(LIFELINE, 1)
        print("alone")
    """
    lifeline, ours = os.pipe()
    kept_open = os.open("/dev/null", os.O_RDONLY)
    child = lab.child(program.replace("LIFELINE", str(lifeline)), lifeline_fd=lifeline)
    async with running(child):
        await lab.watcher.seen(Change.STARTED)
        await lab.written(f"[{lifeline}] / True\n")
        os.close(ours)
        await lab.written("alone")
    os.close(lifeline)
    os.close(kept_open)


# --- end ------------------------------------------------------------------------------------------


async def test_a_child_told_to_stop_gets_sigterm_and_may_finish(lab: Lab) -> None:
    program = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("
    child = lab.child(program + "'finished'))); print('ready', flush=True); time.sleep(60)")
    async with running(child):
        await lab.watcher.seen(Change.STARTED)
        await lab.written("ready")
    assert "finished" in lab.log
    assert lab.watcher.changes == [Change.STARTED, Change.STOPPED]


async def test_a_child_that_does_not_stop_is_pressed_and_then_killed(lab: Lab) -> None:
    marks: list[str] = []
    child = lab.child(
        DEAF + "print('ready', flush=True); time.sleep(60)",
        before_stop=mark(marks, "before"),
        stop_grace_s=0.05,
        insist=mark(marks, "insist"),
        insist_grace_s=0.05,
    )
    async with running(child):
        await lab.watcher.seen(Change.STARTED)
        await lab.written("ready")
    assert marks == ["before", "insist"]
    assert lab.watcher.changes == [Change.STARTED, Change.STOPPED]


async def test_a_hurried_stop_waits_neither_for_programs_nor_for_the_child(lab: Lab) -> None:
    child = lab.child(
        DEAF + "print('ready', flush=True); time.sleep(60)",
        before_stop=trio.sleep_forever,
        stop_grace_s=1000.0,
        hurried_grace_s=0.05,
    )
    async with running(child):
        await lab.watcher.seen(Change.STARTED)
        await lab.written("ready")
        child.stop()
        await trio.testing.wait_all_tasks_blocked()
        lab.hurry.set()
        await child.gone.wait()


async def test_a_child_told_to_stop_while_it_waits_is_not_started_again(lab: Lab) -> None:
    child = lab.child("pass", back_off=BackOff(first_s=1000.0))
    async with running(child):
        await lab.watcher.seen(Change.DIED)
    assert lab.watcher.changes == [Change.STARTED, Change.DIED]


async def test_a_child_told_to_stop_before_it_runs_never_starts(lab: Lab) -> None:
    child = lab.child(FOR_EVER)
    child.stop()
    async with running(child):
        await child.gone.wait()
    assert lab.watcher.changes == []


async def test_things_are_tidied_before_each_start_and_after_the_end(lab: Lab) -> None:
    marks: list[str] = []
    child = lab.child("pass", before_start=mark(marks, "tidy"), may_end=True)
    async with running(child):
        await child.gone.wait()
    assert marks == ["tidy", "tidy"]


async def test_a_cancelled_child_does_not_leave_its_process_running(lab: Lab) -> None:
    child = lab.child(FOR_EVER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.run)
        await lab.watcher.seen(Change.STARTED)
        assert child.process is not None
        process = child.process
        nursery.cancel_scope.cancel()
    assert not is_running(process)


# --- commands -------------------------------------------------------------------------------------


def test_our_own_command_runs_with_and_without_a_guard() -> None:
    lifeline, ours = os.pipe()
    for command in (command_line("--version"), guarded_command_line(lifeline, "--version")):
        done = subprocess.run(command, capture_output=True, check=True, pass_fds=(lifeline,))
        assert done.stdout.startswith(b"mictlanfs ")
    os.close(lifeline)
    os.close(ours)
