from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import ChunkId, PeerInfo, PeerNumber, PeerState
from mictlanfs.placement import by_space, rank
from tests.support.strategies import chunk_ids, peer, peer_lists

# Fixed, so that the tolerances below hold in every run.
CHUNKS = [ChunkId(i.to_bytes(16, "big")) for i in range(4000)]


def usable(peers: list[PeerInfo]) -> list[PeerInfo]:
    return [p for p in peers if p.state is not PeerState.DOWN and not p.is_full]


@given(chunk_ids, peer_lists)
def test_every_usable_peer_is_ranked_once_and_no_other(
    chunk_id: ChunkId, peers: list[PeerInfo]
) -> None:
    ranked = rank(chunk_id, peers)
    assert sorted(p.number for p in ranked) == sorted(p.number for p in usable(peers))


@given(chunk_ids, peer_lists, st.randoms())
def test_the_order_of_the_map_does_not_matter(
    chunk_id: ChunkId, peers: list[PeerInfo], random: Random
) -> None:
    shuffled = list(peers)
    random.shuffle(shuffled)
    assert rank(chunk_id, shuffled) == rank(chunk_id, peers)


@given(chunk_ids, peer_lists)
def test_suspect_peers_come_last(chunk_id: ChunkId, peers: list[PeerInfo]) -> None:
    states = [p.state for p in rank(chunk_id, peers)]
    assert states == sorted(states)


@given(chunk_ids, peer_lists, st.integers(1, 4))
def test_the_first_few_lie_in_as_many_zones_as_there_are(
    chunk_id: ChunkId, peers: list[PeerInfo], count: int
) -> None:
    up = [p for p in usable(peers) if p.state is PeerState.UP]
    chosen = rank(chunk_id, up)[:count]
    assert len({p.zone for p in chosen}) == min(count, len({p.zone for p in up}), len(chosen))


@given(chunk_ids, peer_lists, st.data())
def test_losing_a_peer_moves_only_what_it_held(
    chunk_id: ChunkId, peers: list[PeerInfo], data: st.DataObject
) -> None:
    if not peers:
        return
    # In one zone, since leaving a zone may let another peer of it come forward.
    together = [peer(p.number, capacity=p.capacity, zone="z") for p in peers]
    lost = data.draw(st.sampled_from(together))
    before = rank(chunk_id, together)
    after = rank(chunk_id, [p for p in together if p is not lost])
    assert after == [p for p in before if p is not lost]


def test_a_new_peer_takes_its_share_and_moves_nothing_else() -> None:
    old = [peer(n) for n in range(4)]
    moved = 0
    for chunk_id in CHUNKS:
        before, after = rank(chunk_id, old)[0], rank(chunk_id, [*old, peer(4)])[0]
        if before != after:
            assert after.number == 4
            moved += 1
    assert 0.17 < moved / len(CHUNKS) < 0.23


def test_peers_get_chunks_in_proportion_to_their_capacity() -> None:
    peers = [peer(0, capacity=100), peer(1, capacity=200), peer(2, capacity=700)]
    counts = Counter(rank(chunk_id, peers)[0].number for chunk_id in CHUNKS)
    shares = [counts[p.number] / len(CHUNKS) for p in peers]
    assert abs(shares[0] - 0.1) < 0.02
    assert abs(shares[1] - 0.2) < 0.03
    assert abs(shares[2] - 0.7) < 0.03


def test_a_peer_without_capacity_is_still_placed_somewhere() -> None:
    ranked = rank(new_chunk_id(), [peer(0, capacity=0), peer(1, capacity=10**12)])
    assert [p.number for p in ranked] == [1, 0]


def test_the_choice_never_changes_between_versions() -> None:
    # Writers and healers of different versions must agree; a changed hash moves all data.
    peers = [peer(n, capacity=100 * (n + 1)) for n in range(4)]
    assert [[p.number for p in rank(chunk_id, peers)] for chunk_id in CHUNKS[:4]] == [
        [3, 1, 0, 2],
        [3, 1, 2, 0],
        [3, 1, 0, 2],
        [0, 3, 2, 1],
    ]


def test_peers_of_one_size_get_chunks_in_proportion_to_the_space_left() -> None:
    peers = [peer(0, capacity=1000), replace(peer(1, capacity=1000), used=500)]
    counts = Counter(rank(chunk_id, peers, by_space)[0].number for chunk_id in CHUNKS)
    assert counts[PeerNumber(0)] / len(CHUNKS) == pytest.approx(2 / 3, abs=0.03)


def test_peers_of_any_size_become_full_together() -> None:
    sizes = {1: 400, 2: 800, 3: 1600}
    # The first one comes with data, the others are new.
    used = {1: 200, 2: 0, 3: 0}
    for chunk_id in CHUNKS[:2470]:
        peers = [replace(peer(n, capacity=sizes[n]), used=used[n]) for n in sizes]
        used[rank(chunk_id, peers, by_space)[0].number] += 1
    factors = [used[n] / sizes[n] for n in sizes]
    assert min(factors) > 0.9
    assert max(factors) - min(factors) < 0.06
    assert all(used[n] <= sizes[n] for n in sizes)


def test_a_peer_without_space_left_still_has_some_weight() -> None:
    # What is known of its use is old: it says itself when it is full.
    assert by_space(replace(peer(1, capacity=1000), used=1000)) == pytest.approx(10)
    assert by_space(replace(peer(1, capacity=0), used=0)) == 1


@given(chunk_ids, peer_lists)
def test_the_order_of_old_chunks_stays_while_peers_fill_up(
    chunk_id: ChunkId, peers: list[PeerInfo]
) -> None:
    fuller = [replace(p, used=p.capacity // 2) for p in peers]
    before, after = rank(chunk_id, peers), rank(chunk_id, fuller)
    assert [p.number for p in after] == [p.number for p in before]
