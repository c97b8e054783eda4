"""The metadata store as the router sees it: one narrow interface, several forms.

Every method is atomic. A change is visible to every read that begins after it returned. Reads are
consistent in themselves: names, inodes, extents, chunks and replicas of one answer are from one
moment. What a session reads (all under "reads") is answered without giving up the event loop, so
that leases can be granted in the same step.

Cancellation: a change whose caller is cancelled may still be applied; a batch can be asked for
again by its number, everything else is harmless when repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mictlanfs import wire
from mictlanfs.model import (
    Attributes,
    ChunkId,
    InodeNumber,
    Node,
    PeerInfo,
    PeerMap,
    PeerNumber,
    SessionId,
)
from mictlanfs_server.metadata.copies import CopyStore, PeerBook
from mictlanfs_server.metadata.truth import TruthStore


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """An open session.

    Attributes:
        epoch: its fencing token.
        seen_ns: when it was last heard of, by the router's clock, some seconds late.
        leases: whether it holds leases.
    """

    session: SessionId
    epoch: int
    host: str
    pid: int
    label: str
    seen_ns: int
    leases: bool = False


@dataclass(frozen=True, slots=True)
class KeyedInode:
    """An inode and the key of its lease.

    Attributes:
        key: itself for a directory and for what has not exactly one name, else the directory that
            names it.
        parents: of a file with several names, the directories that hold them; else empty.
    """

    ino: InodeNumber
    key: InodeNumber
    parents: tuple[InodeNumber, ...] = ()


@dataclass(frozen=True, slots=True)
class KeysFound:
    """Those of the inodes and names asked for that exist."""

    inodes: dict[InodeNumber, KeyedInode]
    places: dict[tuple[InodeNumber, bytes], KeyedInode]


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of the space, exact.

    Attributes:
        inodes: including the root and inodes that have no name but are sustained.
        chunks: live ones.
        tombstones: dead chunks of which peers may still hold copies.
        bytes_logical: bytes of files that are not holes, each once however many copies exist.
        trash_items, trash_bytes: what buckets keep of what they lost; it counts nowhere else.
        snapshots: complete ones. What is in them counts nowhere else.
    """

    buckets: int
    inodes: int
    chunks: int
    tombstones: int
    bytes_logical: int
    trash_items: int = 0
    trash_bytes: int = 0
    snapshots: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaCounts:
    """Live chunks with too few replicas on the peers in question, and those that cannot be read.

    These have no copy there, or of a coded chunk fewer fragments than give it back.

    Attributes:
        inline: those that need none, since their bytes stand in the metadata.
    """

    under_replicated: int
    lost: int
    inline: int = 0


@dataclass(frozen=True, slots=True)
class DeadChunk:
    """A chunk without references, and the peers that may still hold it."""

    id: ChunkId
    dead_since_ns: int
    peers: tuple[PeerNumber, ...]


@dataclass(frozen=True, slots=True)
class SnapshotPlan:
    """A snapshot to be taken.

    Attributes:
        root: the directory.
        name: of the snapshot in its bucket.
        path: of the directory, from the root, with the bucket.
    """

    bucket: InodeNumber
    root: InodeNumber
    name: bytes
    path: bytes


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot that is complete; `root` is the number that its directory has outside of it."""

    number: int
    bucket: InodeNumber
    root: InodeNumber


@dataclass(frozen=True, slots=True)
class SnapshotTree:
    """A directory with all that is below it.

    Attributes:
        directories: each behind the one that holds it.
        linked: what has not exactly one name, and is no directory.
        names: in it, and one for itself.
        nbytes: allocated to files in it.
    """

    directories: tuple[InodeNumber, ...]
    linked: tuple[InodeNumber, ...]
    names: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class CopyPlace:
    """Where copying goes on: behind a name of the directory at `index`; empty: at its start."""

    index: int = 0
    after: bytes = b""


class SnapshotStore(Protocol):
    """What a metadata store offers to those who take and remove snapshots.

    Copying is done in slices, and the caller sees to it that the tree does not change meanwhile.
    """

    async def snapshots(self, request: wire.ListSnapshots) -> wire.Snapshots:
        """Those that are complete. Raises NOT_FOUND."""
        ...

    async def snapshot(self, bucket: bytes, name: bytes) -> SnapshotRecord | None:
        """One that is complete."""
        ...

    async def snapshot_tree(self, root: InodeNumber, names_max: int) -> SnapshotTree:
        """Walk a directory, in a thread. Raises NOT_FOUND, TOO_LARGE."""
        ...

    async def begin_snapshot(self, plan: SnapshotPlan) -> int:
        """Reserve name and number of a snapshot, whose time is now. Raises EXISTS, NOT_FOUND."""
        ...

    async def copy_names(
        self, number: int, tree: SnapshotTree, place: CopyPlace, count_max: int
    ) -> CopyPlace | None:
        """Copy at most `count_max` names from `place` on. Returns the next place, None at the end.

        At the end files with several names get right what they have of them.
        """
        ...

    async def copy_extents(
        self, number: int, after: tuple[InodeNumber, int], count_max: int
    ) -> tuple[InodeNumber, int] | None:
        """Copy extents behind inode and offset. Returns the last one copied, None at the end."""
        ...

    async def publish_snapshot(self, number: int, plan: SnapshotPlan, tree: SnapshotTree) -> None:
        """Show a snapshot whose copy is complete, durably."""
        ...

    async def drop_snapshot(self, number: int) -> None:
        """Show a snapshot no more, durably; `reclaim` lets go of it. Can be repeated."""
        ...

    async def drop_unfinished_snapshots(self) -> int:
        """Drop all that were begun and not published; returns how many."""
        ...


class MetadataStore(CopyStore, SnapshotStore, Protocol):
    """The metadata of one space."""

    @property
    def space_id(self) -> str:
        """The name of the space, made at its first start."""
        ...

    @property
    def truth(self) -> TruthStore:
        """What the verification of copies asks."""
        ...

    @property
    def restored_at_ns(self) -> int:
        """When it was restored the last time, by the clock of who did it; 0: it never was."""
        ...

    @property
    def lease_time_s(self) -> float | None:
        """For how long sessions may trust leases at most, as last noted; None: never noted."""
        ...

    async def start(self) -> None:
        """Begin to serve the running event loop."""
        ...

    async def close(self) -> None:
        """Make everything durable and let go of the files; can be repeated."""
        ...

    # --- sessions ---

    async def open_session(self, request: wire.OpenSession) -> SessionRecord:
        """Record a new session with a new epoch, durably."""
        ...

    async def close_session(self, session: SessionId) -> None:
        """End a session, durably; what it sustained is let go, soon. An unknown one is no error."""
        ...

    async def sustain(self, session: SessionId, epoch: int, inodes: Sequence[InodeNumber]) -> None:
        """Keep those inodes that exist when they lose their names, until let go. Raises FENCED."""
        ...

    async def note_lease_time(self, seconds: float) -> None:
        """Note the longest time for which sessions may trust their leases, durably."""
        ...

    async def sessions(self) -> list[SessionRecord]:
        """All open sessions."""
        ...

    async def touch_sessions(self, seen_ns: Mapping[SessionId, int]) -> None:
        """Record when sessions were last heard of."""
        ...

    async def take_inodes(self, count: int) -> wire.InodeRange:
        """Hand out inode numbers that nobody ever had, durably. Raises INVALID."""
        ...

    async def commit(self, batch: wire.Commit) -> bytes:
        """Apply a batch as `wire.Commit` says. Returns the encoded `wire.CommitAnswer`.

        Durable on return with `batch.sync`, otherwise at most 1 s later.

        Raises:
            MictlanError: FENCED, CONFLICT, INVALID; NO_SPACE when the disk is full; nothing is
                applied.
        """
        ...

    # --- reads ---

    async def root(self) -> Attributes:
        """The attributes of the root directory."""
        ...

    async def lookup(self, request: wire.Lookup) -> Node:
        """Resolve one name, also `.` and `..`. Raises NOT_FOUND, NOT_DIRECTORY, NAME_TOO_LONG."""
        ...

    async def node(self, request: wire.GetNode) -> Node:
        """Read one inode. Raises NOT_FOUND."""
        ...

    async def extents(self, request: wire.GetExtents) -> wire.ExtentPage:
        """Read a page of extents. Raises NOT_FOUND."""
        ...

    async def inline(self, request: wire.GetInline) -> wire.InlineBodies:
        """Read the bytes of inline chunks. Raises INVALID for too many."""
        ...

    async def list_directory(self, request: wire.ListDirectory) -> wire.ListPage:
        """Read a page of a directory. Raises NOT_FOUND, NOT_DIRECTORY."""
        ...

    async def list_tree(
        self, request: wire.ListTree, is_free: Callable[[wire.Listing], bool]
    ) -> wire.TreePage:
        """Read directories and what is below them, as `wire.ListTree` says.

        `is_free` is asked of each, and says which may be told. Raises as `list_directory` does for
        the first root, unless it is only wanted ahead.
        """
        ...

    async def xattrs(self, request: wire.GetXattrs) -> wire.Xattrs:
        """Read all extended attributes of an inode. Raises NOT_FOUND."""
        ...

    async def records(self, request: wire.GetRecords) -> wire.Records:
        """Read the records of inodes, as far as they fit. Raises INVALID for too many inodes."""
        ...

    async def path(self, request: wire.GetPath) -> wire.InodePath:
        """Find the names that lead to an inode. Raises NOT_FOUND, NAME_TOO_LONG."""
        ...

    async def resolve(self, request: wire.Resolve) -> wire.Resolved:
        """Walk names from the root as far as they exist. Raises NAME_TOO_LONG when too deep."""
        ...

    async def keys(
        self, inodes: Collection[InodeNumber], places: Collection[tuple[InodeNumber, bytes]]
    ) -> KeysFound:
        """Find the keys of inodes, and of what names stand for; cheap for thousands."""
        ...

    async def trash(self, request: wire.ListTrash) -> wire.TrashPage:
        """Read a page of the trash."""
        ...

    async def empty_trash(self, request: wire.EmptyTrash) -> wire.Emptied:
        """Let items of the trash expire now; `reclaim` lets go of them."""
        ...

    async def buckets(self) -> wire.Buckets:
        """All buckets in order of names."""
        ...

    async def bucket_use(self, request: wire.GetBucketUse) -> wire.BucketUse:
        """Find the bucket an inode is or lies in, and what it uses. Raises NOT_FOUND."""
        ...

    async def counts(self) -> Counts:
        """The counters of the space; cheap."""
        ...

    # --- peers ---

    async def peer_map(self) -> PeerMap:
        """The peers as last saved."""
        ...

    async def save_peers(
        self,
        version: int,
        peers: Sequence[PeerInfo],
        book: PeerBook | None = None,
    ) -> None:
        """Add or replace peers and set the version of the map, durably.

        Args:
            version: of the map.
            peers: as they are now.
            book: takes the place of what was known beside the map. Retired peers leave the map; a
                writer may still name them, but they count for nothing.
        """
        ...

    # --- the work of the collector ---

    async def replica_counts(self, peers: Sequence[PeerNumber]) -> ReplicaCounts:
        """Count live chunks by their replicas on `peers`. Reads every chunk, in a thread."""
        ...

    async def dead_chunks(
        self, before_ns: int, after: DeadChunk | None, count_max: int
    ) -> list[DeadChunk]:
        """Chunks dead since before a time, oldest first, behind `after`."""
        ...

    async def forget_replicas(self, deleted: Mapping[ChunkId, Sequence[PeerNumber]]) -> None:
        """Record that peers no longer hold dead chunks; a chunk nobody holds is forgotten."""
        ...

    async def reclaim(self, count_max: int) -> bool:
        """Let go of a slice of what nobody uses. Returns whether anything may be left."""
        ...
