import pytest

from mictlanfs.client.peermap import AVOID_S, SLOW_S_FIRST, SLOW_S_MAX, PeerDirectory
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import Chunk, ChunkId, PeerInfo, PeerMap, PeerNumber, PeerState
from mictlanfs.placement import rank
from tests.support.strategies import peer

CHUNK_ID = ChunkId(bytes(16))


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> FakeTime:
    return FakeTime()


def directory(clock: FakeTime, *peers: PeerInfo, boot_id: str = "") -> PeerDirectory:
    found = PeerDirectory(clock, boot_id)
    found.update(PeerMap(1, peers or tuple(peer(n) for n in range(3))))
    return found


def numbers(peers: list[PeerInfo]) -> list[int]:
    return [p.number for p in peers]


def chunk_on(*peers: int, last_byte: int = 0) -> Chunk:
    chunk_id = ChunkId(bytes(15) + bytes([last_byte]))
    return Chunk(chunk_id, 1, bytes(32), tuple(PeerNumber(n) for n in peers))


def test_a_new_directory_is_stale_as_soon_as_a_router_spoke(clock: FakeTime) -> None:
    empty = PeerDirectory(clock)
    stale = [empty.is_stale]
    empty.notice_version(0)
    stale.append(empty.is_stale)
    empty.update(PeerMap(0, ()))
    stale.append(empty.is_stale)
    assert stale == [False, True, False]


def test_a_newer_version_makes_it_stale_and_an_older_one_does_not(clock: FakeTime) -> None:
    found = directory(clock)
    stale = []
    for version in (0, 2):
        found.notice_version(version)
        stale.append(found.is_stale)
    for peer_map in (PeerMap(1, ()), PeerMap(2, (peer(7),))):
        found.update(peer_map)
        stale.append(found.is_stale)
    assert stale == [False, True, True, False]
    assert numbers(list(found.all())) == [7]


def test_an_older_map_never_replaces_a_newer_one(clock: FakeTime) -> None:
    found = directory(clock)
    found.update(PeerMap(0, ()))
    assert len(found.all()) == 3


def test_peers_are_found_by_number(clock: FakeTime) -> None:
    found = directory(clock)
    assert found.get(PeerNumber(1)) == peer(1)
    assert found.get(PeerNumber(9)) is None


def test_candidates_are_those_of_placement_in_its_order(clock: FakeTime) -> None:
    chunk_id = new_chunk_id()
    assert directory(clock).candidates(chunk_id) == rank(chunk_id, [peer(n) for n in range(3)])


def test_a_peer_that_failed_is_tried_last_for_a_while(clock: FakeTime) -> None:
    found = directory(clock)
    first, second, third = numbers(found.candidates(CHUNK_ID))
    found.failed(PeerNumber(first))
    assert numbers(found.candidates(CHUNK_ID)) == [second, third, first]
    clock.now_s += AVOID_S
    assert numbers(found.candidates(CHUNK_ID)) == [first, second, third]


def test_a_peer_that_answers_is_forgiven_at_once(clock: FakeTime) -> None:
    found = directory(clock)
    first = found.candidates(CHUNK_ID)[0].number
    found.failed(first)
    found.answered(first)
    assert found.candidates(CHUNK_ID)[0].number == first


def test_a_full_peer_is_no_candidate_until_the_next_map(clock: FakeTime) -> None:
    found = directory(clock)
    found.refused(PeerNumber(1))
    assert sorted(numbers(found.candidates(CHUNK_ID))) == [0, 2]
    found.update(PeerMap(2, tuple(peer(n) for n in range(3))))
    assert sorted(numbers(found.candidates(CHUNK_ID))) == [0, 1, 2]


def test_a_full_peer_is_still_read_from(clock: FakeTime) -> None:
    found = directory(clock)
    found.refused(PeerNumber(1))
    assert numbers(found.holders(chunk_on(1))) == [1]


def test_only_known_peers_hold_a_chunk(clock: FakeTime) -> None:
    found = directory(clock)
    assert numbers(found.holders(chunk_on(9, 2, 1))) == [2, 1]
    assert found.holders(chunk_on(9)) == []


def test_readers_of_many_chunks_spread_over_the_replicas(clock: FakeTime) -> None:
    found = directory(clock)
    firsts = {found.holders(chunk_on(0, 1, last_byte=n))[0].number for n in range(10)}
    assert firsts == {0, 1}


def test_many_readers_of_one_chunk_spread_over_its_replicas(clock: FakeTime) -> None:
    firsts = []
    for reader in range(6):
        found = PeerDirectory(clock, reader=reader)
        found.update(PeerMap(1, tuple(peer(n) for n in range(3))))
        firsts.append(found.holders(chunk_on(0, 1, 2))[0].number)
    assert sorted(firsts) == [0, 0, 1, 1, 2, 2]


def test_a_peer_on_this_machine_is_read_first(clock: FakeTime) -> None:
    peers = (peer(0, boot_id="far"), peer(1, boot_id="here"), peer(2))
    found = directory(clock, *peers, boot_id="here")
    for n in range(4):
        assert found.holders(chunk_on(0, 1, 2, last_byte=n))[0].number == 1


def test_without_a_boot_id_nobody_is_near(clock: FakeTime) -> None:
    found = directory(clock, peer(0), peer(1))
    firsts = {found.holders(chunk_on(0, 1, last_byte=n))[0].number for n in range(4)}
    assert firsts == {0, 1}


def test_peers_that_are_down_are_read_last_of_all(clock: FakeTime) -> None:
    peers = (peer(0, state=PeerState.DOWN, boot_id="here"), peer(1), peer(2))
    found = directory(clock, *peers, boot_id="here")
    found.failed(PeerNumber(1))
    assert numbers(found.holders(chunk_on(0, 1, 2))) == [2, 1, 0]


def test_a_doubted_map_is_stale_until_one_is_taken_over(clock: FakeTime) -> None:
    found = directory(clock)
    found.refused(PeerNumber(1))
    found.doubt()
    stale = [found.is_stale]
    found.update(PeerMap(1, tuple(peer(n) for n in range(3))))
    stale.append(found.is_stale)
    assert stale == [True, False]
    # The same map again tells nothing new of who is full.
    assert sorted(numbers(found.candidates(CHUNK_ID))) == [0, 2]


def test_peers_that_are_all_full_are_told_from_peers_that_are_down(clock: FakeTime) -> None:
    assert not directory(clock).has_only_full_peers
    assert not PeerDirectory(clock).has_only_full_peers
    assert not directory(clock, peer(0, state=PeerState.DOWN)).has_only_full_peers
    full = directory(clock, peer(0, is_full=True), peer(1), peer(2, state=PeerState.DOWN))
    full.refused(PeerNumber(1))
    assert full.has_only_full_peers


def test_a_slow_peer_comes_behind_the_others_for_a_while(clock: FakeTime) -> None:
    found = directory(clock)
    chunk = chunk_on(0, 1, 2)
    best = found.holders(chunk)[0].number
    placed = found.candidates(CHUNK_ID)[0].number
    found.slow(best)
    assert found.holders(chunk)[-1].number == best
    found.slow(placed)
    assert found.candidates(CHUNK_ID)[0].number != placed
    clock.now_s += SLOW_S_FIRST
    assert not found.is_slow(best)
    assert found.holders(chunk)[0].number == best
    assert found.candidates(CHUNK_ID)[0].number == placed


def test_a_slow_peer_comes_before_one_that_failed(clock: FakeTime) -> None:
    found = directory(clock)
    found.slow(PeerNumber(0))
    found.failed(PeerNumber(1))
    assert numbers(found.holders(chunk_on(0, 1, 2))) == [2, 0, 1]


def test_a_peer_far_away_comes_before_a_slow_one_here(clock: FakeTime) -> None:
    near, far = peer(0, boot_id="here"), peer(1, boot_id="there")
    found = directory(clock, near, far, boot_id="here")
    assert numbers(found.holders(chunk_on(0, 1))) == [0, 1]
    found.slow(PeerNumber(0))
    assert numbers(found.holders(chunk_on(0, 1))) == [1, 0]


def test_a_peer_that_is_slow_again_and_again_is_left_alone_longer(clock: FakeTime) -> None:
    found, number = directory(clock), PeerNumber(0)
    durations_s = []
    for _ in range(7):
        found.slow(number)
        # Requests that were under way say the same once more.
        found.slow(number)
        start_s = clock.now_s
        while found.is_slow(number):
            clock.now_s += 1
        durations_s.append(clock.now_s - start_s)
    assert durations_s == [SLOW_S_FIRST * 2**n for n in range(5)] + [SLOW_S_MAX] * 2
    clock.now_s += SLOW_S_MAX + 1
    found.slow(number)
    clock.now_s += SLOW_S_FIRST
    assert not found.is_slow(number)
