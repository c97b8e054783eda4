"""What every back end must do. One form is added by one line in `OPEN`."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from mictlanfs.blocksums import BLOCK_SIZE_BYTES, BlockSummer
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import CHUNK_SIZE_BYTES_MAX, MIB
from mictlanfs_server.peer.backends.base import Backend, StoredChunk
from mictlanfs_server.peer.backends.file import FileBackend
from mictlanfs_server.peer.backends.memory import MemoryBackend
from tests.unit.server.peer.making import files_below, make_chunk, on_asyncio, pieces_of

OPEN: dict[str, Callable[[Path], Backend]] = {
    "file": FileBackend,
    "file-without-fsync": lambda folder: FileBackend(folder, fsync=False),
    "memory": lambda _: MemoryBackend(),
}


@pytest.fixture(params=list(OPEN))
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def backend(form: str, tmp_path: Path) -> Iterator[Backend]:
    with closing(OPEN[form](tmp_path)) as opened:
        yield opened


async def store(backend: Backend, chunk: StoredChunk, body: bytes, piece_size: int = MIB) -> None:
    staged = await backend.stage(chunk, pieces_of(body, piece_size))
    await staged.publish()


async def read(backend: Backend, chunk: StoredChunk) -> bytes:
    return bytes(await backend.read(chunk, 0, chunk.length))


@contextmanager
def raises(kind: Kind) -> Iterator[None]:
    with pytest.raises(MictlanError) as caught:
        yield
    assert caught.value.kind is kind


def assert_empty(backend: Backend, tmp_path: Path) -> None:
    assert list(backend.chunks()) == []
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("length", [1, 2, 65536, MIB, MIB + 1, 3 * MIB - 1, CHUNK_SIZE_BYTES_MAX])
@on_asyncio
async def test_a_chunk_is_read_as_it_was_stored(backend: Backend, length: int) -> None:
    chunk, body = make_chunk(length)
    await store(backend, chunk, body)
    assert await read(backend, chunk) == body
    assert list(backend.chunks()) == [chunk]


@pytest.mark.parametrize("piece_size", [7, 4096, 65537])
@on_asyncio
async def test_pieces_of_any_size_make_the_same_chunk(backend: Backend, piece_size: int) -> None:
    chunk, body = make_chunk(100_000)
    await store(backend, chunk, body, piece_size)
    assert await read(backend, chunk) == body


@on_asyncio
async def test_empty_pieces_do_not_matter(backend: Backend) -> None:
    chunk, body = make_chunk(10)

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"", body[:4], b"", body[4:], b""):
            yield piece

    await (await backend.stage(chunk, pieces())).publish()
    assert await read(backend, chunk) == body


@on_asyncio
async def test_more_pieces_than_one_system_call_takes_make_the_same_chunk(
    backend: Backend,
) -> None:
    chunk, body = make_chunk(5000)
    await store(backend, chunk, body, 1)
    assert await read(backend, chunk) == body


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, 70_000), (1, 2), (65_535, 65_537), (69_999, 70_000)]
)
@on_asyncio
async def test_any_range_can_be_read(backend: Backend, start: int, end: int) -> None:
    chunk, body = make_chunk(70_000)
    await store(backend, chunk, body)
    assert bytes(await backend.read(chunk, start, end)) == body[start:end]


@on_asyncio
async def test_a_large_range_can_be_read(backend: Backend) -> None:
    chunk, body = make_chunk(2 * MIB)
    await store(backend, chunk, body)
    assert bytes(await backend.read(chunk, 5, 2 * MIB - 5)) == body[5:-5]


@on_asyncio
async def test_a_chunk_that_another_writes_is_stored_where_chunks_are_files(
    backend: Backend, form: str, tmp_path: Path
) -> None:
    chunk, body = make_chunk(70_000)

    async def give(descriptor: int) -> None:
        os.write(descriptor, body)

    if form == "memory":
        with raises(Kind.UNSUPPORTED):
            await backend.stage_file(chunk, give)
        assert_empty(backend, tmp_path)
        return
    await (await backend.stage_file(chunk, give)).publish()
    assert await read(backend, chunk) == body


@on_asyncio
async def test_a_staged_chunk_is_seen_by_nobody(backend: Backend) -> None:
    chunk, body = make_chunk(70_000)
    staged = await backend.stage(chunk, pieces_of(body))
    assert list(backend.chunks()) == []
    with raises(Kind.NOT_FOUND):
        await backend.read(chunk, 0, 10)
    await staged.publish()
    assert await read(backend, chunk) == body


@on_asyncio
async def test_a_discarded_chunk_leaves_nothing(backend: Backend, tmp_path: Path) -> None:
    chunk, body = make_chunk(70_000)
    staged = await backend.stage(chunk, pieces_of(body))
    await staged.discard()
    await staged.discard()
    assert_empty(backend, tmp_path)


@on_asyncio
async def test_publishing_twice_and_discarding_afterwards_changes_nothing(
    backend: Backend,
) -> None:
    chunk, body = make_chunk(70_000)
    staged = await backend.stage(chunk, pieces_of(body))
    await staged.publish()
    await staged.publish()
    await staged.discard()
    assert await read(backend, chunk) == body


@on_asyncio
async def test_the_same_chunk_may_be_stored_twice(backend: Backend) -> None:
    chunk, body = make_chunk(70_000)
    await store(backend, chunk, body)
    await store(backend, chunk, body)
    assert list(backend.chunks()) == [chunk]
    assert await read(backend, chunk) == body


@on_asyncio
async def test_the_same_chunk_may_be_stored_twice_at_a_time(backend: Backend) -> None:
    chunk, body = make_chunk(3 * MIB)
    await asyncio.gather(*[store(backend, chunk, body) for _ in range(4)])
    assert list(backend.chunks()) == [chunk]
    assert await read(backend, chunk) == body


@on_asyncio
async def test_many_chunks_may_be_stored_at_a_time(backend: Backend) -> None:
    chunks = [make_chunk(100_000 + n, n) for n in range(20)]
    await asyncio.gather(*[store(backend, chunk, body) for chunk, body in chunks])
    for chunk, body in chunks:
        assert await read(backend, chunk) == body
    assert {chunk.id for chunk in backend.chunks()} == {chunk.id for chunk, _ in chunks}


@pytest.mark.parametrize("length", [70_000, 3 * MIB])
@on_asyncio
async def test_other_bytes_than_announced_are_refused(
    backend: Backend, tmp_path: Path, length: int
) -> None:
    chunk, body = make_chunk(length)
    with raises(Kind.CORRUPT):
        await backend.stage(chunk, pieces_of(body[:-1] + bytes([body[-1] ^ 1])))
    assert_empty(backend, tmp_path)


@pytest.mark.parametrize("cut", [1, MIB, 3 * MIB])
@on_asyncio
async def test_too_few_bytes_are_refused(backend: Backend, tmp_path: Path, cut: int) -> None:
    chunk, body = make_chunk(3 * MIB)
    with raises(Kind.CORRUPT):
        await backend.stage(chunk, pieces_of(body[:-cut]))
    assert_empty(backend, tmp_path)


@pytest.mark.parametrize("more", [1, 2 * MIB])
@on_asyncio
async def test_too_many_bytes_are_refused(backend: Backend, tmp_path: Path, more: int) -> None:
    chunk, body = make_chunk(3 * MIB)
    with raises(Kind.CORRUPT):
        await backend.stage(chunk, pieces_of(body + bytes(more)))
    assert_empty(backend, tmp_path)


@pytest.mark.parametrize("after", [0, 10, 2 * MIB])
@on_asyncio
async def test_an_upload_that_breaks_off_leaves_nothing(
    backend: Backend, tmp_path: Path, after: int
) -> None:
    chunk, body = make_chunk(3 * MIB)

    async def pieces() -> AsyncIterator[bytes]:
        if after:
            yield body[:after]
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError, match="cut"):
        await backend.stage(chunk, pieces())
    assert_empty(backend, tmp_path)


@pytest.mark.parametrize("pieces_before", [0, 1, 2, 3])
@on_asyncio
async def test_a_cancelled_upload_leaves_nothing(
    backend: Backend, tmp_path: Path, pieces_before: int
) -> None:
    chunk, body = make_chunk(4 * MIB)
    reached = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(pieces_before):
            yield body[number * MIB : (number + 1) * MIB]
        reached.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(backend.stage(chunk, pieces()))
    await reached.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert_empty(backend, tmp_path)


@on_asyncio
async def test_an_upload_cancelled_at_any_step_leaves_nothing(
    backend: Backend, tmp_path: Path
) -> None:
    chunk, body = make_chunk(2 * MIB + 5)
    for steps in range(12):
        upload = asyncio.create_task(backend.stage(chunk, pieces_of(body, MIB // 2)))
        for _ in range(steps):
            await asyncio.sleep(0)
        upload.cancel()
        with suppress(asyncio.CancelledError):
            await (await upload).discard()
        assert_empty(backend, tmp_path)


@on_asyncio
async def test_a_deleted_chunk_is_gone(backend: Backend) -> None:
    chunk, body = make_chunk(70_000)
    other, other_body = make_chunk(70_000, seed=1)
    await store(backend, chunk, body)
    await store(backend, other, other_body)
    await backend.delete(chunk)
    with raises(Kind.NOT_FOUND):
        await read(backend, chunk)
    assert list(backend.chunks()) == [other]
    assert await read(backend, other) == other_body


@on_asyncio
async def test_deleting_what_is_not_there_is_no_error(backend: Backend) -> None:
    chunk, body = make_chunk(70_000)
    await backend.delete(chunk)
    await store(backend, chunk, body)
    await backend.delete(chunk)
    await backend.delete(chunk)
    assert list(backend.chunks()) == []


@on_asyncio
async def test_a_deleted_chunk_can_be_stored_again(backend: Backend) -> None:
    chunk, body = make_chunk(70_000)
    await store(backend, chunk, body)
    await backend.delete(chunk)
    await store(backend, chunk, body)
    assert await read(backend, chunk) == body


@on_asyncio
async def test_reading_what_is_not_there_is_not_found(backend: Backend) -> None:
    chunk, _ = make_chunk(4 * MIB)
    with raises(Kind.NOT_FOUND):
        await backend.read(chunk, 0, 10)
    with raises(Kind.NOT_FOUND):
        await backend.read(chunk, 0, 4 * MIB)


@on_asyncio
async def test_one_id_with_two_digests_is_two_chunks(backend: Backend) -> None:
    chunk, body = make_chunk(70_000)
    other, other_body = make_chunk(70_000, seed=1, chunk_id=chunk.id)
    await store(backend, chunk, body)
    await store(backend, other, other_body)
    assert await read(backend, chunk) == body
    assert await read(backend, other) == other_body
    await backend.delete(other)
    assert list(backend.chunks()) == [chunk]


def test_free_bytes_are_a_number_or_unknown(backend: Backend) -> None:
    free = backend.free_bytes()
    assert free is None or free >= 0


@on_asyncio
async def test_ids_with_any_last_byte_are_kept_apart(backend: Backend) -> None:
    _, body = make_chunk(100)
    ids = [type(new_chunk_id())(new_chunk_id()[:-1] + bytes([last])) for last in range(0, 256, 15)]
    chunks = [make_chunk(100, chunk_id=chunk_id)[0] for chunk_id in ids]
    for chunk in chunks:
        await store(backend, chunk, body)
    assert {chunk.id for chunk in backend.chunks()} == set(ids)


@on_asyncio
async def test_published_chunks_outlive_the_process_where_the_traits_say_so(
    form: str, tmp_path: Path
) -> None:
    chunk, body = make_chunk(70_000)
    with closing(OPEN[form](tmp_path)) as first:
        await store(first, chunk, body)
        await first.stage(make_chunk(80_000)[0], pieces_of(make_chunk(80_000)[1]))
    with closing(OPEN[form](tmp_path)) as second:
        if not second.traits.is_persistent:
            assert list(second.chunks()) == []
            return
        assert list(second.chunks()) == [chunk]
        assert await read(second, chunk) == body


def test_closing_twice_is_closing_once(backend: Backend) -> None:
    backend.close()
    backend.close()


@pytest.mark.parametrize("length", [1, BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES + 1, MIB - 1])
@pytest.mark.parametrize("piece_size", [4093, MIB])
@on_asyncio
async def test_sums_are_those_of_the_blocks_or_none(
    backend: Backend, length: int, piece_size: int
) -> None:
    chunk, body = make_chunk(length)
    summer = BlockSummer()
    summer.update(body)
    expected = summer.sums()
    staged = await backend.stage(chunk, pieces_of(body, piece_size))
    assert staged.sums in {b"", expected}
    await staged.publish()
    descriptor = backend.open_file(chunk)
    if descriptor is not None:
        os.close(descriptor)
        # Who gives a file away has what its reader checks it with.
        assert staged.sums == expected


@on_asyncio
async def test_a_file_that_is_opened_is_the_chunk_and_outlives_it(backend: Backend) -> None:
    chunk, body = make_chunk(70_000)
    await store(backend, chunk, body)
    first, second = backend.open_file(chunk), backend.open_file(chunk)
    if first is None or second is None:
        assert first is second is None, "it is a file or it is none"
        return
    assert first != second
    assert not os.get_inheritable(first)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(first, b"x")
    await backend.delete(chunk)
    for descriptor in (first, second):
        with open(descriptor, "rb") as file:
            assert file.read() == body
    assert backend.open_file(chunk) is None


@on_asyncio
async def test_what_is_not_published_is_not_opened(backend: Backend) -> None:
    chunk, body = make_chunk(70_000)
    other, _ = make_chunk(70_000, seed=1, chunk_id=chunk.id)
    assert backend.open_file(chunk) is None
    staged = await backend.stage(chunk, pieces_of(body))
    assert backend.open_file(chunk) is None
    await staged.publish()
    # The same id with another digest is another chunk.
    assert backend.open_file(other) is None


# --- verification --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 65_536, MIB + 1, 3 * MIB])
@on_asyncio
async def test_a_chunk_that_is_right_is_summed_up(backend: Backend, length: int) -> None:
    chunk, body = make_chunk(length)
    await store(backend, chunk, body)
    summer = BlockSummer()
    summer.update(body)
    assert await backend.check(chunk) == summer.sums()


@on_asyncio
async def test_a_chunk_that_is_not_there_is_not_found(backend: Backend) -> None:
    chunk, _ = make_chunk(10)
    with raises(Kind.NOT_FOUND):
        await backend.check(chunk)
    assert await backend.set_aside(chunk) is False
    await backend.drop_aside(chunk)


@on_asyncio
async def test_what_is_set_aside_is_out_of_service_and_kept(backend: Backend) -> None:
    (one, body), (two, other) = make_chunk(70_000), make_chunk(80_000, 1)
    await store(backend, one, body)
    await store(backend, two, other)
    assert await backend.set_aside(one)
    assert list(backend.chunks()) == [two]
    assert list(backend.chunks_aside()) == [one]
    with raises(Kind.NOT_FOUND):
        await read(backend, one)
    # A good copy is another thing, and may go aside in its turn.
    await store(backend, one, body)
    assert await read(backend, one) == body
    assert await backend.set_aside(one)
    assert await backend.set_aside(two)
    await backend.drop_aside(two)
    assert list(backend.chunks_aside()) == [one]
    backend.sweep_aside([one])
    assert list(backend.chunks_aside()) == [one]
    backend.sweep_aside([])
    assert list(backend.chunks_aside()) == []
