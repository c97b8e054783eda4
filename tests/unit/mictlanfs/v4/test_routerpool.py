from collections import Counter
from collections.abc import Callable

import pytest
import trio

from mictlanfs.client.retry import NO_RETRY, RetryPolicy
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.router import AsyncRouter
from mictlanfs.v4.routerpool import ADDED_ATTEMPTS_MAX, AVOID_S, RouterPool

POLICY = RetryPolicy(deadline_s=30.0, delay_s_first=1.0, delay_s_max=4.0)


def pool_of(count: int, policy: RetryPolicy = POLICY) -> RouterPool:
    routers = [AsyncRouter.at("127.0.0.1", 1 + i, router_id=f"r{i}") for i in range(count)]
    return RouterPool(routers, policy)


class Calls:
    """A verb that fails for some routers, as a function of the router's id says."""

    def __init__(self, failing: Callable[[str], Kind | None] = lambda _: None) -> None:
        self.failing = failing
        self.made: list[tuple[str, int]] = []

    async def __call__(self, router: AsyncRouter, attempt: int) -> str:
        self.made.append((router.id, attempt))
        await trio.lowlevel.checkpoint()
        kind = self.failing(router.id)
        if kind is not None:
            raise MictlanError(kind, "test", router.id)
        return router.id


async def test_calls_one_after_the_other_are_spread_evenly() -> None:
    pool = pool_of(3)
    calls = Calls()
    for _ in range(30):
        await pool.call(calls)
    assert pool.request_counts() == {"r0": 10, "r1": 10, "r2": 10}
    assert [router.id for router in pool.routers] == ["r0", "r1", "r2"]


async def test_a_router_with_a_call_under_way_is_spared() -> None:
    pool = pool_of(2)
    seen: Counter[str] = Counter()

    async def hang(router: AsyncRouter, _: int) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.call, hang)
        await trio.testing.wait_all_tasks_blocked()
        calls = Calls()
        for _ in range(5):
            seen[await pool.call(calls)] += 1
        nursery.cancel_scope.cancel()
    assert seen == {"r1": 5}


async def test_another_router_is_tried_at_once(autojump_clock: trio.testing.MockClock) -> None:
    pool = pool_of(3)
    calls = Calls(lambda router: Kind.UNAVAILABLE if router != "r2" else None)
    start = trio.current_time()
    assert await pool.call(calls) == "r2"
    assert trio.current_time() == start
    assert calls.made == [("r0", 0), ("r1", 1), ("r2", 2)]


async def test_a_router_that_failed_comes_last_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pool = pool_of(2)
    calls = Calls(lambda router: Kind.TIMED_OUT if router == "r0" else None)
    for _ in range(5):
        assert await pool.call(calls) == "r1"
    assert [router for router, _ in calls.made].count("r0") == 1
    await trio.sleep(AVOID_S + 0.1)
    calls.failing = lambda _: None
    assert await pool.call(calls) == "r0"


async def test_with_all_routers_down_it_waits_longer_and_longer_and_gives_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pool = pool_of(2)
    calls = Calls(lambda _: Kind.UNAVAILABLE)
    start = trio.current_time()
    with pytest.raises(MictlanError) as caught:
        await pool.call(calls)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert 24 < trio.current_time() - start <= 30
    # Delays of 1, 2, 4, 4 … seconds on average, and both routers each time.
    assert 12 <= len(calls.made) <= 36
    assert Counter(router for router, _ in calls.made).total() % 2 == 0


async def test_without_retries_each_router_is_tried_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pool = pool_of(3, NO_RETRY)
    calls = Calls(lambda _: Kind.UNAVAILABLE)
    with pytest.raises(MictlanError):
        await pool.call(calls)
    assert sorted(router for router, _ in calls.made) == ["r0", "r1", "r2"]


async def test_what_another_attempt_cannot_mend_is_raised_at_once() -> None:
    pool = pool_of(2)
    for kind in (Kind.NOT_FOUND, Kind.EXISTS, Kind.INVALID, Kind.PROTOCOL, Kind.CORRUPT):
        calls = Calls(lambda _, kind=kind: kind)  # type: ignore[misc]
        with pytest.raises(MictlanError) as caught:
            await pool.call(calls)
        assert caught.value.kind is kind
        assert len(calls.made) == 1


async def test_added_kinds_are_tried_again_a_few_times(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pool = pool_of(2)
    calls = Calls(lambda _: Kind.CORRUPT)
    with pytest.raises(MictlanError):
        await pool.call(calls, also=[Kind.CORRUPT])
    assert len(calls.made) == ADDED_ATTEMPTS_MAX
    # A router with a bad copy is no bad router.
    assert Counter(router for router, _ in calls.made) == {"r0": 2, "r1": 2}


async def test_a_cancelled_call_is_no_longer_under_way() -> None:
    pool = pool_of(2)

    async def hang(router: AsyncRouter, _: int) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(0.01):
        await pool.call(hang)
    calls = Calls()
    assert [await pool.call(calls) for _ in range(3)] == ["r1", "r0", "r1"]
