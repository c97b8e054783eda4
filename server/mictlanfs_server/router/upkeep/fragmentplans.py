"""What to do about the fragments of a coded chunk: pure choices, as `planning` has for copies.

A fragment is on one peer at a time. So what is short gets the fragments that no peer in good
standing has, on peers that have none of the chunk, and a fragment that moves is never there twice:
its row names the new peer as soon as that has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mictlanfs.model import Coding, PeerInfo, PeerNumber
from mictlanfs_server.metadata.copies import ChunkCopies
from mictlanfs_server.router.upkeep.standing import Standing


@dataclass(frozen=True, slots=True)
class Place:
    """A fragment that is to be on a peer."""

    index: int
    target: PeerNumber


def missing_places(
    chunk: ChunkCopies, coding: Coding, standing: Standing, ranked: Sequence[PeerInfo]
) -> list[Place]:
    """The fragments that bring a chunk to what it should have; none when it cannot be read.

    `ranked` are the peers that may get one, in the order of the placement.
    """
    held = dict(zip(coding.indices, chunk.peers, strict=True))
    present = {index: number for index, number in held.items() if number in standing.counted}
    count = min(coding.count, len(standing.counted)) - len(present)
    if count <= 0 or not can_be_read(chunk, coding, standing):
        return []
    # Those that hold data first: with them, reads need no computing.
    missing = [index for index in range(coding.count) if index not in present]
    targets = _spread(chunk, present.values(), standing, ranked, count)
    return [
        Place(index, peer.number) for index, peer in zip(missing[:count], targets, strict=False)
    ]


def can_be_read(chunk: ChunkCopies, coding: Coding, standing: Standing) -> bool:
    """Whether the peers that answer have enough fragments."""
    return sum(number in standing.sources for number in chunk.peers) >= coding.data


def _spread(
    chunk: ChunkCopies,
    present: Iterable[PeerNumber],
    standing: Standing,
    ranked: Sequence[PeerInfo],
    count: int,
) -> list[PeerInfo]:
    """The next in the order, one after the other from the zone that has the fewest fragments."""
    zones = Counter(standing.peers[number].zone for number in present)
    free = [peer for peer in ranked if peer.number not in chunk.peers]
    chosen: list[PeerInfo] = []
    while free and len(chosen) < count:
        best = min(free, key=lambda peer: zones[peer.zone])
        free.remove(best)
        zones[best.zone] += 1
        chosen.append(best)
    return chosen


def moving_places(
    chunk: ChunkCopies, coding: Coding, standing: Standing, ranked: Sequence[PeerInfo]
) -> list[Place]:
    """The fragments that are to move to where the chunk would be placed today; as few as can be."""
    enough = min(coding.count, len(standing.counted))
    ideal = [peer.number for peer in ranked[:enough]]
    if len(ideal) < enough or not can_be_read(chunk, coding, standing):
        return []
    held = dict(zip(coding.indices, chunk.peers, strict=True))
    moving = [i for i in range(coding.count) if held.get(i) not in ideal]
    free = [number for number in ideal if number not in chunk.peers]
    return [Place(index, number) for index, number in zip(moving, free, strict=False)]
