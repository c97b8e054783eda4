"""Where fragments of coded chunks go: pure choices."""

from collections import Counter

from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import Coding, PeerNumber, PeerState
from mictlanfs_server.metadata.copies import ChunkCopies
from mictlanfs_server.router.upkeep.planning import (
    Copy,
    can_leave,
    missing_copies,
    rebalancing_copies,
    surplus_copies,
)
from tests.unit.server.router.upkeep.test_planning import peer, standing


def coded(held: dict[int, int], given_up: tuple[int, ...] = ()) -> ChunkCopies:
    """A chunk of 3+2 whose fragments have these peers."""
    coding = Coding(3, bytes(5 * 32), tuple(held))
    peers = tuple(PeerNumber(number) for number in held.values())
    left = tuple(PeerNumber(number) for number in given_up)
    return ChunkCopies(new_chunk_id(), 300_000, b"d" * 32, 5, peers, left, coding)


def places(copies: list[Copy]) -> dict[int, int]:
    assert len({copy.target for copy in copies}) == len(copies)
    return {copy.index: copy.target for copy in copies}


def test_missing_fragments_go_to_peers_that_have_none() -> None:
    peers = standing(*(peer(number) for number in range(1, 8)))
    found = missing_copies(coded({0: 1, 2: 2, 4: 3}), peers)
    assert set(places(found)) == {1, 3}
    assert set(places(found).values()) <= {4, 5, 6, 7}
    assert all(set(copy.sources) == {1, 2, 3} for copy in found)


def test_fragments_of_peers_that_are_gone_or_drained_are_missing() -> None:
    peers = standing(
        *(peer(n) for n in (1, 2, 3)), peer(4, is_draining=True), *(peer(n) for n in (6, 7, 8))
    )
    # Number 5 is no peer any more.
    found = missing_copies(coded({0: 4, 1: 5, 2: 1, 3: 2, 4: 3}), peers)
    assert set(places(found)) == {0, 1}
    assert set(places(found).values()) <= {6, 7, 8}
    assert all(4 in copy.sources for copy in found)


def test_what_cannot_be_read_gets_nothing_and_what_has_enough_neither() -> None:
    down = [peer(n, state=PeerState.DOWN) for n in (1, 2)]
    peers = standing(*down, *(peer(n) for n in range(3, 9)))
    assert missing_copies(coded({0: 1, 1: 2, 2: 3, 3: 4}), peers) == []
    whole = standing(*(peer(n) for n in range(1, 6)))
    assert missing_copies(coded({n: n + 1 for n in range(5)}), whole) == []


def test_with_too_few_peers_there_are_as_many_fragments_as_peers() -> None:
    peers = standing(*(peer(n) for n in range(1, 5)))
    found = missing_copies(coded({1: 1, 2: 2, 3: 3}), peers)
    # Data before parity.
    assert places(found) == {0: 4}
    # A peer that still has a fragment which was given up gets no other one.
    assert missing_copies(coded({1: 1, 2: 2, 3: 3}, given_up=(4,)), peers) == []


def test_fragments_are_spread_over_zones() -> None:
    zones = {n: "abc"[n % 3] for n in range(1, 10)}
    peers = standing(*(peer(n, zones[n]) for n in zones))
    for _ in range(20):
        chunk = coded({0: 1, 1: 4, 2: 7})
        found = places(missing_copies(chunk, peers))
        counts = Counter(zones[n] for n in [*chunk.peers, *found.values()])
        assert sorted(counts.values()) == [1, 1, 3]


def test_nothing_of_a_coded_chunk_is_too_much() -> None:
    peers = standing(*(peer(n) for n in range(1, 8)))
    assert surplus_copies(coded({n: n + 1 for n in range(5)}), peers) == []


def test_a_fragment_leaves_a_drained_peer_when_the_others_are_enough() -> None:
    peers = standing(*(peer(n) for n in range(1, 5)), peer(5, is_draining=True))
    assert can_leave(coded({n: n + 1 for n in range(5)}), PeerNumber(5), peers)
    assert not can_leave(coded({0: 1, 1: 2, 4: 5}), PeerNumber(5), peers)


def test_rebalancing_moves_each_fragment_at_most_once() -> None:
    peers = standing(*(peer(n) for n in range(1, 11)))
    for _ in range(20):
        chunk = coded({n: n + 1 for n in range(5)})
        found = places(rebalancing_copies(chunk, peers))
        assert set(found.values()).isdisjoint(chunk.peers)
        held = dict(zip(range(5), chunk.peers, strict=True)) | {
            index: PeerNumber(number) for index, number in found.items()
        }
        moved = ChunkCopies(
            chunk.id, 300_000, chunk.digest, 5, tuple(held.values()), (), chunk.coding
        )
        assert rebalancing_copies(moved, peers) == []
