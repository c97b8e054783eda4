"""Reads of the metadata from SQLite, each one consistent snapshot.

All run on the event loop without a wait, over a connection that never writes: a lookup costs some
20 microseconds, far below what handing it to a thread would. WAL lets them run while the writer
writes. Owns the cache of policies by directory, which `forget_policies` empties; since reads and
that call happen in one loop, a read never mixes old and new.

Nobody else may read through the same connection.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import (
    FILE_SIZE_BYTES_MAX,
    NAME_SIZE_BYTES_MAX,
    ROOT_INODE,
    Attributes,
    BucketPolicy,
    Chunk,
    ChunkId,
    Coding,
    Extent,
    FileKind,
    InodeNumber,
    Node,
    PeerNumber,
)
from mictlanfs.snapshotnumbers import SNAPSHOTS_NAME, bucket_of_directory
from mictlanfs_server.metadata.base import Counts
from mictlanfs_server.metadata.checks import INTEGER_MAX, failure
from mictlanfs_server.metadata.rows import KINDS
from mictlanfs_server.metadata.sqlite_inline import InlineReader, read_bodies
from mictlanfs_server.metadata.sqlite_keys import is_own_key
from mictlanfs_server.metadata.sqlite_records import read_records
from mictlanfs_server.metadata.sqlite_rows import decode_policy
from mictlanfs_server.metadata.sqlite_snapshot_reads import row_of_directory, snapshots_row

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable

POLICY_CACHE_COUNT_MAX = 65_536
# All extents of a page of a directory; a file that gets fewer than it has says so.
PAGE_EXTENTS_MAX = 8192
# Places of columns; the last two are behind those of `Attributes`.
_SIZE: Final = 5
_PARENT: Final = 15
_TARGET: Final = 16

_BY_NAME = """
    SELECT inode.* FROM dentry JOIN inode ON inode.ino = dentry.ino
    WHERE dentry.parent = ? AND dentry.name = ?
"""
_BY_NUMBER = "SELECT * FROM inode WHERE ino = ?"
_PAGE = """
    SELECT inode.*, dentry.name FROM dentry JOIN inode ON inode.ino = dentry.ino
    WHERE dentry.parent = ? AND dentry.name > ? ORDER BY dentry.name LIMIT ?
"""
# One row for each extent: its file, itself, its chunk with the numbers of the peers as text, and of
# a coded chunk, which fragments they hold.
# (SQLite keeps the order of a subquery for group_concat, and the primary key has it anyway.)
_EXTENTS = """
    SELECT e.ino, e.offset, e.length, e.chunk, e.chunk_offset, c.length, c.digest, (
        SELECT group_concat(peer)
        FROM (SELECT peer FROM replica WHERE chunk = e.chunk ORDER BY rank)
    ), c.needed, c.digests, iif(c.digests IS NULL, NULL, (
        SELECT group_concat(rank)
        FROM (SELECT rank FROM replica WHERE chunk = e.chunk ORDER BY rank)
    ))
    FROM extent AS e CROSS JOIN chunk AS c ON c.id = e.chunk
    WHERE e.ino = ?1 AND e.offset >= coalesce(
        (SELECT max(offset) FROM extent WHERE ino = ?1 AND offset <= ?2), ?2)
        AND e.offset + e.length > ?2
    ORDER BY e.offset LIMIT ?3
"""
# The same for the files between two names: first where each is to be cut off, then its extents.
# Both walk primary keys, so each file's rows are in order and the limit leaves out the last ones.
_PAGE_EXTENTS = """
    WITH file AS MATERIALIZED (
        SELECT DISTINCT dentry.ino AS ino, (
            SELECT offset FROM extent WHERE ino = dentry.ino ORDER BY offset LIMIT 1 OFFSET ?4
        ) AS stop
        FROM dentry WHERE parent = ?1 AND name > ?2 AND name <= ?3
    )
    SELECT e.ino, e.offset, e.length, e.chunk, e.chunk_offset, c.length, c.digest, (
        SELECT group_concat(peer)
        FROM (SELECT peer FROM replica WHERE chunk = e.chunk ORDER BY rank)
    ), c.needed, c.digests, iif(c.digests IS NULL, NULL, (
        SELECT group_concat(rank)
        FROM (SELECT rank FROM replica WHERE chunk = e.chunk ORDER BY rank)
    ))
    FROM file
    CROSS JOIN extent AS e ON e.ino = file.ino AND (stop IS NULL OR e.offset < stop)
    CROSS JOIN chunk AS c ON c.id = e.chunk
    LIMIT ?5
"""

Row = tuple[Any, ...]
# What is known of the content of one file: extents in order, and the chunks they name.
_Content = tuple[tuple[Extent, ...], tuple[Chunk, ...]]
_NO_CONTENT: _Content = ((), ())


class SqliteReads:
    """Reads over one connection. Each public method is one snapshot."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._policies: dict[InodeNumber, BucketPolicy | None] = {}

    def forget_policies(self) -> None:
        """Directories may lie in other buckets, or buckets have other policies, from now on."""
        self._policies.clear()

    # --- nodes -----------------------------------------------------------------------------------

    def root(self) -> Attributes:
        """The attributes of the root directory."""
        return _attributes(self._inode(ROOT_INODE, "root"))

    def lookup(self, request: wire.Lookup) -> Node:
        """Resolve one name, also `.` and `..`."""
        if len(request.name) > NAME_SIZE_BYTES_MAX:
            raise failure(Kind.NAME_TOO_LONG, "lookup", request.name)
        with _Snapshot(self._connection):
            row = self._by_name(request.parent, request.name)
            if row is None:
                row = self._by_dots(request.parent, request.name)
            return self._node(row, request.extents_max, self._inline(request.inline_max))

    def node(self, request: wire.GetNode) -> Node:
        """Read one inode."""
        with _Snapshot(self._connection):
            row = self._inode(request.ino, "node")
            return self._node(row, request.extents_max, self._inline(request.inline_max))

    def resolve(self, request: wire.Resolve) -> wire.Resolved:
        """Walk names from the root as far as they exist."""
        if len(request.names) > wire.RESOLVE_DEPTH_MAX:
            detail = f"a path has at most {wire.RESOLVE_DEPTH_MAX} names"
            raise MictlanError(Kind.NAME_TOO_LONG, "resolve", detail=detail)
        with _Snapshot(self._connection):
            rows = [self._inode(ROOT_INODE, "resolve")]
            for name in request.names:
                row = self._by_name(rows[-1][0], name)
                if row is None:
                    break
                rows.append(row)
            inline = self._inline(request.inline_max)
            return wire.Resolved(
                tuple([self._node(row, request.extents_max, inline) for row in rows])
            )

    def _by_name(self, parent: InodeNumber, name: bytes) -> Row | None:
        if not 0 < parent <= INTEGER_MAX:
            return None
        row: Row | None = self._execute(_BY_NAME, (parent, name)).fetchone()
        if row is None and name == SNAPSHOTS_NAME:
            row = snapshots_row(self._connection, parent)
        return row

    def _by_dots(self, parent: InodeNumber, name: bytes) -> Row:
        """What a name stands for that is no entry. Raises the error that fits."""
        directory = self._directory(parent, "lookup")
        if name == b".":
            return directory
        if name == b"..":
            return self._inode(directory[_PARENT], "lookup")
        raise failure(Kind.NOT_FOUND, "lookup", name)

    def _by_number(self, ino: InodeNumber) -> Row | None:
        row: Row | None = None
        if 0 < ino <= INTEGER_MAX:
            row = self._execute(_BY_NUMBER, (ino,)).fetchone()
        return row or row_of_directory(self._connection, ino)

    def _inode(self, ino: InodeNumber, operation: str) -> Row:
        row = self._by_number(ino)
        if row is None:
            raise failure(Kind.NOT_FOUND, operation, ino)
        return row

    def _directory(self, ino: InodeNumber, operation: str) -> Row:
        row = self._inode(ino, operation)
        if row[1] != FileKind.DIRECTORY:
            raise failure(Kind.NOT_DIRECTORY, operation, ino)
        return row

    def _node(self, row: Row, extents_max: int, inline: InlineReader) -> Node:
        attributes = _attributes(row)
        content = _NO_CONTENT
        if attributes.allocated and extents_max > 0:
            content = self._content(attributes.ino, 0, min(extents_max, wire.EXTENTS_PAGE_MAX))
        return _node_of(row, attributes, content, self._policy(row), inline)

    def _inline(self, per_file_max: int) -> InlineReader:
        return InlineReader(self._connection, per_file_max)

    # --- policies --------------------------------------------------------------------------------

    def _policy(self, row: Row) -> BucketPolicy | None:
        """The policy of an inode: of its own directory, or the one it is in."""
        ino = row[0]
        if ino == ROOT_INODE:
            return None
        return self._policy_of(ino if row[1] == FileKind.DIRECTORY else row[_PARENT])

    def _policy_of(self, directory: InodeNumber) -> BucketPolicy | None:
        """The policy in `directory`, from the first ancestor of which it is known."""
        way: list[InodeNumber] = []
        here = directory
        while here not in self._policies:
            way.append(here)
            row = self._execute("SELECT parent FROM inode WHERE ino = ?", (here,)).fetchone()
            if row is None and (bucket := bucket_of_directory(here)) is not None:
                row = (bucket,)
            if row is None or row[0] == ROOT_INODE:
                self._policies[here] = self._bucket_policy(here)
                break
            here = row[0]
        policy = self._policies[here]
        if len(self._policies) + len(way) > POLICY_CACHE_COUNT_MAX:
            self._policies.clear()
        for passed in way:
            self._policies[passed] = policy
        return policy

    def _bucket_policy(self, ino: InodeNumber) -> BucketPolicy:
        # What is left of a removed bucket is kept in the default way.
        row = self._execute("SELECT policy FROM bucket WHERE ino = ?", (ino,)).fetchone()
        return decode_policy(row[0]) if row else BucketPolicy()

    # --- content ---------------------------------------------------------------------------------

    def extents(self, request: wire.GetExtents) -> wire.ExtentPage:
        """Read a page of extents."""
        count_max = max(1, min(request.extents_max, wire.EXTENTS_LONG_PAGE_MAX))
        offset = max(0, min(request.offset, FILE_SIZE_BYTES_MAX))
        with _Snapshot(self._connection):
            attributes = _attributes(self._inode(request.ino, "extents"))
            # One more than asked tells whether the page is the last.
            extents, chunks = self._content(request.ino, offset, count_max + 1)
            end = None
            if len(extents) > count_max:
                end = extents[count_max].offset
                extents = extents[:count_max]
                named = {extent.chunk_id for extent in extents}
                chunks = tuple([chunk for chunk in chunks if chunk.id in named])
            bodies = self._inline(request.inline_max).bodies(chunks)
        return wire.ExtentPage(extents, chunks, end, attributes.content_version, bodies)

    def inline(self, request: wire.GetInline) -> wire.InlineBodies:
        """Read the bytes of inline chunks."""
        return read_bodies(self._connection, request)

    def _content(self, ino: InodeNumber, offset: int, count_max: int) -> _Content:
        return _content_of(self._execute(_EXTENTS, (ino, offset, count_max)).fetchall())

    # --- directories -----------------------------------------------------------------------------

    def list_directory(self, request: wire.ListDirectory) -> wire.ListPage:
        """Read a page of a directory."""
        with _Snapshot(self._connection):
            directory = self._directory(request.ino, "list")
            return self._page(directory, request, self._inline(request.inline_max))

    def list_tree(
        self, request: wire.ListTree, is_free: Callable[[wire.Listing], bool]
    ) -> wire.TreePage:
        """Read directories and what is below them; `is_free` says which may be told."""
        left = entries_max = max(0, min(request.entries_max, wire.LIST_ENTRIES_MAX))
        inline = self._inline(request.inline_max)
        extents_left = PAGE_EXTENTS_MAX
        found: list[wire.Listing] = []
        # Those that come next, the first of them last.
        coming = list(reversed(request.roots[: wire.TREE_ROOTS_MAX]))
        with _Snapshot(self._connection):
            while coming:
                ino = coming.pop()
                is_wanted = not found and not request.is_ahead
                if not is_wanted and (left <= 0 or extents_left <= 0 or inline.is_spent):
                    break
                if is_wanted:
                    directory = self._directory(ino, "list")
                else:
                    row = self._by_number(ino)
                    if row is None or row[1] != FileKind.DIRECTORY or row[_SIZE] > entries_max:
                        continue
                    if row[_SIZE] > left:
                        break
                    directory = row
                wanted = wire.ListDirectory(ino, extents_max=request.extents_max)
                listing = wire.Listing(ino, self._page(directory, wanted, inline))
                entries = listing.page.entries
                left -= 1 + len(entries)
                extents_left -= sum([len(entry.node.extents) for entry in entries])
                is_told = is_free(listing)
                if is_told or is_wanted:
                    found.append(listing)
                if is_wanted and not is_told:
                    # It is waited for, and then all is read again.
                    break
                if is_told and listing.page.is_last:
                    coming += [
                        entry.node.attributes.ino
                        for entry in reversed(entries)
                        if entry.node.attributes.kind is FileKind.DIRECTORY
                    ]
        return wire.TreePage(tuple(found))

    def _page(
        self, directory: Row, request: wire.ListDirectory, inline: InlineReader
    ) -> wire.ListPage:
        count_max = max(1, min(request.entries_max, wire.LIST_ENTRIES_MAX))
        rows = self._execute(_PAGE, (request.ino, request.after, count_max + 1)).fetchall()
        is_last = len(rows) <= count_max
        del rows[count_max:]
        contents = self._page_contents(request, rows) if request.extents_max > 0 else {}
        policy = self._policy(directory)
        entries = []
        for row in rows:
            attributes = _attributes(row)
            content = contents.get(attributes.ino, _NO_CONTENT)
            # Buckets have a policy each; all below a bucket has that of its directory. A file
            # with names in two buckets has that of the bucket in its own row.
            own = row[_PARENT] != request.ino or request.ino == ROOT_INODE
            own_policy = self._policy(row) if own else policy
            node = _node_of(row, attributes, content, own_policy, inline)
            entries.append(wire.Entry(row[-1], node))
        return wire.ListPage(tuple(entries), _attributes(directory), directory[_PARENT], is_last)

    def _page_contents(
        self, request: wire.ListDirectory, rows: list[Row]
    ) -> dict[InodeNumber, _Content]:
        if not rows:
            return {}
        extents_max = min(request.extents_max, wire.EXTENTS_PAGE_MAX)
        found = self._execute(
            _PAGE_EXTENTS, (request.ino, request.after, rows[-1][-1], extents_max, PAGE_EXTENTS_MAX)
        ).fetchall()
        return {ino: _content_of(group) for ino, group in groupby(found, itemgetter(0))}

    def buckets(self) -> wire.Buckets:
        """All buckets in order of names."""
        rows = self._execute(
            "SELECT inode.*, bucket.used, bucket.policy, dentry.name FROM dentry"
            " JOIN bucket ON bucket.ino = dentry.ino JOIN inode ON inode.ino = dentry.ino"
            " WHERE dentry.parent = ? ORDER BY dentry.name",
            (ROOT_INODE,),
        ).fetchall()
        return wire.Buckets(
            tuple(
                wire.BucketInfo(row[-1], _attributes(row), decode_policy(row[-2]), row[-3])
                for row in rows
            )
        )

    def bucket_use(self, request: wire.GetBucketUse) -> wire.BucketUse:
        """Find the bucket that an inode is or lies in, its quota and what it uses."""
        with _Snapshot(self._connection):
            here = self._inode(request.ino, "bucket use")
            while here[0] != ROOT_INODE and here[_PARENT] != ROOT_INODE:
                here = self._inode(here[_PARENT], "bucket use")
            row = self._execute(
                "SELECT policy, used FROM bucket WHERE ino = ?", (here[0],)
            ).fetchone()
        if row is None:
            return wire.BucketUse()
        return wire.BucketUse(here[0], decode_policy(row[0]).quota, row[1])

    def xattrs(self, request: wire.GetXattrs) -> wire.Xattrs:
        """Read all extended attributes of an inode."""
        with _Snapshot(self._connection):
            self._inode(request.ino, "xattrs")
            rows = self._execute(
                "SELECT name, value FROM xattr WHERE ino = ? ORDER BY name", (request.ino,)
            ).fetchall()
        return wire.Xattrs(dict(rows))

    def records(self, request: wire.GetRecords) -> wire.Records:
        """Read the records of inodes, as far as they fit into one answer."""
        with _Snapshot(self._connection):
            return read_records(self._connection, request)

    def path(self, request: wire.GetPath) -> wire.InodePath:
        """Find the names that lead to an inode, of several those that its bucket is known by."""
        names: list[bytes] = []
        with _Snapshot(self._connection):
            here = self._inode(request.ino, "path")
            while here[0] != ROOT_INODE:
                if len(names) == wire.RESOLVE_DEPTH_MAX:
                    raise failure(Kind.NAME_TOO_LONG, "path", request.ino, "it lies too deep")
                found = self._execute(
                    "SELECT name FROM dentry WHERE ino = ? AND parent = ? ORDER BY name LIMIT 1",
                    (here[0], here[_PARENT]),
                ).fetchone()
                if bucket_of_directory(here[0]) is not None:
                    found = (SNAPSHOTS_NAME,)
                if found is None:
                    raise failure(Kind.NOT_FOUND, "path", request.ino, "it has no name any more")
                names.append(found[0])
                here = self._inode(here[_PARENT], "path")
        return wire.InodePath(tuple(reversed(names)))

    def values(self) -> dict[str, int | str]:
        """All single values of the space; see the table `meta`."""
        return dict(self._execute("SELECT name, value FROM meta").fetchall())

    def has_garbage(self, now_ns: int) -> bool:
        """Whether anything waits for the reclaimer, with expired trash and dropped snapshots."""
        (has_any,) = self._execute(
            "SELECT EXISTS (SELECT 1 FROM session WHERE is_ended = 1)"
            " OR EXISTS (SELECT 1 FROM doomed)"
            " OR EXISTS (SELECT 1 FROM snapshot WHERE name IS NULL)"
            " OR EXISTS (SELECT 1 FROM trash WHERE expires_ns <= ?)",
            (now_ns,),
        ).fetchone()
        return bool(has_any)

    def counts(self) -> Counts:
        """The counters of the space."""
        with _Snapshot(self._connection):
            values = self.values()
            (buckets,) = self._execute("SELECT count(*) FROM bucket").fetchone()
            (snapshots,) = self._execute(
                "SELECT count(*) FROM snapshot WHERE is_ready = 1"
            ).fetchone()
        return Counts(
            buckets,
            int(values["inode_count"]),
            int(values["chunk_count"]),
            int(values["tombstone_count"]),
            int(values["bytes_logical"]),
            int(values["trash_count"]),
            int(values["trash_bytes"]),
            snapshots,
        )


class _Snapshot:
    """A read transaction: all that is read inside is from one moment."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN")

    def __exit__(self, *_: object) -> None:
        self._connection.execute("COMMIT")


def _attributes(row: Row) -> Attributes:
    kind, has_xattrs = KINDS[row[1]], bool(row[14])
    return Attributes(row[0], kind, *row[2:14], has_xattrs)  # type: ignore[call-arg] # 15 in all


def _node_of(
    row: Row,
    attributes: Attributes,
    content: _Content,
    policy: BucketPolicy | None,
    inline: InlineReader,
) -> Node:
    extents, chunks = content
    # Extents do not overlap, so they are all there exactly when they cover what is allocated.
    has_all = attributes.allocated == sum([extent.length for extent in extents])
    key = attributes.ino if is_own_key(attributes.kind, attributes.nlink) else row[_PARENT]
    bodies = inline.bodies(chunks) if chunks else ()
    return Node(attributes, row[_TARGET], extents, chunks, has_all, policy, key, bodies)


def _content_of(rows: Iterable[Row]) -> _Content:
    """Extents and chunks from the rows of one file, in order of offset."""
    extents: list[Extent] = []
    chunks: dict[ChunkId, Chunk] = {}
    for _, offset, length, chunk_id, chunk_offset, chunk_length, digest, peers, *code in rows:
        extents.append(Extent(offset, length, chunk_id, chunk_offset))
        if chunk_id not in chunks:
            coding = _coding(*code)
            chunks[chunk_id] = Chunk(chunk_id, chunk_length, digest, _numbers(peers), coding)
    return tuple(extents), tuple(chunks.values())


def _coding(needed: int, digests: bytes | None, ranks: str | None) -> Coding | None:
    return None if digests is None else Coding(needed, digests, _numbers(ranks))


@lru_cache(maxsize=4096)
def _numbers(text: str | None) -> tuple[PeerNumber, ...]:
    """Peer numbers, or ranks, from `1,2`: few combinations, which are asked for all day."""
    return tuple(PeerNumber(int(number)) for number in text.split(",")) if text else ()
