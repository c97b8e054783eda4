"""Write-back by itself: order, errors, memory and age, over a storage that can be held and fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB, MIB, Attributes, BucketPolicy, Buffer, Chunk, InodeNumber
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs_mount.extents import Segment
from mictlanfs_mount.writeback import (
    AGE_S_MAX,
    RETRY_S_FIRST,
    TICK_S,
    UPLOADS_MAX,
    Budget,
    FileWriter,
    WriteBack,
)
from tests.support.mount_fakes import CHUNK_SIZE_BYTES, START_NS, FakeChunks, FakeSpace, Script

WINDOW = CHUNK_SIZE_BYTES
UNAVAILABLE = MictlanError(Kind.UNAVAILABLE, "store", "", "no peer answers")


@dataclass
class Rig:
    """Write-back over a fake space with one file."""

    space: FakeSpace
    script: Script
    writeback: WriteBack
    nursery: trio.Nursery
    ino: InodeNumber
    stored: list[tuple[Chunk, bytes]] = field(default_factory=list)
    committed: list[tuple[list[Segment], Attributes]] = field(default_factory=list)
    writes: int = 0

    @property
    def writer(self) -> FileWriter:
        return self.writer_of(self.ino)

    def writer_of(self, ino: InodeNumber) -> FileWriter:
        def on_committed(segments: list[Segment], attributes: Attributes) -> None:
            self.committed.append((segments, attributes))

        return self.writeback.writer(ino, self.space.policy, on_committed)

    def write(self, offset: int, data: bytes) -> int:
        """Write, at a time of its own, which is returned."""
        self.writes += 1
        self.writer.write(offset, data, START_NS + self.writes)
        return START_NS + self.writes

    @property
    def commits(self) -> list[wire.WriteExtents]:
        return [op for _, op in self.space.applied if isinstance(op, wire.WriteExtents)]

    @property
    def content(self) -> bytes:
        return self.space.content(self.ino)


class Storage:
    """A fake space as `writeback.Storage`; operations pass the points of `WriteExtents`."""

    def __init__(self, space: FakeSpace, script: Script) -> None:
        self._space = space
        self._script = script
        self._chunks = FakeChunks(space, script)

    async def store(self, pieces: Sequence[Buffer], policy: BucketPolicy) -> Chunk:
        return await self._chunks.store(pieces, policy)

    async def commit(self, op: wire.WriteExtents) -> Attributes:
        await self._script.passing("WriteExtents:asked")
        (attributes,) = self._space.apply(1, op)
        await self._script.passing("WriteExtents:served")
        return attributes


@asynccontextmanager
async def open_rig(limit_bytes: int = 64 * MIB, chunk_size: int = WINDOW) -> AsyncIterator[Rig]:
    space, script = FakeSpace(chunk_size), Script()
    stored: list[tuple[Chunk, bytes]] = []

    def on_stored(chunk: Chunk, pieces: Sequence[Buffer]) -> None:
        stored.append((chunk, b"".join(pieces)))

    with raising_single_errors():
        async with trio.open_nursery() as nursery:
            writeback = WriteBack(nursery, Storage(space, script), Budget(limit_bytes), on_stored)
            ino = space.add(space.bucket, b"file")
            yield Rig(space, script, writeback, nursery, ino, stored)
            nursery.cancel_scope.cancel()
    assert script.violations == []


# --- the way of a byte ---------------------------------------------------------------------------


async def test_written_bytes_are_read_back_before_they_are_stored() -> None:
    async with open_rig() as rig:
        rig.write(10, b"hello")
        assert rig.writer.collect(0, 100) == [(10, b"hello")]
        assert rig.writer.end == 15
        assert rig.script.asked() == 0


async def test_flush_stores_and_commits_everything() -> None:
    async with open_rig() as rig:
        rig.write(0, b"a" * 100)
        rig.write(3 * WINDOW - 10, b"b" * 20)
        await rig.writer.flush(10)
        content = b"a" * 100 + bytes(3 * WINDOW - 110) + b"b" * 20
        assert rig.content == content
        assert rig.writeback.budget.used_bytes == 0
        assert rig.writeback.get(rig.ino) is None


async def test_full_window_is_sent_while_the_application_writes_on() -> None:
    async with open_rig() as rig:
        rig.write(0, b"a" * (WINDOW - 1))
        await wait_all_tasks_blocked()
        assert rig.script.asked("store") == 0
        rig.write(WINDOW - 1, b"a")
        await wait_all_tasks_blocked()
        assert rig.content == b"a" * WINDOW


async def test_write_over_several_windows_becomes_one_chunk_for_each() -> None:
    async with open_rig() as rig:
        data = bytes(range(256)) * (WINDOW // 256) * 3
        rig.write(100, data)
        await rig.writer.flush(10)
        assert rig.content == bytes(100) + data
        lengths = sorted(chunk.length for chunk, _ in rig.stored)
        assert lengths == [100, WINDOW - 100, WINDOW, WINDOW]


async def test_what_is_stored_is_told_with_its_bytes() -> None:
    async with open_rig() as rig:
        rig.write(5, b"one")
        rig.write(50, b"two")
        await rig.writer.flush(10)
        ((chunk, body),) = rig.stored
        assert body == b"onetwo"
        assert chunk.length == 6


async def test_commit_tells_its_segments_and_the_new_attributes() -> None:
    async with open_rig() as rig:
        rig.write(5, b"one")
        rig.write(50, b"two")
        await rig.writer.flush(10)
        ((segments, attributes),) = rig.committed
        assert [(s.offset, s.end, s.chunk_offset) for s in segments] == [(5, 8, 0), (50, 53, 3)]
        assert attributes == rig.space.attributes(rig.ino)


async def test_bytes_can_be_read_at_every_moment_of_their_way() -> None:
    async with open_rig() as rig:
        holds = [
            rig.script.hold(point)
            for point in (
                "store:asked",
                "store:served",
                "WriteExtents:asked",
                "WriteExtents:served",
            )
        ]
        rig.write(7, b"data")
        rig.writer.seal_all()
        writer = rig.writer
        for hold in holds:
            await hold.reached.wait()
            assert writer.collect(0, 100) == [(7, b"data")]
            assert writer.end == 11
            hold.release()
        await writer.flush(10)
        assert writer.collect(0, 100) == []
        assert writer.end == 0


async def test_bytes_written_over_a_window_under_way_are_found_last() -> None:
    async with open_rig() as rig:
        hold = rig.script.hold("store:asked")
        rig.write(0, b"old" * 10)
        rig.writer.seal_all()
        await hold.reached.wait()
        rig.write(3, b"new")
        assert rig.writer.collect(0, 6) == [(0, b"oldold"), (3, b"new")]
        hold.release()
        await rig.writer.flush(10)
        assert rig.content == b"oldnew" + b"old" * 8


# --- times ---------------------------------------------------------------------------------------


async def test_file_has_the_time_of_its_last_write() -> None:
    async with open_rig() as rig:
        rig.write(0, b"a")
        last_ns = rig.write(1, b"b")
        await rig.writer.flush(10)
        assert rig.space.attributes(rig.ino).mtime_ns == last_ns


async def test_write_that_fills_a_window_gives_its_own_time() -> None:
    async with open_rig() as rig:
        filling_ns = rig.write(0, b"a" * WINDOW)
        await wait_all_tasks_blocked()
        assert rig.space.attributes(rig.ino).mtime_ns == filling_ns


async def test_old_windows_are_sent_by_themselves(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.nursery.start_soon(rig.writeback.seal_aged_windows)
        rig.write(0, b"a")
        await trio.sleep(AGE_S_MAX / 2)
        rig.write(WINDOW, b"b")
        assert rig.script.asked("store") == 0
        await trio.sleep(AGE_S_MAX / 2 + 2 * TICK_S)
        assert rig.content == b"a" + bytes(WINDOW - 1) + b"b"


async def test_window_that_is_written_again_and_again_is_sent_too(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.nursery.start_soon(rig.writeback.seal_aged_windows)
        for number in range(40):
            rig.write(number, b"x")
            await trio.sleep(0.1)
        # All but the last second, or a little more, of 4 s.
        assert len(rig.content) >= 40 - 10 * (AGE_S_MAX + 2 * TICK_S)


# --- order ---------------------------------------------------------------------------------------


async def test_later_window_stored_first_waits_for_the_earlier_one() -> None:
    async with open_rig() as rig:
        first = rig.script.hold("store:asked")
        rig.write(0, b"1" * WINDOW)
        await first.reached.wait()
        rig.write(WINDOW, b"2" * WINDOW)
        await wait_all_tasks_blocked()
        assert len(rig.stored) == 1
        assert rig.commits == []
        first.release()
        await rig.writer.flush(10)
        (commit,) = rig.commits
        assert [extent.offset for extent in commit.extents] == [0, WINDOW]


async def test_two_states_of_one_window_are_committed_in_order() -> None:
    async with open_rig() as rig:
        first = rig.script.hold("store:asked")
        rig.write(0, b"1" * WINDOW)
        await first.reached.wait()
        rig.write(0, b"2" * WINDOW)
        await wait_all_tasks_blocked()
        first.release()
        await rig.writer.flush(10)
        assert rig.content == b"2" * WINDOW


async def test_uploads_run_side_by_side_up_to_a_limit() -> None:
    async with open_rig() as rig:
        holds = [rig.script.hold("store:asked") for _ in range(2 * UPLOADS_MAX)]
        rig.write(0, b"x" * (2 * UPLOADS_MAX * WINDOW))
        await wait_all_tasks_blocked()
        assert sum(hold.reached.is_set() for hold in holds) == UPLOADS_MAX
        for hold in holds:
            hold.release()
        await rig.writer.flush(10)
        assert rig.content == b"x" * (2 * UPLOADS_MAX * WINDOW)


async def test_slow_commit_takes_all_that_was_stored_meanwhile_next_time() -> None:
    async with open_rig() as rig:
        slow = rig.script.hold("WriteExtents:served")
        rig.write(0, b"x" * WINDOW)
        await slow.reached.wait()
        for index in range(1, 20):
            rig.write(index * WINDOW, b"x" * WINDOW)
        await wait_all_tasks_blocked()
        slow.release()
        await rig.writer.flush(10)
        assert rig.script.asked("store") == 20
        assert len(rig.commits) == 2


async def test_slow_commit_holds_up_no_upload_of_another_file() -> None:
    async with open_rig() as rig:
        holds = [rig.script.hold("WriteExtents:asked") for _ in range(UPLOADS_MAX + 1)]
        others = [rig.space.add(rig.space.bucket, b"%d" % n) for n in range(UPLOADS_MAX + 1)]
        for ino in others:
            rig.writer_of(ino).write(0, b"x" * WINDOW, START_NS)
        await wait_all_tasks_blocked()
        assert all(hold.reached.is_set() for hold in holds)


async def test_one_operation_never_carries_more_than_a_bounded_number_of_extents() -> None:
    async with open_rig() as rig:
        slow = rig.script.hold("WriteExtents:asked")
        rig.write(0, b"x" * WINDOW)
        await slow.reached.wait()
        # Every other byte: as many extents as a window can have.
        for offset in range(WINDOW, 2 * WINDOW, 2):
            rig.write(offset, b"y")
        rig.write(2 * WINDOW, b"z" * (300 * WINDOW))
        slow.release()
        await rig.writer.flush(10)
        # What the router takes in one request, with room for others in the same batch.
        sizes = [len(msgspec.msgpack.encode(op)) for op in rig.commits]
        assert max(sizes) <= wire.BATCH_SIZE_BYTES_MAX // 16
        assert rig.content[WINDOW : 2 * WINDOW] == b"y\0" * (WINDOW // 2)
        assert rig.content[2 * WINDOW :] == b"z" * (300 * WINDOW)


# --- errors --------------------------------------------------------------------------------------


async def test_failed_upload_is_reported_once_and_stored_when_the_store_recovers(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.script.fail("store:asked", UNAVAILABLE)
        rig.write(0, b"precious")
        with pytest.raises(MictlanError) as caught:
            await rig.writer.flush(10)
        assert caught.value.kind is Kind.UNAVAILABLE
        assert rig.writer.collect(0, 8) == [(0, b"precious")]
        await rig.writer.flush(10)
        assert rig.content == b"precious"
        assert rig.writeback.get(rig.ino) is None


async def test_failed_commit_is_reported_once_and_made_when_the_router_recovers(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.script.fail("WriteExtents:asked", MictlanError(Kind.NO_SPACE))
        rig.write(0, b"precious")
        with pytest.raises(MictlanError) as caught:
            await rig.writer.flush(10)
        assert caught.value.kind is Kind.NO_SPACE
        await rig.writer.flush(10)
        assert rig.content == b"precious"
        assert rig.script.asked("store") == 1


async def test_error_nobody_was_told_of_is_forgotten_once_everything_has_arrived(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.script.fail("store:asked", UNAVAILABLE, count=3)
        rig.write(0, b"x" * WINDOW)
        await trio.sleep(60)
        assert rig.content == b"x" * WINDOW
        assert rig.writeback.get(rig.ino) is None
        await rig.writer.flush(10)


async def test_each_new_failure_is_reported_again(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.script.fail("store:asked", UNAVAILABLE, count=2)
        rig.write(0, b"x")
        for _ in range(2):
            with pytest.raises(MictlanError, match="no peer answers"):
                await rig.writer.flush(100)
        await rig.writer.flush(100)
        assert rig.content == b"x"


async def test_retries_of_an_upload_become_rarer(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.script.failure = lambda point: UNAVAILABLE if point == "store:asked" else None
        rig.write(0, b"x" * WINDOW)
        await trio.sleep(100)
        assert 8 <= rig.script.asked("store") <= 20
        rig.script.recover()
        await trio.sleep(11)
        assert rig.content == b"x" * WINDOW


@pytest.mark.parametrize("point", ["store:asked", "WriteExtents:asked"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("a defect"),
        OSError(5, "a disk"),
        ExceptionGroup("from a nursery", [UNAVAILABLE, ValueError("a defect")]),
    ],
)
async def test_defect_on_the_way_out_loses_nothing_and_does_not_end_the_mount(
    point: str, error: Exception, autojump_clock: MockClock
) -> None:
    async with open_rig() as rig:
        rig.script.fail(point, error)
        rig.write(0, b"precious")
        with pytest.raises(MictlanError) as caught:
            await rig.writer.flush(10)
        assert caught.value.kind is Kind.INTERNAL
        await rig.writer.flush(10)
        assert rig.content == b"precious"


async def test_group_of_one_error_is_that_error(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.script.fail("store:asked", ExceptionGroup("from a nursery", [UNAVAILABLE]))
        rig.write(0, b"precious")
        with pytest.raises(MictlanError, match="no peer answers"):
            await rig.writer.flush(10)


@pytest.mark.parametrize("kind", [Kind.NOT_FOUND, Kind.STALE])
async def test_data_of_a_file_that_is_gone_is_dropped_and_reported(kind: Kind) -> None:
    async with open_rig() as rig:
        rig.script.fail("WriteExtents:asked", MictlanError(kind))
        rig.write(0, b"x" * (3 * WINDOW + 5))
        with pytest.raises(MictlanError) as caught:
            await rig.writer.flush(10)
        assert caught.value.kind is Kind.STALE
        assert rig.writeback.budget.used_bytes == 0
        assert rig.writer.collect(0, 4 * WINDOW) == []
        await rig.writer.flush(10)


async def test_reporting_the_loss_of_a_removed_file_leaves_no_writer_behind() -> None:
    async with open_rig() as rig:
        rig.script.fail("WriteExtents:asked", MictlanError(Kind.NOT_FOUND))
        rig.write(0, b"x")
        writer = rig.writer
        with pytest.raises(MictlanError):
            await writer.flush(10)
        assert rig.writeback.get(rig.ino) is None


async def test_flush_that_takes_too_long_times_out_and_keeps_the_data(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        hold = rig.script.hold("store:asked")
        rig.write(0, b"precious")
        started_s = trio.current_time()
        with pytest.raises(MictlanError, match="8 bytes are not stored yet") as caught:
            await rig.writer.flush(5)
        assert caught.value.kind is Kind.TIMED_OUT
        assert trio.current_time() - started_s == 5
        assert rig.writer.collect(0, 8) == [(0, b"precious")]
        hold.release()
        await rig.writer.flush(5)
        assert rig.content == b"precious"


async def test_cancelled_flush_loses_nothing() -> None:
    async with open_rig() as rig:
        for point in ("store:asked", "store:served", "WriteExtents:asked", "WriteExtents:served"):
            hold = rig.script.hold(point)
            rig.write(0, point.encode())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.writer.flush, 10)
                await hold.reached.wait()
                nursery.cancel_scope.cancel()
            hold.release()
            await rig.writer.flush(10)
            assert rig.content.startswith(point.encode())
            assert rig.writeback.budget.used_bytes == 0


async def test_flush_waits_for_what_was_written_before_it_and_no_more() -> None:
    async with open_rig() as rig:
        rig.write(0, b"1" * WINDOW)
        done = trio.Event()

        async def flush() -> None:
            await rig.writer.flush(10)
            done.set()

        first = rig.script.hold("WriteExtents:asked")
        rig.nursery.start_soon(flush)
        await first.reached.wait()
        never = rig.script.hold("store:asked")
        rig.write(WINDOW, b"2" * WINDOW)
        await never.reached.wait()
        first.release()
        await done.wait()
        assert rig.content == b"1" * WINDOW


async def test_flush_of_a_clean_file_costs_nothing() -> None:
    async with open_rig() as rig:
        await rig.writer.flush(10)
        assert rig.script.asked() == 0


# --- a file that goes away -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "point", ["store:asked", "store:served", "WriteExtents:asked", "WriteExtents:served"]
)
async def test_discarded_data_goes_nowhere(point: str) -> None:
    async with open_rig() as rig:
        hold = rig.script.hold(point)
        rig.write(0, b"x" * WINDOW)
        rig.write(5 * WINDOW, b"not full")
        await hold.reached.wait()
        commits = len(rig.commits)
        writer = rig.writer
        writer.discard()
        assert writer.is_clean
        assert writer.collect(0, 10 * WINDOW) == []
        assert rig.writeback.budget.used_bytes == 0
        hold.release()
        await wait_all_tasks_blocked()
        assert len(rig.commits) - commits == (point == "WriteExtents:asked")
        assert rig.writeback.budget.used_bytes == 0
        assert rig.committed == []
        assert writer.error is None


async def test_discard_ends_waiting_flushes() -> None:
    async with open_rig() as rig:
        hold = rig.script.hold("store:asked")
        rig.write(0, b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.writer.flush, 10)
            await hold.reached.wait()
            rig.writer.discard()


async def test_file_can_be_written_again_after_a_discard() -> None:
    async with open_rig() as rig:
        hold = rig.script.hold("WriteExtents:asked")
        rig.write(0, b"old" * WINDOW)
        await hold.reached.wait()
        rig.writer.discard()
        rig.write(0, b"new")
        hold.release()
        await rig.writer.flush(10)
        assert rig.content.startswith(b"new")
        assert rig.writeback.budget.used_bytes == 0


# --- memory --------------------------------------------------------------------------------------


async def test_budget_counts_every_dirty_byte_once() -> None:
    async with open_rig() as rig:
        budget = rig.writeback.budget
        rig.write(0, b"x" * 100)
        rig.write(50, b"y" * 100)
        assert budget.used_bytes == rig.writer.dirty_bytes == 150
        rig.writer.seal_all()
        rig.write(0, b"z" * 10)
        assert budget.used_bytes == rig.writer.dirty_bytes == 160
        await rig.writer.flush(10)
        assert budget.used_bytes == 0


async def test_writer_waits_for_room_and_goes_on() -> None:
    async with open_rig(limit_bytes=WINDOW) as rig:
        rig.write(0, b"x" * WINDOW)
        assert rig.writeback.budget.is_exhausted
        await rig.writeback.wait_for_room(10)
        assert not rig.writeback.budget.is_exhausted


async def test_waiting_for_room_sends_windows_of_every_file() -> None:
    async with open_rig(limit_bytes=200) as rig:
        other = rig.space.add(rig.space.bucket, b"other")
        rig.write(0, b"x" * 100)
        rig.writer_of(other).write(0, b"y" * 100, START_NS)
        await rig.writeback.wait_for_room(10)
        await wait_all_tasks_blocked()
        assert rig.content == b"x" * 100
        assert rig.space.content(other) == b"y" * 100


async def test_no_room_within_the_deadline_times_out(autojump_clock: MockClock) -> None:
    async with open_rig(limit_bytes=100) as rig:
        rig.script.hold("store:asked")
        rig.write(0, b"x" * 100)
        with pytest.raises(MictlanError, match="cannot be stored") as caught:
            await rig.writeback.wait_for_room(5)
        assert caught.value.kind is Kind.TIMED_OUT
        assert rig.writer.collect(0, 3) == [(0, b"xxx")]


async def test_writer_is_told_at_once_that_the_space_is_full(autojump_clock: MockClock) -> None:
    async with open_rig(limit_bytes=100) as rig:
        rig.script.fail("store:asked", MictlanError(Kind.NO_SPACE), count=1000)
        rig.write(0, b"x" * 100)
        for _ in range(2):
            with pytest.raises(MictlanError) as caught:
                await rig.writeback.wait_for_room(60)
            assert caught.value.kind is Kind.NO_SPACE
        assert trio.current_time() < 1
        rig.script.recover()
        await trio.sleep(20)
        await rig.writeback.wait_for_room(0)


async def test_upload_that_fails_after_the_data_was_discarded_is_nobodys_error(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        slow = rig.script.hold("store:asked")
        rig.script.fail("store:asked", UNAVAILABLE, count=1)
        rig.write(0, b"x" * WINDOW)
        await slow.reached.wait()
        writer = rig.writer
        writer.discard()
        slow.release()
        await trio.sleep(100)
        assert writer.error is None
        assert rig.script.asked("store") == 1


def test_budget_refuses_to_release_more_than_was_charged() -> None:
    budget = Budget(10)
    budget.charge(5)
    with pytest.raises(AssertionError, match="released"):
        budget.release(6)


# --- the end -------------------------------------------------------------------------------------


async def test_everything_is_flushed_at_the_end(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        other = rig.space.add(rig.space.bucket, b"other")
        rig.script.fail("store:asked", UNAVAILABLE, count=4)
        rig.write(0, b"x" * 100)
        rig.writer_of(other).write(0, b"y" * 100, START_NS)
        assert await rig.writeback.flush_all(60) == 0
        assert rig.content == b"x" * 100
        assert rig.space.content(other) == b"y" * 100


async def test_bytes_that_cannot_be_stored_at_the_end_are_counted(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.script.failure = lambda point: UNAVAILABLE if point == "store:asked" else None
        rig.write(0, b"x" * 100)
        started_s = trio.current_time()
        assert await rig.writeback.flush_all(60) == 100
        assert trio.current_time() - started_s <= 60 + 2 * RETRY_S_FIRST


async def test_one_file_that_hangs_does_not_keep_the_others_from_being_flushed(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        other = rig.space.add(rig.space.bucket, b"other")
        rig.script.hold("store:asked")
        rig.write(0, b"x" * 100)
        await wait_all_tasks_blocked()
        rig.writer.seal_all()
        await wait_all_tasks_blocked()
        rig.writer_of(other).write(0, b"y" * (100 * KIB), START_NS)
        assert await rig.writeback.flush_all(60) == 100
        assert rig.space.content(other) == b"y" * (100 * KIB)
