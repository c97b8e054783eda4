"""Where copies go and which are given up: pure choices."""

from mictlanfs import placement
from mictlanfs.model import PeerInfo, PeerNumber, PeerState
from mictlanfs_server.metadata.copies import ChunkCopies
from mictlanfs_server.router.upkeep.planning import (
    can_leave,
    missing_copies,
    rebalancing_copies,
    surplus_copies,
)
from mictlanfs_server.router.upkeep.standing import Standing, StandingTable
from tests.contract.metadata.forms import new_chunk
from tests.unit.server.router.upkeep.copying import FOUR, ONE, THREE, TWO


def peer(
    number: int,
    zone: str = "",
    state: PeerState = PeerState.UP,
    *,
    is_draining: bool = False,
    is_full: bool = False,
) -> PeerInfo:
    url = f"http://h:{number}"
    return PeerInfo(
        PeerNumber(number), f"peer-{number}", url, zone, 1000, 0, state, is_full, "", is_draining
    )


def standing(*peers: PeerInfo) -> Standing:
    return StandingTable(60.0).observe(peers, 0.0)


def chunk(
    *peers: PeerNumber, wanted: int = 2, given_up: tuple[PeerNumber, ...] = ()
) -> ChunkCopies:
    return ChunkCopies(new_chunk().id, 10, b"d" * 32, wanted, peers, given_up)


def test_missing_copy_goes_to_another_zone_first() -> None:
    peers = standing(peer(1, "a"), peer(2, "a"), peer(3, "a"), peer(4, "b"))
    for _ in range(20):
        [copy] = missing_copies(chunk(ONE), peers)
        assert (copy.target, copy.sources) == (FOUR, (ONE,))


def test_nothing_goes_to_who_is_full_drained_suspect_or_gave_up_a_copy() -> None:
    peers = standing(
        peer(1),
        peer(2, is_full=True),
        peer(3, is_draining=True),
        peer(4, state=PeerState.SUSPECT),
        peer(5),
    )
    assert missing_copies(chunk(ONE, given_up=(PeerNumber(5),)), peers) == []


def test_copies_on_drained_peers_do_not_count_and_are_read_first() -> None:
    peers = standing(peer(1), peer(2, is_draining=True), peer(3))
    [copy] = missing_copies(chunk(ONE, TWO), peers)
    assert copy.target == THREE
    assert set(copy.sources) == {ONE, TWO}
    [first, second] = missing_copies(chunk(TWO), peers)
    assert {first.target, second.target} == {ONE, THREE}


def test_no_copy_without_a_source() -> None:
    peers = standing(peer(1, state=PeerState.DOWN), peer(2), peer(3))
    assert missing_copies(chunk(ONE, wanted=3), peers) == []


def test_surplus_is_what_the_placement_ranks_last_among_steady_peers() -> None:
    peers = standing(peer(1), peer(2), peer(3), peer(4, state=PeerState.SUSPECT))
    held = chunk(ONE, TWO, THREE, FOUR)
    [surplus] = surplus_copies(held, peers)
    assert surplus in {ONE, TWO, THREE}
    assert surplus_copies(chunk(ONE, TWO, FOUR), peers) == []
    # A writer today would not place it there.
    ideal = placement.rank(held.id, list(peers.peers.values()))[:2]
    assert surplus not in {peer.number for peer in ideal}


def test_chunk_leaves_a_drained_peer_when_the_others_have_enough_and_answer() -> None:
    peers = standing(peer(1), peer(2, is_draining=True), peer(3), peer(4, state=PeerState.SUSPECT))
    assert can_leave(chunk(ONE, TWO, THREE), TWO, peers)
    assert not can_leave(chunk(ONE, TWO), TWO, peers)
    assert not can_leave(chunk(ONE, TWO, FOUR), TWO, peers)


def test_rebalancing_leaves_alone_what_is_in_its_place() -> None:
    peers = standing(peer(1), peer(2), peer(3), peer(4))
    held = chunk(ONE, TWO)
    targets = [copy.target for copy in rebalancing_copies(held, peers)]
    moved = ChunkCopies(held.id, 10, held.digest, 2, (*held.peers, *targets))
    assert rebalancing_copies(moved, peers) == []
    kept = set(moved.peers) - set(surplus_copies(moved, peers))
    assert len(kept) == 2
    assert set(targets) <= kept


def test_full_peer_gives_up_its_copy_first() -> None:
    for _ in range(10):
        peers = standing(peer(1), peer(2, is_full=True), peer(3))
        assert surplus_copies(chunk(ONE, TWO, THREE), peers) == [TWO]
