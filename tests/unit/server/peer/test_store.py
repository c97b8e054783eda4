import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mictlanfs.blocksums import BlockSummer
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import MIB, Buffer
from mictlanfs_server.peer.backends.base import Backend, StoredChunk
from mictlanfs_server.peer.backends.memory import MemoryBackend
from mictlanfs_server.peer.capacity import Capacity
from mictlanfs_server.peer.index import Index
from mictlanfs_server.peer.store import ChunkStore
from tests.unit.server.peer.making import (
    LARGE,
    files_below,
    make_chunk,
    on_asyncio,
    open_store,
    pieces_of,
    unreadable,
)

SMALL = 1000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    with open_store(tmp_path) as opened:
        yield opened


@contextmanager
def store_over(backend: Backend, folder: Path, fsync: bool = False) -> Iterator[ChunkStore]:
    index = Index(folder / "index.sqlite", fsync=fsync)
    limits = Capacity(64 * MIB, 0, lambda: None, lambda: index.totals.used_bytes)
    opened = ChunkStore(index, backend, limits)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def raises(kind: Kind) -> Iterator[MictlanError]:
    with pytest.raises(MictlanError) as caught:
        yield caught  # type: ignore[misc]  # the value is read after the block
    assert caught.value.kind is kind


async def read(store: ChunkStore, chunk: StoredChunk) -> bytes:
    found, body = store.open(chunk.id)
    if body is not None:
        return body
    return bytes(await store.read(found, 0, found.length))


def kinds(results: list[MictlanError | None]) -> list[Kind | None]:
    return [None if error is None else error.kind for error in results]


class SlowBackend(MemoryBackend):
    """Waits before it publishes or deletes, until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self.fails_to_delete = False

    async def delete(self, chunk: StoredChunk) -> None:
        await self.wait()
        if self.fails_to_delete:
            raise MictlanError(Kind.INTERNAL, "delete chunk")
        await super().delete(chunk)

    async def wait(self) -> None:
        self.reached.set()
        await self.go_on.wait()

    def put(self, chunk: StoredChunk, body: bytes) -> None:
        self.reached.set()
        super().put(chunk, body)


@pytest.mark.parametrize("length", [1, SMALL, LARGE - 1, LARGE, 3 * MIB])
@on_asyncio
async def test_a_chunk_is_read_as_it_was_put(store: ChunkStore, length: int) -> None:
    chunk, body = make_chunk(length)
    assert await store.put(chunk, pieces_of(body)) is True
    assert await read(store, chunk) == body
    assert store.find(chunk.id).digest == chunk.digest
    assert (store.chunk_count, store.used_bytes) == (1, length)


@on_asyncio
async def test_small_chunks_make_no_files(store: ChunkStore, tmp_path: Path) -> None:
    before = files_below(tmp_path)
    chunk, body = make_chunk(LARGE - 1)
    await store.put(chunk, pieces_of(body))
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("length", [SMALL, LARGE])
@on_asyncio
async def test_a_chunk_that_is_there_is_not_read_again(store: ChunkStore, length: int) -> None:
    chunk, body = make_chunk(length)
    await store.put(chunk, pieces_of(body))
    assert await store.put(chunk, unreadable()) is False
    assert (store.chunk_count, store.used_bytes) == (1, length)


@pytest.mark.parametrize("length", [SMALL, LARGE])
@pytest.mark.parametrize("other_length", [SMALL, LARGE])
@on_asyncio
async def test_an_id_with_other_bytes_is_a_conflict(
    store: ChunkStore, length: int, other_length: int
) -> None:
    chunk, body = make_chunk(length)
    other, _ = make_chunk(other_length, seed=1, chunk_id=chunk.id)
    await store.put(chunk, pieces_of(body))
    with raises(Kind.CONFLICT):
        await store.put(other, unreadable())
    assert await read(store, chunk) == body


@on_asyncio
async def test_an_id_that_is_being_written_is_a_conflict_for_other_bytes(
    store: ChunkStore,
) -> None:
    chunk, body = make_chunk(LARGE)
    other, _ = make_chunk(LARGE, seed=1, chunk_id=chunk.id)
    half, rest = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:10]
        half.set()
        await rest.wait()
        yield body[10:]

    put = asyncio.create_task(store.put(chunk, pieces()))
    await half.wait()
    with raises(Kind.CONFLICT):
        await store.put(other, unreadable())
    rest.set()
    assert await put is True


@pytest.mark.parametrize("length", [SMALL, LARGE, 2 * MIB])
@on_asyncio
async def test_a_retry_does_not_wait_for_an_attempt_that_hangs(
    store: ChunkStore, length: int
) -> None:
    chunk, body = make_chunk(length)
    half = asyncio.Event()

    async def hanging() -> AsyncIterator[bytes]:
        yield body[:10]
        half.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(store.put(chunk, hanging()))
    await half.wait()
    assert await store.put(chunk, pieces_of(body)) is True
    first.cancel()
    await asyncio.wait([first])
    assert await read(store, chunk) == body
    assert (store.chunk_count, store.used_bytes) == (1, length)


@pytest.mark.parametrize("length", [SMALL, LARGE])
@on_asyncio
async def test_equal_puts_at_a_time_count_once(store: ChunkStore, length: int) -> None:
    chunk, body = make_chunk(length)
    results = await asyncio.gather(*[store.put(chunk, pieces_of(body)) for _ in range(5)])
    assert results.count(True) == 1
    assert (store.chunk_count, store.used_bytes) == (1, length)


@pytest.mark.parametrize(("length", "kind"), [(0, Kind.INVALID), (16 * MIB + 1, Kind.TOO_LARGE)])
@on_asyncio
async def test_lengths_out_of_bounds_are_refused(
    store: ChunkStore, length: int, kind: Kind
) -> None:
    chunk = StoredChunk(new_chunk_id(), length, bytes(32))
    with raises(kind):
        await store.put(chunk, unreadable())
    assert kinds(await store.put_many([(chunk, b"")])) == [kind]


@pytest.mark.parametrize("length", [SMALL, LARGE, 3 * MIB])
@pytest.mark.parametrize(
    "spoil",
    [lambda body: body[:-1], lambda body: body + b"x", lambda body: body[:-1] + b"\0\0"[:1]],
    ids=["short", "long", "other"],
)
@on_asyncio
async def test_wrong_bytes_are_refused_and_leave_nothing(
    store: ChunkStore, tmp_path: Path, length: int, spoil: Callable[[bytes], bytes]
) -> None:
    before = files_below(tmp_path)
    chunk, body = make_chunk(length, seed=3)
    with raises(Kind.CORRUPT):
        await store.put(chunk, pieces_of(spoil(body)))
    assert kinds(await store.put_many([(chunk, spoil(body))])) == [Kind.CORRUPT]
    assert files_below(tmp_path) == before
    assert (store.chunk_count, store.used_bytes) == (0, 0)
    assert await store.put(chunk, pieces_of(body)) is True


@on_asyncio
async def test_a_full_peer_refuses_and_counts_exactly(tmp_path: Path) -> None:
    with open_store(tmp_path, capacity=3 * LARGE) as store:
        for number in range(3):
            chunk, body = make_chunk(LARGE, number)
            await store.put(chunk, pieces_of(body))
        last, _ = make_chunk(LARGE, 9)
        with raises(Kind.NO_SPACE):
            await store.put(last, unreadable())
        with raises(Kind.NO_SPACE):
            await store.put(make_chunk(1)[0], unreadable())
        assert store.used_bytes == 3 * LARGE
        assert store.is_full
        # What it has already is no new chunk.
        assert await store.put(chunk, unreadable()) is False


@on_asyncio
async def test_uploads_on_their_way_count_against_the_capacity(tmp_path: Path) -> None:
    with open_store(tmp_path, capacity=LARGE + 10) as store:
        chunk, body = make_chunk(LARGE)
        half, rest = asyncio.Event(), asyncio.Event()

        async def pieces() -> AsyncIterator[bytes]:
            half.set()
            await rest.wait()
            yield body

        put = asyncio.create_task(store.put(chunk, pieces()))
        await half.wait()
        with raises(Kind.NO_SPACE):
            await store.put(make_chunk(11)[0], unreadable())
        rest.set()
        await put
        assert await store.put(make_chunk(10)[0], pieces_of(make_chunk(10)[1])) is True


@on_asyncio
async def test_a_refused_upload_gives_its_space_back(tmp_path: Path) -> None:
    with open_store(tmp_path, capacity=LARGE) as store:
        chunk, body = make_chunk(LARGE)
        with raises(Kind.CORRUPT):
            await store.put(chunk, pieces_of(body[1:]))
        assert await store.put(chunk, pieces_of(body)) is True


@on_asyncio
async def test_many_small_chunks_are_put_and_read_together(store: ChunkStore) -> None:
    chunks = [make_chunk(100 + n, n) for n in range(50)]
    chunks.append(make_chunk(LARGE + 5, 99))
    assert await store.put_many(chunks) == [None] * 51
    found = await store.read_many([chunk.id for chunk, _ in chunks], 8 * MIB)
    assert [bytes(body) for body in found if not isinstance(body, MictlanError)] == [
        body for _, body in chunks
    ]
    assert (store.chunk_count, store.used_bytes) == (51, sum(c.length for c, _ in chunks))


@on_asyncio
async def test_one_bad_chunk_does_not_spoil_its_neighbours(store: ChunkStore) -> None:
    good, body = make_chunk(100)
    bad, _ = make_chunk(100, seed=1)
    other, _ = make_chunk(100, seed=2, chunk_id=good.id)
    later, later_body = make_chunk(50, seed=3)
    await store.put_many([(later, later_body)])
    chunks: list[tuple[StoredChunk, Buffer]] = [
        (good, body),
        (bad, body),
        (other, make_chunk(100, seed=2)[1]),
        (later, later_body),
    ]
    assert kinds(await store.put_many(chunks)) == [None, Kind.CORRUPT, Kind.CONFLICT, None]
    assert await read(store, good) == body


@on_asyncio
async def test_many_chunks_that_do_not_fit_are_refused_but_for_those_that_are_there(
    tmp_path: Path,
) -> None:
    with open_store(tmp_path, capacity=100) as store:
        there, body = make_chunk(60)
        await store.put_many([(there, body)])
        results = await store.put_many([(there, body), make_chunk(50, seed=1)])
        assert kinds(results) == [None, Kind.NO_SPACE]


@on_asyncio
async def test_what_is_not_there_is_not_found(store: ChunkStore) -> None:
    missing = new_chunk_id()
    with raises(Kind.NOT_FOUND):
        store.find(missing)
    with raises(Kind.NOT_FOUND):
        store.open(missing)
    [error] = await store.read_many([missing], MIB)
    assert isinstance(error, MictlanError)
    assert error.kind is Kind.NOT_FOUND


@on_asyncio
async def test_reading_many_stops_at_the_size_of_a_frame(store: ChunkStore) -> None:
    chunks = [make_chunk(400, n) for n in range(3)]
    await store.put_many(chunks)
    found = await store.read_many([chunk.id for chunk, _ in chunks], 1000)
    assert [isinstance(item, MictlanError) for item in found] == [False, False, True]
    assert isinstance(found[2], MictlanError)
    assert found[2].kind is Kind.TOO_LARGE


@on_asyncio
async def test_a_file_that_is_gone_is_corrupt_while_the_index_has_it(
    store: ChunkStore, tmp_path: Path
) -> None:
    chunk, body = make_chunk(LARGE)
    await store.put(chunk, pieces_of(body))
    next(path for path in files_below(tmp_path) if chunk.id.hex() in path.name).unlink()
    with raises(Kind.CORRUPT):
        await read(store, chunk)


@on_asyncio
async def test_a_chunk_deleted_before_its_read_is_not_found(store: ChunkStore) -> None:
    chunk, body = make_chunk(LARGE)
    await store.put(chunk, pieces_of(body))
    found, _ = store.open(chunk.id)
    await store.delete([chunk.id])
    with raises(Kind.NOT_FOUND):
        await store.read(found, 0, 10)


@on_asyncio
async def test_deleted_chunks_are_gone_with_their_files(store: ChunkStore, tmp_path: Path) -> None:
    before = files_below(tmp_path)
    chunks = [make_chunk(length, length) for length in (SMALL, LARGE, MIB)]
    for chunk, body in chunks:
        await store.put(chunk, pieces_of(body))
    ids = [chunk.id for chunk, _ in chunks]
    assert await store.delete([*ids, new_chunk_id(), ids[0]]) == [None] * 5
    assert files_below(tmp_path) == before
    assert (store.chunk_count, store.used_bytes) == (0, 0)
    assert await store.delete(ids) == [None] * 3


@on_asyncio
async def test_a_deleted_chunk_can_be_put_again(store: ChunkStore) -> None:
    for chunk, body in (make_chunk(SMALL), make_chunk(LARGE)):
        await store.put(chunk, pieces_of(body))
        await store.delete([chunk.id])
        assert await store.put(chunk, pieces_of(body)) is True
        assert await read(store, chunk) == body


@on_asyncio
async def test_a_chunk_that_is_being_written_is_not_deleted(store: ChunkStore) -> None:
    chunk, body = make_chunk(LARGE)
    bystander, bystander_body = make_chunk(LARGE, seed=1)
    await store.put(bystander, pieces_of(bystander_body))
    half, rest = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        half.set()
        await rest.wait()
        yield body

    put = asyncio.create_task(store.put(chunk, pieces()))
    await half.wait()
    results = await store.delete([chunk.id, bystander.id])
    assert kinds(results) == [Kind.UNAVAILABLE, None]
    rest.set()
    await put
    assert await read(store, chunk) == body


@on_asyncio
async def test_a_chunk_that_is_being_deleted_is_not_acknowledged(tmp_path: Path) -> None:
    backend = SlowBackend()
    with store_over(backend, tmp_path) as store:
        chunk, body = make_chunk(LARGE)
        await store.put(chunk, pieces_of(body))
        backend.reached.clear()
        deletion = asyncio.create_task(store.delete([chunk.id]))
        await backend.reached.wait()
        with raises(Kind.UNAVAILABLE):
            await store.put(chunk, unreadable())
        backend.go_on.set()
        await deletion
        assert await store.put(chunk, pieces_of(body)) is True


@on_asyncio
async def test_a_delete_that_the_back_end_refuses_is_an_error(tmp_path: Path) -> None:
    backend = SlowBackend()
    backend.go_on.set()
    backend.fails_to_delete = True
    with store_over(backend, tmp_path) as store:
        chunk, body = make_chunk(LARGE)
        small, small_body = make_chunk(SMALL)
        await store.put(chunk, pieces_of(body))
        await store.put(small, pieces_of(small_body))
        assert kinds(await store.delete([chunk.id, small.id])) == [Kind.INTERNAL, None]
        with raises(Kind.NOT_FOUND):
            store.find(chunk.id)


@on_asyncio
async def test_a_put_cancelled_at_any_step_is_whole_or_not_there(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        before = files_below(tmp_path)
        for steps in range(40):
            chunk, body = make_chunk(2 * MIB if steps % 2 else SMALL, steps)
            put = asyncio.create_task(store.put(chunk, pieces_of(body, MIB // 2)))
            for _ in range(steps):
                await asyncio.sleep(0 if steps < 20 else 0.0005)
            put.cancel()
            await asyncio.wait([put])
            while store._unbroken:
                await asyncio.wait(store._unbroken)
            # Whatever was left to the index's thread comes before this.
            await store.delete([new_chunk_id()])
            if store.chunk_count:
                assert await read(store, chunk) == body
            else:
                assert files_below(tmp_path) == before
            await store.delete([chunk.id])
            assert (store.chunk_count, store.used_bytes) == (0, 0)
            assert store.uploads.taken == 0
        assert files_below(tmp_path) == before


@on_asyncio
async def test_uploads_share_a_bounded_memory(tmp_path: Path) -> None:
    with open_store(tmp_path, capacity=1024 * MIB) as store:
        most = 0

        async def put(number: int) -> None:
            nonlocal most
            chunk, body = make_chunk(3 * MIB, number % 3)

            async def pieces() -> AsyncIterator[bytes]:
                nonlocal most
                for start in range(0, len(body), MIB):
                    most = max(most, store.uploads.taken)
                    await asyncio.sleep(0)
                    yield body[start : start + MIB]

            await store.put(chunk, pieces())

        await asyncio.gather(*[put(number) for number in range(50)])
        assert 0 < most <= 64 * MIB
        assert store.uploads.taken == 0
        assert (store.chunk_count, store.used_bytes) == (50, 150 * MIB)


@on_asyncio
async def test_closing_lets_a_publication_come_to_its_end(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        chunk, body = make_chunk(LARGE)
        put = asyncio.create_task(store.put(chunk, pieces_of(body)))
        while not store._unbroken:  # noqa: ASYNC110 - the store tells nobody when it publishes.
            await asyncio.sleep(0)
        put.cancel()
        await store.aclose()
    with open_store(tmp_path) as store:
        assert await read(store, chunk) == body


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_order_of_calls_ends_as_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    draw = random.Random(seed)
    chunks = [make_chunk(length, n) for n, length in enumerate([1, SMALL, LARGE, LARGE + 1])]
    folder = tmp_path_factory.mktemp("store")

    async def play(store: ChunkStore) -> None:
        held: set[int] = set()
        for _ in range(30):
            number = draw.randrange(len(chunks))
            chunk, body = chunks[number]
            verb = draw.choice(["put", "put many", "delete", "read"])
            if verb == "put":
                assert await store.put(chunk, pieces_of(body)) is (number not in held)
                held.add(number)
            elif verb == "put many":
                assert await store.put_many([(chunk, body)]) == [None]
                held.add(number)
            elif verb == "delete":
                assert await store.delete([chunk.id]) == [None]
                held.discard(number)
            elif number in held:
                assert await read(store, chunk) == body
            else:
                with raises(Kind.NOT_FOUND):
                    await read(store, chunk)
            assert store.used_bytes == sum(chunks[n][0].length for n in held)
            assert store.chunk_count == len(held)

    with store_over(MemoryBackend(), folder) as store:
        asyncio.run(play(store))


@on_asyncio
async def test_a_file_is_opened_with_its_sums(store: ChunkStore) -> None:
    chunk, body = make_chunk(LARGE + 1)
    small, small_body = make_chunk(SMALL)
    await store.put(chunk, pieces_of(body))
    await store.put(small, pieces_of(small_body))
    summer = BlockSummer()
    summer.update(body)
    opened = store.open_file(chunk.id)
    assert opened is not None
    descriptor, sums = opened
    with open(descriptor, "rb") as file:
        assert file.read() == body
    assert sums == summer.sums()
    assert store.open_file(small.id) is None
    assert store.open_file(new_chunk_id()) is None
    await store.delete([chunk.id])
    assert store.open_file(chunk.id) is None


@on_asyncio
async def test_an_index_that_fails_leaves_no_descriptor(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> bytes:
        raise MictlanError(Kind.INTERNAL, "find checksums")

    chunk, body = make_chunk(LARGE)
    await store.put(chunk, pieces_of(body))
    monkeypatch.setattr(Index, "sums", lambda _, chunk_id: fail(chunk_id))
    before = os.listdir("/proc/self/fd")
    with raises(Kind.INTERNAL):
        store.open_file(chunk.id)
    assert os.listdir("/proc/self/fd") == before


# --- chunks that others write ---


@on_asyncio
async def test_a_chunk_that_another_writes_is_durable_and_known(
    store: ChunkStore, tmp_path: Path
) -> None:
    chunk, body = make_chunk(LARGE)

    async def give(descriptor: int) -> None:
        os.write(descriptor, body)

    assert await store.put_file(chunk, give)
    assert await read(store, chunk) == body
    assert store.used_bytes == LARGE
    # Who asks again has nothing to write.
    assert not await store.put_file(chunk, never)


async def never(_: int) -> None:
    raise AssertionError("a descriptor was given")


@on_asyncio
async def test_a_small_chunk_is_not_written_by_others(store: ChunkStore) -> None:
    chunk, _ = make_chunk(LARGE - 1)
    with raises(Kind.UNSUPPORTED):
        await store.put_file(chunk, never)


@on_asyncio
async def test_no_file_is_given_for_what_does_not_fit(store: ChunkStore, tmp_path: Path) -> None:
    chunk = StoredChunk(new_chunk_id(), 64 * MIB + 1, bytes(32))
    with raises(Kind.TOO_LARGE):
        await store.put_file(chunk, never)
    (tmp_path / "small").mkdir()
    with open_store(tmp_path / "small", capacity=LARGE) as full, raises(Kind.NO_SPACE):
        await full.put_file(make_chunk(LARGE + 1)[0], never)
