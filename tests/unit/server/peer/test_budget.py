import asyncio

import pytest

from mictlanfs_server.peer.budget import ByteBudget
from tests.unit.server.peer.making import on_asyncio


async def hold(budget: ByteBudget, size: int, log: list[int], until: asyncio.Event) -> None:
    async with budget.take(size):
        log.append(size)
        await until.wait()


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


@on_asyncio
async def test_bytes_are_taken_and_given_back() -> None:
    budget = ByteBudget(10)
    async with budget.take(7):
        assert budget.taken == 7
    assert budget.taken == 0


@on_asyncio
async def test_bytes_are_given_back_after_an_error() -> None:
    budget = ByteBudget(10)
    with pytest.raises(ValueError, match="inside"):
        async with budget.take(7):
            raise ValueError("inside")
    assert budget.taken == 0


@on_asyncio
async def test_a_task_waits_until_enough_is_given_back() -> None:
    budget, log = ByteBudget(10), list[int]()
    first, second = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hold(budget, 6, log, first))
        tasks.create_task(hold(budget, 5, log, second))
        await settle()
        assert log == [6]
        first.set()
        await settle()
        assert log == [6, 5]
        assert budget.taken == 5
        second.set()


@on_asyncio
async def test_a_small_request_does_not_overtake_a_large_one() -> None:
    budget, log = ByteBudget(10), list[int]()
    end = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hold(budget, 6, log, end))
        tasks.create_task(hold(budget, 8, log, end))
        tasks.create_task(hold(budget, 1, log, end))
        await settle()
        assert log == [6]
        end.set()
    assert log == [6, 8, 1]
    assert budget.taken == 0


@on_asyncio
async def test_a_request_for_more_than_everything_gets_everything() -> None:
    budget = ByteBudget(10)
    async with budget.take(1000):
        assert budget.taken == 10
    assert budget.taken == 0


@on_asyncio
async def test_a_waiting_task_that_is_cancelled_lets_the_next_one_through() -> None:
    budget, log = ByteBudget(10), list[int]()
    end = asyncio.Event()
    holder = asyncio.create_task(hold(budget, 6, log, end))
    large = asyncio.create_task(hold(budget, 9, log, end))
    small = asyncio.create_task(hold(budget, 2, log, end))
    await settle()
    large.cancel()
    await settle()
    assert log == [6, 2]
    end.set()
    await asyncio.gather(holder, small)
    assert budget.taken == 0


@on_asyncio
async def test_a_task_cancelled_in_the_step_of_its_grant_gives_the_bytes_back() -> None:
    budget, log = ByteBudget(10), list[int]()
    end = asyncio.Event()
    waiting: asyncio.Task[None]
    async with budget.take(10):
        waiting = asyncio.create_task(hold(budget, 4, log, end))
        await settle()
    # The grant has been made, the task has not run since.
    assert budget.taken == 4
    waiting.cancel()
    await settle()
    assert waiting.cancelled()
    assert log == []
    assert budget.taken == 0


@on_asyncio
async def test_bytes_given_back_pass_by_a_task_that_is_being_cancelled() -> None:
    budget, log = ByteBudget(10), list[int]()
    end = asyncio.Event()
    async with budget.take(10):
        cancelled = asyncio.create_task(hold(budget, 4, log, end))
        patient = asyncio.create_task(hold(budget, 10, log, end))
        await settle()
        cancelled.cancel()
        # No step between the cancellation and the return of the bytes.
    await settle()
    assert log == [10]
    end.set()
    await patient
    assert budget.taken == 0
