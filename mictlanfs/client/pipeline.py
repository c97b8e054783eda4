"""Work on several items at once, results in order, memory bounded.

Owns nothing beyond one call. Used for chunks of a file in both directions.
"""

from __future__ import annotations

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

    def release(self, size: int) -> None:
        """Give back what `acquire` took."""
        self._size -= size
        self._count -= 1
        self._waiting.unpark_all()


async def in_order(
    items: AsyncGenerator[Item, None],
    work: Callable[[Item], Awaitable[Result]],
    consume: Callable[[Item, Result], Awaitable[None]],
    *,
    size_of: Callable[[Item], int],
    budget: Budget,
) -> None:
    """Do `work` on several `items` at once and `consume` the results in the order of the items.

    An item counts against `budget`, with the size that `size_of` tells, from before its work until
    it is consumed; besides them one more item may be held, the one that waits for room.

    Cancellation and errors: work under way is cancelled and nothing more is consumed. The first
    error is raised as it is, without an exception group.
    """
    send, receive = trio.open_memory_channel[_Slot[Item, Result]](budget.count_max)
    held: dict[_Slot[Item, Result], None] = {}

    async def run(slot: _Slot[Item, Result]) -> None:
        slot.result = await work(slot.item)
        slot.done.set()

    async def produce(nursery: trio.Nursery) -> None:
        async with send, aclosing(items):
            async for item in items:
                size = size_of(item)
                await budget.acquire(size)
                slot = _Slot[Item, Result](item, size)
                held[slot] = None
                # Never waits: the channel has room for all that the budget lets through.
                send.send_nowait(slot)
                nursery.start_soon(run, slot)

    def release(slot: _Slot[Item, Result]) -> None:
        del held[slot]
        budget.release(slot.size)

    with raising_single_errors():
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(produce, nursery)
                async for slot in receive:
                    await slot.done.wait()
                    # `done` is set, so this is a result, whatever its type.
                    await consume(slot.item, slot.result)  # type: ignore[arg-type]
                    release(slot)
        finally:
            # Others may share the budget: what an error left is given back.
            for slot in list(held):
                release(slot)


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
