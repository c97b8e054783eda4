"""The copies of one chunk, with peers that are functions."""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio.testing import MockClock

from mictlanfs.client.copying import Copying
from mictlanfs.client.paces import Allowance
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import PeerInfo, PeerNumber, PeerState

PEERS = [
    PeerInfo(PeerNumber(number), f"p{number}", f"http://p{number}:1", "", 1000, 0, PeerState.UP)
    for number in range(1, 5)
]
LATE_AFTER_S, STANDS_STILL_S = 0.5, 100.0


class Space:
    """Peers that store after so many seconds; None: they refuse."""

    def __init__(self, **seconds: float | None) -> None:
        self.seconds = seconds
        self.asked: list[str] = []
        self.left: list[str] = []
        self.holders: list[PeerNumber] = []
        self.copying = Copying(self.put, Allowance(1.0, 10), list(PEERS), self.holders)

    async def put(self, peer: PeerInfo, *, on_late: Callable[[], None]) -> None:
        self.asked.append(peer.id)
        seconds = self.seconds.get(peer.id, 0.1)
        if seconds is None:
            raise MictlanError(Kind.NO_SPACE, "put chunk", peer.id)
        try:
            if seconds > LATE_AFTER_S:
                await trio.sleep(LATE_AFTER_S)
                on_late()
            await trio.sleep(seconds)
        except trio.Cancelled:
            self.left.append(peer.id)
            raise


async def test_no_more_peers_are_asked_than_copies_are_wanted(autojump_clock: MockClock) -> None:
    space = Space()
    await space.copying.make(2)
    assert (sorted(space.asked), sorted(space.holders)) == (["p1", "p2"], [1, 2])


async def test_a_late_peer_gets_company_and_is_left(autojump_clock: MockClock) -> None:
    space = Space(p1=STANDS_STILL_S)
    await space.copying.make(2)
    assert trio.current_time() < STANDS_STILL_S
    assert (sorted(space.holders), space.left) == ([2, 3], ["p1"])


async def test_the_next_takes_the_place_of_one_that_refuses(autojump_clock: MockClock) -> None:
    space = Space(p1=None, p3=None)
    await space.copying.make(2)
    assert sorted(space.holders) == [2, 4]
    assert [error.target for error in space.copying.errors] == ["p1", "p3"]


async def test_late_peers_with_nobody_left_are_waited_for(autojump_clock: MockClock) -> None:
    space = Space(p1=2.0, p2=2.0, p3=None, p4=None)
    await space.copying.make(2)
    assert (sorted(space.holders), space.left) == ([1, 2], [])


async def test_who_gives_up_leaves_everybody(autojump_clock: MockClock) -> None:
    space = Space(p1=STANDS_STILL_S, p2=STANDS_STILL_S, p3=STANDS_STILL_S, p4=STANDS_STILL_S)
    with trio.move_on_after(1.0) as waiting:
        await space.copying.make(2)
    assert waiting.cancelled_caught
    assert sorted(space.left) == ["p1", "p2", "p3", "p4"]
    assert space.holders == []
