from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import pytest
import trio
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.client.chunks import CONTINUED_SIZE_BYTES_MIN, ChunkStore, open_chunk_store
from mictlanfs.client.peermap import SLOW_S_FIRST, PeerDirectory
from mictlanfs.client.peers import PeerClient
from mictlanfs.client.retry import NO_RETRY, RetryPolicy
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB, MIB, SMALL_CHUNK_SIZE_BYTES, BucketPolicy, Buffer, Chunk, PeerMap
from tests.support.fakenet import FakeNet
from tests.support.fakepeer import FakePeer

DEADLINE_S = 30.0
SMALL, LARGE = b"small", bytes(range(256)) * 1024
TWO = BucketPolicy(replicas=2)


@dataclass
class Peers:
    """Three peers, a map of them and stores that use both."""

    net: FakeNet = field(default_factory=FakeNet)
    all: list[FakePeer] = field(default_factory=lambda: [FakePeer(n) for n in range(3)])
    map_version: int = 1
    map_fetches: int = 0

    def __post_init__(self) -> None:
        for peer in self.all:
            self.start(peer)

    def start(self, peer: FakePeer) -> None:
        self.net.servers[peer.url] = peer

    def stop(self, peer: FakePeer) -> None:
        self.net.servers.pop(peer.url, None)

    def stop_all(self) -> None:
        for peer in self.all:
            self.stop(peer)

    async def map(self) -> PeerMap:
        self.map_fetches += 1
        return PeerMap(self.map_version, tuple(peer.info() for peer in self.all))

    @asynccontextmanager
    async def store(
        self, fetch_map: Callable[[], Awaitable[PeerMap]] | None = None
    ) -> AsyncIterator[ChunkStore]:
        directory = PeerDirectory(trio.current_time)
        directory.update(await self.map())
        retry = RetryPolicy(deadline_s=DEADLINE_S)
        client = PeerClient(self.net)
        async with open_chunk_store(client, directory, fetch_map or self.map, retry) as store:
            yield store

    def holders(self, chunk: Chunk) -> list[FakePeer]:
        return [peer for peer in self.all if chunk.id in peer.chunks]


@pytest.fixture
def peers() -> Peers:
    return Peers()


async def kind_of_failure(work: Awaitable[object]) -> Kind:
    with pytest.raises(MictlanError) as caught:
        await work
    return caught.value.kind


# --- storing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("replicas", [1, 2, 3])
async def test_a_chunk_is_stored_on_as_many_peers_as_wanted(
    peers: Peers, body: bytes, replicas: int
) -> None:
    async with peers.store() as store:
        chunk = await store.store([body[:3], body[3:]], BucketPolicy(replicas=replicas))
    holders = peers.holders(chunk)
    assert sorted(chunk.peers) == [peer.number for peer in holders]
    assert len(holders) == replicas
    assert {peer.chunks[chunk.id] for peer in holders} == {body}
    assert (chunk.length, chunk.digest) == (len(body), digest_of([body]))


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_a_dead_peer_is_replaced_by_the_next(
    peers: Peers, body: bytes, autojump_clock: MockClock
) -> None:
    peers.stop(peers.all[0])
    async with peers.store() as store:
        for _ in range(10):
            chunk = await store.store([body], TWO)
            assert sorted(chunk.peers) == [1, 2]
    # The dead one was asked once, and then avoided.
    asked = [request for request in peers.net.requests if peers.all[0].url in request.url]
    assert len(asked) <= 1


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_a_full_peer_is_passed_over_and_not_asked_again(peers: Peers, body: bytes) -> None:
    peers.all[1].is_full = True
    async with peers.store() as store:
        for _ in range(10):
            assert sorted((await store.store([body], TWO)).peers) == [0, 2]
    assert len([r for r in peers.net.requests if peers.all[1].url in r.url]) <= 1


async def test_fewer_copies_are_accepted_down_to_the_minimum(
    peers: Peers, autojump_clock: MockClock
) -> None:
    peers.stop(peers.all[0])
    peers.all[1].is_full = True
    async with peers.store() as store:
        assert (await store.store([LARGE], BucketPolicy(replicas=2))).peers == (2,)
        policy = BucketPolicy(replicas=2, replicas_min=2)
        assert await kind_of_failure(store.store([LARGE], policy)) is Kind.UNAVAILABLE


async def test_with_all_peers_full_there_is_no_space(
    peers: Peers, autojump_clock: MockClock
) -> None:
    for peer in peers.all:
        peer.is_full = True
    start = trio.current_time()
    async with peers.store() as store:
        assert await kind_of_failure(store.store([SMALL], TWO)) is Kind.NO_SPACE
        # Now it is known that they are full, and still the answer is the same, and at once.
        assert await kind_of_failure(store.store([SMALL], TWO)) is Kind.NO_SPACE
        assert await kind_of_failure(store.store([LARGE], TWO)) is Kind.NO_SPACE
    assert trio.current_time() - start < 1.0


async def test_a_map_that_says_all_are_full_means_no_space(
    peers: Peers, autojump_clock: MockClock
) -> None:
    directory = PeerDirectory(trio.current_time)
    infos = (msgspec.structs.replace(peer.info(), is_full=True) for peer in peers.all)
    directory.update(PeerMap(1, tuple(infos)))
    start = trio.current_time()
    async with open_chunk_store(
        PeerClient(peers.net), directory, peers.map, RetryPolicy(DEADLINE_S)
    ) as store:
        assert await kind_of_failure(store.store([SMALL], TWO)) is Kind.NO_SPACE
    assert trio.current_time() == start


async def test_with_all_peers_down_a_store_fails_after_the_deadline(
    peers: Peers, autojump_clock: MockClock
) -> None:
    peers.stop_all()
    async with peers.store() as store:
        start = trio.current_time()
        assert await kind_of_failure(store.store([LARGE], TWO)) is Kind.UNAVAILABLE
        assert 0.8 * DEADLINE_S < trio.current_time() - start <= DEADLINE_S
        start = trio.current_time()
        assert await kind_of_failure(store.store([LARGE], TWO, NO_RETRY)) is Kind.UNAVAILABLE
        assert trio.current_time() == start


async def test_a_peer_that_comes_back_in_time_is_used(
    peers: Peers, autojump_clock: MockClock
) -> None:
    peers.stop_all()

    async def come_back() -> None:
        await trio.sleep(10.0)
        peers.start(peers.all[2])

    async with peers.store() as store, trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        assert (await store.store([LARGE], BucketPolicy(replicas=1))).peers == (2,)


async def test_a_newer_map_is_fetched_before_a_chunk_is_placed(peers: Peers) -> None:
    newcomer = FakePeer(7)
    directory = PeerDirectory(trio.current_time)
    directory.update(await peers.map())
    peers.all = [newcomer]
    peers.map_version = 2
    peers.start(newcomer)
    directory.notice_version(2)
    async with open_chunk_store(
        PeerClient(peers.net), directory, peers.map, RetryPolicy()
    ) as store:
        chunk = await store.store([SMALL], BucketPolicy(replicas=1))
        assert chunk.peers == (7,)
        assert bytes(await store.fetch(chunk, 0, len(SMALL))) == SMALL


async def test_peers_that_moved_are_found_while_it_is_tried_again(
    peers: Peers, autojump_clock: MockClock
) -> None:
    async with peers.store() as store:
        chunk = await store.store([LARGE], TWO)
        for peer in peers.all:
            peers.stop(peer)
            peer.url = f"http://moved-{peer.number}:24000"
            peers.start(peer)
        peers.map_version = 2
        # Nothing told the store of a newer map; that nobody answers must be reason to ask.
        assert await store.fetch(chunk, 0, len(LARGE)) == LARGE
        assert len((await store.store([LARGE], TWO)).peers) == 2


async def test_a_router_that_is_away_does_not_keep_chunks_from_peers(
    peers: Peers, autojump_clock: MockClock
) -> None:
    async def no_router() -> PeerMap:
        raise MictlanError(Kind.UNAVAILABLE, "peer map")

    peers.stop(peers.all[0])
    directory = PeerDirectory(trio.current_time)
    directory.update(await peers.map())
    directory.notice_version(99)
    async with open_chunk_store(
        PeerClient(peers.net), directory, no_router, RetryPolicy(DEADLINE_S)
    ) as store:
        chunk = await store.store([LARGE], TWO)
        assert sorted(chunk.peers) == [1, 2]
        assert await store.fetch(chunk, 0, 10) == LARGE[:10]


async def test_small_chunks_that_wait_together_travel_together(
    peers: Peers, autojump_clock: MockClock
) -> None:
    peers.net.latency_s = 0.1
    chunks: list[Chunk] = []

    async def put(store: ChunkStore, n: int) -> None:
        chunks.append(await store.store([b"%d" % n], BucketPolicy(replicas=3)))

    async with peers.store() as store:
        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(put, store, n)
        assert [sum(peer.frame_sizes) for peer in peers.all] == [100] * 3
        assert max(len(peer.frame_sizes) for peer in peers.all) <= 2
        bodies = {bytes(await store.fetch(chunk, 0, chunk.length)) for chunk in chunks}
    assert bodies == {b"%d" % n for n in range(100)}


async def test_a_frame_never_exceeds_the_bounds_of_the_protocol(
    peers: Peers, autojump_clock: MockClock
) -> None:
    peers.net.latency_s = 0.1
    body = bytes(SMALL_CHUNK_SIZE_BYTES - 1)
    async with peers.store() as store, trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(store.store, [body], BucketPolicy(replicas=3))
        for _ in range(600):
            nursery.start_soon(store.store, [b"x"], BucketPolicy(replicas=3))
    for request in peers.net.requests:
        assert len(request.body) <= wire.FRAME_SIZE_BYTES_MAX + wire.FRAME_HEADER_SIZE_BYTES_MAX
    assert max(max(peer.frame_sizes) for peer in peers.all) <= wire.FRAME_CHUNKS_MAX


async def test_one_chunk_that_is_refused_does_not_harm_its_neighbours_in_the_frame(
    peers: Peers, autojump_clock: MockClock
) -> None:
    peers.net.latency_s = 0.1
    kept: list[Chunk] = []
    async with peers.store() as store:
        good = await store.store([b"good"], BucketPolicy(replicas=3))
        bad = await store.store([b"bad"], BucketPolicy(replicas=3))
        for peer in peers.all:
            peer.damage(bad.id)

        async def fetch_bad() -> None:
            assert await kind_of_failure(store.fetch(bad, 0, 3)) is Kind.CORRUPT

        async def fetch_good() -> None:
            assert bytes(await store.fetch(good, 0, 4)) == b"good"
            kept.append(good)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fetch_good)
                nursery.start_soon(fetch_bad)
    assert len(kept) == 3


async def test_many_small_chunks_come_in_a_request_to_each_peer(peers: Peers) -> None:
    async with peers.store() as store:
        chunks = [await store.store([b"%d" % n], TWO) for n in range(20)]
        large = await store.store([LARGE], TWO)
        before = len(peers.net.requests)
        found = await store.fetch_many([*chunks, large])
        assert [None if body is None else bytes(body) for body in found] == [
            *(b"%d" % n for n in range(20)),
            None,
        ]
        assert len(peers.net.requests) - before <= len(peers.all)


async def test_of_many_chunks_those_that_are_damaged_or_out_of_reach_are_left_out(
    peers: Peers,
) -> None:
    async with peers.store() as store:
        good = await store.store([b"good"], BucketPolicy(replicas=3))
        bad = await store.store([b"bad"], BucketPolicy(replicas=3))
        for peer in peers.all:
            peer.damage(bad.id)
        nowhere = Chunk(bad.id, 3, bad.digest, ())
        found = await store.fetch_many([bad, good, nowhere])
        assert [found[0], found[2]] == [None, None]
        assert found[1] is not None
        assert bytes(found[1]) == b"good"


async def test_the_caller_may_hand_over_any_buffers(peers: Peers) -> None:
    async with peers.store() as store:
        for body in (SMALL, LARGE):
            pieces: list[Buffer] = [bytearray(body[:2]), memoryview(body)[2:]]
            chunk = await store.store(pieces, TWO)
            assert bytes(await store.fetch(chunk, 0, chunk.length)) == body


# --- fetching ------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_any_range_can_be_fetched(peers: Peers, body: bytes) -> None:
    async with peers.store() as store:
        chunk = await store.store([body], TWO)
        for start, end in ((0, len(body)), (0, 1), (1, 4), (len(body) - 1, len(body))):
            assert bytes(await store.fetch(chunk, start, end)) == body[start:end]


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (3, 2), (0, 6)])
async def test_a_range_outside_the_chunk_is_a_defect_of_the_caller(
    peers: Peers, start: int, end: int
) -> None:
    async with peers.store() as store:
        chunk = await store.store([SMALL], TWO)
        with pytest.raises(ValueError, match="is not within a chunk of 5 bytes"):
            await store.fetch(chunk, start, end)


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_wrong_bytes_from_one_replica_are_never_returned(
    peers: Peers, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with peers.store() as store:
        chunk = await store.store([body], TWO)
        first = peers.holders(chunk)[0]
        first.damage(chunk.id)
        for _ in range(4):
            assert bytes(await store.fetch(chunk, 0, len(body))) == body


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_a_chunk_of_which_every_copy_is_damaged_is_corrupt_at_once(
    peers: Peers, body: bytes, autojump_clock: MockClock
) -> None:
    async with peers.store() as store:
        chunk = await store.store([body], TWO)
        for peer in peers.holders(chunk):
            peer.damage(chunk.id)
        start = trio.current_time()
        assert await kind_of_failure(store.fetch(chunk, 0, len(body))) is Kind.CORRUPT
    assert trio.current_time() == start


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_a_replica_that_was_lost_is_made_up_for_by_another(peers: Peers, body: bytes) -> None:
    async with peers.store() as store:
        chunk = await store.store([body], TWO)
        lost, kept = peers.holders(chunk)
        del lost.chunks[chunk.id]
        assert bytes(await store.fetch(chunk, 0, len(body))) == body
        del kept.chunks[chunk.id]
        assert await kind_of_failure(store.fetch(chunk, 0, len(body))) is Kind.CORRUPT


async def test_a_dead_peer_costs_a_reader_one_attempt_not_one_per_chunk(
    peers: Peers, autojump_clock: MockClock
) -> None:
    async with peers.store() as store:
        chunks = [await store.store([LARGE], BucketPolicy(replicas=3)) for _ in range(20)]
        peers.stop(peers.all[0])
        peers.net.requests.clear()
        for chunk in chunks:
            assert await store.fetch(chunk, 0, 10) == LARGE[:10]
    assert len([r for r in peers.net.requests if peers.all[0].url in r.url]) <= 1


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_with_all_holders_down_a_fetch_fails_after_the_deadline(
    peers: Peers, body: bytes, autojump_clock: MockClock
) -> None:
    async with peers.store() as store:
        chunk = await store.store([body], TWO)
        peers.stop_all()
        start = trio.current_time()
        assert await kind_of_failure(store.fetch(chunk, 0, len(body))) is Kind.UNAVAILABLE
        assert 0.8 * DEADLINE_S < trio.current_time() - start <= DEADLINE_S


async def test_a_dead_holder_and_a_damaged_copy_are_worth_waiting_for(
    peers: Peers, autojump_clock: MockClock
) -> None:
    async with peers.store() as store:
        chunk = await store.store([LARGE], TWO)
        dead, damaged = peers.holders(chunk)
        damaged.damage(chunk.id)
        peers.stop(dead)

        async def come_back() -> None:
            await trio.sleep(5.0)
            peers.start(dead)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_back)
            assert await store.fetch(chunk, 0, len(LARGE)) == LARGE


async def test_a_peer_that_sends_too_few_bytes_is_not_believed(peers: Peers) -> None:
    async with peers.store() as store:
        chunk = await store.store([LARGE], TWO)
        holder = peers.holders(chunk)[0]
        holder.chunks[chunk.id] = LARGE[:100]
        for _ in range(3):
            assert await store.fetch(chunk, 50, 200) == LARGE[50:200]


async def test_a_chunk_that_no_known_peer_holds_is_unavailable(
    peers: Peers, autojump_clock: MockClock
) -> None:
    async with peers.store() as store:
        chunk = await store.store([SMALL], TWO)
        stray = Chunk(chunk.id, chunk.length, chunk.digest, (FakePeer(99).number,))
        assert await kind_of_failure(store.fetch(stray, 0, 5)) is Kind.UNAVAILABLE


async def test_leaving_the_store_cancels_what_is_under_way(peers: Peers) -> None:
    peers.net.hold(wire.PREFIX)
    with trio.fail_after(5.0):
        with trio.CancelScope() as scope:
            async with peers.store() as store, trio.open_nursery() as nursery:
                nursery.start_soon(store.store, [SMALL], TWO)
                nursery.start_soon(store.store, [bytes(100 * KIB)], TWO)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    assert not any(peer.chunks for peer in peers.all)


async def test_without_any_map_a_router_that_is_away_is_the_error(
    peers: Peers, autojump_clock: MockClock
) -> None:
    async def slow_router() -> PeerMap:
        await trio.sleep_forever()
        raise AssertionError

    directory = PeerDirectory(trio.current_time)
    directory.notice_version(1)
    async with open_chunk_store(
        PeerClient(peers.net), directory, slow_router, RetryPolicy(DEADLINE_S)
    ) as store:
        start = trio.current_time()
        assert await kind_of_failure(store.store([SMALL], TWO)) is Kind.UNAVAILABLE
        assert DEADLINE_S / 2 < trio.current_time() - start < 2 * DEADLINE_S


# --- slow peers ----------------------------------------------------------------------------------

HUGE = bytes(range(256)) * (4 * MIB // 256)


def first_asked(peers: Peers) -> FakePeer:
    """Whom the last request went to."""
    url = peers.net.requests[-1].url
    return next(peer for peer in peers.all if url.startswith(peer.url))


# Parts of large chunks: to verify a whole one takes a thread, while which the clock would jump.
@pytest.mark.parametrize(
    ("body", "first"), [(SMALL, 0), (LARGE, 1), (HUGE, 1)], ids=["small", "large", "huge"]
)
async def test_a_slow_peer_is_raced_and_then_asked_last(
    peers: Peers, body: bytes, first: int, autojump_clock: MockClock
) -> None:
    async with peers.store() as store:
        chunk = await store.store([body], BucketPolicy(replicas=3))

        async def fetched() -> bytes:
            return bytes(await store.fetch(chunk, first, len(body)))

        await fetched()
        slow = first_asked(peers)
        peers.net.delays_s[slow.url] = 15.0
        start = trio.current_time()
        assert await fetched() == body[first:]
        assert trio.current_time() - start < 1.0
        assert store.race_stats().second_won == 1
        start, count = trio.current_time(), len(peers.net.requests)
        for _ in range(20):
            assert await fetched() == body[first:]
        assert trio.current_time() == start
        assert not [r for r in peers.net.requests[count:] if r.url.startswith(slow.url)]


async def test_a_peer_that_was_slow_is_tried_again(peers: Peers, autojump_clock: MockClock) -> None:
    async with peers.store() as store:
        chunk = await store.store([LARGE], BucketPolicy(replicas=3))
        await store.fetch(chunk, 0, 10)
        slow = first_asked(peers)
        peers.net.delays_s[slow.url] = 15.0
        await store.fetch(chunk, 0, 10)
        peers.net.delays_s.clear()
        await trio.sleep(SLOW_S_FIRST)
        await store.fetch(chunk, 0, 10)
        assert first_asked(peers) is slow


async def test_a_peer_that_has_stopped_costs_a_reader_of_many_chunks_one_delay(
    peers: Peers, autojump_clock: MockClock
) -> None:
    async with peers.store() as store:
        chunks = [await store.store([b"%d" % n], BucketPolicy(replicas=3)) for n in range(30)]
        peers.net.hold(peers.all[0].url)
        start = trio.current_time()
        found = await store.fetch_many(chunks)
        for n, (chunk, body) in enumerate(zip(chunks, found, strict=True)):
            got = body if body is not None else await store.fetch(chunk, 0, chunk.length)
            assert bytes(got) == b"%d" % n
        assert trio.current_time() - start < 1.0


@pytest.mark.parametrize("body", [SMALL, HUGE], ids=["small", "huge"])
async def test_chunks_are_placed_elsewhere_while_a_peer_is_slow_to_store(
    peers: Peers, body: bytes, autojump_clock: MockClock
) -> None:
    slow = peers.all[1]
    async with peers.store() as store:
        for _ in range(10):
            await store.store([body], TWO)
        peers.net.delays_s[slow.url] = 10.0
        start = trio.current_time()
        # Until one is met that would go there.
        while trio.current_time() == start:
            chunk = await store.store([body], TWO)
            assert len(chunk.peers) == 2
        # That one is stored elsewhere as well, and does not wait for it.
        assert slow.number not in chunk.peers
        assert trio.current_time() - start < 1.0
        start = trio.current_time()
        for _ in range(10):
            chunk = await store.store([body], TWO)
            assert slow.number not in chunk.peers
            assert len(chunk.peers) == 2
        assert trio.current_time() == start


async def test_a_slow_peer_that_is_first_after_all_counts(
    peers: Peers, autojump_clock: MockClock
) -> None:
    """Both it and the one in its place hold the chunk: it names as many as are wanted."""
    slow, spare = peers.all[0], peers.all[2]
    async with peers.store() as store:
        for _ in range(10):
            await store.store([HUGE], TWO)
        peers.net.delays_s[slow.url], peers.net.delays_s[spare.url] = 1.5, 3.0
        while True:
            start = trio.current_time()
            chunk = await store.store([HUGE], TWO)
            took_s = trio.current_time() - start
            if took_s:
                break
        assert len(chunk.peers) == 2
        assert took_s < 3.0


async def test_a_slow_peer_is_used_when_there_are_no_others(
    peers: Peers, autojump_clock: MockClock
) -> None:
    peers.net.delays_s[peers.all[1].url] = 10.0
    async with peers.store() as store:
        for _ in range(3):
            assert len((await store.store([LARGE], BucketPolicy(replicas=3))).peers) == 3


# --- peers that fail in the middle of a body -----------------------------------------------------


async def test_the_next_peer_goes_on_where_one_failed(peers: Peers) -> None:
    async with peers.store() as store:
        chunk = await store.store([HUGE], BucketPolicy(replicas=3))
        peers.net.cut("/chunks/", 3 * MIB)
        assert await store.fetch(chunk, 0, len(HUGE)) == HUGE
        ranges = [r.headers["range"] for r in peers.net.requests if r.method == "GET"]
        assert ranges == [f"bytes=0-{len(HUGE) - 1}", f"bytes={3 * MIB}-{len(HUGE) - 1}"]


async def test_a_part_of_a_chunk_is_gone_on_with_too(peers: Peers) -> None:
    start, end = MIB, 3 * MIB
    async with peers.store() as store:
        chunk = await store.store([HUGE], BucketPolicy(replicas=3))
        peers.net.cut("/chunks/", MIB + 7)
        assert await store.fetch(chunk, start, end) == HUGE[start:end]
        assert peers.net.requests[-1].headers["range"] == f"bytes={2 * MIB + 7}-{end - 1}"


async def test_what_a_peer_of_wrong_bytes_began_is_fetched_anew(peers: Peers) -> None:
    async with peers.store() as store:
        chunk = await store.store([HUGE], BucketPolicy(replicas=2))
        await store.fetch(chunk, 0, len(HUGE))
        first_asked(peers).damage(chunk.id)
        # It fails after it has sent the byte that is wrong.
        peers.net.cut("/chunks/", MIB)
        assert await store.fetch(chunk, 0, len(HUGE)) == HUGE


async def test_a_little_is_asked_for_again(peers: Peers) -> None:
    size = CONTINUED_SIZE_BYTES_MIN - 1
    async with peers.store() as store:
        chunk = await store.store([HUGE], BucketPolicy(replicas=3))
        peers.net.cut("/chunks/", size // 2)
        assert await store.fetch(chunk, 0, size) == HUGE[:size]
        ranges = [r.headers["range"] for r in peers.net.requests if r.method == "GET"]
        assert ranges == [f"bytes=0-{size - 1}"] * 2
