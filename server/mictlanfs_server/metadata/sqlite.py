"""The embedded form of the metadata store: one SQLite file, one writer thread, reads on the loop.

Owns the connections. Joins `sqlite_writer` (changes), `sqlite_reads` (what sessions ask), a thread
for the scans of the collector, which may take long and hold nobody up, and one for copies of all of
it. One process at a time uses a database; the router's lock on its data directory sees to that.

The clock of changes never goes behind the moment of the last copy: so a chunk that dies after that
copy has a later time of death, whatever the system's clock does.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from mictlanfs import wire
from mictlanfs.identifiers import new_token
from mictlanfs.model import (
    Attributes,
    Chunk,
    ChunkId,
    InodeNumber,
    Node,
    PeerInfo,
    PeerMap,
    PeerNumber,
    SessionId,
)
from mictlanfs_server.metadata import apply, sqlite_snapshots
from mictlanfs_server.metadata.base import (
    CopyPlace,
    Counts,
    DeadChunk,
    KeysFound,
    ReplicaCounts,
    SessionRecord,
    SnapshotPlan,
    SnapshotRecord,
    SnapshotTree,
)
from mictlanfs_server.metadata.copies import (
    ChunkCopies,
    CopiesAsked,
    CopiesPage,
    GivenUp,
    PeerBook,
)
from mictlanfs_server.metadata.migrations import SCHEMA_VERSION, migrate
from mictlanfs_server.metadata.sqlite_copies import (
    SqliteCopies,
    add_replicas,
    drop_replicas,
    forget_given_up,
    locate,
    move_fragments,
    purge_retired,
    read_move_orders,
    read_peer_book,
    save_move_order,
    save_peer_book,
)
from mictlanfs_server.metadata.sqlite_copy import check_room, copy_database
from mictlanfs_server.metadata.sqlite_keys import SqliteKeys
from mictlanfs_server.metadata.sqlite_reads import SqliteReads
from mictlanfs_server.metadata.sqlite_scans import SqliteScans
from mictlanfs_server.metadata.sqlite_snapshot_reads import (
    find_snapshot,
    read_snapshots,
    read_tree,
)
from mictlanfs_server.metadata.sqlite_trash import read_trash
from mictlanfs_server.metadata.sqlite_truth import SqliteTruth
from mictlanfs_server.metadata.sqlite_upkeep import (
    LEASE_TIME_NS,
    PEER_NUMBER_MIN,
    RESTORED_AT_NS,
    RESTORED_TO_NS,
    SNAPSHOT_NS,
    forget_replicas,
    read_peers,
    read_sessions,
    save_peers,
    set_value,
    touch_sessions,
)
from mictlanfs_server.metadata.sqlite_writer import Writer, connect

if TYPE_CHECKING:
    from pathlib import Path

    from mictlanfs_server.metadata.sqlite_rows import SqliteRows

T = TypeVar("T")


class SqliteStore:
    """`MetadataStore` in the file `path`, created or migrated at once.

    Args:
        wall_ns: the router's clock, nanoseconds since the epoch.

    Attributes:
        schema_version: of the database.
        change_count: how often something was changed that a copy of the space should have: not
            counted is what only the running router needs, such as when sessions were seen.
        peer_number_min: the smallest number that a new peer may get.
        restored_to_ns: which moment it was restored to the last time; 0: it never was.
        restored_at_ns, lease_time_s: as in `MetadataStore`.

    Raises:
        UsageError: the file is of a newer version, or not ours.
    """

    schema_version = SCHEMA_VERSION

    def __init__(self, path: Path, wall_ns: Callable[[], int] = time.time_ns) -> None:
        migrate(path, wall_ns())
        self._path = path
        self._system_ns = wall_ns
        self.change_count = 0
        self._connection = connect(path, read_only=True)
        self._reads = SqliteReads(self._connection)
        self._keys = SqliteKeys(self._connection)
        self._writer = Writer(path, self._reads.forget_policies)
        self._scan_connection = connect(path, read_only=True)
        self._scans = SqliteScans(self._scan_connection)
        self._copies = SqliteCopies(self._scan_connection)
        self._scan_thread = ThreadPoolExecutor(1, "metadata-scan")
        self._copy_thread = ThreadPoolExecutor(1, "metadata-copy")
        values = self._reads.values()
        self._space_id = str(values["space_id"])
        self.peer_number_min = int(values.get(PEER_NUMBER_MIN, 1))
        self.restored_to_ns = int(values.get(RESTORED_TO_NS, 0))
        self.restored_at_ns = int(values.get(RESTORED_AT_NS, 0))
        time_ns = values.get(LEASE_TIME_NS)
        self.lease_time_s = None if time_ns is None else int(time_ns) / 1e9
        self._snapshot_ns = int(values.get(SNAPSHOT_NS, 0))
        self._floor_ns = self._snapshot_ns
        self.truth = SqliteTruth(path, self._scan_connection, self._change, self._scan, wall_ns)

    @property
    def space_id(self) -> str:
        """The name of the space, made at its first start."""
        return self._space_id

    async def start(self) -> None:
        """Begin to serve the running event loop."""
        self._writer.start()

    async def close(self) -> None:
        """Make everything durable and let go of the files; can be repeated."""
        # The readers go first: they would keep the writer from emptying the log.
        await asyncio.to_thread(self._scan_thread.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._copy_thread.shutdown, cancel_futures=True)
        self._scan_connection.close()
        self._connection.close()
        await self._writer.close()

    def _wall_ns(self) -> int:
        return max(self._floor_ns, self._system_ns())

    async def _change(
        self, work: Callable[[SqliteRows], T], *, sync: bool = False, counts: bool = True
    ) -> T:
        if counts:
            self.change_count += 1
        return await self._writer.run(work, sync=sync)

    async def _scan(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._scan_thread, work)

    # --- sessions --------------------------------------------------------------------------------

    async def open_session(self, request: wire.OpenSession) -> SessionRecord:
        """Record a new session with a new epoch, durably."""
        session, now_ns = SessionId(new_token()), self._wall_ns()

        def work(rows: SqliteRows) -> int:
            return apply.open_session(rows, request, session, now_ns)

        epoch = await self._change(work, sync=True, counts=False)
        return SessionRecord(
            session, epoch, request.host, request.pid, request.label, now_ns, request.leases
        )

    async def close_session(self, session: SessionId) -> None:
        """End a session; what it sustained is let go, soon. An unknown one is no error."""
        # Durably: a session whose leases went to others must not be back after a power loss.
        await self._change(
            lambda rows: apply.close_session(rows, session, self._wall_ns()),
            sync=True,
            counts=False,
        )

    async def sustain(self, session: SessionId, epoch: int, inodes: Sequence[InodeNumber]) -> None:
        """Keep those inodes that exist when they lose their names, until let go. Raises FENCED."""
        await self._change(lambda rows: apply.sustain(rows, session, epoch, inodes), counts=False)

    async def sessions(self) -> list[SessionRecord]:
        """All open sessions."""
        return read_sessions(self._connection)

    async def touch_sessions(self, seen_ns: Mapping[SessionId, int]) -> None:
        """Record when sessions were last heard of."""
        await self._change(lambda rows: touch_sessions(rows, seen_ns), counts=False)

    async def note_lease_time(self, seconds: float) -> None:
        """Note for how long sessions may trust their leases, durably."""
        time_ns = round(seconds * 1e9)
        await self._change(
            lambda rows: set_value(rows, LEASE_TIME_NS, time_ns), sync=True, counts=False
        )
        self.lease_time_s = time_ns / 1e9

    async def take_inodes(self, count: int) -> wire.InodeRange:
        """Hand out inode numbers that nobody ever had, durably."""
        return await self._change(
            lambda rows: apply.take_inodes(rows, count), sync=True, counts=False
        )

    async def commit(self, batch: wire.Commit) -> bytes:
        """Apply a batch as `wire.Commit` says. Returns the encoded `wire.CommitAnswer`."""
        now_ns = self._wall_ns()
        return await self._change(
            lambda rows: apply.commit_batch(rows, batch, now_ns),
            sync=batch.sync,
            counts=bool(batch.ops),
        )

    # --- reads -----------------------------------------------------------------------------------

    async def root(self) -> Attributes:
        """The attributes of the root directory."""
        return self._reads.root()

    async def lookup(self, request: wire.Lookup) -> Node:
        """Resolve one name, also `.` and `..`."""
        return self._reads.lookup(request)

    async def node(self, request: wire.GetNode) -> Node:
        """Read one inode."""
        return self._reads.node(request)

    async def extents(self, request: wire.GetExtents) -> wire.ExtentPage:
        """Read a page of extents."""
        return self._reads.extents(request)

    async def inline(self, request: wire.GetInline) -> wire.InlineBodies:
        """Read the bytes of inline chunks."""
        return self._reads.inline(request)

    async def list_directory(self, request: wire.ListDirectory) -> wire.ListPage:
        """Read a page of a directory."""
        return self._reads.list_directory(request)

    async def list_tree(
        self, request: wire.ListTree, is_free: Callable[[wire.Listing], bool]
    ) -> wire.TreePage:
        """Read directories and what is below them; `is_free` says which may be told."""
        return self._reads.list_tree(request, is_free)

    async def xattrs(self, request: wire.GetXattrs) -> wire.Xattrs:
        """Read all extended attributes of an inode."""
        return self._reads.xattrs(request)

    async def records(self, request: wire.GetRecords) -> wire.Records:
        """Read the records of inodes, as far as they fit into one answer."""
        return self._reads.records(request)

    async def path(self, request: wire.GetPath) -> wire.InodePath:
        """Find the names that lead to an inode."""
        return self._reads.path(request)

    async def resolve(self, request: wire.Resolve) -> wire.Resolved:
        """Walk names from the root as far as they exist."""
        return self._reads.resolve(request)

    async def keys(
        self, inodes: Collection[InodeNumber], places: Collection[tuple[InodeNumber, bytes]]
    ) -> KeysFound:
        """Find the keys of inodes, and of what names stand for."""
        return self._keys.find(inodes, places)

    async def trash(self, request: wire.ListTrash) -> wire.TrashPage:
        """Read a page of the trash."""
        return read_trash(self._connection, request)

    async def empty_trash(self, request: wire.EmptyTrash) -> wire.Emptied:
        """Let items of the trash expire now; `reclaim` lets go of them."""
        path, before_ns = request.path, request.before_ns
        return await self._change(
            lambda rows: rows.trash.give_up(path, before_ns, wire.TRASH_EMPTIED_MAX)
        )

    async def buckets(self) -> wire.Buckets:
        """All buckets in order of names."""
        return self._reads.buckets()

    async def bucket_use(self, request: wire.GetBucketUse) -> wire.BucketUse:
        """Find the bucket that an inode is or lies in, its quota and what it uses."""
        return self._reads.bucket_use(request)

    async def counts(self) -> Counts:
        """The counters of the space; cheap."""
        return self._reads.counts()

    # --- snapshots -------------------------------------------------------------------------------

    async def snapshots(self, request: wire.ListSnapshots) -> wire.Snapshots:
        """Those that are complete."""
        return read_snapshots(self._connection, request)

    async def snapshot(self, bucket: bytes, name: bytes) -> SnapshotRecord | None:
        """One that is complete."""
        return find_snapshot(self._connection, bucket, name)

    async def snapshot_tree(self, root: InodeNumber, names_max: int) -> SnapshotTree:
        """Walk a directory, in a thread."""
        return await self._scan(lambda: read_tree(self._scan_connection, root, names_max))

    async def begin_snapshot(self, plan: SnapshotPlan) -> int:
        """Reserve name and number of a snapshot, whose time is now."""
        now_ns = self._wall_ns()
        return await self._change(lambda rows: sqlite_snapshots.begin(rows, plan, now_ns))

    async def copy_names(
        self, number: int, tree: SnapshotTree, place: CopyPlace, count_max: int
    ) -> CopyPlace | None:
        """Copy at most `count_max` names from `place` on."""
        following = await self._change(
            lambda rows: sqlite_snapshots.copy_names(
                rows, number, tree.directories, place, count_max
            )
        )
        if following is None:
            for start in range(0, len(tree.linked), count_max):
                await self._settle_links(number, tree.linked[start : start + count_max])
        return following

    async def _settle_links(self, number: int, inodes: Sequence[InodeNumber]) -> None:
        await self._change(lambda rows: sqlite_snapshots.settle_links(rows, number, inodes))

    async def copy_extents(
        self, number: int, after: tuple[InodeNumber, int], count_max: int
    ) -> tuple[InodeNumber, int] | None:
        """Copy extents behind inode and offset."""
        return await self._change(
            lambda rows: sqlite_snapshots.copy_extents(rows, number, after, count_max)
        )

    async def publish_snapshot(self, number: int, plan: SnapshotPlan, tree: SnapshotTree) -> None:
        """Show a snapshot whose copy is complete, durably."""
        await self._change(
            lambda rows: sqlite_snapshots.publish(rows, number, plan, tree),
            sync=True,
        )

    async def drop_snapshot(self, number: int) -> None:
        """Show a snapshot no more, durably; `reclaim` lets go of it."""
        await self._change(lambda rows: sqlite_snapshots.drop(rows, number), sync=True)

    async def drop_unfinished_snapshots(self) -> int:
        """Drop all that were begun and not published; returns how many."""
        return await self._change(sqlite_snapshots.drop_unfinished)

    # --- peers -----------------------------------------------------------------------------------

    async def peer_map(self) -> PeerMap:
        """The peers as last saved."""
        return read_peers(self._connection)

    async def save_peers(
        self,
        version: int,
        peers: Sequence[PeerInfo],
        book: PeerBook | None = None,
    ) -> None:
        """Add or replace peers and set the version of the map, durably."""

        def work(rows: SqliteRows) -> None:
            if book is not None:
                # First, since an id is unique among the peers of the map.
                save_peer_book(rows, book)
            save_peers(rows, version, peers)

        await self._change(work, sync=True)

    async def peer_book(self) -> PeerBook:
        """What is known of peers beside the map."""
        return read_peer_book(self._connection)

    # --- copies ----------------------------------------------------------------------------------

    async def survey(self, asked: CopiesAsked, after: ChunkId | None, count_max: int) -> CopiesPage:
        """Look at the next `count_max` chunks behind `after`, in a thread."""
        return await self._scan(lambda: self._copies.survey(asked, after, count_max))

    async def live_chunks(self, after: ChunkId | None, count_max: int) -> list[ChunkId]:
        """Live chunks in order of ids, behind `after`; inline ones among them."""
        return await self._scan(lambda: self._copies.live_chunks(after, count_max))

    async def copies(self, ids: Sequence[ChunkId]) -> list[ChunkCopies]:
        """Those of the chunks that are live and not inline, as they are now."""
        return await self._scan(lambda: self._copies.copies(ids))

    async def locate(self, ids: Sequence[ChunkId]) -> dict[ChunkId, Chunk]:
        """Those of the chunks that are live, with their peers."""
        return locate(self._connection, ids)

    async def peer_chunks(
        self, peer: PeerNumber, after: ChunkId | None, count_max: int
    ) -> list[ChunkId]:
        """Live chunks that a peer holds, in order of ids, behind `after`."""
        return await self._scan(lambda: self._copies.peer_chunks(peer, after, count_max))

    async def peer_chunk_count(self, peer: PeerNumber) -> int:
        """Live chunks that a peer holds. Looks at each of them."""
        return await self._scan(lambda: self._copies.peer_chunk_count(peer))

    async def only_copies_count(self, peer: PeerNumber, others: Sequence[PeerNumber]) -> int:
        """Live chunks that `peer` holds and none of `others` does."""
        return await self._scan(lambda: self._copies.only_copies_count(peer, others))

    async def add_replicas(
        self, added: Mapping[ChunkId, Sequence[PeerNumber]], *, raises_wanted: bool = False
    ) -> list[tuple[ChunkId, PeerNumber]]:
        """Record copies that are durable on peers, durably; those that no row stands for."""
        return await self._change(
            lambda rows: add_replicas(rows, added, raises_wanted=raises_wanted), sync=True
        )

    async def move_fragments(
        self, moved: Sequence[tuple[ChunkId, int, PeerNumber]], *, delete_at_ns: int
    ) -> list[tuple[ChunkId, PeerNumber]]:
        """Record fragments that are durable on peers; those that no row stands for."""
        return await self._change(lambda rows: move_fragments(rows, moved, delete_at_ns), sync=True)

    async def drop_replicas(
        self,
        dropped: Mapping[ChunkId, Sequence[PeerNumber]],
        *,
        counted: Collection[PeerNumber] | None = None,
        delete_at_ns: int = 0,
    ) -> list[ChunkId]:
        """Give up copies of live chunks, durably; the chunks of which a row had to stay."""
        return await self._change(
            lambda rows: drop_replicas(rows, dropped, counted, delete_at_ns), sync=True
        )

    async def given_up(
        self, before_ns: int, after: GivenUp | None, count_max: int
    ) -> list[GivenUp]:
        """Copies whose time to be deleted has come, in that order, behind `after`."""
        return await self._scan(lambda: self._copies.given_up(before_ns, after, count_max))

    async def given_up_count(self) -> int:
        """Copies that wait for their deletion."""
        return await self._scan(self._copies.given_up_count)

    async def forget_given_up(self, deleted: Sequence[GivenUp]) -> None:
        """Record that peers hold these copies no more."""
        await self._change(lambda rows: forget_given_up(rows, deleted))

    async def purge_retired(
        self,
        peer: PeerNumber,
        after: ChunkId | None,
        count_max: int,
        *,
        dead_only: bool = False,
    ) -> ChunkId | None:
        """Remove some rows of a retired peer, or those of dead chunks; where to go on."""
        return await self._change(
            lambda rows: purge_retired(rows, peer, after, count_max, dead_only=dead_only)
        )

    async def move_orders(self) -> dict[str, bytes]:
        """Moves that were ordered and have not ended."""
        return read_move_orders(self._connection)

    async def save_move_order(self, name: str, position: bytes | None) -> None:
        """Note where an ordered move stands; None: it has ended."""
        await self._change(lambda rows: save_move_order(rows, name, position))

    # --- the work of the collector ---------------------------------------------------------------

    async def replica_counts(self, peers: Sequence[PeerNumber]) -> ReplicaCounts:
        """Count live chunks by their replicas on `peers`. Reads every chunk, in a thread."""
        return await self._scan(lambda: self._scans.replica_counts(peers))

    async def dead_chunks(
        self, before_ns: int, after: DeadChunk | None, count_max: int
    ) -> list[DeadChunk]:
        """Chunks dead since before a time, oldest first, behind `after`."""
        return await self._scan(lambda: self._scans.dead_chunks(before_ns, after, count_max))

    async def forget_replicas(self, deleted: Mapping[ChunkId, Sequence[PeerNumber]]) -> None:
        """Record that peers no longer hold dead chunks; a chunk nobody holds is forgotten."""
        await self._change(lambda rows: forget_replicas(rows, deleted))

    async def reclaim(self, count_max: int) -> bool:
        """Let go of a slice of what nobody uses. Returns whether anything may be left."""
        # Asked often and most often for nothing, which should not cost a transaction.
        now_ns = self._wall_ns()
        if not self._reads.has_garbage(now_ns):
            return False

        def work(rows: SqliteRows) -> bool:
            if apply.reclaim(rows, now_ns, count_max):
                return True
            return sqlite_snapshots.let_go(rows, now_ns, count_max)

        return await self._change(work)

    # --- snapshots -------------------------------------------------------------------------------

    @property
    def snapshot_ns(self) -> int:
        """The moment of the last snapshot that was noted; 0 when there was none."""
        return self._snapshot_ns

    async def copy_to(self, path: Path) -> int:
        """Copy everything as it is now into the file `path`, without holding anybody up.

        Needs as much room as the database has, and is refused where little would be left for it.

        Cancellation: ends the copy; the file is of no use.

        Returns:
            The moment that it stands for, by the router's clock: every change of before is in it,
            and every chunk that dies afterwards dies at this time or later.

        Raises:
            MictlanError: NO_SPACE, INTERNAL.
        """
        check_room(self._path, path)
        moment_ns = self._floor_ns = self._wall_ns()
        # The queue has one order: when this is done, so is all that took its time before.
        await self._change(lambda rows: None, counts=False)
        stop = threading.Event()
        copying = asyncio.get_running_loop().run_in_executor(
            self._copy_thread, copy_database, self._path, path, stop
        )
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([copying])
            copying.exception()
            raise
        return moment_ns

    async def note_snapshot(self, moment_ns: int) -> None:
        """Remember durably that a snapshot of this moment is complete."""
        await self._change(
            lambda rows: set_value(rows, SNAPSHOT_NS, moment_ns), sync=True, counts=False
        )
        self._snapshot_ns = max(self._snapshot_ns, moment_ns)
