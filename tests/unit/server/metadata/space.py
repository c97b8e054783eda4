"""A space without a router: the metadata logic over real rows, driven synchronously by tests."""

import itertools
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import (
    ROOT_INODE,
    Attributes,
    Chunk,
    ChunkId,
    Extent,
    FileKind,
    InodeNumber,
    Node,
    PeerInfo,
    PeerNumber,
    PeerState,
    SessionId,
)
from mictlanfs.snapshotnumbers import SNAPSHOT_INODES_FIRST, SNAPSHOT_SPAN, inode_base
from mictlanfs_server.metadata import apply, sqlite_snapshots
from mictlanfs_server.metadata.base import CopyPlace, SnapshotPlan
from mictlanfs_server.metadata.check import find_damage
from mictlanfs_server.metadata.migrations import migrate
from mictlanfs_server.metadata.sqlite_reads import SqliteReads
from mictlanfs_server.metadata.sqlite_rows import SqliteRows
from mictlanfs_server.metadata.sqlite_snapshot_reads import read_tree
from mictlanfs_server.metadata.sqlite_upkeep import save_peers

CREATED_NS = 1_000
INODE_COUNT = 10_000
PEERS = (PeerNumber(1), PeerNumber(2), PeerNumber(3))
DIGEST = b"d" * 32


def peer_info(number: int, state: PeerState = PeerState.UP) -> PeerInfo:
    return PeerInfo(
        number=PeerNumber(number),
        id=f"peer-{number}",
        url=f"http://127.0.0.1:{24000 + number}",
        zone="",
        capacity=10**12,
        used=0,
        state=state,
    )


def new_chunk(length: int = 4096, peers: tuple[PeerNumber, ...] = PEERS[:2]) -> Chunk:
    return Chunk(new_chunk_id(), length, DIGEST, peers)


def inline_chunk(body: bytes) -> Chunk:
    return Chunk(new_chunk_id(), len(body), digest_of([body]), ())


class Space:
    """The logic, its rows and one session; `clock_ns` is the time of operations and tombstones."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.rows = SqliteRows(connection)
        self.reads = SqliteReads(connection)
        self.clock_ns = CREATED_NS
        save_peers(self.rows, 2, [peer_info(number) for number in PEERS])
        first = apply.take_inodes(self.rows, INODE_COUNT).first
        self._inodes = itertools.count(first)
        self._next_number: dict[SessionId, int] = {}
        self._epochs: dict[SessionId, int] = {}
        self.session = self.open_session("first")

    # --- sessions ---

    def open_session(self, name: str) -> SessionId:
        session = SessionId(name)
        request = wire.OpenSession(wire.PROTOCOL_VERSION, "host", 1, name)
        self._epochs[session] = apply.open_session(self.rows, request, session, self.clock_ns)
        self._next_number[session] = 1
        return session

    def close_session(self, session: SessionId) -> None:
        with self.transaction():
            apply.close_session(self.rows, session, self.clock_ns)

    def reclaim(self, count_max: int = 256) -> bool:
        with self.transaction():
            return apply.reclaim(self.rows, self.clock_ns, count_max)

    def batch(
        self,
        *ops: wire.Operation,
        session: SessionId | None = None,
        first_number: int | None = None,
        stop_on_error: bool = False,
    ) -> wire.Commit:
        session = session or self.session
        number = self._next_number[session] if first_number is None else first_number
        return wire.Commit(session, self._epochs[session], number, ops, False, stop_on_error)

    def commit(self, batch: wire.Commit) -> wire.CommitAnswer:
        with self.transaction():
            answer = apply.commit_batch(self.rows, batch, self.clock_ns)
        results = wire.decode(answer, wire.CommitAnswer)
        if batch.first_number == self._next_number[batch.session]:
            self._next_number[batch.session] += len(results.results)
        return results

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        self.reads.forget_policies()

    # --- operations ---

    def do(self, op: wire.Operation, session: SessionId | None = None) -> tuple[Attributes, ...]:
        """Apply one operation; its error is raised."""
        (result,) = self.commit(self.batch(op, session=session)).results
        if result.error is not None:
            raise result.error.to_error()
        return result.touched

    def error_of(self, op: wire.Operation) -> Kind | None:
        """The kind of error an operation fails with."""
        try:
            self.do(op)
        except MictlanError as error:
            return error.kind
        return None

    def tick(self) -> int:
        self.clock_ns += 1_000
        return self.clock_ns

    def new_inode(self) -> InodeNumber:
        return InodeNumber(next(self._inodes))

    def make_op(
        self, parent: int, name: bytes, kind: FileKind = FileKind.FILE, target: bytes = b""
    ) -> wire.MakeNode:
        return wire.MakeNode(
            InodeNumber(parent), name, self.new_inode(), kind, 0o644, 1, 2, self.tick(), 0, target
        )

    def make(
        self, parent: int, name: bytes, kind: FileKind = FileKind.FILE, target: bytes = b""
    ) -> InodeNumber:
        op = self.make_op(parent, name, kind, target)
        self.do(op)
        return op.ino

    def mkdir(self, parent: int, name: bytes) -> InodeNumber:
        return self.make(parent, name, FileKind.DIRECTORY)

    def bucket(self, name: bytes = b"bucket") -> InodeNumber:
        return self.mkdir(ROOT_INODE, name)

    def link(self, ino: int, parent: int, name: bytes) -> tuple[Attributes, ...]:
        return self.do(wire.Link(InodeNumber(ino), InodeNumber(parent), name, self.tick()))

    def unlink(self, parent: int, name: bytes, *, sustain: bool = False) -> tuple[Attributes, ...]:
        return self.do(wire.Unlink(InodeNumber(parent), name, self.tick(), sustain))

    def rmdir(self, parent: int, name: bytes, *, sustain: bool = False) -> tuple[Attributes, ...]:
        return self.do(wire.RemoveDirectory(InodeNumber(parent), name, self.tick(), sustain))

    def rename_op(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        mode: int = wire.RenameMode.REPLACE,
        *,
        sustain: bool = False,
    ) -> wire.Rename:
        old, new = InodeNumber(parent), InodeNumber(new_parent)
        return wire.Rename(old, name, new, new_name, self.tick(), mode, sustain)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        mode: int = wire.RenameMode.REPLACE,
    ) -> tuple[Attributes, ...]:
        return self.do(self.rename_op(parent, name, new_parent, new_name, mode))

    def write(
        self, ino: int, offset: int, chunk: Chunk, *, length: int | None = None, skip: int = 0
    ) -> Attributes:
        """Make `length` bytes of a chunk from `skip` on the content at `offset`."""
        extent = Extent(offset, chunk.length if length is None else length, chunk.id, skip)
        (attributes,) = self.write_all(ino, (extent,), (chunk,))
        return attributes

    def write_all(
        self,
        ino: int,
        extents: tuple[Extent, ...],
        chunks: tuple[Chunk, ...],
        size: int = 0,
        inline: tuple[bytes, ...] = (),
    ) -> tuple[Attributes, ...]:
        return self.do(
            wire.WriteExtents(InodeNumber(ino), extents, chunks, size, self.tick(), inline)
        )

    def write_inline(self, ino: int, offset: int, body: bytes) -> Chunk:
        """Make `body` the content at `offset`, kept in the metadata."""
        chunk = inline_chunk(body)
        self.write_all(ino, (Extent(offset, len(body), chunk.id, 0),), (chunk,), 0, (body,))
        return chunk

    def snapshot(self, bucket: int, name: bytes, root: int | None = None) -> InodeNumber:
        """Take a snapshot; the number that the directory has in it."""
        directory = InodeNumber(bucket if root is None else root)
        plan = SnapshotPlan(InodeNumber(bucket), directory, name, b"path")
        with self.transaction():
            number = sqlite_snapshots.begin(self.rows, plan, self.clock_ns)
        tree = read_tree(self.connection, directory, 10_000)
        place: CopyPlace | None = CopyPlace()
        while place is not None:
            with self.transaction():
                place = sqlite_snapshots.copy_names(
                    self.rows, number, tree.directories, place, 1000
                )
        after: tuple[InodeNumber, int] | None = (InodeNumber(0), -1)
        while after is not None:
            with self.transaction():
                after = sqlite_snapshots.copy_extents(self.rows, number, after, 1000)
        with self.transaction():
            sqlite_snapshots.settle_links(self.rows, number, tree.linked)
            sqlite_snapshots.publish(self.rows, number, plan, tree)
        return InodeNumber(inode_base(number) + directory)

    def drop_snapshot(self, root: InodeNumber) -> None:
        """Remove a snapshot; `let_snapshots_go` does the rest."""
        with self.transaction():
            sqlite_snapshots.drop(self.rows, (root - SNAPSHOT_INODES_FIRST) // SNAPSHOT_SPAN)

    def let_snapshots_go(self, count_max: int = 256) -> bool:
        with self.transaction():
            return sqlite_snapshots.let_go(self.rows, self.clock_ns, count_max)

    def truncate(self, ino: int, size: int) -> Attributes:
        (attributes,) = self.do(wire.SetAttributes(InodeNumber(ino), self.tick(), size=size))
        return attributes

    # --- what is there ---

    def node(self, ino: int, extents_max: int = 256) -> Node:
        return self.reads.node(wire.GetNode(InodeNumber(ino), extents_max, 2**20))

    def attributes(self, ino: int) -> Attributes:
        return self.node(ino).attributes

    def exists(self, ino: int) -> bool:
        try:
            self.node(ino)
        except MictlanError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return False
        return True

    def lookup(self, parent: int, name: bytes) -> InodeNumber | None:
        try:
            return self.reads.lookup(wire.Lookup(InodeNumber(parent), name)).attributes.ino
        except MictlanError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return None

    def names(self, ino: int) -> dict[bytes, InodeNumber]:
        page = self.reads.list_directory(wire.ListDirectory(InodeNumber(ino)))
        return {entry.name: entry.node.attributes.ino for entry in page.entries}

    def layout(self, ino: int) -> list[tuple[int, int, ChunkId, int]]:
        """Extents as (offset, end, chunk, offset in the chunk)."""
        return [(e.offset, e.end, e.chunk_id, e.chunk_offset) for e in self.node(ino).extents]

    def references(self, chunk: Chunk) -> int | None:
        """The reference count of a chunk, None when it is not known."""
        record = self.rows.chunk(chunk.id)
        return None if record is None else record.refs

    def damage(self) -> list[str]:
        return find_damage(self.connection)


@contextmanager
def open_space(path: Path) -> Iterator[Space]:
    """A space in the migrated database `path`, sound at the end."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        space = Space(connection)
        yield space
        assert space.damage() == []


class SpaceMaker:
    """Makes new spaces cheaply, by copying one that was migrated once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._template = folder / "template.db"
        self._numbers = itertools.count()
        migrate(self._template, CREATED_NS)

    def new_database(self) -> Path:
        path = self._folder / f"{next(self._numbers)}.db"
        shutil.copyfile(self._template, path)
        return path
