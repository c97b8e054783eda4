"""Fragments that a peer gets or computes: verified, stored durably."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.fragments import encode, fragment_size
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import KIB, MIB, Buffer, ChunkId, Coding
from mictlanfs.wirefragments import FragmentMade, MakeFragment
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.backends.memory import MemoryBackend
from mictlanfs_server.peer.capacity import Capacity
from mictlanfs_server.peer.index import Index
from mictlanfs_server.peer.rebuilding import Rebuilder
from mictlanfs_server.peer.store import ChunkStore

BODY = Random(1).randbytes(500 * KIB + 1)
ENCODED = encode([BODY], 3, 2)
SIZE = fragment_size(len(BODY), 3)


class Sources:
    """Peers at `http://N`, each with fragment N."""

    def __init__(self) -> None:
        self.held: dict[str, Buffer | Kind] = {
            f"http://{index}": fragment for index, fragment in enumerate(ENCODED.fragments)
        }
        self.asked: list[str] = []

    async def get(
        self, url: str, chunk_id: ChunkId, start: int, end: int, digest: bytes | None = None
    ) -> Buffer:
        assert (start, end) == (0, SIZE)
        index = int(url.removeprefix("http://"))
        assert digest == ENCODED.digests[index * 32 : (index + 1) * 32]
        self.asked.append(url)
        found = self.held[url]
        if isinstance(found, Kind):
            raise MictlanError(found, "get chunk", url)
        return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    index = Index(tmp_path / "index.sqlite", fsync=False)
    capacity = Capacity(256 * MIB, 0, lambda: None, lambda: index.totals.used_bytes)
    opened = ChunkStore(index, MemoryBackend(), capacity)
    yield opened
    opened.close()


@pytest.fixture
def sources() -> Sources:
    return Sources()


def request(index: int, *held: int) -> MakeFragment:
    coding = Coding(3, ENCODED.digests, held)
    urls = tuple(f"http://{n}" for n in held)
    return MakeFragment(new_chunk_id(), len(BODY), coding, urls, index)


def make(store: ChunkStore, sources: Sources, wanted: MakeFragment) -> FragmentMade:
    async def main() -> FragmentMade:
        rebuilder = Rebuilder(store, None)  # type: ignore[arg-type] # its client is replaced
        rebuilder._peers = sources  # type: ignore[assignment] # by one without a network
        return await rebuilder.make(wanted)

    return asyncio.run(main())


def stored(store: ChunkStore, wanted: MakeFragment) -> bytes:
    async def main() -> bytes:
        chunk, body = store.open(wanted.id)
        return bytes(body if body is not None else await store.read(chunk, 0, chunk.length))

    return asyncio.run(main())


@pytest.mark.parametrize("index", range(5))
def test_a_fragment_is_computed_from_any_that_are_enough(
    store: ChunkStore, sources: Sources, index: int
) -> None:
    others = [n for n in range(5) if n != index]
    wanted = request(index, *others[1:])
    assert make(store, sources, wanted) == FragmentMade()
    assert stored(store, wanted) == bytes(ENCODED.fragments[index])
    assert len(sources.asked) == 3
    # A second time it is there.
    assert make(store, sources, wanted) == FragmentMade()
    assert len(sources.asked) == 3


def test_a_fragment_that_another_peer_has_is_fetched(store: ChunkStore, sources: Sources) -> None:
    wanted = request(4, 0, 1, 2, 4)
    assert make(store, sources, wanted) == FragmentMade()
    assert sources.asked == ["http://4"]
    assert stored(store, wanted) == bytes(ENCODED.fragments[4])


def test_sources_that_are_bad_are_named_and_replaced(store: ChunkStore, sources: Sources) -> None:
    sources.held["http://0"] = bytes(SIZE)
    sources.held["http://3"] = Kind.NOT_FOUND
    wanted = request(3, 0, 1, 2, 3, 4)
    assert make(store, sources, wanted) == FragmentMade(None, (0, 3))
    assert stored(store, wanted) == bytes(ENCODED.fragments[3])


def test_too_few_fragments_are_an_error_and_store_nothing(
    store: ChunkStore, sources: Sources
) -> None:
    sources.held["http://1"] = Kind.UNAVAILABLE
    wanted = request(3, 0, 1, 2)
    made = make(store, sources, wanted)
    assert made.error is not None
    assert (made.error.kind, made.bad) == (Kind.UNAVAILABLE.value, ())
    assert store.chunk_count == 0


def test_another_fragment_of_before_gives_way(store: ChunkStore, sources: Sources) -> None:
    wanted = request(3, 0, 1, 2)
    old = StoredChunk(wanted.id, SIZE, ENCODED.digests[4 * 32 :])
    asyncio.run(store.put_many([(old, ENCODED.fragments[4])]))
    assert make(store, sources, wanted) == FragmentMade()
    assert stored(store, wanted) == bytes(ENCODED.fragments[3])


@pytest.mark.parametrize(
    "wanted",
    [
        request(5, 0, 1, 2),
        request(-1, 0, 1, 2),
        request(3, 0, 1, 7),
        MakeFragment(ChunkId(b"x"), 9, Coding(3, ENCODED.digests, ()), (), 0),
        MakeFragment(new_chunk_id(), 0, Coding(3, ENCODED.digests, ()), (), 0),
        MakeFragment(new_chunk_id(), 9, Coding(5, ENCODED.digests, ()), (), 0),
        MakeFragment(new_chunk_id(), 9, Coding(3, ENCODED.digests, (1,)), (), 0),
        MakeFragment(new_chunk_id(), 9, Coding(3, ENCODED.digests, (1,)), ("file:///etc",), 0),
    ],
)
def test_what_cannot_be_made_is_refused(
    store: ChunkStore, sources: Sources, wanted: MakeFragment
) -> None:
    with pytest.raises(MictlanError) as caught:
        make(store, sources, wanted)
    assert caught.value.kind is Kind.INVALID
