"""The stream of events of one mount is cut, and everything else goes on.

Such a mount can ask and be answered, and does not hear that others want what it holds. So it may
use what it holds for as long only as the router waits for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs_mount.logfile import log_path_of
from tests.support.eventproxy import EventProxy, Stream, event_proxy
from tests.support.spaces import Mount, Space, mounted, running_space, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(120)]

LEASE_TTL_S = 2.0
# Beyond the lease itself: its tenth for clocks, the router's ticks, and a machine with other work.
PATIENCE_S = LEASE_TTL_S + 6.0
CUTS = [Stream.CUT, Stream.SILENT]


@dataclass
class Sides:
    """The same directory on two mounts: the events of `one` come through the proxy."""

    proxy: EventProxy
    mount: Mount
    one: Path
    two: Path

    def asks(self) -> int:
        """How many requests a `stat` on `one` makes."""
        before = self.proxy.counts[wire.Path.NODE]
        os.stat(self.one / "f")
        return self.proxy.counts[wire.Path.NODE] - before

    def is_leased(self) -> bool:
        """Whether `one` answers by itself, and goes on doing so for longer than a lease."""
        if self.asks() or self.asks():
            return False
        until_s = time.monotonic() + 1.5 * LEASE_TTL_S
        while time.monotonic() < until_s:
            if self.asks():
                return False
            time.sleep(0.1)
        return True

    def log(self) -> str:
        return log_path_of(self.mount.path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """A space with short leases."""
    data = tmp_path_factory.mktemp("short") / "data"
    with running_space(data, 3, "--lease-ttl", f"{LEASE_TTL_S:g}") as started:
        yield started


@pytest.fixture
def sides(space: Space, tmp_path: Path) -> Iterator[Sides]:
    found = re.search(r":(\d+)/", space.uri)
    assert found is not None
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(event_proxy(int(found[1])))
        uri = space.uri.replace(found[0], f":{proxy.port}/")
        one = stack.enter_context(mounted(uri, tmp_path / "one"))
        two = stack.enter_context(mounted(space.uri, tmp_path / "two"))
        (one.path / tmp_path.name).mkdir()
        assert os.listdir(two.path / tmp_path.name) == []
        yield Sides(proxy, one, one.path / tmp_path.name, two.path / tmp_path.name)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done here takes at most so long."""
    start_s = time.monotonic()
    yield
    assert time.monotonic() - start_s < seconds


@pytest.mark.parametrize("stream", CUTS, ids=lambda stream: stream.value)
def test_mount_without_events_reads_through_and_comes_back(sides: Sides, stream: Stream) -> None:
    (sides.one / "f").write_bytes(b"here")
    assert sides.is_leased()
    sides.proxy.set_stream(stream)
    # What the kernel was told ends with the lease; from then on each look is a question.
    time.sleep(LEASE_TTL_S)
    assert sides.asks() > 0
    assert sides.asks() > 0
    assert (sides.one / "f").read_bytes() == b"here"
    # Nobody wanted what it holds, so it still has it.
    sides.proxy.set_stream(Stream.WHOLE)
    wait_until(sides.is_leased, "it trusts its leases again")
    assert sides.proxy.withheld_count > 0
    assert "fenced" not in sides.log()


@pytest.mark.parametrize("stream", CUTS, ids=lambda stream: stream.value)
def test_nothing_stale_is_read_while_the_stream_is_cut(sides: Sides, stream: Stream) -> None:
    one, two = sides.one, sides.two
    (one / "f").write_bytes(b"before")
    (one / "moved").touch()
    with (one / "f").open("rb", buffering=0) as opened:
        assert os.pread(opened.fileno(), 9, 0) == b"before"
        assert not (one / "new").exists()
        sides.proxy.set_stream(stream)
        with within(PATIENCE_S):
            (two / "f").write_bytes(b"after!")
        assert os.pread(opened.fileno(), 9, 0) == b"after!"
        assert (one / "f").read_bytes() == b"after!"
        (two / "new").touch()
        assert (one / "new").exists()
        (two / "moved").rename(two / "gone")
        assert sorted(os.listdir(one)) == ["f", "gone", "new"]
        # It goes on like that: what it changes is seen, and what it sees is true.
        for round_ in range(2):
            with within(PATIENCE_S):
                (two / "f").write_bytes(b"two %d" % round_)
            assert os.pread(opened.fileno(), 9, 0) == b"two %d" % round_
            with within(PATIENCE_S):
                (one / "f").write_bytes(b"one %d" % round_)
            with within(PATIENCE_S):
                assert (two / "f").read_bytes() == b"one %d" % round_
    sides.proxy.set_stream(Stream.WHOLE)
    wait_until(sides.is_leased, "it trusts its leases again")
    (two / "f").write_bytes(b"at once")
    assert (one / "f").read_bytes() == b"at once"


def test_stream_that_is_cut_and_comes_back_costs_nobody_a_lease(sides: Sides) -> None:
    """Events that were lost with the connection come with the next: recalls are answered."""
    one, two = sides.one, sides.two
    for round_ in range(20):
        (one / "f").write_bytes(b"one %d" % round_)
        sides.proxy.set_stream(Stream.CUT)
        with ThreadPoolExecutor(1) as pool:
            changing = pool.submit((two / "f").write_bytes, b"two %d" % round_)
            if round_ % 2:
                # So that the recall is made while nobody hears it.
                time.sleep(0.05)
            sides.proxy.set_stream(Stream.WHOLE)
            changing.result(PATIENCE_S)
        assert (one / "f").read_bytes() == b"two %d" % round_
    assert sides.proxy.withheld_count > 0
    assert "fenced" not in sides.log()
