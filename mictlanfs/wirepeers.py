"""Messages that peers send and get; see `mictlanfs.wire`, which offers them."""

from __future__ import annotations

from typing import Final

from mictlanfs.model import ChunkId, PeerNumber, Struct
from mictlanfs.wirecoding import WireError

# Of one `PeerAnnounce`.
HOT_COUNT_MAX: Final = 64


class HotChunk(Struct, frozen=True):
    """A chunk that a peer is asked for often.

    Attributes:
        reads_per_min: at that peer, lately; a part of the chunk counts as that part, at least as a
            sixteenth.
    """

    id: ChunkId
    reads_per_min: float


class PeerAnnounce(Struct, frozen=True):
    """A peer registers or sends a heartbeat. Answer: `PeerWelcome`.

    Attributes:
        space_id: the space it holds data of; empty when its store is new.
        store_id: of its store; another one under the same id says that the data is lost. Empty: an
            older peer.
        hot: the chunks that are read most, the most first; at most 64.

    Errors: CONFLICT (another live peer has this id; it holds data of another space).
    """

    protocol: int
    id: str
    url: str
    zone: str
    capacity: int
    used: int
    chunk_count: int
    is_full: bool
    boot_id: str
    space_id: str
    store_id: str = ""
    hot: tuple[HotChunk, ...] = ()


class PeerWelcome(Struct, frozen=True):
    """The router's answer to a peer."""

    number: PeerNumber
    space_id: str
    heartbeat_s: float


class PeerLeave(Struct, frozen=True):
    """A peer stops in order: it is down from now on, without a wait."""

    id: str
    url: str


class GetLeaveCost(Struct, frozen=True):
    """Ask what a space would be short of if a peer left now. Answer: `LeaveCost`.

    Reads every chunk: for people who are about to stop a peer. Errors: NOT_FOUND (no such peer).
    """

    id: str


class LeaveCost(Struct, frozen=True):
    """What a space would be short of without one of its peers.

    Attributes:
        lost_count: chunks that would have no copy left on a peer that answers, and have one now.
        short_count: chunks that would have fewer copies than wanted, and have enough now.
    """

    lost_count: int
    short_count: int


class FramePut(Struct, frozen=True):
    """Header of a frame of chunks to store; the bodies follow in order."""

    chunks: tuple[FrameChunk, ...]


class FrameChunk(Struct, frozen=True):
    """One chunk of a frame."""

    id: ChunkId
    length: int
    digest: bytes


class FrameGet(Struct, frozen=True):
    """Chunks wanted, whole."""

    ids: tuple[ChunkId, ...]


class FrameAnswer(Struct, frozen=True):
    """One result per chunk, in order; the bodies of a get follow for those without an error."""

    results: tuple[FrameResult, ...]


class FrameResult(Struct, frozen=True):
    """What became of one chunk of a frame."""

    length: int = 0
    error: WireError | None = None


class FrameDelete(Struct, frozen=True):
    """Chunks to remove; one that is not there counts as removed."""

    ids: tuple[ChunkId, ...]
