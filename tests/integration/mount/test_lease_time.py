"""A router that is started again with another lease time, while mounts live."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.spaces import (
    LooseServers,
    Mount,
    free_ports,
    is_running,
    several_mounted,
    wait_until,
)

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(240)]

SHORT_S, LONG_S = 1.0, 14.0
# For what takes no time by itself, on a machine with other work.
PATIENCE_S = 10.0


class Servers(LooseServers):
    """A router and a peer; the router is started again with another lease time."""

    port = 0

    def begin(self, lease_ttl_s: float) -> None:
        self.port, peer_port = free_ports(2)
        self.start_router(self.port, "--lease-ttl", str(lease_ttl_s))
        self.start_peer(0, peer_port)
        self.wait_for_peers(1)

    def restart_router(self, lease_ttl_s: float) -> None:
        self.kill("router")
        self.start_router(self.port, "--lease-ttl", str(lease_ttl_s))


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    data = tmp_path / "data"
    data.mkdir()
    started = Servers(data)
    try:
        yield started
    finally:
        started.stop()


def sides_of(mounts: list[Mount]) -> tuple[Path, Path]:
    """The same empty bucket on both mounts."""
    (mounts[0].path / "bucket").mkdir()
    assert os.listdir(mounts[1].path / "bucket") == []
    return mounts[0].path / "bucket", mounts[1].path / "bucket"


def test_mounts_go_on_under_a_longer_lease_time(servers: Servers, tmp_path: Path) -> None:
    servers.begin(SHORT_S)
    with several_mounted(servers.uri, tmp_path, 2) as mounts:
        one, two = sides_of(mounts)
        (one / "f").write_bytes(b"before")
        servers.restart_router(LONG_S)
        # For longer than the time that they were told at first, and between two signs of life.
        end_s = time.monotonic() + 6 * SHORT_S
        count = 0
        while time.monotonic() < end_s:
            first, second = (one, two) if count % 2 else (two, one)
            begun_s = time.monotonic()
            (first / "f").write_bytes(b"%d" % count)
            assert (second / "f").read_bytes() == b"%d" % count
            assert time.monotonic() - begun_s < PATIENCE_S
            count += 1
            time.sleep(0.8 * SHORT_S)


def test_what_was_granted_for_longer_is_waited_for_and_then_no_more(
    servers: Servers, tmp_path: Path
) -> None:
    servers.begin(LONG_S)
    with several_mounted(servers.uri, tmp_path, 2) as mounts:
        one, two = sides_of(mounts)
        (one / "f").write_bytes(b"before")
        pid = mounts[0].pid()
        assert pid is not None
        done = threading.Event()

        def change() -> None:
            (two / "f").write_bytes(b"after!")
            done.set()

        changing = threading.Thread(target=change)
        os.kill(pid, signal.SIGSTOP)
        stopped_s = time.monotonic()
        try:
            servers.restart_router(SHORT_S)
            restarted_s = time.monotonic()
            changing.start()
            # Its last sign of life was a third of its time before, at most.
            is_early = done.wait(max(0.0, stopped_s + 0.6 * LONG_S - time.monotonic()))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert not is_early, "something was changed that a mount may still trust"
        changing.join(LONG_S + PATIENCE_S)
        assert done.is_set()
        assert (one / "f").read_bytes() == b"after!"
        # Who was told less is waited for less, as soon as nobody trusts what was told before.
        time.sleep(max(0.0, restarted_s + 1.2 * LONG_S - time.monotonic()))
        (one / "g").write_bytes(b"held")
        mounts[0].kill()
        wait_until(lambda: not is_running(pid), "the mount has ended")
        begun_s = time.monotonic()
        (two / "g").write_bytes(b"mine")
        assert time.monotonic() - begun_s < SHORT_S + PATIENCE_S < 0.9 * LONG_S
