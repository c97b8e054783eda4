from collections.abc import AsyncGenerator, Iterable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from mictlanfs.client.pipeline import Budget, for_each, in_order


async def give(items: Iterable[int]) -> AsyncGenerator[int, None]:
    for item in items:
        yield item


class Work:
    """Takes as many seconds as the item says; counts what is under way."""

    def __init__(self) -> None:
        self.count = 0
        self.size = 0
        self.count_max = 0
        self.size_max = 0
        self.started: list[int] = []
        self.consumed: list[tuple[int, str]] = []

    async def work(self, item: int) -> str:
        self.started.append(item)
        self.count += 1
        self.size += item
        self.count_max = max(self.count_max, self.count)
        self.size_max = max(self.size_max, self.size)
        await trio.sleep(item)
        return str(item)

    async def consume(self, item: int, result: str) -> None:
        self.consumed.append((item, result))
        self.count -= 1
        self.size -= item

    async def run(self, items: Iterable[int], budget: Budget, size_before: int = 0) -> None:
        await in_order(
            give(items),
            self.work,
            self.consume,
            size_of=int,
            budget=budget,
            size_before=size_before,
        )


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 9), max_size=20),
    st.integers(1, 30),
    st.integers(1, 5),
    st.sampled_from([0, 9, 40]),
)
def test_results_come_in_order_and_within_the_budget(
    items: list[int], size_max: int, count_max: int, size_before: int
) -> None:
    work = Work()

    async def main() -> None:
        await work.run(items, Budget(size_max, count_max), size_before)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert work.consumed == [(item, str(item)) for item in items]
    assert work.count_max <= count_max
    assert work.size_max <= max(size_max, max(items, default=0))


async def test_items_are_worked_on_together(autojump_clock: trio.testing.MockClock) -> None:
    start, work = trio.current_time(), Work()
    await work.run([5] * 8, Budget(1000, 4))
    assert trio.current_time() - start == 10
    assert work.count_max == 4


async def test_an_item_larger_than_the_budget_goes_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    work = Work()
    await work.run([1, 50, 1], Budget(10, 4))
    assert work.size_max == 50
    assert work.count_max == 1


async def test_two_pipelines_share_a_budget(autojump_clock: trio.testing.MockClock) -> None:
    budget, work = Budget(1000, 3), Work()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(work.run, [1, 2, 3, 4, 5], budget)
    assert work.count_max == 3
    assert len(work.consumed) == 10


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("where", ["items", "work", "consume"])
@pytest.mark.parametrize("size_before", [0, 10])
async def test_an_error_ends_it_all_and_is_raised_plain(
    autojump_clock: trio.testing.MockClock, where: str, size_before: int
) -> None:
    closed: list[bool] = []
    budget, work = Budget(1000, 3), Work()

    async def items() -> AsyncGenerator[int, None]:
        try:
            for item in (1, 7, 2, 7):
                if where == "items" and item == 2:
                    raise BrokenError
                yield item
        finally:
            closed.append(True)

    async def failing_work(item: int) -> str:
        if where == "work" and item == 2:
            raise BrokenError
        return await work.work(item)

    async def failing_consume(item: int, result: str) -> None:
        if where == "consume" and item == 7:
            raise BrokenError
        await work.consume(item, result)

    with pytest.raises(BrokenError):
        await in_order(
            items(),
            failing_work,
            failing_consume,
            size_of=int,
            budget=budget,
            size_before=size_before,
        )
    assert closed
    # What was under way is given back: another user of the budget is not held up for ever.
    with trio.fail_after(100):
        await Work().run([1] * 10, budget)


async def test_room_is_made_before_an_item_is_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked: list[float] = []

    async def items() -> AsyncGenerator[int, None]:
        for _ in range(3):
            asked.append(trio.current_time())
            yield 5

    start, work = trio.current_time(), Work()
    await in_order(
        items(), work.work, work.consume, size_of=int, budget=Budget(10, 9), size_before=6
    )
    assert [time - start for time in asked] == [0, 5, 10]


async def test_cancelling_cancels_the_work(autojump_clock: trio.testing.MockClock) -> None:
    budget, work = Budget(1000, 3), Work()
    with trio.move_on_after(3) as scope:
        await work.run([1, 50, 50, 50, 50], budget)
    assert scope.cancelled_caught
    assert work.consumed == [(1, "1")]
    with trio.fail_after(100):
        await Work().run([1] * 10, budget)


async def test_for_each_works_on_several_at_once(autojump_clock: trio.testing.MockClock) -> None:
    start, done = trio.current_time(), set()

    async def work(item: int) -> None:
        await trio.sleep(1)
        done.add(item)

    await for_each(give(range(10)), work, tasks_max=5)
    assert done == set(range(10))
    assert trio.current_time() - start == 2


async def test_for_each_does_not_let_a_slow_item_hold_up_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    start = trio.current_time()
    await for_each(give([9] + [1] * 9), trio.sleep, tasks_max=2)
    assert trio.current_time() - start == 9


async def test_for_each_raises_the_plain_error(autojump_clock: trio.testing.MockClock) -> None:
    async def work(item: int) -> None:
        await trio.sleep(item)
        if item == 3:
            raise BrokenError

    with pytest.raises(BrokenError):
        await for_each(give(range(10)), work, tasks_max=5)
