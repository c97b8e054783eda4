"""What the verification of copies asks of the metadata store: one narrow interface.

Every method is atomic. Of a chunk that is dead, or not known, nothing is a problem: its copies are
for the collector.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from mictlanfs.model import ChunkId, PeerNumber
from mictlanfs.wirepeers import FrameChunk


class Standing(Enum):
    """What the metadata says of a copy that a peer holds.

    NAMED: there is a row for it, or it is given up and will be deleted. SURPLUS: of a live chunk,
    without a row. LEFT: of a dead chunk, without a row. ORPHAN: nobody knows the chunk.
    """

    NAMED = "named"
    SURPLUS = "surplus"
    LEFT = "left"
    ORPHAN = "orphan"


@dataclass(frozen=True, slots=True)
class DamagedChunk:
    """A live chunk of which no good copy is known.

    Attributes:
        chunk: as the metadata names it.
        peers: that said that theirs is bad or missing.
        paths: of files that need it, up to a few, as names from the root down.
    """

    chunk: FrameChunk
    peers: tuple[PeerNumber, ...]
    paths: tuple[tuple[bytes, ...], ...]


class TruthStore(Protocol):
    """Copies of chunks in the metadata of one space."""

    async def on_peer(
        self, peer: PeerNumber, after: ChunkId, until: ChunkId | None, count_max: int
    ) -> list[FrameChunk]:
        """Live chunks behind `after` of which the peer should have a copy, in the order of ids.

        Those up to and with `until`; all with None. In a thread.
        """
        ...

    async def named(self, peer: PeerNumber, ids: Collection[ChunkId]) -> list[FrameChunk]:
        """Those live chunks of `ids` of which the peer should have a copy."""
        ...

    async def standing(self, peer: PeerNumber, ids: Sequence[ChunkId]) -> list[Standing]:
        """What is known of copies that the peer holds, in the order of `ids`. In a thread."""
        ...

    async def adopt(self, peer: PeerNumber, copies: Sequence[FrameChunk]) -> int:
        """Give copies that the peer holds a row each, durably; how many got one.

        A chunk that nobody knows becomes a dead one, for ever: a commit that names it later is
        refused. The collector then removes its copies like those of every dead chunk.
        """
        ...

    async def note_damaged(self, peer: PeerNumber, ids: Collection[ChunkId]) -> None:
        """Record durably that the last copies of live chunks are not good."""
        ...

    async def forget_damaged(self, ids: Collection[ChunkId]) -> None:
        """These chunks have a good copy after all."""
        ...

    async def damaged(self, count_max: int, paths_max: int) -> list[DamagedChunk]:
        """Live chunks of which no good copy is known. In a thread; without any, at once."""
        ...

    async def find_damage(self, *, deep: bool) -> list[str]:
        """The invariants of the metadata that do not hold, each with rows that break it.

        Each is looked at in a snapshot of its own, in a thread of its own: nobody waits. With
        `deep` also the form of the database, and the bytes that are kept in it.
        """
        ...
