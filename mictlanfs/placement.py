"""Which peers hold a chunk: a pure choice from a chunk id and a peer map.

Weighted rendezvous hashing: every peer gets a score from a hash of (chunk, peer) and its weight,
and the best scores win. Adding or losing a peer moves only the chunks that it wins or held.
Source: Mosko, Schindelhauer, "Weighted rendezvous hashing"; score = -weight / ln(uniform).

The weight is the capacity, which moves nothing while peers fill up. For new chunks it is the space
that is left, `capacity * (1 - utilisation factor)` with a factor of `used / capacity` as in
DynoStore. So peers become full together, whatever their size and whenever they came: of two of one
size, one of them half full, the other gets two chunks of three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from blake3 import blake3

from mictlanfs.model import ChunkId, PeerInfo, PeerState

Weight: TypeAlias = Callable[[PeerInfo], float]

_HASH_SIZE_BYTES = 8
# Of its capacity, what a peer counts for at least: the space used is that of some heartbeats ago,
# and a peer that is full says so.
_WEIGHT_SHARE_MIN = 0.01
_HASH_RANGE = 2 ** (8 * _HASH_SIZE_BYTES)


def by_capacity(peer: PeerInfo) -> float:
    """A weight that does not change while the peer fills up."""
    return max(peer.capacity, 1)


def by_space(peer: PeerInfo) -> float:
    """A weight by the space that is left; above 0."""
    return max(peer.capacity - peer.used, peer.capacity * _WEIGHT_SHARE_MIN, 1)


def _score(chunk_id: ChunkId, peer: PeerInfo, weight: Weight) -> float:
    raw = blake3(chunk_id + peer.id.encode()).digest(_HASH_SIZE_BYTES)
    # Strictly between 0 and 1, so that the logarithm is finite and negative.
    uniform = (int.from_bytes(raw, "big") + 0.5) / _HASH_RANGE
    return -weight(peer) / math.log(uniform)


def rank(
    chunk_id: ChunkId, peers: Sequence[PeerInfo], weight: Weight = by_capacity
) -> list[PeerInfo]:
    """Every peer worth trying for a new replica, best first.

    Peers that are down, full or being emptied are left out; suspect ones come last. Within the same
    state, the best peer of each zone comes before the second best of any zone, so that taking the
    first `n` spreads replicas over as many zones as there are.
    """
    usable = [
        p for p in peers if p.state is not PeerState.DOWN and not (p.is_full or p.is_draining)
    ]
    return order(chunk_id, usable, weight)


def order(
    chunk_id: ChunkId, peers: Sequence[PeerInfo], weight: Weight = by_capacity
) -> list[PeerInfo]:
    """The peers in the order of `rank`, none of them left out: which copies matter most."""
    by_score = sorted(peers, key=lambda peer: _score(chunk_id, peer, weight), reverse=True)
    taken_in_zone: dict[str, int] = {}
    ordered: list[tuple[int, int, int]] = []
    for index, peer in enumerate(by_score):
        turn = taken_in_zone.get(peer.zone, 0)
        taken_in_zone[peer.zone] = turn + 1
        ordered.append((int(peer.state), turn, index))
    return [by_score[index] for _, _, index in sorted(ordered)]
