"""Copies between peers: fetched from another peer, verified, stored durably, within bounds."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import KIB, MIB, Buffer, ChunkId
from mictlanfs.wirecopies import PullChunks
from mictlanfs_server.peer import pulling
from mictlanfs_server.peer.backends.memory import MemoryBackend
from mictlanfs_server.peer.capacity import Capacity
from mictlanfs_server.peer.index import Index
from mictlanfs_server.peer.pulling import Puller
from mictlanfs_server.peer.store import ChunkStore

SOURCE = "http://other:24001"


class Source:
    """Another peer: chunks by id, damaged ones, and how many are asked for at the same time."""

    def __init__(self) -> None:
        self.chunks: dict[ChunkId, bytes] = {}
        self.frames: list[int] = []
        self.at_once = self.at_once_max = 0
        self.is_silent = False

    def add(self, *sizes: int) -> list[wire.FrameChunk]:
        found = []
        for size in sizes:
            chunk_id, body = new_chunk_id(), bytes([len(self.chunks) % 251]) * size
            self.chunks[chunk_id] = body
            found.append(wire.FrameChunk(chunk_id, size, digest_of([body])))
        return found

    async def get(self, url: str, chunk_id: ChunkId, start: int, end: int) -> Buffer:
        assert (url, start) == (SOURCE, 0)
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        return self._body(chunk_id)

    async def get_frame(self, url: str, ids: list[ChunkId]) -> list[Buffer | MictlanError]:
        assert url == SOURCE
        self.frames.append(len(ids))
        if self.is_silent:
            raise MictlanError(Kind.UNAVAILABLE)
        found: list[Buffer | MictlanError] = []
        for chunk_id in ids:
            try:
                found.append(self._body(chunk_id))
            except MictlanError as error:
                found.append(error)
        return found

    def _body(self, chunk_id: ChunkId) -> bytes:
        if self.is_silent:
            raise MictlanError(Kind.UNAVAILABLE)
        if chunk_id not in self.chunks:
            raise MictlanError(Kind.NOT_FOUND)
        return self.chunks[chunk_id]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    index = Index(tmp_path / "index.sqlite", fsync=False)
    capacity = Capacity(256 * MIB, 0, lambda: None, lambda: index.totals.used_bytes)
    opened = ChunkStore(index, MemoryBackend(), capacity)
    yield opened
    opened.close()


@pytest.fixture
def source() -> Source:
    return Source()


def pull(store: ChunkStore, source: Source, chunks: list[wire.FrameChunk]) -> list[Kind | None]:
    """What became of each chunk."""

    async def main() -> list[Kind | None]:
        puller = Puller(store, None)  # type: ignore[arg-type] # its client is replaced
        puller._peers = source  # type: ignore[assignment] # by one without a network
        outcomes = await puller.pull(PullChunks(SOURCE, tuple(chunks)))
        return [error.kind if error is not None else None for error in outcomes]

    return asyncio.run(main())


def test_chunks_small_and_large_are_here_afterwards(store: ChunkStore, source: Source) -> None:
    chunks = source.add(10, 200 * KIB, 20, 300 * KIB)
    assert pull(store, source, chunks) == [None] * 4
    assert source.frames == [2]
    for chunk in chunks:
        assert store.find(chunk.id).digest == chunk.digest


def test_chunk_that_is_here_is_not_fetched_again(store: ChunkStore, source: Source) -> None:
    chunks = source.add(10, 200 * KIB)
    pull(store, source, chunks)
    source.is_silent = True
    assert pull(store, source, chunks) == [None, None]


def test_each_chunk_that_fails_says_why_and_the_others_are_stored(
    store: ChunkStore, source: Source
) -> None:
    small, large, bad_small, bad_large, gone_small, gone_large = source.add(
        10, 200 * KIB, 10, 200 * KIB, 10, 200 * KIB
    )
    source.chunks[bad_small.id] = b"x" * 10
    source.chunks[bad_large.id] = b"x" * 200 * KIB
    del source.chunks[gone_small.id], source.chunks[gone_large.id]
    asked = [bad_small, gone_small, small, bad_large, gone_large, large]
    assert pull(store, source, asked) == [
        Kind.CORRUPT,
        Kind.NOT_FOUND,
        None,
        Kind.CORRUPT,
        Kind.NOT_FOUND,
        None,
    ]
    assert store.chunk_count == 2


def test_source_that_does_not_answer_is_the_reason_of_all(
    store: ChunkStore, source: Source
) -> None:
    chunks = source.add(10, 200 * KIB)
    source.is_silent = True
    assert pull(store, source, chunks) == [Kind.UNAVAILABLE] * 2


def test_id_with_other_bytes_is_a_conflict(store: ChunkStore, source: Source) -> None:
    [chunk] = source.add(10)
    pull(store, source, [chunk])
    other = wire.FrameChunk(chunk.id, 10, b"o" * 32)
    assert pull(store, source, [other]) == [Kind.CONFLICT]


def test_large_chunks_come_two_at_a_time_and_small_ones_by_frames(
    store: ChunkStore, source: Source
) -> None:
    assert pull(store, source, source.add(*[100 * KIB] * 10)) == [None] * 10
    assert source.at_once_max == pulling.LARGE_AT_ONCE
    assert pull(store, source, source.add(*[60 * KIB] * 200)) == [None] * 200
    assert [*map(bool, source.frames)] == [True, True]
    assert sum(source.frames) == 200


@pytest.mark.parametrize(
    "change",
    [
        lambda request: PullChunks("ftp://other", request.chunks),
        lambda request: PullChunks("http://" + "x" * 3000, request.chunks),
        lambda request: PullChunks(SOURCE, ()),
        lambda request: PullChunks(SOURCE, request.chunks * 257),
        lambda request: PullChunks(
            SOURCE, tuple(wire.FrameChunk(new_chunk_id(), 12 * MIB, b"d" * 32) for _ in range(3))
        ),
        lambda request: PullChunks(SOURCE, (wire.FrameChunk(new_chunk_id(), 0, b"d" * 32),)),
    ],
)
def test_what_cannot_be_pulled_is_invalid(
    source: Source, change: Callable[[PullChunks], PullChunks]
) -> None:
    request = PullChunks(SOURCE, tuple(source.add(10)))
    with pytest.raises(MictlanError) as raised:
        pulling.check_pull(change(request))
    assert raised.value.kind is Kind.INVALID
