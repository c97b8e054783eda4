"""Requests to peers, timed: their paces are learned from, and what is late is told at once.

Owns no request: it watches blocks of code that make one. What is late is looked at again whenever
it might be: a request that began alone may end among many, and then more time is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import trio

from mictlanfs.client.alarms import Alarm, Alarms
from mictlanfs.client.paces import Paces
from mictlanfs.model import PeerNumber

# Less time than this is none: a clock that does not get on would be asked for ever.
_LEFT_S_MIN: Final = 0.001


class Timing:
    """One request that is timed.

    Attributes:
        is_late: whether it took, or takes, longer than is allowed.
    """

    __slots__ = ("_alarm", "_load", "_number", "_paces", "_started_s", "is_late")

    def __init__(self, paces: Paces, number: PeerNumber, load: int) -> None:
        self._paces = paces
        self._number = number
        self._load = load
        self._started_s = trio.current_time()
        self._alarm: Alarm | None = None
        self.is_late = False

    def start(self, alarm: Alarm) -> None:
        """The request is watched by `alarm`."""
        self._alarm = alarm

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request began."""
        return trio.current_time() - self._started_s

    def answered(self) -> None:
        """The peer has done its part just now: learn from it, and do not call it late any more."""
        if self._alarm is not None:
            self._alarm.end()
        self._paces.note(self._number, self.elapsed_s, max(self._load, self._paces.load))


class Lateness:
    """Times requests of one kind. For one trio loop."""

    def __init__(self, alarms: Alarms, paces: Paces) -> None:
        self._alarms = alarms
        self._paces = paces

    @contextmanager
    def timing(
        self,
        number: PeerNumber,
        size: int,
        candidates: Sequence[PeerNumber] = (),
        on_late: Callable[[], None] | None = None,
        again_s: float | None = None,
    ) -> Iterator[Timing]:
        """Time a request that the block makes.

        Args:
            number: of the peer that is asked.
            size: bytes that travel.
            candidates: peers that could do it; the quickest says what is late.
            on_late: called when the request is late; see `Alarms.watch`.
            again_s: after so many seconds each time, for as long as it goes on; None: once.
        """
        paces = self._paces
        timing = Timing(paces, number, paces.begin(size))

        def look() -> float | None:
            left_s = paces.allowance_s(candidates, paces.load) - timing.elapsed_s
            if left_s > _LEFT_S_MIN and not timing.is_late:
                return left_s
            timing.is_late = True
            if on_late is not None:
                on_late()
            return again_s

        try:
            if on_late is None:
                yield timing
            else:
                allowance_s = paces.allowance_s(candidates, paces.load)
                with self._alarms.watch(allowance_s, look) as alarm:
                    timing.start(alarm)
                    yield timing
        finally:
            paces.end(size)
