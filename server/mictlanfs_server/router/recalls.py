"""The recalls of one session: those it has not answered, and the events that carry them.

::

    held back --(the lease is old enough)--> ready --(the session asks)--> sent
        any --(the session gave up the lease)--> gone

A recall is one of a key. Those that are ready when the session asks travel together, as few
`Recall`s, each an event with a number; an event is sent again until a request says that it was
received. A recall counts as sent when it is ready, whether the session asks or not.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING

from mictlanfs import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mictlanfs.model import InodeNumber


class Pending:
    """A recall that was not answered yet.

    Attributes:
        keep: the most that the session may keep.
        due_s: when it is ready.
        is_ready: whether it was, and so may be on its way.
        stamp: of the event that carried it last; 0 before.
    """

    __slots__ = ("due_s", "is_ready", "keep", "stamp")

    def __init__(self, keep: int, due_s: float) -> None:
        self.keep = keep
        self.due_s = due_s
        self.is_ready = False
        self.stamp = 0


class Inbox:
    """What a session has to be told, and has been told."""

    def __init__(self) -> None:
        self.pending: dict[InodeNumber, Pending] = {}
        self._held_back: set[InodeNumber] = set()
        self._ready: set[InodeNumber] = set()
        self._events: deque[tuple[int, wire.Recall]] = deque()
        self._last = 0

    def recall(self, key: InodeNumber, keep: int, due_s: float) -> bool:
        """Ask for a key at `due_s`. Returns whether that is news."""
        pending = self.pending.get(key)
        if pending is None:
            self.pending[key] = Pending(keep, due_s)
            self._held_back.add(key)
            return True
        if pending.keep <= keep:
            return False
        pending.keep = keep
        if pending.is_ready:
            self._ready.add(key)
        return True

    def settle(self, key: InodeNumber) -> None:
        """The key is not to be given up any more; an event that is on its way does no harm."""
        if self.pending.pop(key, None) is not None:
            self._held_back.discard(key)
            self._ready.discard(key)

    def ripen(self, now_s: float) -> bool:
        """Make ready what is due. Returns whether anything was."""
        ripe = [key for key in self._held_back if self.pending[key].due_s <= now_s]
        for key in ripe:
            self.pending[key].is_ready = True
            self._held_back.discard(key)
            self._ready.add(key)
        return bool(ripe)

    def due_s(self) -> float | None:
        """When the next recall that is held back becomes ready."""
        return min((self.pending[key].due_s for key in self._held_back), default=None)

    def receive(self, after: int, next_stamp: Callable[[], int]) -> tuple[list[wire.Recall], int]:
        """The recalls behind the event `after`, which the session has received, and their last."""
        while self._events and self._events[0][0] <= after:
            self._events.popleft()
        # A session that counts from 0 again does not know of what was sent before.
        self._last = max(self._last, after)
        for recall in self._collect(next_stamp):
            self._last += 1
            self._events.append((self._last, recall))
        return [recall for _, recall in self._events], self._events[-1][
            0
        ] if self._events else after

    def _collect(self, next_stamp: Callable[[], int]) -> Iterator[wire.Recall]:
        by_keep: defaultdict[int, list[InodeNumber]] = defaultdict(list)
        for key in self._ready:
            by_keep[self.pending[key].keep].append(key)
        self._ready.clear()
        for keep, keys in by_keep.items():
            keys.sort()
            for start in range(0, len(keys), wire.LEASES_COUNT_MAX):
                some = keys[start : start + wire.LEASES_COUNT_MAX]
                stamp = next_stamp()
                for key in some:
                    self.pending[key].stamp = stamp
                yield wire.Recall(tuple(some), keep, stamp)

    def forgive(self, pause_s: float) -> None:
        """The router did not run for a while: nobody could answer."""
        for pending in self.pending.values():
            pending.due_s += pause_s
