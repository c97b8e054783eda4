"""`server start`, `stop` and `status` with real routers and peers, and with bad luck."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from mictlanfs.processes import is_running, wait_ended
from tests.support.localspaces import DEADLINE_S, LocalSpace, wait_until


def test_a_space_is_started_shown_and_stopped(space: LocalSpace) -> None:
    uri = space.start("--peers", "2")
    assert uri.startswith("mictlanx://mictlanx-router-0@127.0.0.1:")
    assert uri.endswith("/?protocol=http&api_version=4&http2=0")
    # Without --data: the last space is meant.
    assert "healthy" in space.run("server", "status")
    found = space.status()
    assert [process["name"] for process in found["processes"]] == [
        *("supervisor", "router", "peer-0", "peer-1"),
    ]
    assert found["uri"] == uri
    assert all(is_running(process) for process in space.record().processes)
    assert "the data stays in" in space.run("server", "stop")
    assert space.left() == []
    assert space.status()["state"] == "stopped"
    assert space.record().processes == []
    assert "nothing runs" in space.run("server", "stop")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_a_signal_stops_everything(
    space: LocalSpace, number: signal.Signals
) -> None:
    words = ("server", "start", "--data", "data", "--port", "0", "--peer-port", "0")
    with space.popen(*words, "--peers", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("mictlanx://")
        assert len(space.left()) == 3
        process.send_signal(number)
        output, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, output, errors) == (0, "", "")
    assert space.left() == []


def test_servers_that_are_killed_come_back(space: LocalSpace) -> None:
    space.start("--peers", "2")
    for name in ("peer-0", "router"):
        killed = space.kill(name)
        space.wait_until_replaced(name, killed)
        space.wait_until_healthy()
    log = (space.data / "log" / "supervisor.log").read_text()
    assert "peer-0 died: killed by SIGKILL; starting it again" in log
    assert not log.count("peer-1 died")


def test_children_end_with_a_killed_supervisor_and_a_new_start_works_at_once(
    space: LocalSpace,
) -> None:
    uri = space.start("--peers", "2")
    children = list(space.record().children.values())
    space.kill("supervisor")
    assert space.start() == uri
    assert wait_ended(children, 0.0) == []
    assert space.is_healthy()


def test_children_of_a_killed_supervisor_end_by_themselves(space: LocalSpace) -> None:
    space.start("--peers", "1")
    children = list(space.record().children.values())
    space.kill("supervisor")
    assert wait_ended(children, DEADLINE_S) == []
    assert space.status()["state"] == "stopped"


def test_what_a_killed_supervisor_left_can_be_stopped(space: LocalSpace) -> None:
    space.start("--peers", "1")
    space.kill("supervisor")
    assert "stopped" in space.run("server", "stop")
    assert space.left() == []
    assert space.record().processes == []


def test_a_second_start_is_refused_by_name_and_harms_nothing(space: LocalSpace) -> None:
    space.start("--peers", "1")
    before = space.record()
    words = ("server", "start", "--data", "data", "--detach")
    (line,) = space.run(*words, status=2).splitlines()
    pid = space.process("supervisor").pid
    assert line.startswith(f"mictlanfs: {space.data} is served by process {pid} already: stop it")
    assert space.record() == before
    assert space.is_healthy()


def test_a_port_in_use_is_told_before_anything_is_made(space: LocalSpace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ("server", "start", "--data", "data", "--peer-port", "0", "--port", str(port))
        for detach in ([], ["--detach"]):
            (line,) = space.run(*words, *detach, status=2).splitlines()
            assert f"port {port} on 127.0.0.1" in line
            assert "--port" in line
    assert not space.data.exists()


def test_a_space_stays_as_it_was_and_only_grows(space: LocalSpace) -> None:
    uri = space.start("--peers", "1")
    first = space.record()
    space.run("server", "stop")
    (line,) = space.run("server", "start", "--data", "data", "--peers", "0", status=2).splitlines()
    assert "--peers" in line
    assert space.run("server", "start", "--data", "data", "--detach", "--peers", "2").strip() == uri
    grown = space.record()
    assert (grown.port, grown.peer_ports[:1]) == (first.port, first.peer_ports)
    assert len(grown.peer_ports) == 2
    assert space.is_healthy()
    space.run("server", "stop")
    (line,) = space.run("server", "start", "--data", "data", "--peers", "1", status=2).splitlines()
    assert "has 2 peers, and with 1 data would be missing" in line


def test_what_cannot_run_ends_the_start_in_its_own_words(space: LocalSpace) -> None:
    (space.data / "peer-0").parent.mkdir()
    (space.data / "peer-0").write_text("not a folder")
    words = ("server", "start", "--data", "data", "--port", "0", "--peer-port", "0")
    (line,) = space.run(*words, "--peers", "1", "--detach", status=2).splitlines()
    assert line.startswith("mictlanfs: peer-0 does not start: ")
    assert str(space.data / "peer-0") in line
    assert space.left() == []
    assert (space.data / "peer-0").read_text() == "not a folder"


def test_the_data_of_a_newer_version_is_left_alone(space: LocalSpace) -> None:
    space.data.mkdir()
    record = space.data / "space.json"
    record.write_text('{"format": 99}')
    words = ("server", "start", "--data", "data", "--detach")
    assert "newer MictlanFS" in space.run(*words, status=2)
    assert record.read_text() == '{"format": 99}'
    record.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.3, 0.9, 1.6])
def test_a_start_that_is_killed_at_any_moment_is_mended_by_the_next(
    space: LocalSpace, delay_s: float
) -> None:
    words = ("server", "start", "--data", "data", "--port", "0", "--peer-port", "0")
    with space.popen(*words, "--peers", "2") as process:
        time.sleep(delay_s)
        space.look()
        process.kill()
    space.start("--peers", "2")
    assert space.is_healthy()


@pytest.mark.slow
def test_a_daemon_whose_launcher_was_killed_leaves_nothing(space: LocalSpace) -> None:
    words = ("server", "start", "--data", "data", "--port", "0", "--peer-port", "0")
    with space.popen(*words, "--peers", "1", "--detach") as launcher:
        wait_until((space.data / "space.json").exists, "the daemon is at work")
        space.look()
        launcher.kill()
    wait_until(lambda: not space.left(), "everything has ended")
    wait_until(lambda: not (space.data / "lock").read_text(), "the lock is free")
    assert not space.left()


def test_a_space_whose_data_was_removed_ends(space: LocalSpace) -> None:
    space.start("--peers", "1")
    space.data.rename(space.folder / "moved")
    wait_until(lambda: not space.left(), "everything has ended")
    assert (space.folder / "moved" / "space.json").exists(), "the data is left alone"
    (space.folder / "moved").rename(space.data)


def test_files_of_the_space_are_private(space: LocalSpace) -> None:
    space.start("--peers", "1")
    assert space.data.stat().st_mode & 0o077 == 0
    status = json.loads(space.run("server", "status", "--json"))
    assert status["data"] == str(space.data)
    for process in space.record().children.values():
        assert Path(f"/proc/{process.pid}/cwd").readlink() == Path("/")
        assert Path(f"/proc/{process.pid}/fd/0").readlink() == Path(os.devnull)
