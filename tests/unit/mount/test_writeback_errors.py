"""Errors of write-back: nothing is lost, everything is reported, once; and files that go away."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs.errors import Kind, MictlanError
from mictlanfs_mount.writeback import UPLOADS_MAX
from tests.support.mount_space import CHUNK_SIZE_BYTES, START_NS
from tests.support.writeback_rig import open_rig

WINDOW = CHUNK_SIZE_BYTES
UNAVAILABLE = MictlanError(Kind.UNAVAILABLE, "store", "", "no peer answers")


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


async def test_bytes_whose_peers_lost_them_before_the_commit_are_stored_again(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.script.fail("WriteExtents:asked", MictlanError(Kind.NO_DATA))
        rig.write(0, b"x" * WINDOW)
        await rig.writer.flush(10)
        assert rig.content == b"x" * WINDOW
        assert rig.script.asked("store") == 2


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


async def test_loss_that_nobody_waited_for_is_reported_by_the_next_flush() -> None:
    async with open_rig() as rig:
        rig.script.fail("WriteExtents:asked", MictlanError(Kind.NOT_FOUND))
        rig.write(0, b"x" * WINDOW)
        await wait_all_tasks_blocked()
        writer = rig.writeback.get(rig.ino)
        assert writer is not None
        assert writer.is_clean
        with pytest.raises(MictlanError) as caught:
            await writer.flush(10)
        assert caught.value.kind is Kind.STALE
        assert rig.writeback.get(rig.ino) is None


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


async def test_flush_goes_on_for_as_long_as_the_space_takes_anything(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        other = rig.space.add(rig.space.bucket, b"other")
        rig.script.delay_s = lambda point: 4.0 if point == "store:asked" else 0.0
        rig.writer_of(other).write(0, b"y" * (5 * UPLOADS_MAX * WINDOW), START_NS)
        await wait_all_tasks_blocked()
        rig.write(0, b"x" * WINDOW)
        # Behind five rounds of the other file, 4 s each.
        await rig.writer.flush(5)
        assert trio.current_time() >= 20
        assert rig.content == b"x" * WINDOW


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


async def test_discard_ends_waiting_flushes(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        hold = rig.script.hold("store:asked")
        rig.write(0, b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.writer.flush, 10)
            await hold.reached.wait()
            rig.writer.discard()
            assert rig.writeback.get(rig.ino) is None
        assert trio.current_time() == 0


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
