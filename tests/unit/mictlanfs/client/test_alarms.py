import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from mictlanfs.client.alarms import Alarms


@asynccontextmanager
async def open_alarms() -> AsyncIterator[Alarms]:
    async with trio.open_nursery() as nursery:
        yield Alarms(nursery)
        nursery.cancel_scope.cancel()


async def test_what_ends_in_time_is_not_called(autojump_clock: MockClock) -> None:
    called: list[float] = []
    async with open_alarms() as alarms:
        for _ in range(100):
            with alarms.watch(1.0, lambda: called.append(trio.current_time())):
                await trio.sleep(0.5)
    assert called == []


async def test_each_that_is_late_is_called_when_it_is(autojump_clock: MockClock) -> None:
    called: dict[float, float] = {}

    async def work(alarms: Alarms, delay_s: float) -> None:
        start_s = trio.current_time()

        def on_late() -> None:
            called[delay_s] = trio.current_time() - start_s

        with alarms.watch(delay_s, on_late):
            await trio.sleep(10)

    async with open_alarms() as alarms, trio.open_nursery() as nursery:
        # The one that is due first comes last, while the others are waited for.
        for delay_s in (3.0, 2.0, 1.0):
            nursery.start_soon(work, alarms, delay_s)
            await trio.sleep(0.1)
    assert {delay_s: round(after_s, 6) for delay_s, after_s in called.items()} == {
        1.0: 1.0,
        2.0: 2.0,
        3.0: 3.0,
    }


async def test_who_asks_for_it_is_called_again(autojump_clock: MockClock) -> None:
    called: list[float] = []

    def on_late() -> float | None:
        called.append(trio.current_time())
        return 0.5 if len(called) < 3 else None

    async with open_alarms() as alarms:
        start_s = trio.current_time()
        with alarms.watch(1.0, on_late):
            await trio.sleep(10)
    assert [round(time_s - start_s, 6) for time_s in called] == [1.0, 1.5, 2.0]


async def test_what_ended_before_its_block_is_not_called(autojump_clock: MockClock) -> None:
    called: list[float] = []
    async with open_alarms() as alarms:
        with alarms.watch(1.0, lambda: called.append(trio.current_time())) as alarm:
            await trio.sleep(0.5)
            alarm.end()
            await trio.sleep(5)
            alarm.end()
    assert called == []


async def test_while_nothing_is_watched_nothing_is_waited_for(autojump_clock: MockClock) -> None:
    async with open_alarms() as alarms:
        with alarms.watch(1.0, lambda: None):
            await trio.lowlevel.checkpoint()
        # A clock that jumps to the next deadline finds none until here.
        start_s = trio.current_time()
        await trio.to_thread.run_sync(time.sleep, 0.01)
        assert trio.current_time() == start_s
        with alarms.watch(1.0, lambda: None):
            await trio.sleep(2)
        assert trio.current_time() == start_s + 2


async def test_what_ended_is_not_kept_until_it_would_have_been_late(
    autojump_clock: MockClock,
) -> None:
    """What would be called may hold the bytes of a chunk."""

    class Bytes:
        def late(self) -> None:
            raise AssertionError

    async with open_alarms() as alarms:
        with alarms.watch(100, lambda: 1.0):
            held = Bytes()
            known = weakref.ref(held)
            with alarms.watch(1, held.late):
                del held
            assert known() is None
