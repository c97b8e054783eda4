"""The one thread that changes the database, with group commit.

Work waits in a bounded queue. The thread takes all that waits, up to a bound, runs each piece in a
savepoint of its own inside one transaction and commits once; nobody is answered before the commit.

Durability. In WAL mode a commit with `synchronous=FULL` ends with an fsync of the write-ahead log,
one with NORMAL does not. That fsync covers the whole log file, so it makes every earlier NORMAL
commit durable too; and frames that are no longer in the log were checkpointed, which fsyncs the log
before and the database after the copy. (SQLite's wal.c, sqlite3WalFrames: `sqlite3OsSync(w.pFd,
...)` at the commit frame when the sync flags of FULL are set; walCheckpoint.) A transaction that
changed nothing writes no frame and syncs nothing, hence `flush_count`.

Checkpoints run in a second thread with a connection of its own, in PASSIVE mode, which waits for
nobody and keeps nobody waiting. Under endless load such a checkpoint never reaches the end of the
log; when the log has grown to `LOG_SIZE_BYTES_MAX`, the writer copies the rest between two groups
and the log starts from its beginning.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from mictlanfs.errors import Kind, MictlanError
from mictlanfs_server.metadata.sqlite_rows import SqliteRows

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

T = TypeVar("T")

QUEUE_COUNT_MAX = 1024
GROUP_COUNT_MAX = 128
# What is not synced becomes durable after this at the latest.
FLUSH_AFTER_S = 0.9
CHECKPOINT_SIZE_BYTES = 16 * 1024 * 1024
LOG_SIZE_BYTES_MAX = 64 * 1024 * 1024
BUSY_TIMEOUT_S = 5.0
CACHE_SIZE_KIB = 64 * 1024


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection in autocommit mode, usable in any one thread at a time."""
    connection = sqlite3.connect(
        path,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    # Checkpoints are ours to start.
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute(f"PRAGMA journal_size_limit={CHECKPOINT_SIZE_BYTES}")
    connection.execute(f"PRAGMA cache_size=-{CACHE_SIZE_KIB}")
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute("PRAGMA synchronous=NORMAL")
    if read_only:
        connection.execute("PRAGMA query_only=ON")
    return connection


def translated(error: sqlite3.Error) -> MictlanError:
    """What an error of SQLite means to a caller."""
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return MictlanError(Kind.NO_SPACE, "commit", detail="the router's disk is full")
    return MictlanError(Kind.INTERNAL, "metadata", detail=f"the database failed: {error}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction around the block, undone when it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def checkpoint(connection: sqlite3.Connection, mode: str) -> None:
    """Copy the write-ahead log into the database; a failure is logged, the log stays whole."""
    try:
        connection.execute(f"PRAGMA wal_checkpoint({mode})")
    except sqlite3.Error:
        log.exception("a checkpoint of the metadata failed")


@dataclass(eq=False, slots=True)
class _Job:
    """A piece of work and who waits for it."""

    work: Callable[[SqliteRows], Any]
    sync: bool
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class _Queue:
    """What the loop and the thread share; guarded by `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    jobs: deque[_Job] = field(default_factory=deque)
    is_closing: bool = False


class Writer:
    """Runs functions over rows in order, each atomic, many to a commit.

    Args:
        path: the database, already migrated.
        on_policy_change: called in the loop, before anybody is answered, when the policies of
            inodes may have changed.
    """

    def __init__(self, path: Path, on_policy_change: Callable[[], None]) -> None:
        self._path = path
        self._on_policy_change = on_policy_change
        self._queue = _Queue()
        self._slots = asyncio.Semaphore(QUEUE_COUNT_MAX)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread; answers go to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._main, name="metadata-writer", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Finish what waits, make everything durable, end the thread. Can be repeated."""
        if self._thread is None:
            return
        with self._queue.changed:
            self._queue.is_closing = True
            self._queue.changed.notify()
        await asyncio.to_thread(self._thread.join)

    async def run(self, work: Callable[[SqliteRows], T], *, sync: bool = False) -> T:
        """Run `work` in the writer thread; return what it returned, once it is committed.

        `work` may run more than once, in transactions that were rolled back, so it must have no
        other effect than on the rows.

        Cancellation: the work may still be done.

        Raises:
            MictlanError: what `work` raised; NO_SPACE, INTERNAL when the database failed;
                UNAVAILABLE when the store is closed.
        """
        assert self._loop is not None, "the writer was not started"
        await self._slots.acquire()
        future: asyncio.Future[T] = self._loop.create_future()
        with self._queue.changed:
            if self._queue.is_closing:
                self._slots.release()
                raise MictlanError(Kind.UNAVAILABLE, "commit", detail="the router is stopping")
            self._queue.jobs.append(_Job(work, sync, future))
            self._queue.changed.notify()
        return await future

    def _answer(self, jobs: list[_Job], has_policy_change: bool) -> None:
        """Tell those who wait; runs in the loop."""
        if has_policy_change:
            self._on_policy_change()
        for job in jobs:
            self._slots.release()
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)

    # --- in the thread -------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            with closing(connect(self._path, read_only=False)) as connection:
                self._serve_until_closed(connection)
        except Exception:
            log.exception("the metadata writer ended")
            self._refuse_all()

    def _serve_until_closed(self, connection: sqlite3.Connection) -> None:
        database = _Database(connection, self._path)
        with closing(_Checkpointer(self._path)) as checkpointer:
            while (group := self._next_group(database.flush_at_s)) is not None:
                self._serve(database, group)
                database.limit_log(checkpointer)
        database.flush()
        # Leaves a database without a log, which opens at once.
        checkpoint(connection, "TRUNCATE")

    def _refuse_all(self) -> None:
        with self._queue.changed:
            self._queue.is_closing = True
            jobs = list(self._queue.jobs)
            self._queue.jobs.clear()
        for job in jobs:
            job.error = MictlanError(Kind.INTERNAL, "commit", detail="the metadata writer ended")
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._answer, jobs, False)

    def _next_group(self, flush_at_s: float | None) -> list[_Job] | None:
        """All that waits, up to the bound; empty when it is time to flush; None at the end."""
        queue = self._queue
        with queue.changed:
            while not queue.jobs and not queue.is_closing:
                wait_s = None if flush_at_s is None else flush_at_s - time.monotonic()
                if wait_s is not None and wait_s <= 0:
                    return []
                queue.changed.wait(wait_s)
            if not queue.jobs:
                return None
            return [queue.jobs.popleft() for _ in range(min(len(queue.jobs), GROUP_COUNT_MAX))]

    def _serve(self, database: _Database, group: list[_Job]) -> None:
        if not group:
            try:
                database.flush()
            except sqlite3.Error:
                # Those who asked for no sync were promised nothing; the next flush tries again.
                log.exception("making earlier commits durable failed")
            return
        has_policy_change = database.run(group)
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._answer, group, has_policy_change)
        except RuntimeError:
            log.warning("the event loop ended before %d changes were answered", len(group))


class _Database:
    """The writing connection and how durable its commits are."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._rows = SqliteRows(connection)
        self._log_path = f"{path}-wal"
        self._is_full = False
        # When commits that were not synced must be durable; None when all are.
        self.flush_at_s: float | None = None

    def run(self, group: list[_Job]) -> bool:
        """Run a group in one transaction. Returns whether policies may have changed."""
        self._rows.has_policy_change = False
        self._run(group)
        return self._rows.has_policy_change

    def _run(self, group: list[_Job]) -> None:
        is_overdue = self.flush_at_s is not None and time.monotonic() >= self.flush_at_s
        try:
            self._transact(group, sync=is_overdue or any(job.sync for job in group))
        except sqlite3.Error as error:
            if len(group) == 1:
                log.error("a change of the metadata failed: %s", error)  # noqa: TRY400
                group[0].error = translated(error)
            else:
                # SQLite may have undone all of it: each gets a transaction of its own.
                for job in group:
                    self._run([job])

    def _transact(self, group: list[_Job], *, sync: bool) -> None:
        self._set_full(sync)
        changes_before = self._connection.total_changes
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for job in group:
                self._run_job(job)
            if sync:
                self._force_frame()
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        if sync:
            self.flush_at_s = None
        elif self.flush_at_s is None and self._connection.total_changes != changes_before:
            self.flush_at_s = time.monotonic() + FLUSH_AFTER_S

    def _run_job(self, job: _Job) -> None:
        job.error = None
        self._rows.savepoint()
        try:
            job.result = job.work(self._rows)
        except MictlanError as error:
            self._rows.rollback()
            job.error = error
        except sqlite3.Error:
            raise
        except Exception as error:
            self._rows.rollback()
            log.exception("a change of the metadata was not applied")
            job.error = MictlanError(Kind.INTERNAL, "commit", detail=repr(error))
        else:
            self._rows.release()

    def flush(self) -> None:
        """Make every commit so far durable."""
        if self.flush_at_s is not None:
            self.flush_at_s = time.monotonic() + FLUSH_AFTER_S
            self._transact([], sync=True)

    def _force_frame(self) -> None:
        self._connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'flush_count'")

    def _set_full(self, is_full: bool) -> None:
        # Cannot be changed inside a transaction.
        if is_full != self._is_full:
            self._connection.execute(f"PRAGMA synchronous={'FULL' if is_full else 'NORMAL'}")
            self._is_full = is_full

    def limit_log(self, checkpointer: _Checkpointer) -> None:
        """See that the write-ahead log does not grow for ever."""
        try:
            size = os.stat(self._log_path).st_size  # noqa: PTH116
        except FileNotFoundError:
            return
        if size > LOG_SIZE_BYTES_MAX:
            checkpoint(self._connection, "PASSIVE")
        elif size > CHECKPOINT_SIZE_BYTES:
            checkpointer.wake()


class _Checkpointer:
    """A thread that copies the write-ahead log into the database when it is woken."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._has_work = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(
            target=self._main, name="metadata-checkpointer", daemon=True
        )
        self._thread.start()

    def wake(self) -> None:
        """Start a checkpoint unless one is running."""
        self._has_work.set()

    def close(self) -> None:
        """Finish the running checkpoint and end the thread."""
        self._is_closing = True
        self._has_work.set()
        self._thread.join()

    def _main(self) -> None:
        with closing(connect(self._path, read_only=False)) as connection:
            while True:
                self._has_work.wait()
                self._has_work.clear()
                if self._is_closing:
                    return
                checkpoint(connection, "PASSIVE")
