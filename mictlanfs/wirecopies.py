"""Messages about the copies of chunks: where they are, copying, moving; see `wire.Path`."""

from __future__ import annotations

from typing import Final

import msgspec

from mictlanfs.model import Chunk, ChunkId, Struct
from mictlanfs.wirepeers import FrameChunk

LOCATE_COUNT_MAX: Final = 256
# Bytes of one `PullChunks`, unless a single chunk is larger.
PULL_SIZE_BYTES_MAX: Final = 32 * 1024 * 1024


class Locate(Struct, frozen=True):
    """Ask where chunks are now. Answer: `Located`. Errors: INVALID (more than 256).

    For who knows peers that have a chunk no more: copies move while extents are kept.
    """

    ids: tuple[ChunkId, ...]


class Located(Struct, frozen=True):
    """The chunks in the order asked for; None for one that is dead, or unknown.

    One without peers is inline now.
    """

    chunks: tuple[Chunk | None, ...]


class PullChunks(Struct, frozen=True):
    """Ask a peer to fetch chunks from another one, verify and store them. Answer: `FrameAnswer`.

    A chunk that it has already counts as stored. Each result is that of its chunk, in order: an
    error of the source (NOT_FOUND, CORRUPT, UNAVAILABLE) or of the peer itself (NO_SPACE). Errors
    of the whole: INVALID (too many chunks or bytes).

    Attributes:
        source: URL of the peer that has them.
        chunks: at most 256, together at most 32 MiB unless it is one.
    """

    source: str
    chunks: tuple[FrameChunk, ...]


class DrainPeer(Struct, frozen=True):
    """Empty a peer, or stop doing so. Answer: `Drain`.

    Errors: NOT_FOUND; CONFLICT (no peer left, or fewer than buckets want copies).

    Attributes:
        is_draining: whether it gets no new chunks, and those that it has go elsewhere.
        force: also when fewer peers stay than buckets want copies.
    """

    id: str
    is_draining: bool = True
    force: bool = False


class Drain(Struct, frozen=True):
    """How far the emptying of a peer has come.

    Attributes:
        chunk_count: copies that it still holds.
        other_count: peers that may take them.
    """

    chunk_count: int
    other_count: int


class RemovePeer(Struct, frozen=True):
    """Take a peer out of the space for ever. Answer: `Removed`.

    Its number is never given again; should the peer announce itself once more it is a new one.
    Errors: NOT_FOUND; BUSY (it answers: stop it, or drain it first); CONFLICT (chunks have their
    only copy there, or fewer peers stay than buckets want copies).

    Attributes:
        force_lost: give up chunks that have their only copy there.
        force: also when fewer peers stay than buckets want copies.
    """

    id: str
    force_lost: bool = False
    force: bool = False


class Removed(Struct, frozen=True):
    """A peer is gone.

    Attributes:
        lost_count: chunks that are lost by that.
    """

    lost_count: int


class ClonePeer(Struct, frozen=True):
    """Copy all chunks of a peer onto another one, as copies to be kept. Answer: `Done`.

    Goes on in the background, and after a restart of the router. Errors: NOT_FOUND, INVALID (the
    same peer; it is being drained).
    """

    source: str
    target: str


class StartUpkeep(Struct, frozen=True):
    """Look for chunks that are short of copies now. Answer: `UpkeepStarted`.

    Attributes:
        rebalance: also move copies to where they would be placed today.
        cancel: end a move that was ordered, `rebalance` or all clones, instead.
    """

    rebalance: bool = False
    cancel: bool = False


class UpkeepStarted(Struct, frozen=True):
    """Upkeep was asked for.

    Attributes:
        look: number of the look at all chunks that comes next: once `UpkeepStatus.look_count` is
            that large, all that was short before has been dealt with as far as it can be.
    """

    look: int


class UpkeepStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the router does about copies, in its status. Counts are since it started.

    Attributes:
        activity: what it is at: `idle`, `looking`, `healing`, `draining`, `trimming`,
            `rebalancing`, `cloning`, `spreading` (extra copies for readers).
        short_count: chunks short of copies, as of the last look, less those healed since.
        short_bytes: their bytes.
        unhealable_count: chunks without any copy that can be read now, as of the last look.
        healed_count, moved_count, trimmed_count, deleted_count: copies made for chunks that were
            short; made elsewhere for others; given up; deleted on peers.
        copied_bytes: of all copies made.
        failed_count: copies that could not be made; they are tried again.
        given_up_count: copies that wait for their deletion.
        waiting_peers: peers that are down, and the seconds until their chunks are copied.
        orders: ordered moves and the part done, from 0 to 1.
        draining: peers that are being emptied, and the chunks that they still hold.
        look_count: looks at all chunks that have ended.
        popular_count: chunks that are read so often that they may have extra copies now.
        extra_count, extra_bytes: of these copies.
        extra_made_count: extra copies made.
        problem: why copies cannot be made; empty: they can.
    """

    activity: str = "idle"
    short_count: int = 0
    short_bytes: int = 0
    unhealable_count: int = 0
    healed_count: int = 0
    moved_count: int = 0
    trimmed_count: int = 0
    deleted_count: int = 0
    copied_bytes: int = 0
    failed_count: int = 0
    given_up_count: int = 0
    waiting_peers: dict[str, float] = {}
    orders: dict[str, float] = {}
    problem: str = ""
    draining: dict[str, int] = {}
    look_count: int = 0
    popular_count: int = 0
    extra_count: int = 0
    extra_bytes: int = 0
    extra_made_count: int = 0
