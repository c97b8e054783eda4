"""Which chunks should have extra copies for their readers: a pure choice from how they are read.

A chunk has as many copies as it takes for none of them to be read more often than `reads_per_min`,
and loses one again when those left would be read half as often as that. So a chunk whose readers
come and go does not move, and one that nobody reads has the copies that its bucket wants.

Owns what is allowed, in memory only: after a restart of the router the peers say within a second
what is read (`is_settled`), and until something was decided nothing is given up (`has_decided`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mictlanfs_server.router.upkeep.planning import Copy, ranked_targets, sources_of

if TYPE_CHECKING:
    from mictlanfs.model import ChunkId, PeerInfo, PeerNumber
    from mictlanfs.wirepeers import HotChunk
    from mictlanfs_server.metadata.copies import ChunkCopies
    from mictlanfs_server.router.upkeep.standing import Standing

# Of one chunk.
EXTRA_COUNT_MAX: Final = 8
# An extra copy must leave a peer so much of its capacity for what counts.
FREE_SHARE_MIN: Final = 0.2
# After the start of a router, for peers that tell nothing.
SETTLED_AFTER_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class ExtraLimits:
    """How many extra copies there may be.

    Attributes:
        reads_per_min: of one copy, above which another is made.
        count: of extra copies in the space; 0: there are none.
        size: bytes of them.
    """

    reads_per_min: float
    count: int
    size: int


@dataclass(frozen=True, slots=True)
class _Allowed:
    """Extra copies that a chunk may have."""

    count: int
    length: int


class Popularity:
    """What is allowed now. Used by the task of the healer.

    Attributes:
        has_decided: whether anything was decided since the start, or need not be.
    """

    def __init__(self, limits: ExtraLimits, started_s: float) -> None:
        self._limits = limits
        self._settled_at_s = started_s + SETTLED_AFTER_S
        self._has_settled = self.has_decided = not limits.count
        self._allowed: dict[ChunkId, _Allowed] = {}

    @property
    def chunk_count(self) -> int:
        """Chunks that may have extra copies."""
        return len(self._allowed)

    @property
    def copy_count(self) -> int:
        """Extra copies that are allowed."""
        return sum(one.count for one in self._allowed.values())

    @property
    def copy_bytes(self) -> int:
        """Bytes of these."""
        return sum(one.count * one.length for one in self._allowed.values())

    def extra_copies(self, chunk_id: ChunkId) -> int:
        """Copies that a chunk may have beside those that are wanted."""
        allowed = self._allowed.get(chunk_id)
        return 0 if allowed is None else allowed.count

    def is_settled(
        self, reports: Mapping[PeerNumber, Sequence[HotChunk] | None], now_s: float
    ) -> bool:
        """Whether it is known what is read: all peers that are up have told, or had the time to."""
        if not self._has_settled:
            has_told_all = all(told is not None for told in reports.values())
            self._has_settled = has_told_all or now_s >= self._settled_at_s
        return self._has_settled

    def interesting(self, rates: Mapping[ChunkId, float]) -> list[ChunkId]:
        """The chunks to decide about, the most read first."""
        hot = [chunk_id for chunk_id, rate in rates.items() if rate > self._limits.reads_per_min]
        hot.sort(key=lambda chunk_id: rates[chunk_id], reverse=True)
        # For more there is no budget, whatever many peers tell.
        found = self._allowed.keys() | hot[: self._limits.count]
        return sorted(found, key=lambda chunk_id: rates.get(chunk_id, 0.0), reverse=True)

    def decide(
        self,
        ids: Iterable[ChunkId],
        chunks: Iterable[ChunkCopies],
        rates: Mapping[ChunkId, float],
        standing: Standing,
        *,
        may_grow: bool,
    ) -> tuple[list[Copy], list[ChunkId]]:
        """The copies to be made, and the chunks that have to give some up.

        Args:
            ids: what `interesting` said.
            chunks: what is known of them; those that died are not among them.
            rates: reads a minute of each, over all peers.
            standing: of the peers now.
            may_grow: whether peers have time and room for more than they have.
        """
        found = {chunk.id: chunk for chunk in chunks}
        before, self._allowed = self._allowed, {}
        is_first, self.has_decided = not self.has_decided, True
        count_left, size_left = self._limits.count, self._limits.size
        copies: list[Copy] = []
        shrunk: list[ChunkId] = []
        for chunk_id in ids:
            chunk = found.get(chunk_id)
            had = before[chunk_id].count if chunk_id in before else 0
            if chunk is None or chunk.coding is not None:
                continue
            if is_first:
                had = max(0, _extra_of(chunk, standing))
            wanted = self._wanted(chunk, had, rates.get(chunk_id, 0.0), standing)
            wanted = min(wanted, count_left, size_left // chunk.length)
            planned = _copies(chunk, wanted, standing) if may_grow else []
            # What cannot be made now is not allowed: the room is for others.
            allowed = min(wanted, max(had, _extra_of(chunk, standing)) + len(planned))
            if allowed:
                self._allowed[chunk_id] = _Allowed(allowed, chunk.length)
                count_left -= allowed
                size_left -= allowed * chunk.length
            if allowed < had:
                shrunk.append(chunk_id)
            copies += planned
        return copies, shrunk

    def _wanted(self, chunk: ChunkCopies, had: int, rate: float, standing: Standing) -> int:
        full = {peer.number for peer in standing.peers.values() if peer.is_full}
        if full.intersection(chunk.peers):
            return 0
        base = _base(chunk, standing)
        grown = math.ceil(rate / self._limits.reads_per_min) - base
        kept = math.ceil(2 * rate / self._limits.reads_per_min) - base
        return min(max(grown, min(had, kept), 0), EXTRA_COUNT_MAX)


def rates_of(reports: Mapping[PeerNumber, Sequence[HotChunk] | None]) -> dict[ChunkId, float]:
    """Reads a minute of each chunk, over all peers that told of it."""
    rates: defaultdict[ChunkId, float] = defaultdict(float)
    for told in reports.values():
        for one in told or ():
            rates[one.id] += one.reads_per_min
    return dict(rates)


def _base(chunk: ChunkCopies, standing: Standing) -> int:
    """The copies that a chunk should have in any case."""
    return min(chunk.wanted, len(standing.counted))


def _extra_of(chunk: ChunkCopies, standing: Standing) -> int:
    """The extra copies that a chunk has; negative: it lacks as many that are wanted."""
    present = sum(number in standing.counted for number in chunk.peers)
    return present - _base(chunk, standing)


def _copies(chunk: ChunkCopies, wanted: int, standing: Standing) -> list[Copy]:
    count, sources = wanted - _extra_of(chunk, standing), sources_of(chunk, standing)
    # One that lacks copies is for the healer first.
    if count <= 0 or not sources or _extra_of(chunk, standing) < 0:
        return []
    targets = [
        peer
        for peer in ranked_targets(chunk, standing)
        if peer.number not in chunk.peers and _has_room(peer, chunk.length)
    ]
    return [Copy(chunk, sources, peer.number) for peer in targets[:count]]


def _has_room(peer: PeerInfo, length: int) -> bool:
    return peer.used + length <= (1 - FREE_SHARE_MIN) * peer.capacity
