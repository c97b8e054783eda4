"""Work on several items at once, results in order, memory bounded.

Owns nothing beyond one call. Used for chunks of a file in both directions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

import trio

from mictlanfs.taskerrors import raising_single_errors

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Slot(Generic[Item, Result]):
    """An item under way and, once `done` is set, its result."""

    __slots__ = ("done", "item", "result", "size")

    def __init__(self, item: Item, size: int) -> None:
        self.item = item
        self.size = size
        self.done = trio.Event()
        self.result: Result | None = None


class Budget:
    """How much may be under way at once, for any number of pipelines together.

    Args:
        size_max: of all items together; a single item may be larger, and then goes alone.
        count_max: of items.
    """

    def __init__(self, size_max: int, count_max: int) -> None:
        self.size_max = size_max
        self.count_max = count_max
        self._size = 0
        self._count = 0
        self._waiting = trio.lowlevel.ParkingLot()

    async def acquire(self, size: int) -> None:
        """Wait until `size` fits.

        Cancellation: nothing is taken.
        """
        while self._count and (self._count >= self.count_max or self._size + size > self.size_max):
            await self._waiting.park()
        self._size += size
        self._count += 1

    def shrink(self, size: int) -> None:
        """Give back `size` of what `acquire` took for an item that is smaller."""
        self._size -= size
        self._waiting.unpark_all()

    def release(self, size: int) -> None:
        """Give back what `acquire` took."""
        self._count -= 1
        self.shrink(size)


async def in_order(
    items: AsyncGenerator[Item, None],
    work: Callable[[Item], Awaitable[Result]],
    consume: Callable[[Item, Result], Awaitable[None]],
    *,
    size_of: Callable[[Item], int],
    budget: Budget,
    size_before: int = 0,
) -> None:
    """Do `work` on several `items` at once and `consume` the results in the order of the items.

    An item counts against `budget`, with the size that `size_of` tells, from before its work until
    it is consumed. Where items take up memory as soon as they are there, `size_before` is as large
    as any of them, and counts before the next one is asked for.

    Cancellation and errors: work under way is cancelled and nothing more is consumed. The first
    error is raised as it is, without an exception group.
    """
    feed = _Feed(items, size_of, budget, size_before)
    send, receive = trio.open_memory_channel[_Slot[Item, Result]](budget.count_max)

    async def run(slot: _Slot[Item, Result]) -> None:
        slot.result = await work(slot.item)
        slot.done.set()

    async def produce(nursery: trio.Nursery) -> None:
        async with send, aclosing(items):
            while (taken := await feed.take()) is not None:
                slot = _Slot[Item, Result](*taken)
                # Never waits: the channel has room for all that the budget lets through.
                send.send_nowait(slot)
                nursery.start_soon(run, slot)

    with raising_single_errors(), feed:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce, nursery)
            async for slot in receive:
                await slot.done.wait()
                # `done` is set, so this is a result, whatever its type.
                await consume(slot.item, slot.result)  # type: ignore[arg-type]
                feed.give_back(slot.size)


class _Feed(Generic[Item]):
    """Items with their share of a budget; what is not given back is when the block ends."""

    def __init__(
        self,
        items: AsyncGenerator[Item, None],
        size_of: Callable[[Item], int],
        budget: Budget,
        size_before: int,
    ) -> None:
        self._items = items
        self._size_of = size_of
        self._budget = budget
        self._size_before = size_before
        self._held: Counter[int] = Counter()

    async def take(self) -> tuple[Item, int] | None:
        """The next item and its size; None at the end."""
        if not self._size_before:
            return await self._take_then_acquire()
        await self._acquire(self._size_before)
        item = await anext(self._items, None)
        if item is None:
            return None
        size = self._size_of(item)
        self._budget.shrink(self._size_before - size)
        self._held[self._size_before] -= 1
        self._held[size] += 1
        return item, size

    async def _take_then_acquire(self) -> tuple[Item, int] | None:
        item = await anext(self._items, None)
        if item is None:
            return None
        size = self._size_of(item)
        await self._acquire(size)
        return item, size

    async def _acquire(self, size: int) -> None:
        await self._budget.acquire(size)
        self._held[size] += 1

    def give_back(self, size: int) -> None:
        """An item of that size is done."""
        self._held[size] -= 1
        self._budget.release(size)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        # Others may share the budget.
        for size in self._held.elements():
            self._budget.release(size)


async def for_each(
    items: AsyncGenerator[Item, None],
    work: Callable[[Item], Awaitable[None]],
    *,
    tasks_max: int,
) -> None:
    """Do `work` on `items`, at most `tasks_max` at once, in no order.

    Cancellation and errors: as for `in_order`.
    """
    send, receive = trio.open_memory_channel[Item](0)

    async def run() -> None:
        async for item in receive:
            await work(item)

    with raising_single_errors():
        async with trio.open_nursery() as nursery:
            for _ in range(tasks_max):
                nursery.start_soon(run)
            async with send, aclosing(items):
                async for item in items:
                    await send.send(item)
