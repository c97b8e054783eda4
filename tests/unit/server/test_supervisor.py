import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.logfiles import shorten
from mictlanfs.processes import ProcessIdentity, is_running
from mictlanfs_server import supervisor as supervisor_module
from mictlanfs_server.child import BackOff, ChildSpec
from mictlanfs_server.supervisor import Stage, Supervisor
from tests.support.waiting import DEADLINE_S, until

# Appends to a common journal what happens to it, so that the order of several children shows.
OBEDIENT = """
import signal, sys, time
def note(text):
    with open(sys.argv[2], "a") as journal: journal.write(f"{sys.argv[1]} {text}\\n")
def end(*_):
    note("ends")
    sys.exit()
signal.signal(signal.SIGTERM, end)
note("runs")
time.sleep(60)
"""
DEAF = OBEDIENT.replace("signal.SIGTERM, end", "signal.SIGTERM, signal.SIG_IGN")
REFUSING = "import sys; print('mictlanfs: the data is locked'); sys.exit(2)"
FAILING = "import sys; print('mictlanfs: bad luck'); sys.exit(1)"


class Lab:
    """Makes supervisors of small programs."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.journal = tmp_path / "journal"
        self.journal.touch()
        self.records: list[dict[str, ProcessIdentity]] = []

    def spec(self, name: str, program: str = OBEDIENT, **changes: object) -> ChildSpec:
        command = (sys.executable, "-c", program, name, str(self.journal))
        log = self.tmp_path / "log" / f"{name}.log"
        return ChildSpec(name, command, log, **changes)  # type: ignore[arg-type]  # Passed through.

    def stage(
        self,
        *children: ChildSpec,
        ready: Callable[[], Awaitable[None]] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> Stage:
        async def all_run() -> None:
            await until(lambda: all(f"{child.name} runs" in self.lines for child in children))

        title = f"stage of {children[0].name}"
        return Stage(title, children, ready or all_run, deadline_s)

    def supervisor(self, *stages: Stage) -> Supervisor:
        return Supervisor(stages, self._record, BackOff(first_s=0.01, last_s=0.02))

    def _record(self, processes: Mapping[str, ProcessIdentity]) -> None:
        self.records.append(dict(processes))

    @property
    def lines(self) -> list[str]:
        return self.journal.read_text().splitlines()

    def left(self) -> list[ProcessIdentity]:
        """Processes that were ever recorded and run still."""
        return [p for record in self.records for p in record.values() if is_running(p)]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@asynccontextmanager
async def up(supervisor: Supervisor) -> AsyncIterator[None]:
    """Run until everything is up; whoever leaves the block has to have asked for the end."""
    ready = trio.Event()
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run, ready.set)
            await ready.wait()
            yield


async def never_ready() -> None:
    await trio.sleep_forever()


async def test_stages_start_in_order_and_stop_in_reverse(lab: Lab) -> None:
    supervisor = lab.supervisor(
        lab.stage(lab.spec("router")),
        lab.stage(lab.spec("peer-0")),
        lab.stage(lab.spec("mount")),
    )
    async with up(supervisor):
        assert lab.lines == ["router runs", "peer-0 runs", "mount runs"]
        supervisor.request_stop()
    assert lab.lines[3:] == ["mount ends", "peer-0 ends", "router ends"]


async def test_what_runs_is_recorded_at_each_change(lab: Lab) -> None:
    supervisor = lab.supervisor(lab.stage(lab.spec("router")), lab.stage(lab.spec("peer-0")))
    async with up(supervisor):
        assert [sorted(record) for record in lab.records] == [["router"], ["peer-0", "router"]]
        assert all(is_running(process) for process in lab.records[-1].values())
        supervisor.request_stop()
    assert [sorted(record) for record in lab.records[2:]] == [["router"], []]


async def test_a_killed_child_is_replaced_and_the_others_stay(lab: Lab) -> None:
    supervisor = lab.supervisor(lab.stage(lab.spec("router")), lab.stage(lab.spec("peer-0")))
    async with up(supervisor):
        before = lab.records[-1]
        os.kill(before["router"].pid, signal.SIGKILL)
        await until(lambda: lab.lines.count("router runs") == 2)
        after = lab.records[-1]
        assert after["router"] != before["router"]
        assert after["peer-0"] == before["peer-0"]
        supervisor.request_stop()


async def test_deaths_and_new_starts_of_a_running_space_are_warnings(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    supervisor = lab.supervisor(lab.stage(lab.spec("router")))
    async with up(supervisor):
        os.kill(lab.records[-1]["router"].pid, signal.SIGKILL)
        await until(lambda: lab.lines.count("router runs") == 2)
        supervisor.request_stop()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings[0] == "router died: killed by SIGKILL; starting it again"
    assert warnings[1].startswith("router started (pid ")
    assert len(warnings) == 2


async def test_a_stage_that_is_not_ready_in_time_ends_everything_with_the_reason(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = lab.supervisor(
        lab.stage(lab.spec("router")),
        lab.stage(lab.spec("peer-0", FAILING), ready=never_ready, deadline_s=0.5),
    )
    with pytest.raises(MictlanError) as caught:
        await supervisor.run(lambda: None)
    assert caught.value.kind is Kind.TIMED_OUT
    assert str(caught.value) == (
        "start stage of peer-0: it does not answer within 0.5 s (peer-0: bad luck (exit status 1))"
    )
    assert lab.lines == ["router runs", "router ends"]
    assert lab.left() == []
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], "one line is enough"


async def test_a_child_that_refuses_again_and_again_ends_the_start_in_its_own_words(
    lab: Lab,
) -> None:
    supervisor = lab.supervisor(
        lab.stage(lab.spec("router")), lab.stage(lab.spec("peer-0", REFUSING), ready=never_ready)
    )
    with trio.fail_after(DEADLINE_S), pytest.raises(UsageError) as caught:
        await supervisor.run(lambda: None)
    assert str(caught.value) == "peer-0 does not start: the data is locked"
    assert lab.lines == ["router runs", "router ends"]
    assert lab.left() == []


async def test_a_refusal_of_a_running_space_ends_nothing(lab: Lab) -> None:
    flag = lab.tmp_path / "flag"
    program = f"import os\nif os.path.exists({str(flag)!r}): raise SystemExit(2)\n{OBEDIENT}"
    supervisor = lab.supervisor(lab.stage(lab.spec("router", program)))
    async with up(supervisor):
        flag.touch()
        os.kill(lab.records[-1]["router"].pid, signal.SIGKILL)
        await until(lambda: len(lab.records) > 2 * supervisor_module.REFUSALS_MAX + 4)
        flag.unlink()
        await until(lambda: lab.lines.count("router runs") == 2)
        supervisor.request_stop()


async def test_a_stop_while_starting_stops_what_was_started(lab: Lab) -> None:
    supervisor = lab.supervisor(
        lab.stage(lab.spec("router")),
        lab.stage(lab.spec("peer-0"), ready=never_ready),
        lab.stage(lab.spec("mount")),
    )
    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        is_ready = True

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run, ready)
            await until(lambda: "peer-0 runs" in lab.lines)
            supervisor.request_stop()
    assert not is_ready
    assert lab.lines == ["router runs", "peer-0 runs", "peer-0 ends", "router ends"]


async def test_a_second_stop_hurries(lab: Lab) -> None:
    supervisor = lab.supervisor(lab.stage(lab.spec("router", DEAF, stop_grace_s=1000.0)))
    async with up(supervisor):
        supervisor.request_stop()
        await trio.testing.wait_all_tasks_blocked()
        supervisor.request_stop()
    assert lab.left() == []


async def test_people_are_told_whom_they_wait_for(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_PATIENCE_S", 0.01)
    supervisor = lab.supervisor(lab.stage(lab.spec("router", DEAF, stop_grace_s=0.2)))
    async with up(supervisor):
        supervisor.request_stop()
    assert "router is still at work, waiting for it" in caplog.text


async def test_an_error_of_the_one_who_waits_stops_everything(lab: Lab) -> None:
    supervisor = lab.supervisor(lab.stage(lab.spec("router")))

    def ready() -> None:
        raise BrokenPipeError("nobody listens")

    with pytest.raises(BrokenPipeError):
        await supervisor.run(ready)
    assert lab.lines == ["router runs", "router ends"]


async def test_a_cancellation_stops_in_order_too(lab: Lab) -> None:
    supervisor = lab.supervisor(lab.stage(lab.spec("router")), lab.stage(lab.spec("peer-0")))
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run, nursery.cancel_scope.cancel)
    assert lab.lines[2:] == ["peer-0 ends", "router ends"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_stops_in_order(lab: Lab, number: signal.Signals) -> None:
    supervisor = lab.supervisor(lab.stage(lab.spec("router")))
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.obey_signals)
            await supervisor.run(lambda: os.kill(os.getpid(), number))
            nursery.cancel_scope.cancel()
    assert lab.lines == ["router runs", "router ends"]


async def test_logs_are_kept_short_while_it_runs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "LOG_CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr(shorten, "__defaults__", (10,))
    supervisor = lab.supervisor(lab.stage(lab.spec("router", f"print('x' * 99)\n{OBEDIENT}")))
    log = lab.tmp_path / "log" / "router.log"
    async with up(supervisor):
        await until(lambda: log.with_name("router.log.1").exists() and not log.stat().st_size)
        supervisor.request_stop()


async def test_a_child_joins_a_stage_and_stops_with_it(lab: Lab) -> None:
    supervisor = lab.supervisor(lab.stage(lab.spec("router")), lab.stage(lab.spec("peer-0")))
    async with up(supervisor):
        child = supervisor.add(1, lab.spec("peer-1"))
        await until(lambda: "peer-1 runs" in lab.lines)
        assert child.process == lab.records[-1]["peer-1"]
        killed = lab.records[-1]["peer-1"]
        os.kill(killed.pid, signal.SIGKILL)
        await until(lambda: lab.lines.count("peer-1 runs") == 2)
        supervisor.request_stop()
    assert lab.lines[-1] == "router ends"
    assert sorted(lab.lines[-3:-1]) == ["peer-0 ends", "peer-1 ends"]
    assert lab.left() == []


async def test_a_child_is_removed_alone_and_may_come_back(lab: Lab) -> None:
    supervisor = lab.supervisor(
        lab.stage(lab.spec("router")), lab.stage(lab.spec("peer-0"), lab.spec("peer-1"))
    )
    async with up(supervisor):
        await supervisor.remove("peer-0")
        assert lab.lines[-1] == "peer-0 ends"
        assert sorted(lab.records[-1]) == ["peer-1", "router"]
        await supervisor.remove("peer-0")
        await supervisor.remove("nobody")
        supervisor.add(1, lab.spec("peer-0"))
        await until(lambda: lab.lines.count("peer-0 runs") == 2)
        with pytest.raises(MictlanError, match="runs already"):
            supervisor.add(1, lab.spec("peer-0"))
        supervisor.request_stop()
    assert lab.lines.count("peer-0 ends") == 2
    assert lab.left() == []


async def test_nobody_joins_a_space_that_is_stopping(lab: Lab) -> None:
    supervisor = lab.supervisor(lab.stage(lab.spec("router")))
    async with up(supervisor):
        supervisor.request_stop()
        with pytest.raises(MictlanError) as caught:
            supervisor.add(0, lab.spec("peer-0"))
        assert caught.value.kind is Kind.BUSY
    assert lab.lines == ["router runs", "router ends"]
