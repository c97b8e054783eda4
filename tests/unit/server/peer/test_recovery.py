import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mictlanfs.identifiers import new_chunk_id
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.backends.file import FileBackend
from mictlanfs_server.peer.index import Index, Totals
from mictlanfs_server.peer.recovery import reconcile
from tests.unit.server.peer.making import make_chunk, on_asyncio, pieces_of


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with closing(Index(tmp_path / "index.sqlite")) as opened:
        yield opened


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[FileBackend]:
    with closing(FileBackend(tmp_path)) as opened:
        yield opened


async def store(backend: FileBackend, chunk: StoredChunk, body: bytes) -> None:
    await (await backend.stage(chunk, pieces_of(body))).publish()


def test_nothing_is_said_when_both_agree(
    index: Index, backend: FileBackend, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, body = make_chunk(70_000)
    asyncio.run(store(backend, chunk, body))
    index.reconcile([chunk], [])
    with caplog.at_level(logging.DEBUG):
        reconcile(index, backend)
    assert caplog.records == []
    assert index.totals == Totals(1, 70_000)


@on_asyncio
async def test_a_file_without_a_row_is_indexed_again(index: Index, backend: FileBackend) -> None:
    chunk, body = make_chunk(70_000)
    await store(backend, chunk, body)
    reconcile(index, backend)
    found = index.find(chunk.id)
    assert found is not None
    assert (found.length, found.digest, found.is_small) == (70_000, chunk.digest, False)


@on_asyncio
async def test_a_lost_index_is_rebuilt_from_names(tmp_path: Path, backend: FileBackend) -> None:
    chunks = [make_chunk(70_000 + n, n) for n in range(5)]
    for chunk, body in chunks:
        await store(backend, chunk, body)
    with closing(Index(tmp_path / "other.sqlite")) as index:
        reconcile(index, backend)
        assert sorted(index.chunks_of_backend(), key=lambda c: c.id) == sorted(
            (chunk for chunk, _ in chunks), key=lambda c: c.id
        )


def test_a_row_without_a_file_is_dropped_and_reported(
    index: Index, backend: FileBackend, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, _ = make_chunk(70_000)
    index.reconcile([chunk], [])
    reconcile(index, backend)
    assert index.totals == Totals()
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert vars(record)["key"] == chunk.id.hex()


def test_a_lost_disk_is_reported_in_few_lines(
    index: Index, backend: FileBackend, caplog: pytest.LogCaptureFixture
) -> None:
    index.reconcile([make_chunk(10, n)[0] for n in range(50)], [])
    reconcile(index, backend)
    assert len(caplog.records) == 21
    assert "50" in caplog.messages[-1]


@on_asyncio
async def test_small_chunks_need_no_file(
    index: Index, backend: FileBackend, caplog: pytest.LogCaptureFixture
) -> None:
    await index.add_small([make_chunk(100)])
    reconcile(index, backend)
    assert index.totals == Totals(1, 100)
    assert caplog.records == []


@on_asyncio
async def test_a_file_with_other_bytes_for_a_known_id_is_left_out(
    index: Index, backend: FileBackend, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, body = make_chunk(70_000)
    other, other_body = make_chunk(70_000, seed=1, chunk_id=chunk.id)
    await store(backend, chunk, body)
    await store(backend, other, other_body)
    index.reconcile([chunk], [])
    reconcile(index, backend)
    assert list(index.chunks_of_backend()) == [chunk]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.slow
def test_many_files_are_compared_quickly(
    tmp_path: Path, index: Index, backend: FileBackend
) -> None:
    digest = make_chunk(1)[0].digest
    chunks = [StoredChunk(new_chunk_id(), 4096, digest) for _ in range(100_000)]
    for chunk in chunks:
        name = chunk.id.hex()
        path = tmp_path / "chunks" / name[-2:] / f"{name}.{chunk.length:x}.{digest.hex()}"
        path.touch()
    index.reconcile(chunks[:-100], [])
    started_s = time.monotonic()
    reconcile(index, backend)
    took_s = time.monotonic() - started_s
    assert index.totals.chunk_count == 100_000
    assert took_s < 5
