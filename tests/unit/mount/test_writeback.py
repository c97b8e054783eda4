"""Write-back by itself: order, errors, memory and age, over a storage that can be held and fail."""

from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB
from mictlanfs_mount.budget import Budget
from mictlanfs_mount.writeback import (
    AGE_S_MAX,
    GATHER_COUNT_MAX,
    GATHER_S_MAX,
    RETRY_S_FIRST,
    TICK_S,
    UPLOADS_MAX,
)
from tests.support.mount_space import CHUNK_SIZE_BYTES, START_NS
from tests.support.writeback_rig import open_rig

WINDOW = CHUNK_SIZE_BYTES
UNAVAILABLE = MictlanError(Kind.UNAVAILABLE, "store", "", "no peer answers")


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


async def test_windows_committed_together_give_the_time_of_the_last_write() -> None:
    async with open_rig() as rig:
        first = rig.script.hold("store:asked")
        rig.write(0, b"1" * WINDOW)
        await first.reached.wait()
        last_ns = rig.write(WINDOW, b"2" * WINDOW)
        await wait_all_tasks_blocked()
        first.release()
        await rig.writer.flush(10)
        assert len(rig.commits) == 1
        assert rig.space.attributes(rig.ino).mtime_ns == last_ns


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


async def test_small_windows_that_nobody_waits_for_leave_together(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        for number in range(GATHER_COUNT_MAX - 1):
            rig.write(number * WINDOW, b"x")
            rig.writer.seal_all()
        await trio.sleep(GATHER_S_MAX / 2)
        assert rig.script.asked("store") == 0
        await trio.sleep(GATHER_S_MAX)
        assert rig.script.asked("store") == GATHER_COUNT_MAX - 1
        await wait_all_tasks_blocked()
        assert rig.writer.is_clean


async def test_enough_small_windows_leave_at_once() -> None:
    async with open_rig() as rig:
        for number in range(GATHER_COUNT_MAX):
            rig.write(number * WINDOW, b"x")
            rig.writer.seal_all()
        await wait_all_tasks_blocked()
        assert rig.writer.is_clean


async def test_small_windows_leave_when_somebody_waits_for_any_of_them(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.write(0, b"a")
        rig.writer.seal_all()
        started_s = trio.current_time()
        await rig.writer.store()
        assert (rig.content, trio.current_time()) == (b"a", started_s)


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


async def test_file_does_not_grow_beyond_the_data_that_is_there() -> None:
    async with open_rig() as rig:
        rig.write(0, b"1" * WINDOW)
        rig.write(5 * WINDOW, b"not sent yet")
        await wait_all_tasks_blocked()
        assert rig.content == b"1" * WINDOW


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


async def test_waiting_for_room_seals_no_window_while_others_leave() -> None:
    async with open_rig(limit_bytes=WINDOW + 100) as rig:
        slow = rig.script.hold("store:asked")
        rig.write(0, b"x" * (WINDOW + 100))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.writeback.wait_for_room, 10)
            await slow.reached.wait()
            slow.release()
        await wait_all_tasks_blocked()
        assert len(rig.commits) == 1
        assert rig.writer.collect(WINDOW, WINDOW + 100) == [(WINDOW, b"x" * 100)]


async def test_what_cannot_leave_keeps_no_window_from_leaving(autojump_clock: MockClock) -> None:
    async with open_rig(limit_bytes=2 * WINDOW) as rig:
        rig.script.fail("store:asked", UNAVAILABLE, count=1)
        rig.write(0, b"x" * WINDOW)
        await wait_all_tasks_blocked()
        other = rig.space.add(rig.space.bucket, b"other")
        writer = rig.writer_of(other)
        for start in range(0, 4 * WINDOW, 2 * WINDOW):
            writer.write(start, b"y" * (WINDOW // 2), START_NS)
        with trio.fail_after(RETRY_S_FIRST / 2):
            await rig.writeback.wait_for_room(10)


async def test_commits_leave_without_delay_while_memory_is_filling() -> None:
    async with open_rig(limit_bytes=4 * WINDOW) as rig:
        storage = rig.storage
        storage.keeps_posts = True
        rig.write(0, b"x" * WINDOW)
        await wait_all_tasks_blocked()
        # So little may wait for others.
        assert (storage.posted_count, storage.hurried_count) == (1, 0)
        other = rig.space.add(rig.space.bucket, b"other")
        rig.writer_of(other).write(0, b"y" * WINDOW, START_NS)
        await wait_all_tasks_blocked()
        assert (storage.posted_count, storage.hurried_count) == (2, 1)


async def test_waiting_for_room_hurries_what_was_posted_before(autojump_clock: MockClock) -> None:
    async with open_rig(limit_bytes=WINDOW) as rig:
        storage = rig.storage
        storage.keeps_posts = True
        rig.write(0, b"x" * WINDOW)
        await wait_all_tasks_blocked()
        before = storage.hurried_count
        with pytest.raises(MictlanError, match="cannot be stored"):
            await rig.writeback.wait_for_room(5)
        assert storage.hurried_count > before


async def test_writer_waits_for_room_for_as_long_as_the_space_takes_anything(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(limit_bytes=WINDOW) as rig:
        rig.script.delay_s = lambda point: 4.0 if point == "store:asked" else 0.0
        rig.write(0, b"x" * (5 * UPLOADS_MAX * WINDOW))
        await rig.writeback.wait_for_room(5)
        assert trio.current_time() >= 20


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


async def test_reserved_memory_counts_until_it_is_given_back() -> None:
    budget = Budget(10)
    budget.charge(4)
    budget.reserve(6)
    assert (budget.is_exhausted, budget.used_bytes) == (True, 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(budget.wait_changed)
        await wait_all_tasks_blocked()
        budget.reserve(-6)
    assert (budget.is_exhausted, budget.used_bytes) == (False, 4)


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
        rig.writeback.start_uploads()
        await wait_all_tasks_blocked()
        rig.writer_of(other).write(0, b"y" * (100 * KIB), START_NS)
        assert await rig.writeback.flush_all(60) == 100
        assert rig.space.content(other) == b"y" * (100 * KIB)


async def test_slow_space_gets_everything_at_the_end_however_long_it_takes(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.script.delay_s = lambda point: 50.0 if point == "store:asked" else 0.0
        rig.write(0, b"x" * (4 * UPLOADS_MAX * WINDOW))
        assert await rig.writeback.flush_all(60) == 0
        assert trio.current_time() >= 200
        assert rig.content == b"x" * (4 * UPLOADS_MAX * WINDOW)


async def test_program_that_writes_on_does_not_keep_the_flush_from_ending(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.script.delay_s = lambda _: 0.1

        async def write_on() -> None:
            while True:
                rig.write(0, b"x" * WINDOW)
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_on)
            await trio.sleep(1)
            await rig.writeback.flush_all(60)
            assert trio.current_time() < 5
            nursery.cancel_scope.cancel()


# --- what comes behind bytes ---------------------------------------------------------------------


async def test_what_comes_behind_bytes_does_not_make_them_leave(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.nursery.start_soon(rig.writeback.seal_aged_windows)
        done_at_s: list[float] = []
        rig.write(0, b"bytes")
        rig.writer.post_after(lambda: done_at_s.append(trio.current_time()))
        await trio.sleep(AGE_S_MAX - 0.01)
        assert (rig.script.asked(), done_at_s) == (0, [])
        await trio.sleep(2 * TICK_S)
        assert rig.content == b"bytes"
        assert len(done_at_s) == 1


async def test_bytes_in_front_and_behind_are_committed_apart() -> None:
    async with open_rig() as rig:
        told: list[tuple[str, bytes]] = []
        rig.write(0, b"first")
        rig.writer.post_after(lambda: told.append(("one", rig.content)))
        rig.writer.post_after(lambda: told.append(("two", rig.content)))
        rig.write(0, b"then")
        rig.writer.post_after(lambda: told.append(("three", rig.content)))
        await rig.writer.flush(10)
        assert told == [("one", b"first"), ("two", b"first"), ("three", b"thent")]
        assert len(rig.commits) == 2


async def test_what_comes_behind_bytes_under_way_waits_for_them() -> None:
    async with open_rig() as rig:
        hold = rig.script.hold("WriteExtents:asked")
        told: list[bytes] = []
        rig.write(0, b"bytes")
        rig.writer.seal_all()
        rig.writer.post_after(lambda: told.append(rig.content))
        await hold.reached.wait()
        assert told == []
        hold.release()
        await rig.writer.flush(10)
        assert told == [b"bytes"]


async def test_what_comes_behind_bytes_that_are_dropped_is_done() -> None:
    async with open_rig() as rig:
        told: list[bytes] = []
        rig.write(0, b"bytes")
        rig.writer.post_after(lambda: told.append(rig.content))
        rig.writer.discard()
        assert told == [b""]
        assert rig.script.asked() == 0
