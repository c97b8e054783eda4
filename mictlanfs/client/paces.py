"""How fast each peer answers this client, and how long an answer may take before it is late. Pure.

The time of an answer is taken to grow with the bytes that this client waits for, from all peers
together, since they share its processor and its network: with eight chunks under way, each takes
about eight times as long as one alone. So what is learned of a peer is a *pace*: seconds for each
byte under way. Requests count as some bytes besides those they ask for.

Mean and deviation of a pace are followed as RFC 6298 follows round trips. An answer is late when it
takes longer than the mean and four deviations allow, by the pace of the quickest peer that has the
same bytes: a peer that was always slow is late although it is as slow as ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mictlanfs.model import KIB, PeerNumber

# What a request costs, as bytes: about what a peer on loopback sends while it takes up another one.
REQUEST_COST_BYTES: Final = 256 * KIB
# Below this nothing is late: a garbage collection, or another program on the same processor.
ALLOWANCE_S_MIN: Final = 0.010
# While nothing is known: a peer at 20 MB/s, but not for long.
UNKNOWN_PACE_S_PER_BYTE: Final = 1 / 20e6
UNKNOWN_ALLOWANCE_S_MAX: Final = 0.5
ALLOWANCE_S_MAX: Final = 2.0
# Answers after which a pace is believed.
SAMPLES_MIN: Final = 4
_MEAN_SHARE: Final = 1 / 8
_DEVIATION_SHARE: Final = 1 / 4
_DEVIATIONS: Final = 4


class _Pace:
    """Seconds for each byte under way, of one peer."""

    __slots__ = ("count", "deviation", "mean")

    def __init__(self, sample: float) -> None:
        self.mean = sample
        self.deviation = sample / 2
        self.count = 1

    def add(self, sample: float) -> None:
        self.deviation += _DEVIATION_SHARE * (abs(sample - self.mean) - self.deviation)
        self.mean += _MEAN_SHARE * (sample - self.mean)
        self.count += 1

    @property
    def bound(self) -> float:
        return self.mean + _DEVIATIONS * self.deviation


class Paces:
    """The paces of all peers, for one kind of request.

    Args:
        allowance_s_min: what is taken for late is never shorter; seconds.

    Attributes:
        load: bytes under way now, with what their requests cost.
    """

    def __init__(self, allowance_s_min: float = ALLOWANCE_S_MIN) -> None:
        self._allowance_s_min = allowance_s_min
        self._paces: dict[PeerNumber, _Pace] = {}
        self.load = 0

    def begin(self, size: int) -> int:
        """Count a request for `size` bytes as under way; returns the load with it."""
        self.load += size + REQUEST_COST_BYTES
        return self.load

    def end(self, size: int) -> None:
        """The request is no longer under way, whatever came of it."""
        self.load -= size + REQUEST_COST_BYTES

    def note(self, number: PeerNumber, elapsed_s: float, load: int) -> None:
        """A peer answered after `elapsed_s`, while at most `load` bytes were under way."""
        sample = elapsed_s / load
        pace = self._paces.get(number)
        if pace is None:
            self._paces[number] = _Pace(sample)
        else:
            pace.add(sample)

    def allowance_s(self, numbers: Iterable[PeerNumber], load: int) -> float:
        """Seconds that an answer may take with `load` bytes under way.

        Args:
            numbers: the peers that could give it.
            load: as `begin` returns it, or more if there was more since.
        """
        known = [
            pace.bound
            for number in numbers
            if (pace := self._paces.get(number)) is not None and pace.count >= SAMPLES_MIN
        ]
        if known:
            wanted_s, most_s = load * min(known), ALLOWANCE_S_MAX
        else:
            wanted_s, most_s = load * UNKNOWN_PACE_S_PER_BYTE, UNKNOWN_ALLOWANCE_S_MAX
        return self._allowance_s_min + min(wanted_s, most_s)


class Allowance:
    """A bounded share of requests beyond those that are needed.

    Args:
        share: extra requests for each needed one, in the long run.
        count_max: so many may be made at once, after enough others.
    """

    def __init__(self, share: float, count_max: int) -> None:
        self._share = share
        self._count_max = count_max
        self._left = float(count_max)

    def earn(self) -> None:
        """A needed request is made."""
        self._left = min(self._left + self._share, float(self._count_max))

    def spend(self) -> bool:
        """Whether an extra request may be made now; it then counts as made."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
