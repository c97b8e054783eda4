from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from mictlanfs.client.alarms import Alarms
from mictlanfs.client.lateness import Lateness
from mictlanfs.client.paces import SAMPLES_MIN, Paces
from mictlanfs.model import MIB, PeerNumber

PEER = PeerNumber(1)
SIZE = 4 * MIB


@asynccontextmanager
async def open_lateness(paces: Paces) -> AsyncIterator[Lateness]:
    """Of requests to a peer that took 0.1 s each so far."""
    async with trio.open_nursery() as nursery:
        lateness = Lateness(Alarms(nursery), paces)
        for _ in range(4 * SAMPLES_MIN):
            with lateness.timing(PEER, SIZE) as timing:
                await trio.sleep(0.1)
                timing.answered()
        yield lateness
        nursery.cancel_scope.cancel()
    assert paces.load == 0


async def test_a_request_that_is_late_is_told_once(autojump_clock: MockClock) -> None:
    told_s: list[float] = []
    async with open_lateness(Paces()) as lateness:
        start_s = trio.current_time()

        def on_late() -> None:
            told_s.append(trio.current_time() - start_s)

        with lateness.timing(PEER, SIZE, [PEER], on_late) as timing:
            await trio.sleep(3.0)
            assert timing.is_late
    assert len(told_s) == 1
    assert 0.1 < told_s[0] < 0.2


async def test_who_wants_so_is_told_again_and_again(autojump_clock: MockClock) -> None:
    told_s: list[float] = []
    async with open_lateness(Paces()) as lateness:
        with lateness.timing(PEER, SIZE, [PEER], lambda: told_s.append(0.0), again_s=1.0):
            await trio.sleep(3.5)
    assert len(told_s) == 4


async def test_an_answer_in_time_is_not_late_however_long_it_is_looked_at(
    autojump_clock: MockClock,
) -> None:
    told_s: list[float] = []
    async with open_lateness(Paces()) as lateness:
        with lateness.timing(PEER, SIZE, [PEER], lambda: told_s.append(0.0)) as timing:
            await trio.sleep(0.05)
            timing.answered()
            await trio.sleep(10.0)
        assert not timing.is_late
    assert told_s == []


async def test_a_request_that_gets_company_is_allowed_more_time(autojump_clock: MockClock) -> None:
    paces, told_s = Paces(), list[float]()
    async with open_lateness(paces) as lateness:
        with lateness.timing(PEER, SIZE, [PEER], lambda: told_s.append(0.0)):
            await trio.sleep(0.05)
            for _ in range(9):
                paces.begin(SIZE)
            await trio.sleep(0.9)
            assert told_s == []
            for _ in range(9):
                paces.end(SIZE)


async def test_what_is_given_up_teaches_nothing_and_is_not_under_way_any_more(
    autojump_clock: MockClock,
) -> None:
    paces = Paces()
    async with open_lateness(paces) as lateness:
        before_s = paces.allowance_s([PEER], SIZE)
        with trio.move_on_after(5.0), lateness.timing(PEER, SIZE):
            await trio.sleep_forever()
        assert paces.allowance_s([PEER], SIZE) == before_s
