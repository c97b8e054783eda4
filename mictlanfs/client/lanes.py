"""Natural batching: what waits while a request is under way travels together in the next one.

A lane carries items to one place, one request at a time. The first item leaves at once, alone; the
items that come meanwhile leave together when it is back. So an idle lane adds no delay and a busy
one needs few requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

from mictlanfs.errors import MictlanError

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Ticket(Generic[Item, Result]):
    """An item on its way and, once `done` is set, what became of it."""

    __slots__ = ("done", "item", "result", "size")

    def __init__(self, item: Item, size: int) -> None:
        self.item = item
        self.size = size
        self.done = trio.Event()
        self.result: Result | MictlanError | None = None


class Lane(Generic[Item, Result]):
    """Sends items in batches.

    Args:
        nursery: of the lane's owner; the sending task lives in it while there is work.
        send: sends a batch and returns one result, or error, for each item. A `MictlanError` it
            raises is the result of every item of the batch.
        items_max, size_max: bounds of a batch; a single item may be larger than `size_max`.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Result | MictlanError]]],
        items_max: int,
        size_max: int,
    ) -> None:
        self._nursery = nursery
        self._send = send
        self._items_max = items_max
        self._size_max = size_max
        self._waiting: deque[_Ticket[Item, Result]] = deque()
        self._is_running = False

    async def submit(self, item: Item, size: int) -> Result:
        """Send `item`, which weighs `size`, and return its result.

        Cancellation: the item is taken back when it has not left yet; otherwise its result is
        thrown away.

        Raises:
            MictlanError: the item's error.
        """
        [result] = await self.submit_all([item], size)
        if isinstance(result, MictlanError):
            raise result
        return result

    async def submit_all(
        self, items: Sequence[Item], size_each: int
    ) -> Sequence[Result | MictlanError]:
        """Send `items` and return a result, or error, for each. Cancellation: as `submit`."""
        tickets: list[_Ticket[Item, Result]] = [_Ticket(item, size_each) for item in items]
        self._waiting.extend(tickets)
        if not self._is_running:
            self._is_running = True
            self._nursery.start_soon(self._run)
        try:
            for ticket in tickets:
                await ticket.done.wait()
        except trio.Cancelled:
            for ticket in tickets:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
            raise
        results: list[Result | MictlanError] = []
        for ticket in tickets:
            assert ticket.result is not None
            results.append(ticket.result)
        return results

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._send_one_batch(self._take_batch())
        finally:
            self._is_running = False

    def _take_batch(self) -> list[_Ticket[Item, Result]]:
        batch = [self._waiting.popleft()]
        size = batch[0].size
        while (
            self._waiting
            and len(batch) < self._items_max
            and size + self._waiting[0].size <= self._size_max
        ):
            size += self._waiting[0].size
            batch.append(self._waiting.popleft())
        return batch

    async def _send_one_batch(self, batch: list[_Ticket[Item, Result]]) -> None:
        results: Sequence[Result | MictlanError]
        try:
            results = await self._send([ticket.item for ticket in batch])
        except MictlanError as error:
            results = [error] * len(batch)
        for ticket, result in zip(batch, results, strict=True):
            ticket.result = result
            ticket.done.set()
