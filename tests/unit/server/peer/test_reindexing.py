import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs_server.peer import badcopies
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.backends.file import FileBackend
from mictlanfs_server.peer.folder import INDEX_NAME, DataFolder, PeerIdentity
from mictlanfs_server.peer.index import PAGE_SIZE_BYTES, Index
from mictlanfs_server.peer.reindexing import open_index
from mictlanfs_server.peer.salvaging import salvaged
from tests.unit.server.peer.making import make_chunk, pieces_of

SMALL = [make_chunk(3000, seed) for seed in range(400)]
LARGE = [make_chunk(70_000 + seed, seed) for seed in range(5)]
# The first byte of a page of a table WITHOUT ROWID: sqlite.org/fileformat2.html.
LEAF_OF_ROWS = b"\x0a"


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[FileBackend]:
    folder = DataFolder(tmp_path)
    folder.remember_peer(PeerIdentity("p", 3, "http://127.0.0.1:1"))
    folder.close()
    with closing(FileBackend(tmp_path, fsync=False)) as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path, backend: FileBackend) -> Path:
    """The index of five large chunks and 400 small ones."""

    async def fill() -> None:
        with closing(Index(tmp_path / INDEX_NAME, fsync=False)) as index:
            for chunk, body in LARGE:
                await (await backend.stage(chunk, pieces_of(body))).publish()
                await index.add(chunk)
            await index.add_small(SMALL)

    asyncio.run(fill())
    return tmp_path / INDEX_NAME


def opened(path: Path, backend: FileBackend) -> tuple[Index, bool]:
    return open_index(path.parent, "p", backend, fsync=False)


def damage(path: Path, *pages: int) -> None:
    """Overwrite pages, counted from 0."""
    with path.open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE_SIZE_BYTES)
            file.write(random.Random(page).randbytes(PAGE_SIZE_BYTES))


def in_service(index: Index) -> set[StoredChunk]:
    return {
        StoredChunk(entry.id, entry.length, entry.digest)
        for entry, _ in index.page(SMALL[0][0].id[:0], 10_000)  # type: ignore[arg-type]  # An empty id.
    }


def test_a_whole_index_is_opened_as_it_is(path: Path, backend: FileBackend) -> None:
    index, was_rebuilt = opened(path, backend)
    with closing(index):
        assert not was_rebuilt
        assert index.totals.chunk_count == 405


def test_without_a_readable_page_the_files_are_left(
    path: Path, backend: FileBackend, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(b"no database" * 1000)
    index, was_rebuilt = opened(path, backend)
    with closing(index):
        assert was_rebuilt
        assert in_service(index) == {chunk for chunk, _ in LARGE}
    (kept,) = path.parent.glob("index.sqlite.damaged-*")
    assert kept.read_bytes().startswith(b"no database")
    assert any(record.levelno == logging.ERROR for record in caplog.records)
    # It is a whole one from now on.
    index, was_rebuilt = opened(path, backend)
    index.close()
    assert not was_rebuilt


@pytest.mark.parametrize("seed", range(8))
def test_what_can_be_read_is_kept_and_what_is_known_to_be_lost_is_told(
    path: Path, backend: FileBackend, seed: int
) -> None:
    page_count = path.stat().st_size // PAGE_SIZE_BYTES
    # The first page is the one that tells of all others.
    damage(path, *random.Random(seed).sample(range(1, page_count), 12))
    index, was_rebuilt = opened(path, backend)
    with closing(index):
        chunks = in_service(index)
        assert {chunk for chunk, _ in LARGE} <= chunks
        assert chunks <= {chunk for chunk, _ in [*LARGE, *SMALL]}
        if not was_rebuilt:
            # Only bytes are damaged: each is compared when it is read.
            return
        bodies = {chunk.id: body for chunk, body in SMALL}
        for chunk in chunks - {chunk for chunk, _ in LARGE}:
            found = index.read(chunk.id)
            assert found is not None
            assert found[1] == bodies[chunk.id]
        missing = set(badcopies.not_told(index, 10_000))
        assert missing.isdisjoint(chunk.id for chunk in chunks)


def test_rows_beyond_a_damaged_page_of_rows_are_found(path: Path, backend: FileBackend) -> None:
    assert len(list(salvaged(path))) == 405
    content = path.read_bytes()
    pages = [content[at : at + PAGE_SIZE_BYTES] for at in range(0, len(content), PAGE_SIZE_BYTES)]
    everything = {chunk for chunk, _ in [*LARGE, *SMALL]}
    held = {
        number: {chunk for chunk in everything if page.find(chunk.id) >= 0}
        for number, page in enumerate(pages)
        if page.startswith(LEAF_OF_ROWS)
    }
    full = sorted(number for number, chunks in held.items() if len(chunks) > 10)
    assert len(full) > 3
    lost = full[len(full) // 2]
    damage(path, lost)
    found = {row.chunk for row in salvaged(path)}
    # The row above it is reached through it.
    assert len(everything - held[lost] - found) <= 1
    assert found < everything


def test_quarantine_is_kept_and_told_again(path: Path, backend: FileBackend) -> None:
    chunk, _ = LARGE[0]
    asyncio.run(backend.set_aside(chunk))
    path.write_bytes(b"no database" * 1000)
    index, _ = opened(path, backend)
    with closing(index):
        assert badcopies.files_aside(index) == {chunk}
        assert badcopies.not_told(index, 10) == [chunk.id]
        assert set(backend.chunks_aside()) == {chunk}


@pytest.mark.parametrize("known", [True, False])
def test_the_damaged_index_of_somebody_else_is_left(
    path: Path, backend: FileBackend, known: bool
) -> None:
    path.write_bytes(b"no database" * 1000)
    if not known:
        (path.parent / "peer.json").unlink()
    with pytest.raises(MictlanError, match="--data") as raised:
        open_index(path.parent, "another", backend, fsync=False)
    assert raised.value.kind is Kind.CORRUPT
    assert path.read_bytes().startswith(b"no database")
    assert {one.name for one in path.parent.glob("index*")} == {INDEX_NAME}


def test_a_crash_between_two_names_is_brought_to_its_end(path: Path, backend: FileBackend) -> None:
    path.replace(path.with_name(path.name + ".new"))
    path.with_name(path.name + "-wal").write_bytes(b"of the old one")
    index, was_rebuilt = opened(path, backend)
    with closing(index):
        assert (index.totals.chunk_count, was_rebuilt) == (405, False)
    assert path.with_name(path.name + ".damaged-wal").read_bytes() == b"of the old one"


def test_an_unfinished_new_index_is_swept(path: Path, backend: FileBackend) -> None:
    path.with_name(path.name + ".new").write_bytes(b"half")
    index, was_rebuilt = opened(path, backend)
    with closing(index):
        assert (index.totals.chunk_count, was_rebuilt) == (405, False)
    assert not path.with_name(path.name + ".new").exists()
