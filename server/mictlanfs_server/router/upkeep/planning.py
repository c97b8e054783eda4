"""What to do about the copies of a chunk: pure choices from its copies and the standing of peers.

A chunk that is short gets copies where a writer would place it today. A chunk with too many gives
up those that the placement ranks last, and never one that is needed: the store checks that once
more when it removes the rows. A move is a copy first, and then a copy that is given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mictlanfs import placement
from mictlanfs.model import ChunkId, PeerInfo, PeerNumber
from mictlanfs_server.metadata.copies import ChunkCopies
from mictlanfs_server.router.upkeep.fragmentplans import Place, missing_places, moving_places
from mictlanfs_server.router.upkeep.standing import Standing


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy to be made.

    Attributes:
        sources: peers that hold the chunk, the best first; at least one.
        target: that gets it.
        index: of the fragment, when the chunk is coded.
    """

    chunk: ChunkCopies
    sources: tuple[PeerNumber, ...]
    target: PeerNumber
    index: int = -1


def missing_copies(chunk: ChunkCopies, standing: Standing) -> list[Copy]:
    """The copies that bring a chunk to what it should have; fewer, or none, when it cannot be."""
    if chunk.coding is not None:
        ranked = ranked_targets(chunk, standing)
        return _fragments(chunk, missing_places(chunk, chunk.coding, standing, ranked), standing)
    enough = min(chunk.wanted, len(standing.counted))
    present = [number for number in chunk.peers if number in standing.counted]
    return _copies(chunk, standing, enough - len(present), present)


def _fragments(chunk: ChunkCopies, places: Sequence[Place], standing: Standing) -> list[Copy]:
    sources = sources_of(chunk, standing)
    return [Copy(chunk, sources, place.target, place.index) for place in places]


def _copies(
    chunk: ChunkCopies, standing: Standing, count: int, present: Sequence[PeerNumber]
) -> list[Copy]:
    sources = sources_of(chunk, standing)
    if count <= 0 or not sources:
        return []
    zones = {standing.peers[number].zone for number in present}
    # As a writer would: the next in the order, but first those in zones that have none.
    ranked = [peer for peer in ranked_targets(chunk, standing) if peer.number not in chunk.peers]
    ranked.sort(key=lambda peer: peer.zone in zones)
    return [Copy(chunk, sources, peer.number) for peer in ranked[:count]]


def sources_of(chunk: ChunkCopies, standing: Standing) -> tuple[PeerNumber, ...]:
    """The peers that a copy can be made from, the best first; turned so that all of them serve."""
    found = [number for number in standing.sources if number in chunk.peers]
    turn = chunk.id[-1] % len(found) if found else 0
    return tuple(found[turn:] + found[:turn])


def ranked_targets(chunk: ChunkCopies, standing: Standing) -> list[PeerInfo]:
    """Peers that may get or keep a copy, in the order of the placement."""
    free = [peer for peer in standing.targets if peer.number not in chunk.given_up]
    return placement.rank(chunk.id, free)


def best_holders(
    chunk_id: ChunkId, holders: Iterable[PeerNumber], standing: Standing
) -> list[PeerNumber]:
    """Holders in the order in which they should keep their copies: those that are full last."""
    infos = [standing.peers[number] for number in holders if number in standing.peers]
    ordered = placement.order(chunk_id, infos)
    return [peer.number for peer in sorted(ordered, key=lambda peer: peer.is_full)]


def surplus_copies(chunk: ChunkCopies, standing: Standing, extra: int = 0) -> list[PeerNumber]:
    """The copies that a chunk can give up: those ranked last on steady peers.

    `extra` copies stay for its readers, beside those that are wanted.

    Copies on peers that are not there stay: nobody knows, and they may be the last some day. Of a
    coded chunk nothing is too much: each fragment has one row.
    """
    if chunk.coding is not None:
        return []
    steady = [number for number in chunk.peers if number in standing.steady]
    return best_holders(chunk.id, steady, standing)[chunk.wanted + extra :]


def can_leave(chunk: ChunkCopies, number: PeerNumber, standing: Standing) -> bool:
    """Whether a chunk has all its copies, on peers that answer, without that on a drained peer."""
    others = [other for other in chunk.peers if other != number and other in standing.up]
    return len(others) >= max(chunk.needed, min(chunk.wanted, len(standing.counted)))


def rebalancing_copies(chunk: ChunkCopies, standing: Standing) -> list[Copy]:
    """The copies that a chunk lacks where it would be placed today.

    As few as there can be: a copy in a place where a writer would put one never moves.
    """
    if chunk.coding is not None:
        ranked = ranked_targets(chunk, standing)
        return _fragments(chunk, moving_places(chunk, chunk.coding, standing, ranked), standing)
    sources = sources_of(chunk, standing)
    enough = min(chunk.wanted, len(standing.counted))
    ideal = ranked_targets(chunk, standing)[:enough]
    if len(ideal) < enough or not sources:
        return []
    return [Copy(chunk, sources, peer.number) for peer in ideal if peer.number not in chunk.peers]
