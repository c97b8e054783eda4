"""Messages about the truth of copies: reports, verdicts, inventories, scrubs; see `mictlanfs.wire`.

A copy is *bad* when its bytes are not those of the digest, *missing* when the metadata names a peer
that does not have it. A peer says so of its own copies, after it has read them; what a client
reports only makes the router ask the peer.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from mictlanfs.model import ChunkId, PeerNumber, Struct
from mictlanfs.wirepeers import FrameChunk

# Chunks of one `VerifyCopies`, which reads all of each; of one `BadCopies`; of one `HeldPage`.
VERIFY_COUNT_MAX: Final = 64
BAD_COPIES_MAX: Final = 256
HELD_COUNT_MAX: Final = 1024


class Verdict(IntEnum):
    """What a peer says of a copy after it has read all of it."""

    GOOD = 0
    BAD = 1
    MISSING = 2
    # It is being written, or the disk cannot be read now: no answer yet.
    UNKNOWN = 3


class ReportCopy(Struct, frozen=True):
    """A reader got bytes of a chunk from a peer that are not right, or none. Answer: `Done`.

    The router has the peer verify the copy; it believes no reader.
    """

    chunk: ChunkId
    peer: PeerNumber


class VerifyCopies(Struct, frozen=True):
    """The router has a peer read its copies of these chunks now. Answer: `Verdicts`.

    What the peer finds to be bad it does not serve any more. Errors: INVALID (too many).
    """

    chunks: tuple[FrameChunk, ...]


class Verdicts(Struct, frozen=True):
    """One `Verdict` for each chunk, in order."""

    verdicts: tuple[Verdict, ...]


class BadCopies(Struct, frozen=True):
    """A peer tells which of its copies it has taken out of service. Answer: `LastCopies`.

    May be repeated. Errors: NOT_FOUND (no such peer), INVALID (too many).
    """

    peer_id: str
    chunks: tuple[ChunkId, ...]


class LastCopies(Struct, frozen=True):
    """Those of the chunks told of that files need and of which no other copy is known."""

    chunks: tuple[ChunkId, ...]


class ListHeld(Struct, frozen=True):
    """Ask a peer for its chunks behind an id, in the order of ids. Answer: `HeldPage`.

    At most `HELD_COUNT_MAX`. Says what its index says: no chunk is read.
    """

    after: ChunkId
    count_max: int = HELD_COUNT_MAX


class HeldChunk(Struct, frozen=True):
    """A chunk that a peer holds.

    Attributes:
        age_s: since it came to the peer, by the peer's clock; 0 when that cannot be.
    """

    id: ChunkId
    length: int
    digest: bytes
    age_s: float


class HeldPage(Struct, frozen=True):
    """A page of an inventory.

    Attributes:
        is_last: whether nothing comes behind it.
    """

    chunks: tuple[HeldChunk, ...]
    is_last: bool


class Scrub(Struct, frozen=True):
    """Ask a peer how its scrub stands. Answer: `ScrubState`.

    Attributes:
        begin: also begin a pass now, at full rate, unless a pass that was asked for is running.
    """

    begin: bool = False


class ScrubState(Struct, frozen=True):
    """How the scrub of a peer stands. Counts are of the present pass, or of the last one.

    Attributes:
        passes: passes that were finished since the peer has its data.
        is_running: whether a pass is under way.
        is_asked: whether it was asked for, so that it does not spread over days.
        checked_count, checked_bytes: chunks read.
        bad_count: copies found bad or missing.
        total_count, total_bytes: what the peer holds now.
        started_ns: when the pass began, nanoseconds since the epoch; 0: never.
        finished_ns: when the last pass that was finished ended; 0: none was.
        quarantined_count, quarantined_bytes: bad copies that are kept aside.
        untold_count: bad copies of which no router has confirmed that it knows.
    """

    passes: int = 0
    is_running: bool = False
    is_asked: bool = False
    checked_count: int = 0
    checked_bytes: int = 0
    bad_count: int = 0
    total_count: int = 0
    total_bytes: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    quarantined_count: int = 0
    quarantined_bytes: int = 0
    untold_count: int = 0


class CheckSpace(Struct, frozen=True):
    """Begin a check of the space in the router, or ask how it stands. Answer: `CheckState`.

    Attributes:
        begin: begin one, unless one is running; `CheckState.is_begun` says which. Else only ask.
        metadata: check the invariants of the metadata.
        deep: also the bytes that are kept in it, and the form of the database.
        peers: compare what peers hold with what the metadata says.
        repair: take back what the metadata says of copies that are not there.
        collect: have orphans removed that are older than the grace time.
        force: also those that were there before the metadata was restored.
        number: of the check that is asked for; 0: the last one.
    """

    begin: bool = False
    metadata: bool = False
    deep: bool = False
    peers: bool = False
    repair: bool = False
    collect: bool = False
    force: bool = False
    number: int = 0


class DamagedFile(Struct, frozen=True):
    """A chunk that files need and of which no good copy is known.

    Attributes:
        chunk: its id, as 32 hexadecimal digits.
        paths: of the files, as `BUCKET/a/b`, up to a few.
    """

    chunk: str
    paths: tuple[str, ...]


class CheckState(Struct, frozen=True):
    """How a check stands, or what the last one found.

    Attributes:
        is_running: whether it is under way.
        doing: what it is at, in a few words.
        broken: invariants of the metadata that do not hold, with the first rows that break them.
        peers_checked: ids of peers that were compared.
        peers_skipped: ids of peers that were not, since they do not answer.
        copies_count: copies that were compared.
        missing_count: copies that the metadata names and that are missing or bad.
        repaired_count: of these, those of which the metadata does not speak any more.
        orphan_count, orphan_bytes: copies of chunks that the metadata does not know, or that are
            dead and were left behind.
        young_count: of these, those that are younger than the grace time.
        restored_count: of these, those that were there before the metadata was restored, and are
            kept for a while.
        collected_count, collected_bytes: of these, those that will be removed.
        surplus_count: good copies of live chunks that the metadata did not name.
        damaged: chunks without any good copy.
        error: why it ended early; empty when it did not.
        number: of the check, greater than those of all before, also of other starts of the router;
            0: there was none, or it is not known any more.
        is_begun: whether the request that this answers has begun it.
    """

    is_running: bool = False
    doing: str = ""
    broken: tuple[str, ...] = ()
    peers_checked: tuple[str, ...] = ()
    peers_skipped: tuple[str, ...] = ()
    copies_count: int = 0
    missing_count: int = 0
    repaired_count: int = 0
    orphan_count: int = 0
    orphan_bytes: int = 0
    young_count: int = 0
    collected_count: int = 0
    collected_bytes: int = 0
    surplus_count: int = 0
    damaged: tuple[DamagedFile, ...] = ()
    error: str = ""
    number: int = 0
    restored_count: int = 0
    is_begun: bool = False
