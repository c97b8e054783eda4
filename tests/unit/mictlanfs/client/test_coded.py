"""Coded chunks through the chunk store, on peers in memory."""

from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from itertools import combinations
from random import Random

import pytest
import trio
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.client.chunks import ChunkStore, open_chunk_store
from mictlanfs.client.coded import SHORTAGE_S, STRAGGLER_S
from mictlanfs.client.gathering import HEDGE_S
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.client.peers import PeerClient
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.fragments import fragment_size
from mictlanfs.model import KIB, BucketPolicy, Chunk, PeerMap
from mictlanfs.protection import coded
from tests.support.fakenet import FakeNet, Request
from tests.support.fakepeer import FakePeer

POLICY = coded(3, 2).applied(BucketPolicy())
# No multiple of three, so that the last fragment is filled up; fragments are files at a peer.
BODY = Random(7).randbytes(300 * KIB + 1)
SIZE = fragment_size(len(BODY), 3)
# Fragments of less than 64 KiB travel and lie as small chunks do.
SHORT_BODY = BODY[: 100 * KIB]


class Peers:
    """Peers 1 to 5, numbered as a router does."""

    def __init__(self, count: int = 5) -> None:
        self.net = FakeNet()
        self.all = {number: FakePeer(number) for number in range(1, count + 1)}
        for peer in self.all.values():
            self.net.servers[peer.url] = peer

    async def map(self) -> PeerMap:
        return PeerMap(1, tuple(peer.info() for peer in self.all.values()))

    def stop(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.net.servers.pop(self.all[number].url)

    def hang(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.net.hold(self.all[number].url)

    @asynccontextmanager
    async def store(self) -> AsyncIterator[ChunkStore]:
        directory = PeerDirectory(trio.current_time)
        directory.update(await self.map())
        client = PeerClient(self.net)
        async with open_chunk_store(client, directory, self.map, RetryPolicy(5.0)) as store:
            yield store

    def gets(self) -> list[Request]:
        return [
            request
            for request in self.net.requests
            if request.method == "GET" or request.path == wire.Path.FRAME_GET
        ]


@pytest.fixture
def peers() -> Peers:
    return Peers()


async def kind_of_failure(work: Awaitable[object]) -> Kind:
    with pytest.raises(MictlanError) as caught:
        await work
    return caught.value.kind


def peer_of(chunk: Chunk, index: int) -> int:
    """The peer that holds a fragment."""
    assert chunk.coding is not None
    return chunk.peers[chunk.coding.indices.index(index)]


# --- storing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [BODY, SHORT_BODY], ids=["files", "small"])
async def test_each_fragment_lies_on_a_peer_of_its_own(peers: Peers, body: bytes) -> None:
    async with peers.store() as store:
        chunk = await store.store([body[:1000], body[1000:]], POLICY)
    assert chunk.coding is not None
    assert (chunk.length, chunk.digest) == (len(body), digest_of([body]))
    assert (chunk.coding.data, chunk.coding.indices) == (3, (0, 1, 2, 3, 4))
    assert sorted(chunk.peers) == [1, 2, 3, 4, 5]
    size = fragment_size(len(body), 3)
    for index in range(3):
        held = peers.all[peer_of(chunk, index)].chunks[chunk.id]
        assert held.rstrip(b"\0") == body[index * size : (index + 1) * size].rstrip(b"\0")
    for index in range(5):
        held = peers.all[peer_of(chunk, index)].chunks[chunk.id]
        assert len(held) == size
        assert digest_of([held]) == chunk.coding.digest(index)


async def test_a_small_chunk_is_copied_as_often_as_losses_are_survived(peers: Peers) -> None:
    async with peers.store() as store:
        chunk = await store.store([b"small"], POLICY)
    assert chunk.coding is None
    assert len(chunk.peers) == 3


async def test_one_fragment_may_be_missing_and_is_not_named(
    peers: Peers, autojump_clock: MockClock
) -> None:
    peers.stop([2])
    async with peers.store() as store:
        chunk = await store.store([BODY], POLICY)
        assert chunk.coding is not None
        assert len(chunk.coding.indices) == 4
        assert 2 not in chunk.peers
        assert await store.fetch(chunk, 0, len(BODY)) == BODY


@pytest.mark.parametrize("lost", [[1, 2], [3, 5]])
async def test_with_too_few_peers_for_a_code_there_are_copies(
    peers: Peers, lost: list[int], autojump_clock: MockClock
) -> None:
    peers.stop(lost)
    async with peers.store() as store:
        for _ in range(3):
            chunk = await store.store([BODY], POLICY)
            assert chunk.coding is None
            assert sorted(chunk.peers) == sorted({1, 2, 3, 4, 5} - set(lost))
            assert await store.fetch(chunk, 0, len(BODY)) == BODY


async def test_a_space_with_few_peers_does_not_even_try_a_code() -> None:
    peers = Peers(count=3)
    async with peers.store() as store:
        chunk = await store.store([BODY], POLICY)
    assert (chunk.coding, sorted(chunk.peers)) == (None, [1, 2, 3])
    assert len(peers.net.requests) == 3


async def test_a_peer_that_hangs_holds_up_a_write_for_a_moment_only(
    peers: Peers, autojump_clock: MockClock
) -> None:
    peers.hang([4])
    async with peers.store() as store:
        start_s = trio.current_time()
        first = await store.store([BODY], POLICY)
        assert trio.current_time() - start_s == pytest.approx(STRAGGLER_S, abs=0.1)
        assert 4 not in first.peers
        # It comes last now, and there are only five.
        peers.hang([5])
        start_s = trio.current_time()
        second = await store.store([BODY], POLICY)
    assert second.coding is None
    assert sorted(second.peers) == [1, 2, 3]
    assert trio.current_time() - start_s < 2 * SHORTAGE_S


async def test_a_spare_peer_takes_the_fragment_of_a_dead_one(autojump_clock: MockClock) -> None:
    peers = Peers(count=7)
    peers.stop([1, 2])
    async with peers.store() as store:
        for _ in range(5):
            chunk = await store.store([BODY], POLICY)
            assert chunk.coding is not None
            assert sorted(chunk.peers) == [3, 4, 5, 6, 7]
            assert chunk.coding.indices == (0, 1, 2, 3, 4)


async def test_zones_share_the_fragments_evenly() -> None:
    peers = Peers(count=9)
    for number, peer in peers.all.items():
        peer.zone = f"zone-{number % 3}"
    async with peers.store() as store:
        for _ in range(10):
            chunk = await store.store([BODY], POLICY)
            zones = [peers.all[number].zone for number in chunk.peers]
            assert max(zones.count(zone) for zone in zones) == 2


# --- fetching ------------------------------------------------------------------------------------

RANGES = [
    (0, len(BODY)),
    (0, 1),
    (SIZE - 1, SIZE + 1),
    (10, len(BODY) - 10),
    (2 * SIZE, 3 * SIZE - 5),
    (len(BODY) - 1, len(BODY)),
]


@pytest.mark.parametrize("lost", [(), *combinations(range(5), 2)], ids=str)
async def test_any_two_peers_may_be_gone(
    peers: Peers, lost: tuple[int, ...], autojump_clock: MockClock
) -> None:
    async with peers.store() as store:
        chunk = await store.store([BODY], POLICY)
        peers.stop([peer_of(chunk, index) for index in lost])
        for start, end in RANGES:
            assert await store.fetch(chunk, start, end) == BODY[start:end]


async def test_three_of_five_gone_are_an_error(peers: Peers, autojump_clock: MockClock) -> None:
    async with peers.store() as store:
        chunk = await store.store([BODY], POLICY)
        peers.stop([1, 3, 5])
        assert await kind_of_failure(store.fetch(chunk, 0, len(BODY))) is Kind.UNAVAILABLE
        for peer in peers.all.values():
            peer.chunks.clear()
            peer.digests.clear()
            peers.net.servers[peer.url] = peer
        assert await kind_of_failure(store.fetch(chunk, 5, 9)) is Kind.CORRUPT


async def test_a_short_read_asks_one_peer_for_no_more_than_the_bytes(peers: Peers) -> None:
    async with peers.store() as store:
        chunk = await store.store([BODY], POLICY)
        assert await store.fetch(chunk, SIZE + 100, SIZE + 200) == BODY[SIZE + 100 : SIZE + 200]
    [request] = peers.gets()
    assert request.url.startswith(peers.all[peer_of(chunk, 1)].url)
    assert request.headers["range"] == "bytes=100-199"


async def test_a_whole_read_of_healthy_peers_asks_for_the_data_and_no_parity(
    peers: Peers,
) -> None:
    async with peers.store() as store:
        chunk = await store.store([BODY], POLICY)
        assert await store.fetch(chunk, 0, len(BODY)) == BODY
    asked = {request.url.partition("/mictlanfs")[0] for request in peers.gets()}
    assert asked == {peers.all[peer_of(chunk, index)].url for index in range(3)}


async def test_damaged_fragments_are_never_returned(peers: Peers) -> None:
    async with peers.store() as store:
        chunk = await store.store([BODY], POLICY)
        for index in (0, 2):
            peers.all[peer_of(chunk, index)].damage(chunk.id)
        assert await store.fetch(chunk, 0, len(BODY)) == BODY
        peers.all[peer_of(chunk, 4)].damage(chunk.id)
        assert await kind_of_failure(store.fetch(chunk, 0, len(BODY))) is Kind.CORRUPT


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "part"])
async def test_a_slow_peer_is_outrun_and_then_left_alone(
    peers: Peers, whole: bool, autojump_clock: MockClock
) -> None:
    start, end = (0, len(BODY)) if whole else (SIZE + 5, SIZE + 50)
    async with peers.store() as store:
        chunk = await store.store([BODY], POLICY)
        peers.hang([peer_of(chunk, 1)])
        start_s = trio.current_time()
        assert await store.fetch(chunk, start, end) == BODY[start:end]
        assert trio.current_time() - start_s == pytest.approx(HEDGE_S, abs=0.01)
        start_s = trio.current_time()
        assert await store.fetch(chunk, start, end) == BODY[start:end]
        assert trio.current_time() == start_s


async def test_a_peer_that_has_another_fragment_by_now_is_not_believed(peers: Peers) -> None:
    async with peers.store() as store:
        chunk = await store.store([BODY], POLICY)
        first, second = (peers.all[peer_of(chunk, index)] for index in (0, 1))
        first.chunks[chunk.id] = second.chunks[chunk.id]
        first.digests[chunk.id] = second.digests[chunk.id]
        assert await store.fetch(chunk, 0, 100) == BODY[:100]


async def test_small_chunks_fetched_together_leave_coded_ones_out(peers: Peers) -> None:
    async with peers.store() as store:
        coded_one = await store.store([SHORT_BODY], POLICY)
        small = await store.store([b"small"], POLICY)
        assert await store.fetch_many([coded_one, small]) == [None, b"small"]
