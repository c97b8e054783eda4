"""Peers added, stopped and started while a real space runs."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from mictlanfs.processes import is_running
from tests.support.localspaces import LocalSpace, wait_until

# A dozen commands and more, each of which may wait for a busy machine.
pytestmark = pytest.mark.timeout(400)


def peers_of(space: LocalSpace) -> dict[str, str]:
    """Names of peers and how they are."""
    found = space.status()["processes"]
    return {p["name"]: p["health"] for p in found if p["name"].startswith("peer-")}


def announce_the_disk_once(space: LocalSpace) -> bool:
    """Whether two peers share what is free, as far as steps and moments let them agree."""
    # Degraded or not: what was stored for one peer is short of a copy as soon as there are two.
    status = json.loads(space.shell("mictlanfs status --json || :"))
    one, other = (peer["capacity"] for peer in status["peers"])
    return bool(abs(one - other) < 0.2 * other)


def put_and_compare(space: LocalSpace, name: str) -> Path:
    """Store a file that needs peers, and fetch it again."""
    source = space.folder / name
    source.write_bytes(os.urandom(300_000))
    space.run("put", source, f"b/{name}")
    compare(space, source)
    return source


def compare(space: LocalSpace, source: Path) -> None:
    copy = space.folder / "copy"
    space.run("get", f"b/{source.name}", copy)
    assert copy.read_bytes() == source.read_bytes()
    copy.unlink()


def test_peers_come_and_go_and_nothing_is_lost(space: LocalSpace) -> None:
    space.start("--peers", "1")
    # With two copies wanted a second peer would be given one, sooner or later.
    space.run("bucket", "create", "b", "--replicas", "1")
    first = put_and_compare(space, "first")
    assert "1 peer added, 2 run" in space.run("server", "peers", "add")
    assert peers_of(space) == {"peer-0": "healthy", "peer-1": "healthy"}
    wait_until(lambda: announce_the_disk_once(space), "both announce half of the disk")

    # What was stored before has its only copy on the first peer.
    error = space.run("server", "peers", "stop", "peer-0", status=4)
    assert "1 chunk cannot be read without it" in error
    before = space.process("peer-0")
    assert "its data stays" in space.run("server", "peers", "stop", "peer-0", "--force")
    assert not is_running(before)
    assert peers_of(space) == {"peer-0": "stopped", "peer-1": "healthy"}
    second = put_and_compare(space, "second")

    assert "runs" in space.run("server", "peers", "start", "peer-0")
    for source in (first, second):
        compare(space, source)


def test_a_stopped_peer_stays_stopped_over_restarts(space: LocalSpace) -> None:
    uri = space.start("--peers", "2")
    space.run("server", "peers", "stop", "peer-0")
    space.run("server", "stop")
    assert space.run("server", "start", "--data", "data", "--detach").strip() == uri
    assert space.is_healthy()
    space.kill("supervisor")
    space.run("server", "start", "--data", "data", "--detach")
    assert peers_of(space) == {"peer-0": "stopped", "peer-1": "healthy"}


def test_a_killed_peer_that_was_added_comes_back(space: LocalSpace) -> None:
    space.start("--peers", "1")
    space.run("server", "peers", "add")
    killed = space.kill("peer-1")
    space.wait_until_replaced("peer-1", killed)
    space.wait_until_healthy()
    assert peers_of(space) == {"peer-0": "healthy", "peer-1": "healthy"}


def test_a_peer_that_cannot_start_is_told_and_harms_nothing(space: LocalSpace) -> None:
    space.start("--peers", "1")
    (space.data / "peer-1").write_text("not a folder")
    error = space.run("server", "peers", "add", status=5)
    assert "start mictlanx-peer-1: stopped again" in error
    assert str(space.data / "peer-1") in error
    assert peers_of(space) == {"peer-0": "healthy", "peer-1": "stopped"}
    (space.data / "peer-1").unlink()
    space.run("server", "peers", "start", "peer-1")
    assert space.is_healthy()


def test_a_peer_whose_port_was_taken_starts_on_another(space: LocalSpace) -> None:
    space.start("--peers", "2")
    space.run("server", "peers", "stop", "peer-1")
    port = space.record().peer_ports[1]
    with socket.create_server(("127.0.0.1", port)):
        space.run("server", "peers", "start", "peer-1")
        assert space.record().peer_ports[1] != port
        assert space.is_healthy()


def test_what_cannot_be_done_is_told_in_one_line(space: LocalSpace) -> None:
    words = ("server", "peers", "add", "--data", "data")
    (line,) = space.run(*words, status=2).splitlines()
    assert "nothing serves" in line
    space.start("--peers", "1")
    (line,) = space.run("server", "peers", "stop", "peer-0", status=2).splitlines()
    assert "the last peer that runs" in line
    (line,) = space.run("server", "peers", "start", "peer-5", status=3).splitlines()
    assert "there are peer-0" in line
