"""Calls for what takes longer than it should, without a task for each of them.

Nearly everything that is watched ends in time, so watching costs a few microseconds: an entry in a
heap, which one task, shared by all, looks at when the earliest of them is due. While nothing is
watched the task sleeps without an end.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import trio

# Called when the time is up. What it returns is how many seconds later it wants to be called
# again; None: never.
OnLate = Callable[[], float | None]


class Alarm:
    """One thing that is watched. Not made by users.

    Attributes:
        on_late: what is called when it is late; None: it is not watched any more.
    """

    __slots__ = ("_alarms", "on_late")

    def __init__(self, alarms: Alarms, on_late: OnLate) -> None:
        self._alarms = alarms
        self.on_late: OnLate | None = on_late

    def end(self) -> None:
        """Stop watching; twice is once."""
        if self.on_late is not None:
            # The heap has this for a while yet; what it would call may hold the bytes of a chunk.
            self.on_late = None
            self._alarms.note_end()


class Alarms:
    """Watches blocks of code. For one trio loop.

    Args:
        nursery: of the owner, who cancels it at the end: the task never ends by itself.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = count()
        self._watched = 0
        self._is_running = False
        self._sleep = trio.CancelScope()

    @contextmanager
    def watch(self, delay_s: float, on_late: OnLate) -> Iterator[Alarm]:
        """Call `on_late` when the block is not left, or the alarm ended, within `delay_s` seconds.

        The call comes from another task, at a moment when the block waits. It must not raise.
        """
        alarm = Alarm(self, on_late)
        self._watched += 1
        self._push(trio.current_time() + delay_s, alarm)
        try:
            yield alarm
        finally:
            alarm.end()

    def note_end(self) -> None:
        """An alarm ended. For alarms."""
        self._watched -= 1
        if self._watched == 0:
            self._heap.clear()
            self._sleep.deadline = math.inf

    def _push(self, due: float, alarm: Alarm) -> None:
        heapq.heappush(self._heap, (due, next(self._numbers), alarm))
        if not self._is_running:
            self._is_running = True
            self._nursery.start_soon(self._run)
        elif due < self._sleep.deadline:
            self._sleep.deadline = due

    async def _run(self) -> None:
        while True:
            now_s = trio.current_time()
            while self._heap and (self._heap[0][0] <= now_s or self._heap[0][2].on_late is None):
                _, _, alarm = heapq.heappop(self._heap)
                again_s = alarm.on_late() if alarm.on_late is not None else None
                if again_s is not None:
                    due = now_s + again_s
                    heapq.heappush(self._heap, (due, next(self._numbers), alarm))
            due = self._heap[0][0] if self._heap else math.inf
            with trio.CancelScope(deadline=due) as self._sleep:
                await trio.sleep_forever()
