import pytest
import trio
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.client.lazysession import LazySession
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.uri import parse_routers
from tests.support.fakenet import FakeNet
from tests.support.fakerouter import FakeRouter


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
def net(router: FakeRouter) -> FakeNet:
    return FakeNet({router.url: router})


def lazy(nursery: trio.Nursery, net: FakeNet) -> LazySession:
    routers = parse_routers("mictlanx://router:60666/?protocol=http")
    client = RouterClient(routers, net, RetryPolicy(deadline_s=5.0))
    return LazySession(nursery, client, "test", 5.0, lambda grant: None)


async def test_nothing_is_opened_until_it_is_needed(net: FakeNet) -> None:
    async with trio.open_nursery() as nursery:
        lazy(nursery, net).end()
    assert not net.requests


async def test_tasks_that_need_a_session_together_get_the_same(
    net: FakeNet, router: FakeRouter
) -> None:
    found: list[Session] = []

    async with trio.open_nursery() as nursery:
        sessions = lazy(nursery, net)

        async def use() -> None:
            found.append(await sessions.get())

        async with trio.open_nursery() as users:
            for _ in range(5):
                users.start_soon(use)
        assert len({id(session) for session in found}) == 1
        assert len(router.sessions) == 1
        sessions.end()
    assert not router.sessions


async def test_a_session_outlives_the_task_that_needed_it_first(
    net: FakeNet, router: FakeRouter
) -> None:
    async with trio.open_nursery() as nursery:
        sessions = lazy(nursery, net)
        with trio.CancelScope() as scope:
            await sessions.get()
            scope.cancel()
            await trio.sleep_forever()
        assert len(router.sessions) == 1
        sessions.end()


async def test_a_session_that_is_refused_can_be_tried_again(
    net: FakeNet, router: FakeRouter, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        sessions = lazy(nursery, net)
        net.fail(wire.Path.SESSION_OPEN, Kind.PROTOCOL)
        with pytest.raises(MictlanError) as caught:
            await sessions.get()
        assert caught.value.kind is Kind.PROTOCOL
        await sessions.get()
        assert len(router.sessions) == 1
        sessions.end()
