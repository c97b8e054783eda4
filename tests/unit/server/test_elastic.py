"""Peers that come and go: what is recorded, started, stopped and refused, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs_server import elastic, plan
from mictlanfs_server.channel import AddPeers, Request, StartPeer, StopPeer
from mictlanfs_server.child import Child, ChildSpec
from mictlanfs_server.elastic import PeerPool
from mictlanfs_server.plan import peer_address, peer_id, peer_name
from mictlanfs_server.ports import choose_free
from mictlanfs_server.probe import Probe
from mictlanfs_server.space import SpaceRecord
from mictlanfs_server.supervisor import REFUSALS_MAX, Supervisor
from tests.support.fakeservers import ROUTER, Servers

STAGE = 1


class Space:
    """A record, and the servers of the peers in it.

    Attributes:
        journal: what was recorded, started and stopped.
    """

    def __init__(self, servers: Servers, peers: int) -> None:
        router, *ports = choose_free("127.0.0.1", peers + 1)
        self.record = SpaceRecord(
            uri="", host="127.0.0.1", port=router, peer_ports=tuple(sorted(ports))
        )
        self.servers = servers
        self.journal: list[str] = []
        servers.answering.add(ROUTER.base_url)
        for index in range(peers):
            self.begin(index)

    def begin(self, index: int) -> None:
        """A peer works from now on."""
        self.servers.answering.add(peer_address(self.record, index).base_url)
        self.servers.states[peer_id(index)] = "up"

    def change(
        self, *, peer_ports: Sequence[int] | None = None, stopped: Sequence[int] | None = None
    ) -> None:
        if peer_ports is not None:
            self.record = replace(self.record, peer_ports=tuple(peer_ports))
        if stopped is not None:
            self.record = replace(self.record, stopped_peers=tuple(stopped))
        self.journal.append(f"recorded {len(self.record.peer_ports)} {list(stopped or [])}")

    def peer_spec(self, index: int) -> ChildSpec:
        return ChildSpec(peer_name(index), ("true",), Path("/dev/null"))


class Crew(Supervisor):
    """A supervisor without processes.

    Attributes:
        silent, refusing: names of peers that never answer, and of those that will not start.
    """

    def __init__(self, space: Space) -> None:
        super().__init__([], lambda _: None)
        self.space = space
        self.silent: set[str] = set()
        self.refusing: set[str] = set()

    def add(self, stage: int, spec: ChildSpec) -> Child:
        assert stage == STAGE
        self.space.journal.append(f"added {spec.name}")
        child = Child(spec, lambda _, __: None, trio.Event())
        if spec.name in self.refusing:
            child.refusals, child.reason = REFUSALS_MAX, "the data is locked"
        elif spec.name not in self.silent:
            self.space.begin(plan.peer_index(self.space.record, spec.name))
        return child

    async def remove(self, name: str) -> None:
        await trio.lowlevel.checkpoint()
        space = self.space
        space.journal.append(f"removed {name}")
        index = plan.peer_index(space.record, name)
        space.servers.answering.discard(peer_address(space.record, index).base_url)
        if name not in self.silent:
            space.servers.states[peer_id(index)] = "down"


class Bench:
    """A pool of two peers, and what is said of its changes."""

    def __init__(self) -> None:
        self.servers = Servers()
        self.space = Space(self.servers, 2)
        self.crew = Crew(self.space)
        self.pool = PeerPool(self.space, self.crew, Probe(self.servers, ROUTER), STAGE)
        self.said: list[str] = []

    async def ask(self, request: Request) -> str:
        # No deadline: a clock that jumps while a thread looks for ports would jump to it.
        return await self.pool.handle(request, self._say)

    async def refusal(self, request: Request) -> MictlanError:
        with pytest.raises(MictlanError) as caught:
            await self.ask(request)
        return caught.value

    async def _say(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        self.said.append(text)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_new_peers_are_recorded_started_and_waited_for(
    bench: Bench, autojump_clock: MockClock
) -> None:
    assert await bench.ask(AddPeers(2)) == "2 peers added, 4 run"
    assert bench.space.journal == ["recorded 4 []", "added peer-2", "added peer-3"]
    ports = bench.space.record.peer_ports
    assert bench.said == [
        f"starting peer-2 (mictlanx-peer-2) on port {ports[2]}",
        f"starting peer-3 (mictlanx-peer-3) on port {ports[3]}",
    ]
    assert len({*ports, bench.space.record.port}) == 5


@pytest.mark.parametrize("count", [0, -1, 64])
async def test_numbers_of_peers_that_cannot_be_are_refused(
    bench: Bench, count: int, autojump_clock: MockClock
) -> None:
    assert isinstance(await bench.refusal(AddPeers(count)), UsageError)
    assert bench.space.journal == []


async def test_new_peers_that_do_not_start_are_kept_as_stopped(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.crew.silent.add("peer-2")
    bench.crew.refusing.add("peer-4")
    error = await bench.refusal(AddPeers(3))
    assert error.kind is Kind.UNAVAILABLE
    assert str(error) == (
        "start mictlanx-peer-2, mictlanx-peer-4: stopped again, "
        "`mictlanfs server peers start peer-2` tries once more "
        "(peer-2: it does not answer in time; peer-4: the data is locked)"
    )
    assert bench.space.journal[4:] == ["recorded 5 [2, 4]", "removed peer-2", "removed peer-4"]
    assert bench.space.record.running_peers == [0, 1, 3]
    bench.crew.silent.clear()
    assert await bench.ask(StartPeer("peer-2")) == "mictlanx-peer-2 runs"
    assert bench.space.record.stopped_peers == (4,)


async def test_who_refuses_is_not_waited_for(bench: Bench, autojump_clock: MockClock) -> None:
    bench.crew.refusing.add("peer-2")
    started_s = trio.current_time()
    await bench.refusal(AddPeers(1))
    assert trio.current_time() - started_s < elastic.START_TIMEOUT_S / 2


async def test_a_peer_is_stopped_and_started_again(bench: Bench, autojump_clock: MockClock) -> None:
    assert "its data stays" in await bench.ask(StopPeer("peer-1"))
    assert bench.space.journal == ["recorded 2 [1]", "removed peer-1"]
    assert await bench.ask(StopPeer("mictlanx-peer-1")) == "mictlanx-peer-1 is stopped already"
    assert await bench.ask(StartPeer("1")) == "mictlanx-peer-1 runs"
    assert bench.space.journal[2:] == ["recorded 2 []", "added peer-1"]
    assert await bench.ask(StartPeer("1")) == "mictlanx-peer-1 runs already"
    assert len(bench.space.journal) == 4


async def test_a_peer_with_the_only_copies_is_stopped_by_force_only(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.servers.leave_cost = wire.LeaveCost(3, 1)
    error = await bench.refusal(StopPeer("peer-0"))
    assert error.kind is Kind.CONFLICT
    assert "3 chunks cannot be read without it" in str(error)
    assert "--force" in str(error)
    assert bench.space.journal == []
    await bench.ask(StopPeer("peer-0", force=True))
    assert bench.said == [
        "3 chunks cannot be read without it, until it is started again",
        "1 chunk will have fewer copies than wanted, until it is started again",
        "stopping peer-0 (mictlanx-peer-0)",
    ]


async def test_when_there_is_no_telling_a_peer_is_stopped_by_force_only(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.servers.answering.discard(ROUTER.base_url)
    error = await bench.refusal(StopPeer("peer-0"))
    assert error.kind is Kind.UNAVAILABLE
    assert "there is no telling" in str(error)
    assert bench.space.journal == []
    assert "is stopped" in await bench.ask(StopPeer("peer-0", force=True))


async def test_the_last_peer_is_never_stopped(bench: Bench, autojump_clock: MockClock) -> None:
    await bench.ask(StopPeer("peer-0"))
    error = await bench.refusal(StopPeer("peer-1", force=True))
    assert isinstance(error, UsageError)
    assert "the last peer" in str(error)
    assert bench.space.record.running_peers == [1]


async def test_a_peer_that_said_no_good_bye_is_waited_for_in_bounds(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.crew.silent.add("peer-1")
    assert "is stopped" in await bench.ask(StopPeer("peer-1"))
    assert bench.servers.states["mictlanx-peer-1"] == "up"


@pytest.mark.parametrize("request_", [StartPeer("peer-9"), StopPeer("peer-9")])
async def test_a_peer_that_is_not_there_is_told(
    bench: Bench, request_: Request, autojump_clock: MockClock
) -> None:
    assert (await bench.refusal(request_)).kind is Kind.NOT_FOUND


async def test_one_change_at_a_time(bench: Bench, autojump_clock: MockClock) -> None:
    bench.crew.silent.add("peer-2")

    async def add() -> None:
        with pytest.raises(MictlanError):
            await bench.ask(AddPeers(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add)
        await trio.sleep(1.0)
        assert (await bench.refusal(StopPeer("peer-0"))).kind is Kind.BUSY
    assert "is stopped" in await bench.ask(StopPeer("peer-0"))


async def test_peers_that_end_with_their_space_are_not_stopped_for_good(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.crew.silent.add("peer-2")
    bench.crew.request_stop()
    assert (await bench.refusal(AddPeers(1))).kind is Kind.BUSY
    assert bench.space.record.stopped_peers == ()
