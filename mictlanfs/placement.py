"""Which peers hold a chunk: a pure choice from a chunk id and a peer map.

Weighted rendezvous hashing: every peer gets a score from a hash of (chunk, peer) and its capacity,
and the best scores win. Adding or losing a peer moves only the chunks that it wins or held.
Source: Mosko, Schindelhauer, "Weighted rendezvous hashing"; score = -weight / ln(uniform).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from blake3 import blake3

from mictlanfs.model import ChunkId, PeerInfo, PeerState

_HASH_SIZE_BYTES = 8
_HASH_RANGE = 2 ** (8 * _HASH_SIZE_BYTES)


def _score(chunk_id: ChunkId, peer: PeerInfo) -> float:
    raw = blake3(chunk_id + peer.id.encode()).digest(_HASH_SIZE_BYTES)
    # Strictly between 0 and 1, so that the logarithm is finite and negative.
    uniform = (int.from_bytes(raw, "big") + 0.5) / _HASH_RANGE
    return -max(peer.capacity, 1) / math.log(uniform)


def rank(chunk_id: ChunkId, peers: Sequence[PeerInfo]) -> list[PeerInfo]:
    """Every peer worth trying for a new replica, best first.

    Peers that are down, full or being emptied are left out; suspect ones come last. Within the same
    state, the best peer of each zone comes before the second best of any zone, so that taking the
    first `n` spreads replicas over as many zones as there are.
    """
    usable = [
        p for p in peers if p.state is not PeerState.DOWN and not (p.is_full or p.is_draining)
    ]
    return order(chunk_id, usable)


def order(chunk_id: ChunkId, peers: Sequence[PeerInfo]) -> list[PeerInfo]:
    """The peers in the order of `rank`, none of them left out: which copies matter most."""
    by_score = sorted(peers, key=lambda peer: _score(chunk_id, peer), reverse=True)
    taken_in_zone: dict[str, int] = {}
    ordered: list[tuple[int, int, int]] = []
    for index, peer in enumerate(by_score):
        turn = taken_in_zone.get(peer.zone, 0)
        taken_in_zone[peer.zone] = turn + 1
        ordered.append((int(peer.state), turn, index))
    return [by_score[index] for _, _, index in sorted(ordered)]
