"""Time as a value passed in, so that tests decide what time it is."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one for people and files, one for measuring durations."""

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch; may jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...


class SystemClock:
    """The clocks of the operating system."""

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch, from CLOCK_REALTIME."""
        return time.time_ns()

    def monotonic_s(self) -> float:
        """Seconds from CLOCK_MONOTONIC."""
        return time.monotonic()
