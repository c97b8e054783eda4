import asyncio
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs_server.metadata import sqlite_writer
from mictlanfs_server.metadata.sqlite_rows import SqliteRows
from mictlanfs_server.metadata.sqlite_writer import Writer, connect
from tests.unit.server.metadata.space import SpaceMaker

T = TypeVar("T")


@pytest.fixture
def database(space_maker: SpaceMaker) -> Path:
    return space_maker.new_database()


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the writer's connections execute, in order."""
    seen: list[str] = []
    original = connect

    def traced(path: Path, *, read_only: bool) -> sqlite3.Connection:
        connection = original(path, read_only=read_only)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(sqlite_writer, "connect", traced)
    return seen


def with_writer(
    database: Path,
    scenario: Callable[[Writer], Awaitable[T]],
    on_policy_change: Callable[[], None] = lambda: None,
) -> T:
    async def run() -> T:
        writer = Writer(database, on_policy_change)
        writer.start()
        try:
            return await scenario(writer)
        finally:
            await writer.close()

    return asyncio.run(run())


def bump(rows: SqliteRows) -> int:
    value = rows.counter("next_epoch") + 1
    rows.set_counter("next_epoch", value)
    return value


def stored(database: Path, name: str = "next_epoch") -> int:
    with closing(sqlite3.connect(database)) as connection:
        row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return int(row[0])


def refuse(rows: SqliteRows) -> None:
    bump(rows)
    raise MictlanError(Kind.CONFLICT)


def break_down(rows: SqliteRows) -> None:
    bump(rows)
    raise ZeroDivisionError


def misuse(rows: SqliteRows) -> None:
    bump(rows)
    rows.connection.execute("SELECT no_such_column FROM meta")


class Hold:
    """A change that keeps the writer busy until it is told to go on."""

    def __init__(self) -> None:
        self.started, self.go_on = threading.Event(), threading.Event()

    def __call__(self, rows: SqliteRows) -> None:
        bump(rows)
        self.started.set()
        assert self.go_on.wait(10)


async def kind_of(work: Awaitable[object]) -> Kind:
    with pytest.raises(MictlanError) as raised:
        await work
    return raised.value.kind


@pytest.mark.parametrize("sync", [False, True])
def test_answer_comes_when_the_change_is_committed(database: Path, sync: bool) -> None:
    async def scenario(writer: Writer) -> None:
        value = await writer.run(bump, sync=sync)
        assert stored(database) == value == 2

    with_writer(database, scenario)


def test_changes_are_made_in_the_order_they_were_asked(database: Path) -> None:
    async def scenario(writer: Writer) -> list[int]:
        return list(await asyncio.gather(*(writer.run(bump) for _ in range(500))))

    assert with_writer(database, scenario) == list(range(2, 502))


def test_what_waits_together_is_committed_together(database: Path, statements: list[str]) -> None:
    hold = Hold()

    async def scenario(writer: Writer) -> None:
        held = asyncio.create_task(writer.run(hold))
        await asyncio.to_thread(hold.started.wait, 10)
        rest = [asyncio.create_task(writer.run(bump, sync=True)) for _ in range(50)]
        await asyncio.sleep(0)
        hold.go_on.set()
        await asyncio.gather(held, *rest)

    with_writer(database, scenario)
    assert statements.count("COMMIT") == 2
    assert stored(database) == 52


def test_refused_change_has_no_effect_and_does_not_touch_others(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(writer: Writer) -> None:
        results = await asyncio.gather(
            writer.run(bump),
            kind_of(writer.run(refuse)),
            kind_of(writer.run(break_down)),
            writer.run(bump),
        )
        assert list(results) == [2, Kind.CONFLICT, Kind.INTERNAL, 3]

    with_writer(database, scenario)
    assert stored(database) == 3
    assert "ZeroDivisionError" in caplog.text


def test_failure_of_the_database_in_one_change_leaves_the_others(database: Path) -> None:
    async def scenario(writer: Writer) -> None:
        results = await asyncio.gather(
            writer.run(bump), kind_of(writer.run(misuse)), writer.run(bump)
        )
        assert list(results) == [2, Kind.INTERNAL, 3]

    with_writer(database, scenario)
    assert stored(database) == 3


def test_full_disk_is_no_space_and_the_writer_goes_on(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = connect

    def small(path: Path, *, read_only: bool) -> sqlite3.Connection:
        connection = original(path, read_only=read_only)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages + 2}")
        return connection

    monkeypatch.setattr(sqlite_writer, "connect", small)

    def fill(rows: SqliteRows) -> None:
        rows.connection.execute("INSERT INTO xattr VALUES (1, x'61', zeroblob(1000000))")

    async def scenario(writer: Writer) -> None:
        results = await asyncio.gather(
            writer.run(bump), kind_of(writer.run(fill)), writer.run(bump)
        )
        assert list(results) == [2, Kind.NO_SPACE, 3]

    with_writer(database, scenario)
    assert stored(database) == 3


def test_sync_makes_a_full_commit_that_writes_something(
    database: Path, statements: list[str]
) -> None:
    async def scenario(writer: Writer) -> None:
        await writer.run(bump)
        await writer.run(lambda rows: rows.counter("next_epoch"), sync=True)

    with_writer(database, scenario)
    words = ("PRAGMA sync", "COMMIT", "UPDATE meta SET value = value + 1")
    assert [text for text in statements if text.startswith(words)] == [
        "COMMIT",
        "PRAGMA synchronous=FULL",
        "UPDATE meta SET value = value + 1 WHERE name = 'flush_count'",
        "COMMIT",
    ]


def test_change_without_sync_is_flushed_soon_by_itself(
    database: Path, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "FLUSH_AFTER_S", 0.05)

    async def scenario(writer: Writer) -> None:
        await writer.run(bump)
        async with asyncio.timeout(10):
            # Nothing tells of a flush: it is nobody's request.
            while stored(database, "flush_count") == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert "PRAGMA synchronous=FULL" in statements

    with_writer(database, scenario)
    # Nothing has changed since, so closing had nothing left to flush.
    assert stored(database, "flush_count") == 1


def test_work_that_changes_nothing_needs_no_flush(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "FLUSH_AFTER_S", 0.0)

    async def scenario(writer: Writer) -> None:
        for _ in range(3):
            await writer.run(lambda rows: rows.counter("next_epoch"))

    with_writer(database, scenario)
    assert stored(database, "flush_count") == 0


def test_change_that_comes_when_a_flush_is_due_is_made_durable_with_it(
    database: Path, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "FLUSH_AFTER_S", 0.0)
    held = Hold()

    async def scenario(writer: Writer) -> None:
        tasks: list[asyncio.Task[object]] = [asyncio.create_task(writer.run(held))]
        await asyncio.to_thread(held.started.wait, 10)
        # Waiting already when the first change is committed, so the writer is never idle.
        tasks.append(asyncio.create_task(writer.run(bump)))
        await asyncio.sleep(0)
        held.go_on.set()
        await asyncio.gather(*tasks)
        assert statements.count("COMMIT") == 2
        assert stored(database, "flush_count") == 1

    with_writer(database, scenario)


def test_close_finishes_what_waits_and_refuses_more(database: Path) -> None:
    async def scenario(writer: Writer) -> None:
        waiting = [asyncio.create_task(writer.run(bump)) for _ in range(300)]
        await asyncio.sleep(0)
        await writer.close()
        assert await asyncio.gather(*waiting) == list(range(2, 302))
        assert await kind_of(writer.run(bump)) is Kind.UNAVAILABLE
        await writer.close()

    with_writer(database, scenario)
    assert stored(database) == 301


def test_close_leaves_no_log_behind(database: Path) -> None:
    async def scenario(writer: Writer) -> None:
        await writer.run(bump)

    with_writer(database, scenario)
    log = Path(f"{database}-wal")
    assert not log.exists() or log.stat().st_size == 0


def test_caller_that_is_cancelled_does_not_stop_the_others(database: Path) -> None:
    async def scenario(writer: Writer) -> None:
        tasks = [asyncio.create_task(writer.run(bump)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        assert (results[0], results[2]) == (2, 4)

    with_writer(database, scenario)


def test_queue_is_bounded(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_writer, "QUEUE_COUNT_MAX", 4)
    hold = Hold()

    async def scenario(writer: Writer) -> None:
        tasks = [asyncio.create_task(writer.run(hold))]
        await asyncio.to_thread(hold.started.wait, 10)
        tasks += [asyncio.create_task(writer.run(lambda rows: None)) for _ in range(20)]
        await asyncio.sleep(0)
        assert len(writer._queue.jobs) == 3
        hold.go_on.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)

    with_writer(database, scenario)


def test_policies_are_forgotten_before_anybody_is_answered(database: Path) -> None:
    events: list[str] = []

    async def scenario(writer: Writer) -> None:
        await writer.run(bump)
        assert events == []
        await writer.run(lambda rows: rows.note_policies_changed())
        events.append("answered")

    with_writer(database, scenario, lambda: events.append("forgotten"))
    assert events == ["forgotten", "answered"]


def test_policies_are_forgotten_when_a_group_had_to_be_split(database: Path) -> None:
    events: list[str] = []

    async def scenario(writer: Writer) -> None:
        await asyncio.gather(
            writer.run(lambda rows: rows.note_policies_changed()), kind_of(writer.run(misuse))
        )

    with_writer(database, scenario, lambda: events.append("forgotten"))
    assert events


def grow(rows: SqliteRows) -> None:
    """Write some 50 KB to the log, and no more to the database than before."""
    sql = "INSERT OR REPLACE INTO xattr VALUES (1, x'61', randomblob(50000))"
    rows.connection.execute(sql)


def test_log_that_has_grown_is_copied_and_starts_again(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "CHECKPOINT_SIZE_BYTES", 200_000)

    async def scenario(writer: Writer) -> None:
        sizes: list[int] = []
        async with asyncio.timeout(30):
            while not sizes or max(sizes) <= 200_000 or sizes[-1] > 200_000:
                await writer.run(grow)
                sizes.append(os.stat(f"{database}-wal").st_size)

    with_writer(database, scenario)


def test_log_stays_bounded_when_the_checkpointer_does_not_keep_up(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "CHECKPOINT_SIZE_BYTES", 10**9)
    monkeypatch.setattr(sqlite_writer, "LOG_SIZE_BYTES_MAX", 1_000_000)

    async def scenario(writer: Writer) -> int:
        largest = 0
        for _ in range(200):
            await writer.run(grow)
            largest = max(largest, os.stat(f"{database}-wal").st_size)
        return largest

    assert with_writer(database, scenario) < 1_200_000


def test_writer_that_cannot_work_refuses_instead_of_hanging(
    database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path, *, read_only: bool) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite_writer, "connect", fail)

    async def scenario(writer: Writer) -> None:
        async with asyncio.timeout(10):
            assert await kind_of(writer.run(bump)) in {Kind.INTERNAL, Kind.UNAVAILABLE}

    with_writer(database, scenario)
    assert "the metadata writer ended" in caplog.text


def test_readers_are_not_held_up_by_a_long_change(database: Path) -> None:
    hold = Hold()

    async def scenario(writer: Writer) -> None:
        task = asyncio.create_task(writer.run(hold))
        await asyncio.to_thread(hold.started.wait, 10)
        with closing(connect(database, read_only=True)) as reader:
            (value,) = reader.execute("SELECT value FROM meta WHERE name='next_epoch'").fetchone()
            assert value == 1
        hold.go_on.set()
        await task

    with_writer(database, scenario)
