import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.index import Entry, Index, Totals
from tests.unit.server.peer.making import make_chunk, on_asyncio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def index(path: Path) -> Iterator[Index]:
    opened = Index(path)
    yield opened
    opened.close()


class Gate:
    """Holds the writer's thread inside a transaction."""

    def __init__(self, index: Index) -> None:
        self._reached, self._open = threading.Event(), threading.Event()
        self._future = index._submit(lambda _: self._wait(), is_synced=False)

    def _wait(self) -> None:
        self._reached.set()
        assert self._open.wait(10)

    def __enter__(self) -> None:
        assert self._reached.wait(10)

    def __exit__(self, *_: object) -> None:
        self._open.set()
        self._future.result(10)


def transactions(index: Index, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs each transaction from now on has."""
    sizes: list[int] = []
    transact = index._transact

    def counted(jobs: list[Any]) -> list[Any]:
        sizes.append(len(jobs))
        return transact(jobs)

    monkeypatch.setattr(index, "_transact", counted)
    return sizes


@on_asyncio
async def test_a_small_chunk_is_found_and_read(index: Index) -> None:
    chunk, body = make_chunk(100)
    assert await index.add_small([(chunk, body)]) == [True]
    entry = Entry(chunk.id, 100, chunk.digest, is_small=True)
    assert index.find(chunk.id) == entry
    assert index.read(chunk.id) == (entry, body)
    assert index.read_many([chunk.id]) == [(entry, body)]


@on_asyncio
async def test_a_chunk_of_the_back_end_is_found_without_bytes(index: Index) -> None:
    chunk, _ = make_chunk(100)
    assert await index.add(chunk) is True
    entry = Entry(chunk.id, 100, chunk.digest, is_small=False)
    assert index.find(chunk.id) == entry
    assert index.read(chunk.id) == (entry, None)
    assert list(index.chunks_of_backend()) == [chunk]


def test_what_is_not_there_is_none(index: Index) -> None:
    assert index.find(new_chunk_id()) is None
    assert index.read(new_chunk_id()) is None
    assert index.read_many([new_chunk_id()]) == [None]


@on_asyncio
async def test_adding_twice_is_adding_once(index: Index) -> None:
    small, body = make_chunk(100)
    large, _ = make_chunk(200)
    await index.add_small([(small, body)])
    await index.add(large)
    assert await index.add_small([(small, body)]) == [False]
    assert await index.add(large) is False
    assert index.totals == Totals(2, 300)


@on_asyncio
async def test_an_id_with_other_bytes_is_a_conflict_and_its_neighbours_are_stored(
    index: Index,
) -> None:
    chunk, body = make_chunk(100)
    other, other_body = make_chunk(100, seed=1, chunk_id=chunk.id)
    neighbour, neighbour_body = make_chunk(50)
    await index.add_small([(chunk, body)])
    refused, stored = await index.add_small([(other, other_body), (neighbour, neighbour_body)])
    assert isinstance(refused, MictlanError)
    assert refused.kind is Kind.CONFLICT
    assert stored is True
    found = index.read(chunk.id)
    assert found is not None
    assert found[1] == body
    with pytest.raises(MictlanError) as caught:
        await index.add(other)
    assert caught.value.kind is Kind.CONFLICT


@on_asyncio
async def test_one_id_twice_in_one_transaction_is_stored_once(index: Index) -> None:
    chunk, body = make_chunk(100)
    assert await index.add_small([(chunk, body), (chunk, body)]) == [True, False]
    assert index.totals == Totals(1, 100)


@on_asyncio
async def test_removed_rows_are_told_and_gone_with_their_bytes(index: Index, path: Path) -> None:
    small, body = make_chunk(100)
    large, _ = make_chunk(200)
    await index.add_small([(small, body)])
    await index.add(large)
    removed = await index.remove([small.id, large.id, new_chunk_id()])
    assert [(entry.id, entry.is_small) for entry in removed] == [
        (small.id, True),
        (large.id, False),
    ]
    assert index.find(small.id) is None
    assert index.totals == Totals()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM bodies").fetchone() == (0,)
    connection.close()


@on_asyncio
async def test_everything_is_there_after_reopening(path: Path) -> None:
    first = Index(path)
    small, body = make_chunk(100)
    large, _ = make_chunk(200)
    await first.add_small([(small, body)])
    await first.add(large)
    first.close()
    second = Index(path)
    assert second.totals == Totals(2, 300)
    found = second.read(small.id)
    assert found is not None
    assert found[1] == body
    second.close()


@on_asyncio
async def test_puts_that_wait_share_one_transaction(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = transactions(index, monkeypatch)
    with Gate(index):
        puts = [asyncio.create_task(index.add_small([make_chunk(10, n)])) for n in range(20)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*puts) == [[True]] * 20
    assert sizes == [1, 20] or sizes == [20]
    assert index.totals == Totals(20, 200)


@on_asyncio
async def test_only_small_chunks_and_removals_wait_for_the_disk(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = []
    transact = index._transact

    def watched(jobs: list[Any]) -> list[Any]:
        results = transact(jobs)
        levels.append(index._sync_level)
        return results

    monkeypatch.setattr(index, "_transact", watched)
    large, _ = make_chunk(200)
    await index.add(large)
    await index.add_small([make_chunk(10)])
    await index.add(make_chunk(300)[0])
    await index.remove([large.id])
    assert levels == ["NORMAL", "FULL", "NORMAL", "FULL"]


@on_asyncio
async def test_without_fsync_nothing_waits_for_the_disk(path: Path) -> None:
    index = Index(path, fsync=False)
    await index.add_small([make_chunk(10)])
    assert index._sync_level == "OFF"
    index.close()


@on_asyncio
async def test_a_transaction_that_fails_stores_nothing_and_tells_every_caller(
    index: Index, path: Path
) -> None:
    before, body = make_chunk(10)
    await index.add_small([(before, body)])
    index._writer.execute("PRAGMA max_page_count = 1")
    with Gate(index):
        puts = [asyncio.create_task(index.add_small([make_chunk(60000, n)])) for n in range(3)]
        await asyncio.sleep(0)
    for put in puts:
        with pytest.raises(MictlanError) as caught:
            await put
        assert caught.value.kind is Kind.NO_SPACE
    assert index.totals == Totals(1, 10)
    index._writer.execute("PRAGMA max_page_count = 4294967294")
    assert await index.add_small([make_chunk(60000)]) == [True]


@on_asyncio
async def test_a_put_that_is_cancelled_before_its_turn_is_not_stored(index: Index) -> None:
    chunk, body = make_chunk(10)
    with Gate(index):
        put = asyncio.create_task(index.add_small([(chunk, body)]))
        await asyncio.sleep(0)
        put.cancel()
        await asyncio.wait([put])
    assert await index.add_small([make_chunk(5)]) == [True]
    assert index.find(chunk.id) is None


def test_reconciling_changes_rows_of_the_back_end(index: Index) -> None:
    lost, found = make_chunk(100)[0], make_chunk(200)[0]
    index.reconcile([lost], [])
    assert index.reconcile([found], [lost]) == 1
    assert list(index.chunks_of_backend()) == [found]
    assert index.totals == Totals(1, 200)


def test_reconciling_leaves_out_what_has_a_row(index: Index) -> None:
    chunk, _ = make_chunk(100)
    other, _ = make_chunk(100, seed=1, chunk_id=chunk.id)
    assert index.reconcile([chunk, chunk, other], []) == 1
    assert list(index.chunks_of_backend()) == [chunk]


@on_asyncio
async def test_a_closed_index_refuses_instead_of_hanging(path: Path) -> None:
    index = Index(path)
    index.close()
    index.close()
    with pytest.raises(MictlanError) as caught:
        await index.add(make_chunk(10)[0])
    assert caught.value.kind is Kind.UNAVAILABLE


@on_asyncio
async def test_closing_finishes_what_waits(path: Path) -> None:
    index = Index(path)
    with Gate(index):
        puts = [asyncio.create_task(index.add_small([make_chunk(10, n)])) for n in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(index.close))
        await asyncio.sleep(0)
    assert await asyncio.gather(*puts) == [[True]] * 5
    await closing
    again = Index(path)
    assert again.totals.chunk_count == 5
    again.close()


def test_a_file_that_is_no_database_is_corrupt(path: Path) -> None:
    path.write_bytes(b"this is not a database, and long enough to be looked at" * 100)
    with pytest.raises(MictlanError) as caught:
        Index(path)
    assert caught.value.kind is Kind.CORRUPT


def test_an_index_of_a_newer_program_is_refused(path: Path) -> None:
    Index(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 4")
    connection.close()
    with pytest.raises(MictlanError, match="version 4, this program knows 3") as caught:
        Index(path)
    assert caught.value.kind is Kind.UNSUPPORTED


def sums_rows(path: Path) -> list[tuple[bytes, bytes]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT id, sums FROM sums").fetchall()


@on_asyncio
async def test_sums_are_kept_with_their_chunk_and_go_with_it(index: Index, path: Path) -> None:
    chunk, _ = make_chunk(100_000)
    other, _ = make_chunk(100_001)
    assert index.sums(chunk.id) == b""
    await index.add(chunk, b"sums")
    await index.add(other, b"other")
    assert index.sums(chunk.id) == b"sums"
    # Known already: nothing changes.
    assert await index.add(chunk, b"again") is False
    assert index.sums(chunk.id) == b"sums"
    await index.remove([chunk.id])
    assert index.sums(chunk.id) == b""
    index.reconcile([], [other])
    assert sums_rows(path) == []


@on_asyncio
async def test_no_sums_make_no_row(index: Index, path: Path) -> None:
    chunk, _ = make_chunk(100_000)
    await index.add(chunk)
    index.reconcile([make_chunk(100_001)[0]], [])
    assert index.sums(chunk.id) == b""
    assert sums_rows(path) == []


@on_asyncio
async def test_sums_of_other_bytes_are_not_taken(index: Index) -> None:
    chunk, _ = make_chunk(100_000)
    other, _ = make_chunk(100_000, seed=1, chunk_id=chunk.id)
    await index.add(chunk, b"sums")
    with pytest.raises(MictlanError) as caught:
        await index.add(other, b"other")
    assert caught.value.kind is Kind.CONFLICT
    assert index.sums(chunk.id) == b"sums"


VERSION_1 = """
CREATE TABLE chunks (id BLOB PRIMARY KEY, length INTEGER NOT NULL, digest BLOB NOT NULL,
                     body INTEGER) STRICT, WITHOUT ROWID;
CREATE TABLE bodies (number INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
PRAGMA user_version = 1;
"""


@pytest.mark.parametrize("times", [1, 2])
def test_an_index_of_version_1_keeps_its_rows(path: Path, times: int) -> None:
    large, _ = make_chunk(100_000)
    small, body = make_chunk(100)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(VERSION_1)
        add = "INSERT INTO chunks (id, length, digest, body) VALUES (?, ?, ?, ?)"
        connection.execute("INSERT INTO bodies VALUES (7, ?)", (body,))
        connection.execute(add, (large.id, large.length, large.digest, None))
        connection.execute(add, (small.id, small.length, small.digest, 7))
    for _ in range(times):
        with closing(Index(path)) as index:
            assert index.totals == Totals(2, 100_100)
            assert list(index.chunks_of_backend()) == [large]
            found = index.read(small.id)
            assert found is not None
            assert found[1] == body
            assert index.sums(large.id) == b""
    with closing(Index(path)) as index:
        new, _ = make_chunk(100_001)
        asyncio.run(index.add(new, b"sums"))
        assert index.sums(new.id) == b"sums"
        asyncio.run(index.remove([large.id, small.id]))
        assert list(index.chunks_of_backend()) == [new]


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["small", "large", "remove"]), st.integers(0, 5)), max_size=20
    )
)
def test_totals_are_those_of_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    chunks = [make_chunk(n + 1, n) for n in range(6)]
    expected: dict[int, StoredChunk] = {}

    async def play(index: Index) -> None:
        for verb, number in steps:
            chunk, body = chunks[number]
            if verb == "small":
                await index.add_small([(chunk, body)])
            elif verb == "large":
                await index.add(chunk)
            else:
                await index.remove([chunk.id])
            if verb == "remove":
                expected.pop(number, None)
            else:
                expected[number] = chunk
            used = sum(one.length for one in expected.values())
            assert index.totals == Totals(len(expected), used)

    path = tmp_path_factory.mktemp("index") / "index.sqlite"
    index = Index(path, fsync=False)
    try:
        asyncio.run(play(index))
    finally:
        index.close()
