"""Rows of the metadata as the POSIX logic sees them, and the interface that gives them.

`Rows` is what a database must offer; it knows statements and no rules. The rules (`apply` and the
modules beside it) know no database. All methods are synchronous and belong to one transaction in
one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from mictlanfs import wire
from mictlanfs.model import (
    Attributes,
    BucketPolicy,
    Chunk,
    ChunkId,
    Extent,
    FileKind,
    InodeNumber,
    PeerNumber,
    SessionId,
)

KINDS = {int(kind): kind for kind in FileKind}


class InodeRecord(msgspec.Struct, gc=False):
    """A row of `inode`, mutable; the fields of `Attributes`, then those that `stat` hides.

    Attributes:
        parent: a directory: the one that holds it. Else one that holds a name of it.
        target: of a symlink, else empty.
    """

    ino: InodeNumber
    kind: FileKind
    mode: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    nlink: int
    rdev: int = 0
    allocated: int = 0
    version: int = 0
    content_version: int = 0
    has_xattrs: bool = False
    parent: InodeNumber = InodeNumber(0)
    target: bytes = b""

    @property
    def is_directory(self) -> bool:
        """Whether it holds names."""
        return self.kind is FileKind.DIRECTORY

    @property
    def attributes(self) -> Attributes:
        """The part that travels."""
        return Attributes(
            self.ino,
            self.kind,
            self.mode,
            self.uid,
            self.gid,
            self.size,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.nlink,
            self.rdev,
            self.allocated,
            self.version,
            self.content_version,
            self.has_xattrs,
        )

    def mark_changed(self, time_ns: int) -> None:
        """Note a change of anything but content."""
        self.ctime_ns = time_ns
        self.version += 1

    def mark_content_changed(self, time_ns: int) -> None:
        """Note a change of bytes, size or entries."""
        self.mtime_ns = self.ctime_ns = time_ns
        self.version += 1
        self.content_version += 1


class ChunkRecord(msgspec.Struct, frozen=True, gc=False):
    """A row of `chunk` without its replicas.

    Attributes:
        is_inline: whether its bytes are in the metadata.
        needed: replicas that give the chunk.
        digests: of its fragments; None: its replicas are copies.
    """

    length: int
    digest: bytes
    refs: int
    is_dead: bool
    is_inline: bool
    needed: int = 1
    digests: bytes | None = None


class BatchRecord(msgspec.Struct, frozen=True, gc=False):
    """The last batch a session applied; see the table `batch`."""

    first_number: int
    op_count: int
    next_number: int


class PartRecord(msgspec.Struct, frozen=True, gc=False):
    """A row of `part`: file `ino`, as `name` in `parent`, is a part of `ball` there.

    Attributes:
        count: parts that make the ball.
        index: which one it is, from 0.
    """

    ino: InodeNumber
    parent: InodeNumber
    name: bytes
    ball: bytes
    count: int
    index: int


class TrashRecord(msgspec.Struct, gc=False):
    """A row of `trash`: the fields of its place, then those of an inode.

    Attributes:
        allocated: 0 while the inode is still there.
    """

    ino: InodeNumber
    path: bytes
    removed_ns: int
    expires_ns: int
    reason: wire.TrashReason
    kind: FileKind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    allocated: int = 0
    content_version: int = 0
    has_xattrs: bool = False
    target: bytes = b""


class CountChange(msgspec.Struct, gc=False):
    """What a transaction adds to the counters of the space."""

    inodes: int = 0
    chunks: int = 0
    tombstones: int = 0
    bytes_logical: int = 0
    trash_items: int = 0
    trash_bytes: int = 0


class RecordRows(Protocol):
    """The tables `record` and `part`."""

    def has_any(self) -> bool:
        """Whether any file has a record."""

    def version(self, ino: InodeNumber) -> int:
        """The content version that the record of a file is of; 0 when it has none."""

    def replace(
        self, ino: InodeNumber, content_version: int, pieces: Iterable[wire.RecordPiece]
    ) -> None:
        """Give a file a record in the place of the one it has, if any."""

    def renew(self, ino: InodeNumber, before: int, after: int) -> None:
        """Make the record of a file, if it is of content version `before`, one of `after`."""

    def delete(self, ino: InodeNumber) -> None:
        """Forget the record of an inode, and that it is a part."""

    def part(self, ino: InodeNumber) -> PartRecord | None:
        """What a file is a part of."""

    def part_at(
        self, parent: InodeNumber, ball: bytes, count: int, index: int
    ) -> PartRecord | None:
        """A part by its place."""

    def parts(self, parent: InodeNumber, ball: bytes, count: int) -> list[PartRecord] | None:
        """All parts of a ball, in order; None when there are fewer than `count`."""

    def pieces_of_parts(
        self, parent: InodeNumber, ball: bytes, count: int
    ) -> list[wire.RecordPiece]:
        """The pieces of the records of all parts of a ball, one part behind the other."""

    def delete_parts(self, parent: InodeNumber, ball: bytes, count: int) -> None:
        """Forget all parts of a ball and their records."""

    def insert_part(self, part: PartRecord) -> None:
        """Say that a file is a part."""

    def delete_part(self, ino: InodeNumber) -> None:
        """Forget that a file is a part, if it is one."""


class TrashRows(Protocol):
    """The table `trash`, and what else belongs to its items."""

    def has_any(self) -> bool:
        """Whether there is any item."""

    def is_wanted(self) -> bool:
        """Whether any bucket keeps what it loses."""

    def get(self, ino: InodeNumber) -> TrashRecord | None:
        """An item; None also for a number that none can have."""

    def put(self, item: TrashRecord) -> None:
        """Add or replace an item."""

    def delete(self, ino: InodeNumber) -> None:
        """Remove an item alone, without what belongs to it."""

    def expired(self, now_ns: int, count_max: int) -> list[TrashRecord]:
        """Items whose time is over, the first ones first."""

    def move_extents(self, ino: InodeNumber, new_ino: InodeNumber) -> None:
        """Give all content of an inode to another number, which has none."""

    def move_all(self, ino: InodeNumber, new_ino: InodeNumber) -> None:
        """Give content, extended attributes and record to another number, which has none."""

    def give_up(self, path: bytes, before_ns: int, count_max: int) -> wire.Emptied:
        """Let items expire now that lie at a path or below it and were removed before a time."""


class Rows(Protocol):
    """The tables of schema.sql and of the migrations, inside one transaction."""

    @property
    def records(self) -> RecordRows:
        """Those of records."""
        ...

    @property
    def trash(self) -> TrashRows:
        """Those of the trash."""
        ...

    # --- savepoints, which nest ---

    def savepoint(self) -> None:
        """Begin a part that can be undone by itself."""

    def rollback(self) -> None:
        """Undo the innermost part and end it."""

    def release(self) -> None:
        """Keep the innermost part and end it."""

    # --- values of the space ---

    def counter(self, name: str) -> int:
        """A value of `meta`."""

    def set_counter(self, name: str, value: int) -> None:
        """Change a value of `meta`."""

    def add_counts(self, change: CountChange) -> None:
        """Add to the counters of the space."""

    # --- inodes ---

    def inode(self, ino: InodeNumber) -> InodeRecord | None:
        """A fresh copy of the row; None also for a number no inode can have."""

    def insert_inodes(self, records: Iterable[InodeRecord]) -> None:
        """Add rows."""

    def update_inodes(self, records: Iterable[InodeRecord]) -> None:
        """Replace rows."""

    def delete_inodes(self, numbers: Iterable[InodeNumber]) -> None:
        """Remove rows."""

    # --- names ---

    def entry(self, parent: InodeNumber, name: bytes) -> InodeNumber | None:
        """What a name stands for."""

    def set_entry(self, parent: InodeNumber, name: bytes, ino: InodeNumber) -> None:
        """Add a name or give it another meaning."""

    def delete_entry(self, parent: InodeNumber, name: bytes) -> None:
        """Remove a name."""

    def any_parent(self, ino: InodeNumber) -> InodeNumber | None:
        """The oldest directory that holds a name of `ino`, None when there is no name."""

    def name_in(self, parent: InodeNumber, ino: InodeNumber) -> bytes | None:
        """A name of `ino` in a directory, None when there is none."""

    # --- extended attributes ---

    def xattr_exists(self, ino: InodeNumber, name: bytes) -> bool:
        """Whether the inode has the attribute."""

    def xattr_sizes(self, ino: InodeNumber) -> tuple[int, int]:
        """Bytes of all names with a terminator each, and of all values."""

    def xattr_value(self, ino: InodeNumber, name: bytes) -> bytes | None:
        """One value, None when there is none."""

    def xattr_value_size(self, ino: InodeNumber, name: bytes) -> int:
        """Bytes of one value, 0 when there is none."""

    def set_xattr(self, ino: InodeNumber, name: bytes, value: bytes) -> None:
        """Add or replace an attribute."""

    def delete_xattr(self, ino: InodeNumber, name: bytes) -> None:
        """Remove an attribute."""

    def delete_xattrs(self, ino: InodeNumber) -> None:
        """Remove all attributes of an inode."""

    def copy_xattrs(self, ino: InodeNumber, new_ino: InodeNumber) -> None:
        """Give the attributes of an inode to another one that has none."""

    # --- buckets ---

    def policy(self, bucket: InodeNumber) -> BucketPolicy | None:
        """The policy of a bucket, None when the inode is no bucket."""

    def set_policy(self, bucket: InodeNumber, policy: BucketPolicy) -> None:
        """Make an inode a bucket or change its policy."""

    def delete_bucket(self, bucket: InodeNumber) -> None:
        """Forget that an inode is a bucket."""

    def bucket_use(self, bucket: InodeNumber) -> int:
        """Bytes that the files of a bucket have allocated; 0 when the inode is no bucket."""

    def add_bucket_use(self, bucket: InodeNumber, difference: int) -> None:
        """Add to the bytes that the files of a bucket have allocated."""

    def tree_use(self, directory: InodeNumber, names_max: int) -> int | None:
        """Bytes allocated to files whose `parent` is `directory` or lies in it, at any depth.

        None when there are more than `names_max` names in it.
        """

    def has_snapshots(self, bucket: InodeNumber) -> bool:
        """Whether a bucket has snapshots, or one is being taken."""

    def note_policies_changed(self) -> None:
        """Say that inodes may have another policy than before: caches of it are stale."""

    # --- content ---

    def extents_touching(self, ino: InodeNumber, start: int, end: int) -> list[Extent]:
        """Extents that overlap `[start, end)` or touch it, in order of offset."""

    def first_extents(self, ino: InodeNumber, count_max: int) -> list[Extent]:
        """The first extents of a file, in order of offset."""

    def insert_extents(self, ino: InodeNumber, extents: Iterable[Extent]) -> None:
        """Add rows."""

    def delete_extents(self, ino: InodeNumber, extents: Iterable[Extent]) -> None:
        """Remove rows, known by their offsets."""

    def chunk(self, chunk_id: ChunkId) -> ChunkRecord | None:
        """A chunk, live or dead."""

    def is_collected(self, chunk_id: ChunkId) -> bool:
        """Whether a chunk was removed as an orphan."""
        ...

    def insert_chunk(self, chunk: Chunk, refs: int, wanted: int, dead_since_ns: int | None) -> None:
        """Add a chunk and its replicas."""

    def set_refs(self, chunk_id: ChunkId, refs: int, dead_since_ns: int | None) -> None:
        """Change the count of a chunk."""

    def delete_chunk(self, chunk_id: ChunkId) -> None:
        """Forget a chunk that no peer holds."""

    def insert_inline(self, chunk_id: ChunkId, body: bytes) -> None:
        """Keep the bytes of a chunk."""

    def replace_inline(self, old_id: ChunkId, chunk_id: ChunkId, body: bytes) -> None:
        """Keep the bytes of a chunk in the place of those of another, which are here."""

    def delete_inline(self, chunk_id: ChunkId) -> None:
        """Let go of the bytes of a chunk, if they are here."""

    def replicas(self, chunk_id: ChunkId) -> tuple[PeerNumber, ...]:
        """The peers that hold a chunk, in the order of the writer."""

    def ranks(self, chunk_id: ChunkId) -> tuple[int, ...]:
        """The ranks of these replicas: of a coded chunk, which fragments they are."""

    def add_replica(self, chunk_id: ChunkId, peer: PeerNumber, rank: int | None = None) -> None:
        """Record one more peer, at a rank that is free, by default last in the order."""

    def raise_wanted(self, chunk_id: ChunkId, copies: int) -> None:
        """Want at least so many copies of a chunk."""

    def given_up(self, chunk_id: ChunkId) -> tuple[PeerNumber, ...]:
        """The peers that may hold a copy of a chunk that does not count any more."""

    def peer_numbers(self) -> frozenset[PeerNumber]:
        """All peers of the map."""

    def retired_numbers(self) -> frozenset[PeerNumber]:
        """All peers that were, and never come back."""

    # --- sessions ---

    def insert_session(
        self, session: SessionId, epoch: int, request: wire.OpenSession, seen_ns: int
    ) -> None:
        """Add a session."""

    def session_epoch(self, session: SessionId) -> int | None:
        """The epoch of a session, None when it is unknown or ended."""

    def end_session(self, session: SessionId) -> None:
        """Mark a session as ended and forget its last batch."""

    def ended_session(self) -> SessionId | None:
        """Any session that has ended and is not deleted yet."""

    def delete_session(self, session: SessionId) -> None:
        """Forget an ended session."""

    def batch(self, session: SessionId) -> BatchRecord | None:
        """The last batch of a session, without its answer."""

    def batch_answer(self, session: SessionId) -> bytes:
        """The answer to the last batch of a session that has one: a `wire.CommitAnswer`."""

    def set_batch(self, session: SessionId, record: BatchRecord, answer: bytes) -> None:
        """Record the last batch of a session."""

    # --- inodes without a name ---

    def add_sustained(self, session: SessionId, ino: InodeNumber) -> None:
        """Keep an inode for a session."""

    def delete_sustained(self, session: SessionId, ino: InodeNumber) -> bool:
        """Let go of an inode; whether the session had sustained it."""

    def sustained_by(self, session: SessionId, count_max: int) -> Sequence[InodeNumber]:
        """Some inodes that a session sustains."""

    def is_sustained(self, ino: InodeNumber) -> bool:
        """Whether any session sustains an inode."""

    def forget_sustained(self, ino: InodeNumber) -> None:
        """No session sustains an inode any more."""

    def add_doomed(self, ino: InodeNumber) -> None:
        """Leave the extents of a removed inode to the reclaimer."""

    def any_doomed(self) -> InodeNumber | None:
        """An inode whose extents wait for the reclaimer."""

    def delete_doomed(self, ino: InodeNumber) -> None:
        """Say that an inode has no extents left."""
