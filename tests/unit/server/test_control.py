import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.processes import current_process, is_running
from mictlanfs.uri import ServerAddress
from mictlanfs_server import cluster, control, mountpoint
from mictlanfs_server.control import ProcessStatus, inspect, stop
from mictlanfs_server.probe import Probe
from mictlanfs_server.space import (
    Claim,
    MountRecord,
    SpaceDirectory,
    SpaceRecord,
    claimed,
)
from tests.support.fakeservers import PEERS, ROUTER, Servers
from tests.support.programs import FOR_EVER, known, program

RECORD = SpaceRecord(uri="mictlanx://r:1", host="127.0.0.1", port=60666, peer_ports=(24000, 24001))
# Holds the space as a supervisor does, and ends at the first or at the second SIGTERM.
SUPERVISOR = """if True:
    import signal, sys, time
    from pathlib import Path
    from mictlanfs_server.space import SpaceDirectory, claimed
    signals = int(sys.argv[2])
    def end(*_):
        global signals
        signals -= 1
        if signals == 0: raise SystemExit
    signal.signal(signal.SIGTERM, end)
    with claimed(SpaceDirectory(Path(sys.argv[1]))) as claim:
        claim.keep = True
        print("held", flush=True)
        while True: time.sleep(60)
"""


@pytest.fixture
def directory(tmp_path: Path) -> SpaceDirectory:
    return SpaceDirectory(tmp_path / "data")


@pytest.fixture
def said() -> list[str]:
    return []


def write(directory: SpaceDirectory, record: SpaceRecord) -> None:
    with claimed(directory) as claim:
        claim.keep = True
        claim.write_record(record)


# --- stop ---------------------------------------------------------------------------------------


def test_stopping_what_does_not_run_is_no_error(directory: SpaceDirectory, said: list[str]) -> None:
    stop(directory, said.append)
    assert said == [f"nothing runs in {directory.path}"]
    assert not directory.path.exists()


def test_stopping_returns_when_the_supervisor_is_gone(
    directory: SpaceDirectory, said: list[str]
) -> None:
    with program(SUPERVISOR, str(directory.path), "1") as supervisor:
        stop(directory, said.append)
        assert supervisor.wait(0) == 0
        assert said == [
            f"stopping {directory.path} (pid {supervisor.pid})",
            f"stopped; the data stays in {directory.path}",
        ]
    said.clear()
    stop(directory, said.append)
    assert said == [f"nothing runs in {directory.path}"]


@pytest.mark.parametrize(("signals", "status"), [(2, 0), (3, -signal.SIGKILL)])
def test_a_supervisor_that_takes_too_long_is_hurried_and_then_killed(
    directory: SpaceDirectory,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    signals: int,
    status: int,
) -> None:
    monkeypatch.setattr(control, "STOP_TIMEOUT_S", 0.2)
    monkeypatch.setattr(control, "HURRIED_STOP_TIMEOUT_S", 0.5)
    with program(SUPERVISOR, str(directory.path), str(signals)) as supervisor:
        stop(directory, said.append)
        assert supervisor.wait(0) == status


def test_what_a_killed_supervisor_left_is_ended(
    directory: SpaceDirectory, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LEFTOVER_GRACE_S", 0.05)
    with program(FOR_EVER) as dead, program(FOR_EVER) as child:
        supervisor = known(dead)
        dead.kill()
        dead.wait()
        left = {"router": known(child), "peer-0": supervisor}
        write(directory, replace(RECORD, supervisor=supervisor, children=left))
        stop(directory, said.append)
        assert child.wait(0) == -signal.SIGTERM
    assert said == [f"stopped; the data stays in {directory.path}"]
    assert directory.read_record() == RECORD


def test_a_number_that_somebody_else_got_is_left_alone(
    directory: SpaceDirectory, said: list[str]
) -> None:
    with program(FOR_EVER) as stranger:
        older = known(stranger)
        older = replace(older, started_ticks=older.started_ticks - 1)
        write(directory, replace(RECORD, supervisor=older, children={"router": older}))
        stop(directory, said.append)
        assert is_running(known(stranger))
    assert directory.read_record() == RECORD


def test_what_cannot_be_ended_is_told(
    directory: SpaceDirectory, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "end_leftovers", lambda _: None)
    write(directory, replace(RECORD, children={"router": current_process()}))
    with pytest.raises(MictlanError, match=f"pid {os.getpid()}") as caught:
        stop(directory, said.append)
    assert caught.value.kind is Kind.TIMED_OUT


# --- inspect ------------------------------------------------------------------------------------


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    """A router and two peers that are all well."""
    servers = Servers()
    servers.answering = {server.base_url for server in [ROUTER, *PEERS]}
    servers.states = {peer.id or "": "up" for peer in PEERS}

    @asynccontextmanager
    async def open_probe(router: ServerAddress) -> AsyncIterator[Probe]:
        yield Probe(servers, router)

    monkeypatch.setattr(control, "open_probe", open_probe)
    return servers


@pytest.fixture
def serving(directory: SpaceDirectory) -> Iterator[Claim]:
    """A space that this very process serves, as far as the record goes."""
    me = current_process()
    with claimed(directory) as claim:
        claim.keep = True
        children = {"router": me, "peer-0": me, "peer-1": me}
        claim.write_record(replace(RECORD, supervisor=me, children=children))
        yield claim


async def healths(directory: SpaceDirectory) -> dict[str, str]:
    return {process.name: process.health for process in (await inspect(directory)).processes}


async def test_a_space_never_started_is_stopped(directory: SpaceDirectory) -> None:
    found = await inspect(directory)
    assert (found.state, found.uri, found.processes) == ("stopped", None, [])


async def test_a_space_that_nobody_serves_is_stopped(directory: SpaceDirectory) -> None:
    write(directory, RECORD)
    found = await inspect(directory)
    assert (found.state, found.uri, found.processes) == ("stopped", RECORD.uri, [])


async def test_a_space_is_healthy_when_everybody_answers(serving: Claim, servers: Servers) -> None:
    found = await inspect(serving.directory)
    assert found.state == "healthy"
    assert [(process.name, process.port) for process in found.processes] == [
        ("supervisor", None),
        ("router", 60666),
        ("peer-0", 24000),
        ("peer-1", 24001),
    ]
    assert {process.pid for process in found.processes} == {os.getpid()}
    assert all(process.since for process in found.processes)


def silence(servers: Servers) -> None:
    servers.answering.remove(PEERS[1].base_url)


def suspect(servers: Servers) -> None:
    servers.states["mictlanx-peer-1"] = "suspect"


@pytest.mark.parametrize(
    ("misfortune", "health"),
    [(silence, "does not answer"), (suspect, "not up, says the router")],
)
async def test_a_space_is_degraded_when_one_does_not_do_its_work(
    serving: Claim,
    servers: Servers,
    misfortune: Callable[[Servers], None],
    health: str,
) -> None:
    misfortune(servers)
    assert (await inspect(serving.directory)).state == "degraded"
    assert await healths(serving.directory) == {
        "supervisor": "healthy",
        "router": "healthy",
        "peer-0": "healthy",
        "peer-1": health,
    }


async def test_a_peer_that_is_not_to_run_is_no_trouble(serving: Claim, servers: Servers) -> None:
    silence(servers)
    servers.states["mictlanx-peer-1"] = "down"
    record = serving.directory.read_record()
    assert record is not None
    children = {name: p for name, p in record.children.items() if name != "peer-1"}
    serving.write_record(replace(record, children=children, stopped_peers=(1,)))
    found = await inspect(serving.directory)
    assert found.state == "healthy"
    assert found.processes[-1] == ProcessStatus("peer-1", None, 24001, "stopped", None)


async def test_a_router_that_is_away_is_not_held_against_the_peers(
    serving: Claim, servers: Servers
) -> None:
    servers.answering.remove(ROUTER.base_url)
    found = await healths(serving.directory)
    assert found["router"] == "does not answer"
    assert found["peer-0"] == "healthy"


async def test_a_process_that_ended_does_not_run_whoever_answers_in_its_place(
    serving: Claim, servers: Servers
) -> None:
    record = serving.directory.read_record()
    assert record is not None
    children = {name: p for name, p in record.children.items() if name != "peer-1"}
    serving.write_record(replace(record, children=children))
    found = (await inspect(serving.directory)).processes[-1]
    assert (found.health, found.pid, found.since) == ("not running", None, None)


async def test_what_outlives_its_supervisor_is_degraded(
    directory: SpaceDirectory, servers: Servers
) -> None:
    write(directory, replace(RECORD, children={"router": current_process()}))
    found = await inspect(directory)
    assert found.state == "degraded"
    assert found.processes[0].health == "not running"


@pytest.mark.parametrize(("answers", "health"), [(True, "healthy"), (False, "does not answer")])
async def test_the_mount_belongs_to_the_space(
    serving: Claim,
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    *,
    answers: bool,
    health: str,
) -> None:
    async def is_answering(path: Path) -> bool:
        assert path == Path("/mnt/vss")
        return answers

    monkeypatch.setattr(mountpoint, "is_answering", is_answering)
    record = serving.directory.read_record()
    assert record is not None
    children = {**record.children, "mount": current_process()}
    mount = MountRecord("/mnt/vss", is_made=False)
    serving.write_record(replace(record, children=children, mount=mount))
    found = await inspect(serving.directory)
    assert found.mountpoint == "/mnt/vss"
    assert (found.processes[-1].name, found.processes[-1].health) == ("mount", health)
