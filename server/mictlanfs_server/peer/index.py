"""The index of a peer: every chunk it has, and the bytes of the small ones. An SQLite database.

Owns the file `index.sqlite` and the exact totals. Never touches chunk files. The only module of
the peer but `salvaging` that knows SQLite, and where its errors become `MictlanError`.

One thread writes. It takes all jobs that wait, applies them in one transaction, commits, and then
answers them: puts that come together share one fsync (group commit). Reads have connections of
their own and never wait for the writer (write-ahead log).

Order of durability. The row of a small chunk carries its bytes, so its transaction is synced before
the put is answered (`synchronous=FULL`). The row of a chunk that lies on the back end is written
once its file is durable, and is *not* synced by itself: the file's name says all that the row says,
and `store.py` adds the rows that a power cut took. The row of a deleted chunk is gone durably
before its file is removed. So a crash can leave a file without a row, never the reverse.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from mictlanfs.durable import sync_folder
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB, Buffer, ChunkId
from mictlanfs_server.peer.backends.base import StoredChunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

T = TypeVar("T")

# Bytes live in a table of their own: listing and summing then read 60 bytes a chunk, not all.
_SUMS_SCHEMA: Final = """
CREATE TABLE sums (
    id   BLOB PRIMARY KEY,            -- of a chunk that lies on the back end; it may have no row
    sums BLOB NOT NULL                -- of its blocks; see `mictlanfs.blocksums`
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
"""
# When a chunk came, on this machine's clock: nobody believes that a young one is an orphan. Of
# those that were there before this column it is the time at which the column came, `{now_s}`.
# Then the copies that are out of service; `badcopies.py` tells of them.
_BAD_SCHEMA: Final = """
ALTER TABLE chunks ADD COLUMN added_s INTEGER NOT NULL DEFAULT {now_s};
CREATE TABLE bad (
    number  INTEGER PRIMARY KEY,      -- in the order in which they were found
    id      BLOB NOT NULL UNIQUE,     -- of the chunk
    length  INTEGER NOT NULL,
    digest  BLOB NOT NULL,
    body    INTEGER,                  -- row of `bodies` with what a small one was; else NULL
    is_file INTEGER NOT NULL,         -- 1: the back end keeps it aside
    reason  TEXT NOT NULL,
    found_s INTEGER NOT NULL,         -- seconds since the epoch
    state   INTEGER NOT NULL          -- 0: no router was told, 1: one was, 2: it was the last copy
) STRICT;
PRAGMA user_version = 3;
"""
_SCHEMA: Final = """
CREATE TABLE chunks (
    id     BLOB PRIMARY KEY,          -- 16 bytes
    length INTEGER NOT NULL,          -- bytes, at least 1
    digest BLOB NOT NULL,             -- BLAKE3, 32 bytes
    body   INTEGER                    -- row of `bodies`; NULL: the bytes lie on the back end
) STRICT, WITHOUT ROWID;
CREATE TABLE bodies (
    number INTEGER PRIMARY KEY,
    body   BLOB NOT NULL
) STRICT;
"""
_SCHEMA_VERSION: Final = 3
_FIND: Final = "SELECT length, digest, body FROM chunks WHERE id = ?"
_FIND_BODY: Final = """
SELECT c.length, c.digest, b.body FROM chunks c LEFT JOIN bodies b ON b.number = c.body
WHERE c.id = ?
"""
_LIST: Final = "SELECT id, length, digest FROM chunks WHERE id > ? ORDER BY id LIMIT ?"
_ADD: Final = "INSERT INTO chunks (id, length, digest, body, added_s) VALUES (?, ?, ?, ?, ?)"
_FIND_SUMS: Final = "SELECT sums FROM sums WHERE id = ?"
_ADD_SUMS: Final = "INSERT OR REPLACE INTO sums (id, sums) VALUES (?, ?)"
_REMOVE_SUMS: Final = "DELETE FROM sums WHERE id = ?"
_ADD_BODY: Final = "INSERT INTO bodies (body) VALUES (?)"
_REMOVE: Final = "DELETE FROM chunks WHERE id = ?"
_REMOVE_BODY: Final = "DELETE FROM bodies WHERE number = ?"
_PAGE: Final = """
SELECT id, length, digest, body, added_s FROM chunks WHERE id > ? ORDER BY id LIMIT ?
"""

PAGE_SIZE_BYTES = 4096
# The log is copied into the database this often: large enough that a page that changes often is
# copied once, small enough that the copy does not hold up a commit for long.
_CHECKPOINT_PAGES = 32 * MIB // PAGE_SIZE_BYTES
_READ_CACHE_KIB = 8 * 1024
# Bounds of one transaction, so that the first of many waiting jobs is not answered last.
_GROUP_JOBS_MAX = 512
_GROUP_SIZE_BYTES_MAX = 16 * MIB
_LIST_PAGE_COUNT = 4096


class Entry(StoredChunk, frozen=True, gc=False):
    """A chunk as the index knows it.

    Attributes:
        is_small: whether the index has its bytes.
    """

    is_small: bool


@dataclass(frozen=True, slots=True)
class Totals:
    """What the peer holds: exact, as of the last transaction."""

    chunk_count: int = 0
    used_bytes: int = 0


class Transaction:
    """What a job sees while it is applied: the connection, and what it adds to the totals."""

    __slots__ = ("chunk_count", "execute", "used_bytes")

    def __init__(self, connection: sqlite3.Connection, totals: Totals) -> None:
        self.execute = connection.execute
        self.chunk_count = totals.chunk_count
        self.used_bytes = totals.used_bytes


@dataclass(slots=True)
class _Job(Generic[T]):
    apply: Callable[[Transaction], T]
    is_synced: bool
    size: int
    future: Future[T]


class Index:
    """The open index. Reads may come from the event loop; they do not wait for a disk sync.

    Args:
        path: of the database; made when missing.
        fsync: False never waits for the disk: unsafe, for benchmarks.

    Raises:
        MictlanError: CORRUPT when this is no index, UNSUPPORTED when a newer program wrote it.
    """

    def __init__(self, path: Path, *, fsync: bool = True) -> None:
        self._path = path
        self._fsync = fsync
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        # A connection that is left behind removes the log of this name when it is collected.
        with _translated_errors("open index"), ExitStack() as stack:
            self._writer = stack.enter_context(closing(self._connect(is_reader=False)))
            self._prepare()
            self._loop_reader = stack.enter_context(closing(self._connect(is_reader=True)))
            self._thread_reader = stack.enter_context(closing(self._connect(is_reader=True)))
            count, size = self._writer.execute(
                "SELECT count(*), coalesce(sum(length), 0) FROM chunks"
            ).fetchone()
            stack.pop_all()
        self._sync_level = ""
        self._thread_reader_lock = threading.Lock()
        self._totals = Totals(count, size)
        # Nothing may come behind the None that ends the queue: nobody would answer it.
        self._closing_lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._write, name="index", daemon=True)
        self._thread.start()

    # --- reads ---------------------------------------------------------------------------------

    @property
    def totals(self) -> Totals:
        """What the peer holds."""
        return self._totals

    def find(self, chunk_id: ChunkId) -> Entry | None:
        """The chunk of that id. In the event loop's thread."""
        with _translated_errors("find chunk"):
            rows = self._loop_reader.execute(_FIND, (chunk_id,)).fetchall()
        return _entry(chunk_id, rows[0]) if rows else None

    def read(self, chunk_id: ChunkId) -> tuple[Entry, bytes | None] | None:
        """The chunk of that id, and its bytes when it is small. In the event loop's thread."""
        with _translated_errors("read chunk"):
            return _read(self._loop_reader, chunk_id)

    def sums(self, chunk_id: ChunkId) -> bytes:
        """The checksums of a chunk's blocks, empty when none are known. As `find`."""
        with _translated_errors("find checksums"):
            rows = self._loop_reader.execute(_FIND_SUMS, (chunk_id,)).fetchall()
        return rows[0][0] if rows else b""

    def read_many(self, chunk_ids: Iterable[ChunkId]) -> list[tuple[Entry, bytes | None] | None]:
        """As `read`, one result for each id. In any thread."""
        with self._thread_reader_lock, _translated_errors("read chunks"):
            return [_read(self._thread_reader, chunk_id) for chunk_id in chunk_ids]

    def page(self, after: ChunkId, count_max: int) -> list[tuple[Entry, int]]:
        """Chunks behind an id, in the order of ids, and when each came. In any thread.

        Times are seconds since the epoch.
        """
        with self._thread_reader_lock, _translated_errors("list chunks"):
            rows = self._thread_reader.execute(_PAGE, (after, count_max)).fetchall()
        return [(_entry(ChunkId(row[0]), row[1:4]), row[4]) for row in rows]

    def select(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query of `badcopies`. In any thread."""
        with self._thread_reader_lock, _translated_errors("list bad copies"):
            found: list[tuple[Any, ...]] = self._thread_reader.execute(query, values).fetchall()
        return found

    def chunks_of_backend(self) -> Iterator[StoredChunk]:
        """Every chunk that lies on the back end. In any thread."""
        query = "SELECT id, length, digest FROM chunks WHERE body IS NULL"
        with self._thread_reader_lock, _translated_errors("list chunks"):
            for chunk_id, length, digest in self._thread_reader.execute(query):
                yield StoredChunk(ChunkId(chunk_id), length, digest)

    # --- writes --------------------------------------------------------------------------------

    async def add(self, chunk: StoredChunk, sums: bytes = b"") -> bool:
        """Add the row of a chunk that is durable on the back end. Whether it is new.

        `sums` are the checksums of its blocks, empty when they are not known.

        Cancellation: the row may be added all the same.

        Raises:
            MictlanError: CONFLICT when the id stands for other bytes; NO_SPACE, INTERNAL.
        """

        def apply(transaction: Transaction) -> bool | MictlanError:
            result = insert_row(transaction, chunk, None)
            if result is True and sums:
                transaction.execute(_ADD_SUMS, (chunk.id, sums))
            return result

        future = self._submit(apply, is_synced=False)
        return _raised(await asyncio.wrap_future(future))

    async def add_small(
        self, chunks: Sequence[tuple[StoredChunk, Buffer]]
    ) -> list[bool | MictlanError]:
        """Store chunks with their bytes, durably, in one transaction.

        One result each: whether it is new, or CONFLICT when the id stands for other bytes.

        Cancellation: the chunks may be stored all the same, all or none.

        Raises:
            MictlanError: NO_SPACE, INTERNAL; nothing is stored then.
        """
        size = sum(chunk.length for chunk, _ in chunks)
        future = self._submit(
            lambda t: [insert_row(t, chunk, body) for chunk, body in chunks],
            is_synced=True,
            size=size,
        )
        return await asyncio.wrap_future(future)

    async def remove(self, chunk_ids: Sequence[ChunkId]) -> list[Entry]:
        """Remove rows, durably, and give those that were there.

        Cancellation: the rows may be removed all the same.

        Raises:
            MictlanError: NO_SPACE, INTERNAL; nothing is removed then.
        """
        future = self._submit(
            lambda t: [entry for i in chunk_ids if (entry := remove_row(t, i)) is not None],
            is_synced=True,
        )
        return await asyncio.wrap_future(future)

    async def keep_sums(self, chunk: StoredChunk, sums: bytes) -> None:
        """Note the checksums of the blocks of a chunk that is there; need not be durable."""

        def apply(transaction: Transaction) -> None:
            if transaction.execute(_FIND, (chunk.id,)).fetchall():
                transaction.execute(_ADD_SUMS, (chunk.id, sums))

        await self.change(apply, is_synced=False)

    async def change(self, apply: Callable[[Transaction], T], *, is_synced: bool = True) -> T:
        """Run a change of rows in a transaction, durably with `is_synced`.

        Cancellation: it may be applied all the same.

        Raises:
            MictlanError: NO_SPACE, INTERNAL; nothing is changed then.
        """
        return await asyncio.wrap_future(self._submit(apply, is_synced=is_synced))

    def reconcile(
        self,
        added: Sequence[StoredChunk],
        removed: Sequence[StoredChunk],
        remove: Callable[[Transaction, StoredChunk], object] | None = None,
    ) -> int:
        """Add and remove rows of the back end in one transaction; blocks. How many were added.

        A chunk whose id has a row already is left out. `remove` does more than to remove a row.
        """

        def apply(transaction: Transaction) -> int:
            for chunk in removed:
                if remove is None:
                    remove_row(transaction, chunk.id)
                else:
                    remove(transaction, chunk)
            return sum(insert_row(transaction, chunk, None) is True for chunk in added)

        return self.change_now(apply)

    def change_now(self, apply: Callable[[Transaction], T]) -> T:
        """As `change`, durably, for who has no event loop. Blocks."""
        return self._submit(apply, is_synced=True).result()

    def close(self) -> None:
        """Finish the jobs that wait, then let go of the file. Blocks."""
        with self._closing_lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._jobs.put(None)
        self._thread.join()
        with _translated_errors("close index"):
            for connection in (self._loop_reader, self._thread_reader, self._writer):
                connection.close()

    # --- the writer's thread -------------------------------------------------------------------

    def _submit(
        self, apply: Callable[[Transaction], T], *, is_synced: bool, size: int = 0
    ) -> Future[T]:
        job = _Job(apply, is_synced, size, Future())
        with self._closing_lock:
            if self._is_closed:
                raise MictlanError(Kind.UNAVAILABLE, "write index", detail="the peer is stopping")
            self._jobs.put(job)
        return job.future

    def _write(self) -> None:
        while (group := self._next_group()) is not None:
            jobs = [job for job in group if job.future.set_running_or_notify_cancel()]
            if not jobs:
                continue
            try:
                with _translated_errors("write index"):
                    results = self._transact(jobs)
            except Exception as error:  # noqa: BLE001 - whoever waits for the job must see it.
                for job in jobs:
                    job.future.set_exception(error)
            else:
                for job, result in zip(jobs, results, strict=True):
                    job.future.set_result(result)

    def _next_group(self) -> list[_Job[Any]] | None:
        """Wait for a job and take those that wait behind it; None when there will be no more."""
        job = self._jobs.get()
        if job is None:
            return None
        group = [job]
        size = job.size
        while len(group) < _GROUP_JOBS_MAX and size < _GROUP_SIZE_BYTES_MAX:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)  # For the next call.
                break
            group.append(job)
            size += job.size
        return group

    def _transact(self, jobs: list[_Job[Any]]) -> list[Any]:
        is_synced = self._fsync and any(job.is_synced for job in jobs)
        # SQLite syncs the log at the commit with FULL, at checkpoints only with NORMAL. A commit
        # with FULL makes earlier ones durable too: there is one log.
        level = "FULL" if is_synced else "NORMAL" if self._fsync else "OFF"
        if level != self._sync_level:
            self._writer.execute(f"PRAGMA synchronous = {level}")
            self._sync_level = level
        transaction = Transaction(self._writer, self._totals)
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            results = [job.apply(transaction) for job in jobs]
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise
        self._totals = Totals(transaction.chunk_count, transaction.used_bytes)
        return results

    # --- the file ------------------------------------------------------------------------------

    def _connect(self, *, is_reader: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA cache_size = -{_READ_CACHE_KIB}")
        if is_reader:
            connection.execute("PRAGMA query_only = ON")
        return connection

    def _prepare(self) -> None:
        """Bring the file into the form of this program."""
        execute = self._writer.execute
        execute(f"PRAGMA page_size = {PAGE_SIZE_BYTES}")
        execute("PRAGMA journal_mode = WAL")
        execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        execute(f"PRAGMA journal_size_limit = {2 * _CHECKPOINT_PAGES * PAGE_SIZE_BYTES}")
        (version,) = execute("PRAGMA user_version").fetchone()
        # Chunks of before have no checksums of blocks: they are made when one is needed.
        steps = (_SCHEMA, _SUMS_SCHEMA, _BAD_SCHEMA.format(now_s=int(time.time())))
        first = {0: 0, 1: 1, 2: 2}.get(version)
        if first is not None:
            self._writer.executescript(f"BEGIN; {' '.join(steps[first:])} COMMIT;")
            if self._fsync:
                sync_folder(self._path.parent)
        elif version != _SCHEMA_VERSION:
            detail = f"{self._path} has version {version}, this program knows {_SCHEMA_VERSION}"
            raise MictlanError(Kind.UNSUPPORTED, "open index", detail=detail)


def _entry(chunk_id: ChunkId, row: tuple[int, bytes, object]) -> Entry:
    length, digest, body = row
    return Entry(chunk_id, length, digest, body is not None)


def _list_behind(
    connection: sqlite3.Connection, after: ChunkId, count_max: int
) -> list[StoredChunk]:
    rows = connection.execute(_LIST, (after, count_max)).fetchall()
    return [StoredChunk(ChunkId(chunk_id), length, digest) for chunk_id, length, digest in rows]


def read_index(path: Path) -> Iterator[StoredChunk]:
    """Every chunk in the index of a peer that need not run, in order of ids. Blocks.

    Nothing is changed but the files that SQLite itself keeps beside a database.

    Raises:
        MictlanError: CORRUPT, INTERNAL.
    """
    with _translated_errors("read index"), closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA query_only = ON")
        after = ChunkId(b"")
        while page := _list_behind(connection, after, _LIST_PAGE_COUNT):
            yield from page
            after = page[-1].id


def _read(connection: sqlite3.Connection, chunk_id: ChunkId) -> tuple[Entry, bytes | None] | None:
    rows = connection.execute(_FIND_BODY, (chunk_id,)).fetchall()
    return (_entry(chunk_id, rows[0]), rows[0][2]) if rows else None


def insert_row(
    transaction: Transaction, chunk: StoredChunk, body: Buffer | None
) -> bool | MictlanError:
    """Add a chunk, a small one with its bytes; whether it is new, or CONFLICT."""
    rows = transaction.execute(_FIND, (chunk.id,)).fetchall()
    if rows:
        length, digest, _ = rows[0]
        return False if (length, digest) == (chunk.length, chunk.digest) else conflict(chunk.id)
    number = None
    if body is not None:
        number = transaction.execute(_ADD_BODY, (body,)).lastrowid
    values = (chunk.id, chunk.length, chunk.digest, number, int(time.time()))
    transaction.execute(_ADD, values)
    transaction.chunk_count += 1
    transaction.used_bytes += chunk.length
    return True


def remove_row(transaction: Transaction, chunk_id: ChunkId) -> Entry | None:
    """Remove a chunk with all that the index has of it; what it was."""
    found = take_row(transaction, chunk_id)
    if found is None:
        return None
    entry, body = found
    if body is not None:
        transaction.execute(_REMOVE_BODY, (body,))
    return entry


def take_row(transaction: Transaction, chunk_id: ChunkId) -> tuple[Entry, int | None] | None:
    """Remove a chunk but for the bytes of a small one; what it was, and their row in `bodies`."""
    rows = transaction.execute(_FIND, (chunk_id,)).fetchall()
    if not rows:
        return None
    entry = _entry(chunk_id, rows[0])
    transaction.execute(_REMOVE, (chunk_id,))
    if not entry.is_small:
        transaction.execute(_REMOVE_SUMS, (chunk_id,))
    transaction.chunk_count -= 1
    transaction.used_bytes -= entry.length
    return entry, rows[0][2]


def conflict(chunk_id: ChunkId) -> MictlanError:
    """The error for an id that stands for other bytes already."""
    detail = "the id stands for other bytes already"
    return MictlanError(Kind.CONFLICT, "put chunk", chunk_id.hex(), detail)


def _raised(result: bool | MictlanError) -> bool:
    if isinstance(result, MictlanError):
        raise result
    return result


@contextmanager
def _translated_errors(operation: str) -> Iterator[None]:
    """Turn errors of SQLite into NO_SPACE, CORRUPT or INTERNAL."""
    try:
        yield
    except sqlite3.Error as error:
        # The lower eight bits are the primary code: sqlite.org/rescode.html.
        code = getattr(error, "sqlite_errorcode", None)
        kind = _KINDS.get((code or 0) & 0xFF, Kind.INTERNAL)
        raise MictlanError(kind, operation, detail=str(error)) from error


_KINDS: Final = {
    sqlite3.SQLITE_FULL: Kind.NO_SPACE,
    sqlite3.SQLITE_CORRUPT: Kind.CORRUPT,
    sqlite3.SQLITE_NOTADB: Kind.CORRUPT,
}
