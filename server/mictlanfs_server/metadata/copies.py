"""The copies of chunks as the metadata store tells and changes them for the work of the router.

Part of `base.MetadataStore`. Speaks of live chunks that peers hold: inline ones need no copies, and
the copies of dead ones are the collector's. Pages walk the chunks in the order of their ids, each
page of one moment, so that a walk over millions never keeps anybody waiting.

A copy that is *given up* has no row any more and may still lie on its peer: it is deleted there
when its time has come. Until that is confirmed nobody names that peer for the chunk again, so a
deletion that is under way never meets a copy that counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mictlanfs.model import Chunk, ChunkId, Coding, PeerNumber


@dataclass(frozen=True, slots=True)
class ChunkCopies:
    """A live chunk and who holds it.

    Attributes:
        length: bytes.
        digest: BLAKE3 of the bytes.
        wanted: copies that it should have.
        peers: that hold one, in the order of the writer.
        given_up: that may still hold one which does not count any more.
        coding: when what they hold are fragments, in the order of `peers`.
    """

    id: ChunkId
    length: int
    digest: bytes
    wanted: int
    peers: tuple[PeerNumber, ...]
    given_up: tuple[PeerNumber, ...] = ()
    coding: Coding | None = None

    @property
    def needed(self) -> int:
        """Copies, or fragments, that give the chunk back."""
        return 1 if self.coding is None else self.coding.data


@dataclass(frozen=True, slots=True)
class CopiesAsked:
    """Whose copies count in a survey.

    Attributes:
        counted: peers whose copies count. No chunk is short of more copies than these are.
        steady: those of them whose copies suffice for others to be given up.
        readable: peers that a copy can be made from.
    """

    counted: Sequence[PeerNumber]
    steady: Sequence[PeerNumber]
    readable: Sequence[PeerNumber]


class ShortChunk(NamedTuple):
    """A chunk with fewer counted copies than wanted.

    Attributes:
        copies: of a coded chunk, as many copies as would survive the same losses; 0 or less when it
            can only be read from peers that do not count.
    """

    id: ChunkId
    copies: int
    length: int


@dataclass(frozen=True, slots=True)
class CopiesPage:
    """What a part of a survey found.

    Attributes:
        last: id behind which the next page begins; None: there is none.
        chunk_count: chunks looked at, dead and inline ones among them.
        short: chunks with fewer counted copies than wanted, and one that can be read.
        surplus: chunks with more copies on steady peers than wanted.
        unreadable_count: chunks without a copy that can be read.
    """

    last: ChunkId | None
    chunk_count: int
    short: tuple[ShortChunk, ...]
    surplus: tuple[ChunkId, ...]
    unreadable_count: int


class GivenUp(NamedTuple):
    """A copy that does not count and waits for its deletion."""

    delete_at_ns: int
    chunk: ChunkId
    peer: PeerNumber


class RetiredPeer(NamedTuple):
    """What stood behind a number that is no peer now.

    Attributes:
        id: that it had.
        store: token of its store; empty: it told none.
        is_removed: somebody took it out of the space; else another store took its place, and it may
            come back.
    """

    id: str
    store: str
    is_removed: bool


@dataclass(frozen=True, slots=True)
class PeerBook:
    """What is known of peers beside the peer map.

    Attributes:
        stores: the token of the store behind each number, as far as it told one.
        retired: numbers that are no peers now. None of them is ever given to another store.
    """

    stores: Mapping[PeerNumber, str]
    retired: Mapping[PeerNumber, RetiredPeer]


class CopyStore(Protocol):
    """The methods of the metadata store that deal with copies."""

    async def survey(self, asked: CopiesAsked, after: ChunkId | None, count_max: int) -> CopiesPage:
        """Look at the next `count_max` chunks behind `after`, in a thread."""
        ...

    async def live_chunks(self, after: ChunkId | None, count_max: int) -> list[ChunkId]:
        """Live chunks in order of ids, behind `after`; inline ones among them."""
        ...

    async def copies(self, ids: Sequence[ChunkId]) -> list[ChunkCopies]:
        """Those of the chunks that are live and not inline, as they are now. Bounded by `ids`."""
        ...

    async def locate(self, ids: Sequence[ChunkId]) -> dict[ChunkId, Chunk]:
        """Those of the chunks that are live, with their peers; without for those that are inline.

        Answered at once: a reader waits. Bounded by `ids`.
        """
        ...

    async def peer_chunks(
        self, peer: PeerNumber, after: ChunkId | None, count_max: int
    ) -> list[ChunkId]:
        """Live chunks that a peer holds, in order of ids, behind `after`."""
        ...

    async def peer_chunk_count(self, peer: PeerNumber) -> int:
        """Live chunks that a peer holds. Looks at each of them."""
        ...

    async def only_copies_count(self, peer: PeerNumber, others: Sequence[PeerNumber]) -> int:
        """Live chunks that `peer` holds and none of `others` does."""
        ...

    async def add_replicas(
        self, added: Mapping[ChunkId, Sequence[PeerNumber]], *, raises_wanted: bool = False
    ) -> list[tuple[ChunkId, PeerNumber]]:
        """Record copies that are durable on peers, durably.

        A dead chunk takes them too, so that they are deleted with the others. With `raises_wanted`
        a chunk wants as many copies as it has then. Returns the copies that no row stands for: the
        chunk is forgotten or inline, the peer is retired, or gave up an earlier copy.
        """
        ...

    async def move_fragments(
        self, moved: Sequence[tuple[ChunkId, int, PeerNumber]], *, delete_at_ns: int
    ) -> list[tuple[ChunkId, PeerNumber]]:
        """Record fragments of coded chunks that are durable on peers, durably.

        Each is given up, to be deleted at that time, on the peer that had it before. A dead chunk
        takes them too. Returns those that no row stands for, on peers that have no row of the
        chunk: it is forgotten, the peer is retired, or gave up an earlier one.
        """
        ...

    async def drop_replicas(
        self,
        dropped: Mapping[ChunkId, Sequence[PeerNumber]],
        *,
        counted: Collection[PeerNumber] | None = None,
        delete_at_ns: int = 0,
    ) -> list[ChunkId]:
        """Give up copies of live chunks, durably; they are deleted at that time.

        The row of the last copy stays, of a coded chunk those of the last fragments that give it
        back. With `counted` a row goes only while the chunk keeps as many copies as it wants on
        those peers, or one on each of them. Returns the chunks of which a row stayed for that
        reason; others, and rows that are not there, are passed over.
        """
        ...

    async def given_up(
        self, before_ns: int, after: GivenUp | None, count_max: int
    ) -> list[GivenUp]:
        """Copies whose time to be deleted has come, in that order, behind `after`."""
        ...

    async def given_up_count(self) -> int:
        """Copies that wait for their deletion."""
        ...

    async def forget_given_up(self, deleted: Sequence[GivenUp]) -> None:
        """Record that peers hold these copies no more."""
        ...

    async def peer_book(self) -> PeerBook:
        """What is known of peers beside the map."""
        ...

    async def purge_retired(
        self,
        peer: PeerNumber,
        after: ChunkId | None,
        count_max: int,
        *,
        dead_only: bool = False,
    ) -> ChunkId | None:
        """Remove some rows of a retired peer, or those of dead chunks; where to go on, None: done.

        Those of live chunks that no peer of the map holds stay: they say where the chunk was.
        """
        ...

    async def move_orders(self) -> dict[str, bytes]:
        """Moves that were ordered and have not ended: what each is called, and where it stands."""
        ...

    async def save_move_order(self, name: str, position: bytes | None) -> None:
        """Note where an ordered move stands; None: it has ended."""
        ...
