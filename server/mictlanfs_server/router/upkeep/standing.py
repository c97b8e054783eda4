"""Whose copies count: what the healer makes of the states of peers. A state machine, without I/O.

::

    counted --down--> missed --down for its delay--> given up on
       ^                 |                               |
       +--- comes back --+-------------- comes back -----+

A peer that is down is *missed* for a while before its chunks are copied elsewhere: most come back,
and copying a disk costs more than waiting for a restart. The wait doubles with each time that the
peer went down within the last hour, and so does the time for which it must be up before copies
elsewhere are given up on its account (*steady*): a peer that comes and goes moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mictlanfs.model import PeerInfo, PeerNumber, PeerState

if TYPE_CHECKING:
    from collections.abc import Sequence

FLAPS_REMEMBERED_S: Final = 3600.0
DELAY_S_MAX: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Standing:
    """The peers as the mover may use them.

    Attributes:
        peers: all of the map, by number.
        counted: whose copies count: neither drained nor down for too long.
        up: those of them that answer.
        steady: those of them whose copies suffice for others to be given up.
        targets: that may get copies.
        sources: that may be read from, the best first.
        draining: that are being emptied and answer, or may answer again.
        waiting_s: seconds until a peer that is down is given up on.
    """

    peers: dict[PeerNumber, PeerInfo]
    counted: frozenset[PeerNumber]
    up: frozenset[PeerNumber]
    steady: frozenset[PeerNumber]
    targets: tuple[PeerInfo, ...]
    sources: tuple[PeerNumber, ...]
    draining: tuple[PeerNumber, ...]
    waiting_s: dict[str, float]

    @property
    def signature(self) -> tuple[frozenset[PeerNumber], frozenset[PeerNumber], object]:
        """Changes exactly when chunks may have become short, movable or surplus."""
        targets = frozenset(peer.number for peer in self.targets)
        return (self.counted, self.steady, (targets, self.draining))


@dataclass(slots=True)
class _Record:
    """What is remembered of a peer; times by the monotonic clock."""

    is_down: bool
    since_s: float
    falls_s: list[float] = field(default_factory=list)


class StandingTable:
    """Follows the states of peers.

    Args:
        delay_s: how long a peer that has not failed lately is missed.
    """

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._records: dict[PeerNumber, _Record] = {}

    def observe(self, peers: Sequence[PeerInfo], now_s: float) -> Standing:
        """Take note of the states now, and say what follows from them."""
        present = {peer.number: peer for peer in peers}
        for number in self._records.keys() - present.keys():
            del self._records[number]
        for peer in peers:
            self._note(peer, now_s)
        counted, steady, waiting_s = set(), set(), {}
        for peer in peers:
            record = self._records[peer.number]
            left_s = record.since_s + self._delay_of(record) - now_s
            if record.is_down and left_s > 0:
                waiting_s[peer.id] = left_s
            if peer.is_draining or (record.is_down and left_s <= 0):
                continue
            counted.add(peer.number)
            # Who never failed has nothing to prove.
            if peer.state is PeerState.UP and (left_s <= 0 or not record.falls_s):
                steady.add(peer.number)
        return Standing(
            present,
            frozenset(counted),
            frozenset(number for number in counted if present[number].state is PeerState.UP),
            frozenset(steady),
            tuple([p for p in peers if _takes_chunks(p)]),
            _sources(peers),
            tuple([p.number for p in peers if p.is_draining and p.state is not PeerState.DOWN]),
            waiting_s,
        )

    def _note(self, peer: PeerInfo, now_s: float) -> None:
        is_down = peer.state is PeerState.DOWN
        record = self._records.get(peer.number)
        if record is None:
            record = self._records[peer.number] = _Record(is_down, now_s)
            return
        record.falls_s = [at_s for at_s in record.falls_s if at_s > now_s - FLAPS_REMEMBERED_S]
        if record.is_down is is_down:
            return
        if is_down:
            record.falls_s.append(now_s)
        record.is_down, record.since_s = is_down, now_s

    def _delay_of(self, record: _Record) -> float:
        doubled: float = self._delay_s * 2 ** min(max(0, len(record.falls_s) - 1), 16)
        return max(self._delay_s, min(doubled, DELAY_S_MAX))


def _takes_chunks(peer: PeerInfo) -> bool:
    return peer.state is PeerState.UP and not (peer.is_full or peer.is_draining)


def _sources(peers: Sequence[PeerInfo]) -> tuple[PeerNumber, ...]:
    there = [peer for peer in peers if peer.state is not PeerState.DOWN]
    # Nobody loses by reading from one that is to go.
    return tuple([p.number for p in sorted(there, key=lambda p: (p.state, not p.is_draining))])
