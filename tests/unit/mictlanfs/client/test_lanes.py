from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from mictlanfs.client.lanes import Lane
from mictlanfs.errors import Kind, MictlanError

ROUND_TRIP_S = 1.0


class Sender:
    """Answers an item with its double; refuses negative ones; records the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.error: MictlanError | None = None

    async def send(self, items: Sequence[int]) -> list[int | MictlanError]:
        self.batches.append(list(items))
        await trio.sleep(ROUND_TRIP_S)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [MictlanError(Kind.INVALID) if item < 0 else 2 * item for item in items]


@asynccontextmanager
async def open_lane(
    sender: Sender, items_max: int = 10, size_max: int = 100
) -> AsyncIterator[Lane[int, int]]:
    async with trio.open_nursery() as nursery:
        yield Lane(nursery, sender.send, items_max, size_max)


async def submit_all(lane: Lane[int, int], items: Sequence[int], size: int = 1) -> list[object]:
    """Submit at once; the result or the error of each."""
    results: list[object] = [None] * len(items)

    async def submit(index: int, item: int) -> None:
        try:
            results[index] = await lane.submit(item, size)
        except MictlanError as error:
            results[index] = error.kind

    async with trio.open_nursery() as nursery:
        for index, item in enumerate(items):
            nursery.start_soon(submit, index, item)
            # In order, so that the batches can be told.
            await trio.testing.wait_all_tasks_blocked()
    return results


@pytest.fixture
def sender() -> Sender:
    return Sender()


async def test_an_item_alone_leaves_at_once(sender: Sender, autojump_clock: MockClock) -> None:
    start = trio.current_time()
    async with open_lane(sender) as lane:
        assert await lane.submit(21, 1) == 42
    assert trio.current_time() - start == ROUND_TRIP_S


async def test_items_that_come_meanwhile_leave_together(
    sender: Sender, autojump_clock: MockClock
) -> None:
    async with open_lane(sender) as lane:
        assert await submit_all(lane, [1, 2, 3, 4]) == [2, 4, 6, 8]
    assert sender.batches == [[1], [2, 3, 4]]


async def test_a_batch_has_at_most_so_many_items(sender: Sender, autojump_clock: MockClock) -> None:
    async with open_lane(sender, items_max=2) as lane:
        await submit_all(lane, [1, 2, 3, 4, 5, 6])
    assert sender.batches == [[1], [2, 3], [4, 5], [6]]


async def test_a_batch_weighs_at_most_so_much_unless_one_item_does(
    sender: Sender, autojump_clock: MockClock
) -> None:
    async with open_lane(sender, size_max=20) as lane:
        await submit_all(lane, [1, 2, 3, 4], size=10)
        assert sender.batches == [[1], [2, 3], [4]]
        assert await lane.submit(5, size=1000) == 10


async def test_a_lane_that_was_idle_starts_again(sender: Sender, autojump_clock: MockClock) -> None:
    async with open_lane(sender) as lane:
        for item in range(3):
            assert await lane.submit(item, 1) == 2 * item
    assert sender.batches == [[0], [1], [2]]


async def test_one_bad_item_does_not_harm_the_others_of_its_batch(
    sender: Sender, autojump_clock: MockClock
) -> None:
    async with open_lane(sender) as lane:
        assert await submit_all(lane, [1, 2, -3, 4]) == [2, 4, Kind.INVALID, 8]


async def test_a_failing_batch_fails_its_items_only(
    sender: Sender, autojump_clock: MockClock
) -> None:
    sender.error = MictlanError(Kind.UNAVAILABLE)
    async with open_lane(sender, items_max=2) as lane:
        assert await submit_all(lane, [1, 2, 3]) == [Kind.UNAVAILABLE, 4, 6]


async def test_an_item_that_has_not_left_is_taken_back_by_cancelling(
    sender: Sender, autojump_clock: MockClock
) -> None:
    async with open_lane(sender) as lane, trio.open_nursery() as nursery:
        nursery.start_soon(lane.submit, 1, 1)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(ROUND_TRIP_S / 2) as scope:
            await lane.submit(2, 1)
        assert scope.cancelled_caught
    assert sender.batches == [[1]]


async def test_an_item_under_way_goes_on_when_its_caller_is_cancelled(
    sender: Sender, autojump_clock: MockClock
) -> None:
    async with open_lane(sender) as lane:
        with trio.move_on_after(ROUND_TRIP_S / 2) as scope:
            await lane.submit(1, 1)
        assert scope.cancelled_caught
        assert await lane.submit(2, 1) == 4
    assert sender.batches == [[1], [2]]


async def test_closing_the_owner_ends_the_lane(sender: Sender, autojump_clock: MockClock) -> None:
    async def work() -> None:
        async with trio.open_nursery() as nursery:
            lane = Lane[int, int](nursery, sender.send, 10, 100)
            nursery.start_soon(lane.submit, 1, 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    await work()
    assert sender.batches == [[1]]
