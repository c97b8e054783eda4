import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from mictlanfs import wire
from mictlanfs.client.transport import HttpTransport, Response
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.model import PeerNumber
from mictlanfs_server.peer import registration as registration_module
from mictlanfs_server.peer.registration import Registration, reachable_url
from tests.unit.server.peer.making import on_asyncio

A, B = "http://127.0.0.1:1001", "http://127.0.0.1:1002"


@dataclass
class Memory:
    space_id: str = ""
    remembered: list[str] = field(default_factory=list)

    def remember_space(self, space_id: str) -> None:
        self.space_id = space_id
        self.remembered.append(space_id)


@dataclass
class ManualClock:
    now_s: float = 1000.0

    def wall_ns(self) -> int:
        return int(self.now_s * 1e9)

    def monotonic_s(self) -> float:
        return self.now_s


class FakeTransport(HttpTransport):
    """Answers in the place of routers; `answers` says how, by router.

    Attributes:
        sent: URL and message of each request, in order.
    """

    def __init__(self, answers: dict[str, wire.PeerWelcome | MictlanError]) -> None:
        super().__init__()
        self.answers = answers
        self.sent: list[tuple[str, wire.PeerAnnounce | wire.PeerLeave]] = []
        self._arrived = asyncio.Condition()

    async def request(self, method: str, url: str, *, body: object = None, **_: object) -> Response:
        assert method == "POST"
        assert isinstance(body, bytes)
        router, path = url.split(wire.PREFIX)
        is_announce = wire.PREFIX + path == wire.Path.PEER_ANNOUNCE
        message = wire.decode(body, wire.PeerAnnounce if is_announce else wire.PeerLeave)
        assert isinstance(message, wire.PeerAnnounce | wire.PeerLeave)
        async with self._arrived:
            self.sent.append((router, message))
            self._arrived.notify_all()
        answer = self.answers[router]
        if isinstance(answer, wire.PeerWelcome):
            return Response(200, {}, wire.encode(answer if is_announce else wire.Done()))
        if answer.is_retryable:
            raise answer
        return Response(409, {}, wire.encode_error(answer))

    async def wait_for(self, is_so: Callable[[], bool]) -> None:
        async with self._arrived:
            await asyncio.wait_for(self._arrived.wait_for(is_so), 10)


WELCOME = wire.PeerWelcome(PeerNumber(3), "space-1", 0.05)
GONE = MictlanError(Kind.UNAVAILABLE, detail="nobody there")


@dataclass
class Link:
    """A registration that runs, and what it did."""

    registration: Registration
    transport: FakeTransport
    memory: Memory
    clock: ManualClock
    refusals: list[MictlanError]
    task: asyncio.Task[None]

    @property
    def routers_asked(self) -> list[str]:
        return [router for router, _ in self.transport.sent]

    async def requests(self, count: int) -> None:
        await self.transport.wait_for(lambda: len(self.transport.sent) >= count)


@asynccontextmanager
async def running(
    answers: dict[str, wire.PeerWelcome | MictlanError], space_id: str = ""
) -> AsyncIterator[Link]:
    transport, memory, clock = FakeTransport(answers), Memory(space_id), ManualClock()
    refusals: list[MictlanError] = []

    def describe() -> wire.PeerAnnounce:
        url = "http://127.0.0.1:24000"
        return wire.PeerAnnounce(1, "p", url, "", 10, 5, 2, False, "boot", memory.space_id)

    registration = Registration(list(answers), describe, memory, transport, refusals.append, clock)
    task = asyncio.create_task(registration.run())
    try:
        yield Link(registration, transport, memory, clock, refusals, task)
    finally:
        task.cancel()
        await asyncio.wait([task])
        await transport.aclose()


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits of the link pass at once; how long they would have been."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def skip(delay_s: float) -> None:
        waits.append(delay_s)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", skip)
    return waits


@on_asyncio
async def test_a_new_peer_is_announced_and_remembers_its_space() -> None:
    async with running({A: WELCOME}) as link:
        await link.requests(2)
        announced = [message for _, message in link.transport.sent]
        assert isinstance(announced[0], wire.PeerAnnounce)
        assert isinstance(announced[1], wire.PeerAnnounce)
        assert (announced[0].space_id, announced[1].space_id) == ("", "space-1")
        assert link.memory.remembered == ["space-1"]
        state = link.registration.state
        assert (state.router, state.is_registered, state.number) == (A, True, 3)


def test_heartbeats_come_at_the_interval_of_the_router(no_long_waits: list[float]) -> None:
    async def main(heartbeat_s: float) -> None:
        no_long_waits.clear()
        async with running({A: wire.PeerWelcome(PeerNumber(3), "s", heartbeat_s)}) as link:
            await link.requests(3)

    for asked_s, kept_s in ((2.5, 2.5), (0.0, 0.05), (-1.0, 0.05), (1e9, 60.0)):
        asyncio.run(main(asked_s))
        assert set(no_long_waits) == {kept_s}


@on_asyncio
async def test_the_next_router_is_asked_when_one_is_out_of_reach() -> None:
    async with running({A: GONE, B: WELCOME}) as link:
        await link.requests(3)
        assert link.routers_asked[:3] == [A, B, B]
        assert link.registration.state.is_registered


@on_asyncio
async def test_the_first_router_is_asked_again_after_the_last() -> None:
    async with running({A: GONE, B: GONE}) as link:
        await link.requests(5)
        assert link.routers_asked[:5] == [A, B, A, B, A]
        assert not link.registration.state.is_registered
        assert "nobody there" in link.registration.state.error


def test_waits_between_attempts_grow_to_a_bound(no_long_waits: list[float]) -> None:
    async def main() -> None:
        async with running({A: GONE}) as link:
            await link.requests(12)

    asyncio.run(main())
    assert 0.05 <= no_long_waits[0] <= 0.15
    assert max(no_long_waits) <= 7.5
    assert no_long_waits[10] >= 2.5


def test_one_warning_and_later_one_error_tell_of_a_lost_router(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with running({A: GONE}) as link:
            await link.requests(5)
            link.clock.now_s += 61
            await link.requests(20)
            link.transport.answers[A] = WELCOME
            await link.transport.wait_for(lambda: link.registration.state.is_registered)

    with caplog.at_level(logging.INFO, registration_module.__name__):
        asyncio.run(main())
    assert [record.levelno for record in caplog.records] == [
        logging.WARNING,
        logging.ERROR,
        logging.INFO,
    ]


@on_asyncio
async def test_a_link_that_was_lost_starts_with_short_waits_again() -> None:
    async with running({A: WELCOME}) as link:
        await link.requests(2)
        link.transport.answers[A] = GONE
        await link.transport.wait_for(lambda: not link.registration.state.is_registered)
        link.transport.answers[A] = WELCOME
        await link.transport.wait_for(lambda: link.registration.state.is_registered)
        assert link.registration.state.error == ""


@pytest.mark.parametrize(
    "kind",
    [
        Kind.CONFLICT,
        Kind.PROTOCOL,
        Kind.INVALID,
        Kind.ACCESS_DENIED,
        Kind.NOT_PERMITTED,
        Kind.UNSUPPORTED,
    ],
)
@on_asyncio
async def test_a_refusal_ends_the_link(kind: Kind) -> None:
    refusal = MictlanError(kind, "announce", detail="it holds data of another space")
    async with running({A: refusal, B: WELCOME}) as link:
        await asyncio.wait_for(link.task, 10)
        [error] = link.refusals
        assert isinstance(error, UsageError)
        assert A in str(error)
        assert "another space" in str(error)
        assert link.routers_asked == [A]
        assert link.memory.remembered == []


@on_asyncio
async def test_a_router_of_another_space_is_not_believed() -> None:
    async with running({A: WELCOME}, space_id="space-0") as link:
        await asyncio.wait_for(link.task, 10)
        [error] = link.refusals
        assert "space-1" in str(error)
        assert "space-0" in str(error)
        assert link.memory.space_id == "space-0"


@on_asyncio
async def test_a_mistake_of_the_user_is_told_as_it_is() -> None:
    async with running({A: WELCOME}) as link:
        await link.requests(2)

        def mistaken() -> wire.PeerAnnounce:
            raise UsageError("say it with --advertise")

        link.registration._describe = mistaken
        await asyncio.wait_for(link.task, 10)
        assert [str(error) for error in link.refusals] == ["say it with --advertise"]


@pytest.mark.parametrize("kind", [Kind.INTERNAL, Kind.TIMED_OUT, Kind.BUSY])
@on_asyncio
async def test_other_errors_are_tried_again(kind: Kind) -> None:
    async with running({A: MictlanError(kind)}) as link:
        await link.requests(4)
        assert link.refusals == []
        assert not link.task.done()


@on_asyncio
async def test_a_peer_that_leaves_says_so() -> None:
    async with running({A: WELCOME}) as link:
        await link.requests(2)
        link.task.cancel()
        await asyncio.wait([link.task])
        await link.registration.leave()
        assert link.transport.sent[-1] == (A, wire.PeerLeave("p", "http://127.0.0.1:24000"))
        assert not link.registration.state.is_registered


@on_asyncio
async def test_a_peer_that_was_never_welcome_does_not_leave() -> None:
    async with running({A: GONE}) as link:
        await link.requests(2)
        link.task.cancel()
        await asyncio.wait([link.task])
        await link.registration.leave()
        assert all(isinstance(message, wire.PeerAnnounce) for _, message in link.transport.sent)


@on_asyncio
async def test_leaving_a_router_that_is_gone_is_no_error() -> None:
    async with running({A: WELCOME}) as link:
        await link.requests(2)
        link.task.cancel()
        await asyncio.wait([link.task])
        link.transport.answers[A] = GONE
        await link.registration.leave()


@pytest.mark.parametrize("url", ["http://127.0.0.1:24000", "http://[::1]:1", "http://10.1.2.3:80"])
def test_an_address_of_its_own_is_announced_as_it_is(url: str) -> None:
    assert reachable_url(url, "http://127.0.0.1:60666") == url


@pytest.mark.parametrize(
    ("url", "router", "expected"),
    [
        ("http://0.0.0.0:24000", "http://127.0.0.1:60666", "http://127.0.0.1:24000"),
        ("http://[::]:24000", "http://127.0.0.1:60666", "http://127.0.0.1:24000"),
    ],
)
def test_all_addresses_become_the_one_that_the_router_sees(
    url: str, router: str, expected: str
) -> None:
    assert reachable_url(url, router) == expected


def test_an_unknown_way_to_the_router_asks_for_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*_: object, **__: object) -> Sequence[object]:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UsageError, match="--advertise"):
        reachable_url("http://0.0.0.0:24000", "http://nowhere:1")
