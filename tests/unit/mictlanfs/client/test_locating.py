"""Chunks that moved while a client kept their places: found again, and remembered."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import MockClock

from mictlanfs.client import locating
from mictlanfs.client.chunks import ChunkStore, open_chunk_store
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.client.peers import PeerClient
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import BucketPolicy, Chunk, ChunkId, PeerMap
from tests.support.fakenet import FakeNet
from tests.support.fakepeer import FakePeer

SMALL, LARGE = b"small", bytes(range(256)) * 1024
ONCE = BucketPolicy(replicas=1)


class Moving:
    """Four peers, of which a client's map has three at first, and a router that tells of places."""

    def __init__(self) -> None:
        self.net = FakeNet()
        self.peers = [FakePeer(number) for number in range(4)]
        for peer in self.peers:
            self.net.servers[peer.url] = peer
        self.places: dict[ChunkId, Chunk] = {}
        self.asked: list[int] = []
        self.error: MictlanError | None = None
        self.known_count = 3

    async def map(self) -> PeerMap:
        infos = [peer.info() for peer in self.peers[: self.known_count]]
        return PeerMap(self.known_count, tuple(infos))

    async def locate(self, ids: Sequence[ChunkId]) -> Sequence[Chunk | None]:
        self.asked.append(len(ids))
        if self.error is not None:
            raise self.error
        return [self.places.get(chunk_id) for chunk_id in ids]

    def move(self, chunk: Chunk, number: int) -> None:
        """The chunk is on another peer from now on, and nowhere else."""
        bodies = [peer.chunks.pop(chunk.id) for peer in self.peers if chunk.id in peer.chunks]
        self.peers[number].chunks[chunk.id] = bodies[0]
        peers = (self.peers[number].number,)
        self.places[chunk.id] = msgspec.structs.replace(chunk, peers=peers)

    @asynccontextmanager
    async def store(self) -> AsyncIterator[ChunkStore]:
        directory = PeerDirectory(trio.current_time)
        directory.update(await self.map())
        client, retry = PeerClient(self.net), RetryPolicy(deadline_s=10.0)
        async with open_chunk_store(client, directory, self.map, retry, None, self.locate) as store:
            yield store


@pytest.fixture
def moving() -> Moving:
    return Moving()


def other_than(chunk: Chunk) -> int:
    return next(number for number in range(3) if number not in chunk.peers)


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_chunk_that_moved_is_found_and_its_place_remembered(
    moving: Moving, body: bytes
) -> None:
    async with moving.store() as store:
        chunk = await store.store([body], ONCE)
        assert bytes(await store.fetch(chunk, 0, len(body))) == body
        assert moving.asked == []
        moving.move(chunk, other_than(chunk))
        assert bytes(await store.fetch(chunk, 0, len(body))) == body
        assert moving.asked == [1]
        requests = len(moving.net.requests)
        assert bytes(await store.fetch(chunk, 1, 3)) == body[1:3]
        assert moving.asked == [1]
        assert len(moving.net.requests) == requests + 1
        # Several at once know it, too.
        [found] = await store.fetch_many([chunk])
        assert found is None or bytes(found) == body


async def test_chunk_that_moves_again_is_looked_for_again(moving: Moving) -> None:
    async with moving.store() as store:
        chunk = await store.store([LARGE], ONCE)
        for number in (1, 2, 0, 1):
            moving.move(chunk, number)
            assert bytes(await store.fetch(chunk, 0, 9)) == LARGE[:9]


async def test_peer_that_the_map_does_not_know_has_the_map_fetched(moving: Moving) -> None:
    async with moving.store() as store:
        chunk = await store.store([LARGE], ONCE)
        moving.move(chunk, 3)
        moving.known_count = 4
        assert bytes(await store.fetch(chunk, 0, 9)) == LARGE[:9]


async def test_many_chunks_are_looked_for_together(moving: Moving) -> None:
    async with moving.store() as store:
        chunks = [await store.store([LARGE], ONCE) for _ in range(20)]
        for chunk in chunks:
            moving.move(chunk, other_than(chunk))

        async def fetch(chunk: Chunk) -> None:
            assert bytes(await store.fetch(chunk, 0, 9)) == LARGE[:9]

        async with trio.open_nursery() as nursery:
            for chunk in chunks:
                nursery.start_soon(fetch, chunk)
    assert sum(moving.asked) == 20
    assert len(moving.asked) < 20


async def test_first_error_stands_when_there_is_no_telling(
    moving: Moving, autojump_clock: MockClock
) -> None:
    async with moving.store() as store:
        chunk = await store.store([LARGE], ONCE)
        for peer in moving.peers:
            peer.chunks.clear()
        for error in (None, MictlanError(Kind.UNAVAILABLE), MictlanError(Kind.INTERNAL)):
            moving.error = error
            with pytest.raises(MictlanError) as raised:
                await store.fetch(chunk, 0, 9)
            assert raised.value.kind is Kind.CORRUPT
        # The router says what is known already.
        moving.error = None
        moving.places[chunk.id] = chunk
        with pytest.raises(MictlanError):
            await store.fetch(chunk, 0, 9)


async def test_memory_of_places_is_bounded(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locating, "REMEMBERED_COUNT_MAX", 2)
    async with moving.store() as store:
        chunks = [await store.store([LARGE], ONCE) for _ in range(3)]
        for chunk in chunks:
            moving.move(chunk, other_than(chunk))
            await store.fetch(chunk, 0, 9)
        assert len(moving.asked) == 3
        await store.fetch(chunks[2], 0, 9)
        await store.fetch(chunks[1], 0, 9)
        assert len(moving.asked) == 3
        await store.fetch(chunks[0], 0, 9)
        assert len(moving.asked) == 4
