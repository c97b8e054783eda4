import pytest
import trio

from mictlanfs import wire
from mictlanfs.client.transport import Response
from mictlanfs.errors import MictlanError
from mictlanfs.uri import ServerAddress
from mictlanfs_server.probe import Probe, open_probe, peers_up
from tests.support.fakeservers import PEERS, ROUTER, Servers


@pytest.fixture
def servers() -> Servers:
    return Servers()


@pytest.fixture
def probe(servers: Servers) -> Probe:
    return Probe(servers, ROUTER)


async def test_a_server_answers_when_its_health_does(servers: Servers, probe: Probe) -> None:
    assert not await probe.is_answering(ROUTER)
    servers.answering.add(ROUTER.base_url)
    assert await probe.is_answering(ROUTER)


async def test_a_server_that_answers_with_an_error_does_not_count(
    servers: Servers, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> Response:
        await trio.lowlevel.checkpoint()
        return Response(503, {}, b"")

    monkeypatch.setattr(servers, "request", broken)
    assert not await probe.is_answering(ROUTER)


async def test_a_router_that_hangs_has_no_status(
    servers: Servers, probe: Probe, autojump_clock: trio.testing.MockClock
) -> None:
    servers.hanging.add(ROUTER.base_url)
    assert await probe.status() is None


async def test_a_router_that_is_away_has_no_status(probe: Probe) -> None:
    assert await probe.status() is None


async def test_peers_that_writers_use_are_those_that_are_up(servers: Servers, probe: Probe) -> None:
    assert await probe.known_up() == set()
    servers.answering.add(ROUTER.base_url)
    servers.states = {"a": "up", "b": "suspect", "c": "down"}
    assert await probe.known_up() == {"a"}


async def test_a_router_that_hangs_knows_no_peers(
    servers: Servers, probe: Probe, autojump_clock: trio.testing.MockClock
) -> None:
    servers.hanging.add(ROUTER.base_url)
    assert await probe.known_up() == set()


async def test_the_cost_of_a_leave_is_what_the_router_says(servers: Servers, probe: Probe) -> None:
    with pytest.raises(MictlanError):
        await probe.leave_cost("a")
    servers.answering.add(ROUTER.base_url)
    servers.leave_cost = wire.LeaveCost(2, 5)
    assert await probe.leave_cost("a") == wire.LeaveCost(2, 5)


async def test_waiting_for_the_router_ends_when_it_answers(
    servers: Servers, probe: Probe, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.move_on_after(10.0) as waiting:
        await probe.wait_for_router()
    assert waiting.cancelled_caught
    servers.answering.add(ROUTER.base_url)
    with trio.fail_after(10.0):
        await probe.wait_for_router()


@pytest.mark.parametrize(
    ("answering", "states"),
    [
        (PEERS[:1], {peer.id: "up" for peer in PEERS}),
        (PEERS, {"mictlanx-peer-0": "up"}),
        (PEERS, {"mictlanx-peer-0": "up", "mictlanx-peer-1": "suspect"}),
    ],
    ids=["one does not answer", "one is unknown", "one is suspect"],
)
async def test_peers_are_ready_when_all_answer_and_the_router_believes_them_up(
    servers: Servers,
    probe: Probe,
    autojump_clock: trio.testing.MockClock,
    answering: list[ServerAddress],
    states: dict[str, str],
) -> None:
    servers.answering = {server.base_url for server in [ROUTER, *answering]}
    servers.states = states
    with trio.move_on_after(10.0) as waiting:
        await probe.wait_for_peers(PEERS)
    assert waiting.cancelled_caught
    servers.answering = {server.base_url for server in [ROUTER, *PEERS]}
    servers.states = {"mictlanx-peer-0": "up", "mictlanx-peer-1": "up", "another": "down"}
    with trio.fail_after(10.0):
        await probe.wait_for_peers(PEERS)
    status = await probe.status()
    assert status is not None
    assert peers_up(status) == {"mictlanx-peer-0", "mictlanx-peer-1"}


async def test_a_probe_of_its_own_finds_nobody_on_a_closed_port() -> None:
    nobody = ServerAddress("r", "127.0.0.1", 1)
    async with open_probe(nobody) as probe:
        assert not await probe.is_answering(nobody)
