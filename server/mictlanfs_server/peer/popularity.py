"""Which chunks of a peer are read most: counts that fade, of a bounded number of chunks. No I/O.

The sketch of Misra and Gries, in batches: when more chunks are counted than may be, the count of
the one in the middle is taken from all, and those with nothing left are forgotten. So counts are
never too high, and too low by at most 1/1024 of all reads: what is read often among millions of
chunks is found in some 100 KB of memory. Source: Misra, Gries, "Finding repeated elements", 1982.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from mictlanfs.wirepeers import HOT_COUNT_MAX, HotChunk

if TYPE_CHECKING:
    from mictlanfs.clock import Clock
    from mictlanfs.model import ChunkId

# What a read counts for is halved in this time.
HALF_LIFE_S: Final = 60.0
KEPT_COUNT: Final = 1024
# A read of a small part has its price, too.
SHARE_MIN: Final = 1 / 16
# Of what is read less than that nobody has to know.
READS_PER_MIN_MIN: Final = 1.0

# Of a chunk that is read once a second the counts of all reads add up to this.
_SUM_S: Final = HALF_LIFE_S / math.log(2)


class ReadCounter:
    """Counts reads of chunks. Used from one event loop; a read costs it a microsecond."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[ChunkId, float] = {}
        self._faded_at_s = clock.monotonic_s()

    def note(self, chunk_id: ChunkId, share: float = 1.0) -> None:
        """A chunk was read, or a part of it, from 0 to 1."""
        counts = self._counts
        counts[chunk_id] = counts.get(chunk_id, 0.0) + max(share, SHARE_MIN)
        if len(counts) >= 2 * KEPT_COUNT:
            self._prune()

    def forget(self, chunk_id: ChunkId) -> None:
        """A chunk is gone from this peer."""
        self._counts.pop(chunk_id, None)

    def hottest(self) -> tuple[HotChunk, ...]:
        """The chunks that are read most now, with their rates, the most first."""
        self._fade()
        rates = ((count * 60 / _SUM_S, chunk_id) for chunk_id, count in self._counts.items())
        found = sorted((one for one in rates if one[0] >= READS_PER_MIN_MIN), reverse=True)
        return tuple([HotChunk(chunk_id, rate) for rate, chunk_id in found[:HOT_COUNT_MAX]])

    def _fade(self) -> None:
        now_s = self._clock.monotonic_s()
        factor = 0.5 ** ((now_s - self._faded_at_s) / HALF_LIFE_S)
        self._faded_at_s = now_s
        least = READS_PER_MIN_MIN / 60 * _SUM_S * SHARE_MIN
        self._counts = {
            chunk_id: count * factor
            for chunk_id, count in self._counts.items()
            if count * factor >= least
        }

    def _prune(self) -> None:
        middle = sorted(self._counts.values())[-KEPT_COUNT]
        self._counts = {
            chunk_id: count - middle for chunk_id, count in self._counts.items() if count > middle
        }
