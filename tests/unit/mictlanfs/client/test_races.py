"""Races between peers, on a mock clock: who is asked when, who wins, and what is cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from mictlanfs.client.alarms import Alarms
from mictlanfs.client.lateness import Lateness, Timing
from mictlanfs.client.paces import SAMPLES_MIN, Paces
from mictlanfs.client.races import EXTRA_COUNT_MAX, EXTRA_SHARE, Races
from mictlanfs.model import MIB, PeerInfo, PeerNumber
from tests.support.strategies import peer

SIZE = 4 * MIB
QUICK_S = 0.02
SLOW_S = 1.0


@dataclass
class Peers:
    """Peers that take their time, and what became of each request.

    Attributes:
        delays_s: until a peer answers; None: it fails at once.
        log: when who was asked, answered, failed and was cancelled.
    """

    delays_s: dict[int, float | None]
    log: list[tuple[str, int]] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)

    async def ask(self, peer: PeerInfo, timing: Timing) -> int | None:
        number = int(peer.number)
        self.log.append(("asked", number))
        self.times_s.append(trio.current_time())
        delay_s = self.delays_s[number]
        try:
            if delay_s is None:
                await trio.lowlevel.checkpoint()
                self.log.append(("failed", number))
                return None
            await trio.sleep(delay_s)
        except trio.Cancelled:
            self.log.append(("cancelled", number))
            raise
        timing.answered()
        self.log.append(("answered", number))
        return number


@asynccontextmanager
async def open_races(slow: list[int]) -> AsyncIterator[Races]:
    """Races among peers that were quick until now; `slow` takes those that lost."""
    paces = Paces()
    for number in range(4):
        for _ in range(SAMPLES_MIN):
            paces.note(PeerNumber(number), QUICK_S, SIZE)
    async with trio.open_nursery() as nursery:
        lateness = Lateness(Alarms(nursery), paces)
        yield Races(nursery, lateness, lambda number: slow.append(int(number)))
        nursery.cancel_scope.cancel()
    assert paces.load == 0


def infos(*numbers: int) -> list[PeerInfo]:
    return [peer(number) for number in numbers]


async def test_a_peer_in_time_is_the_only_one_asked(autojump_clock: MockClock) -> None:
    slow: list[int] = []
    peers = Peers({0: QUICK_S, 1: QUICK_S})
    async with open_races(slow) as races:
        assert await races.first(infos(0, 1), peers.ask, SIZE) == 0
        assert races.stats().second_requests == 0
    assert peers.log == [("asked", 0), ("answered", 0)]
    assert slow == []


async def test_a_late_peer_is_raced_and_the_loser_is_cancelled(autojump_clock: MockClock) -> None:
    slow: list[int] = []
    peers = Peers({0: SLOW_S, 1: QUICK_S})
    async with open_races(slow) as races:
        start_s = trio.current_time()
        assert await races.first(infos(0, 1), peers.ask, SIZE) == 1
        assert trio.current_time() - start_s < SLOW_S / 2
        stats = races.stats()
        assert (stats.second_requests, stats.second_won) == (1, 1)
    assert peers.log == [("asked", 0), ("asked", 1), ("answered", 1), ("cancelled", 0)]
    assert slow == [0]


async def test_a_peer_that_is_late_and_still_first_is_not_slow(autojump_clock: MockClock) -> None:
    slow: list[int] = []
    peers = Peers({0: SLOW_S / 2, 1: SLOW_S})
    async with open_races(slow) as races:
        assert await races.first(infos(0, 1), peers.ask, SIZE) == 0
        assert races.stats().second_won == 0
        await trio.lowlevel.checkpoint()
    assert ("cancelled", 1) in peers.log
    assert slow == []


async def test_a_peer_that_fails_is_followed_at_once(autojump_clock: MockClock) -> None:
    slow: list[int] = []
    peers = Peers({0: None, 1: None, 2: QUICK_S})
    async with open_races(slow) as races:
        assert await races.first(infos(0, 1, 2), peers.ask, SIZE) == 2
        assert races.stats().second_requests == 0
    assert peers.times_s[2] == peers.times_s[0]
    assert slow == []


async def test_when_the_second_fails_the_next_is_asked_beside_the_first(
    autojump_clock: MockClock,
) -> None:
    slow: list[int] = []
    peers = Peers({0: SLOW_S, 1: None, 2: QUICK_S})
    async with open_races(slow) as races:
        assert await races.first(infos(0, 1, 2), peers.ask, SIZE) == 2
    assert slow == [0]


async def test_a_first_that_fails_late_leaves_it_to_the_second(autojump_clock: MockClock) -> None:
    peers = Peers({0: 0.0, 1: SLOW_S})

    async def ask(peer: PeerInfo, timing: Timing) -> int | None:
        if peer.number == 0:
            await trio.sleep(SLOW_S / 2)
            return None
        return await peers.ask(peer, timing)

    slow: list[int] = []
    async with open_races(slow) as races:
        assert await races.first(infos(0, 1), ask, SIZE) == 1
    # It failed, which others note. It did not lose.
    assert slow == []


async def test_when_all_fail_there_is_no_answer(autojump_clock: MockClock) -> None:
    async with open_races([]) as races:
        assert await races.first(infos(0, 1), Peers({0: None, 1: None}).ask, SIZE) is None
        assert await races.first([], Peers({}).ask, SIZE) is None


async def test_a_peer_without_another_is_waited_for(autojump_clock: MockClock) -> None:
    peers = Peers({0: SLOW_S})
    async with open_races([]) as races:
        assert await races.first(infos(0), peers.ask, SIZE) == 0
        assert races.stats().second_requests == 0


async def test_second_requests_are_a_bounded_share(autojump_clock: MockClock) -> None:
    peers = Peers({0: SLOW_S, 1: SLOW_S + 0.5})
    count = 200
    async with open_races([]) as races:
        for _ in range(count):
            assert await races.first(infos(0, 1), peers.ask, SIZE) == 0
        stats = races.stats()
    assert stats.second_requests <= EXTRA_COUNT_MAX + EXTRA_SHARE * count
    assert stats.refused == count - stats.second_requests
    assert peers.log.count(("asked", 1)) == stats.second_requests


async def test_a_caller_that_is_cancelled_leaves_nothing_under_way(
    autojump_clock: MockClock,
) -> None:
    peers = Peers({0: 100.0, 1: 100.0})
    async with open_races([]) as races:
        with trio.move_on_after(SLOW_S):
            await races.first(infos(0, 1), peers.ask, SIZE)
        await trio.sleep(0.1)
        assert sorted(peers.log) == [
            ("asked", 0),
            ("asked", 1),
            ("cancelled", 0),
            ("cancelled", 1),
        ]


async def test_an_error_that_nobody_expected_reaches_the_caller(autojump_clock: MockClock) -> None:
    async def ask(peer: PeerInfo, _: Timing) -> int | None:
        if peer.number == 1:
            raise LookupError("unexpected")
        await trio.sleep(SLOW_S)
        return None

    async with open_races([]) as races:
        with pytest.raises(LookupError, match="unexpected"):
            await races.first(infos(0, 1), ask, SIZE)


async def test_many_under_way_are_allowed_more_time(autojump_clock: MockClock) -> None:
    # Eight at a time take eight times as long, and nobody is late because of that.
    peers = Peers({0: 8 * QUICK_S, 1: QUICK_S})
    async with open_races([]) as races:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(races.first, infos(0, 1), peers.ask, SIZE)
        assert races.stats().second_requests == 0
