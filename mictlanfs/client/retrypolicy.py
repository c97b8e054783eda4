"""When to try again: a pure schedule. `retry` follows it on trio; others do so by themselves.

Only idempotent requests may be retried, and in this system all are: reads, chunk puts (chunks are
immutable and named by the writer) and batches of operations (numbered by their session).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often a failed request is tried again.

    Attributes:
        deadline_s: no new attempt starts later than this after the first; `inf` for ever.
        delay_s_first: mean wait before the second attempt.
        delay_s_max: mean wait that the doubling stops at.
    """

    deadline_s: float = 30.0
    delay_s_first: float = 0.05
    delay_s_max: float = 2.0

    def delays_s(self, draw: Callable[[], float] = random.random) -> Iterator[float]:
        """Waits between attempts: doubling, each spread over 50 % to 150 % of its mean.

        `draw` gives numbers in [0, 1).
        """
        mean_s = self.delay_s_first
        while True:
            yield mean_s * (0.5 + draw())
            mean_s = min(2 * mean_s, self.delay_s_max)


NO_RETRY = RetryPolicy(deadline_s=0.0)
FOR_EVER = RetryPolicy(deadline_s=float("inf"))
