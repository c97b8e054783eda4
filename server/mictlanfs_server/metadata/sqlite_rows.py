"""The rows of the metadata in SQLite: prepared statements, one or two for each method of `Rows`.

Knows no rules. Belongs to one connection in autocommit mode, on which its user begins and ends
transactions, in one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mictlanfs.model import (
    BucketPolicy,
    Chunk,
    ChunkId,
    Extent,
    InodeNumber,
    PeerNumber,
    SessionId,
)
from mictlanfs_server.metadata.checks import INTEGER_MAX
from mictlanfs_server.metadata.rows import (
    KINDS,
    BatchRecord,
    ChunkRecord,
    CountChange,
    InodeRecord,
)
from mictlanfs_server.metadata.sqlite_records import SqliteRecords
from mictlanfs_server.metadata.sqlite_trash import SqliteTrash

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from mictlanfs import wire

_INSERT_INODE = "INSERT INTO inode VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
# Not REPLACE, which would delete and insert the row.
_UPDATE_INODE = """
    UPDATE inode SET kind = ?2, mode = ?3, uid = ?4, gid = ?5, size = ?6, atime_ns = ?7,
        mtime_ns = ?8, ctime_ns = ?9, nlink = ?10, rdev = ?11, allocated = ?12, version = ?13,
        content_version = ?14, has_xattrs = ?15, parent = ?16, target = ?17
    WHERE ino = ?1
"""
_EXTENTS_TOUCHING = """
    SELECT offset, length, chunk, chunk_offset FROM extent
    WHERE ino = ?1 AND offset <= ?3 AND offset >= coalesce(
        (SELECT max(offset) FROM extent WHERE ino = ?1 AND offset < ?2), ?2)
    ORDER BY offset
"""
_ADD_REPLICA = """
    INSERT INTO replica
    SELECT ?1, coalesce(max(rank), -1) + 1, ?2 FROM replica WHERE chunk = ?1
"""

# A file counts where its row says that it is, and once, also with two names in one directory.
_TREE_USE = """
    WITH RECURSIVE item(ino, kind, place, parent, allocated) AS (
        SELECT ?1, 4, 0, 0, 0
        UNION ALL
        SELECT inode.ino, inode.kind, dentry.parent, inode.parent, inode.allocated
        FROM item JOIN dentry ON dentry.parent = item.ino JOIN inode ON inode.ino = dentry.ino
        WHERE item.kind = 4 LIMIT ?2
    )
    SELECT (SELECT count(*) FROM item), coalesce(sum(allocated), 0)
    FROM (SELECT DISTINCT ino, allocated FROM item WHERE place = parent AND allocated > 0)
"""

_policy_decoder = msgspec.msgpack.Decoder(BucketPolicy)
_policy_encoder = msgspec.msgpack.Encoder()


def decode_policy(blob: bytes) -> BucketPolicy:
    """The policy in a row of `bucket`."""
    return _policy_decoder.decode(blob)


class SqliteRows:
    """`Rows` over one connection.

    Attributes:
        connection: for statements that only SQLite's form needs.
        records: the rows of records.
        trash: the rows of the trash.
        has_policy_change: whether `note_policies_changed` was called since this was set to False.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.records = SqliteRecords(connection)
        self.trash = SqliteTrash(connection)
        self._execute = connection.execute
        self._executemany = connection.executemany
        self.has_policy_change = False

    # --- savepoints ---

    def savepoint(self) -> None:
        """Begin a part that can be undone by itself."""
        self._execute("SAVEPOINT part")

    def rollback(self) -> None:
        """Undo the innermost part and end it."""
        self._execute("ROLLBACK TO part")
        self._execute("RELEASE part")

    def release(self) -> None:
        """Keep the innermost part and end it."""
        self._execute("RELEASE part")

    # --- values of the space ---

    def counter(self, name: str) -> int:
        """A value of `meta`."""
        value: int = self._execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0]
        return value

    def set_counter(self, name: str, value: int) -> None:
        """Change a value of `meta`."""
        self._execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))

    def add_counts(self, change: CountChange) -> None:
        """Add to the counters of the space."""
        differences = (
            (change.inodes, "inode_count"),
            (change.chunks, "chunk_count"),
            (change.tombstones, "tombstone_count"),
            (change.bytes_logical, "bytes_logical"),
            (change.trash_items, "trash_count"),
            (change.trash_bytes, "trash_bytes"),
        )
        for difference, name in differences:
            if difference:
                self._execute(
                    "UPDATE meta SET value = value + ? WHERE name = ?", (difference, name)
                )

    # --- inodes ---

    def inode(self, ino: InodeNumber) -> InodeRecord | None:
        """A fresh copy of the row; None also for a number no inode can have."""
        if not 0 < ino <= INTEGER_MAX:
            return None
        row = self._execute("SELECT * FROM inode WHERE ino = ?", (ino,)).fetchone()
        if row is None:
            return None
        record = InodeRecord(*row)
        record.kind = KINDS[record.kind]
        record.has_xattrs = bool(record.has_xattrs)
        return record

    def insert_inodes(self, records: Iterable[InodeRecord]) -> None:
        """Add rows."""
        self._executemany(_INSERT_INODE, map(msgspec.structs.astuple, records))

    def update_inodes(self, records: Iterable[InodeRecord]) -> None:
        """Replace rows."""
        self._executemany(_UPDATE_INODE, map(msgspec.structs.astuple, records))

    def delete_inodes(self, numbers: Iterable[InodeNumber]) -> None:
        """Remove rows."""
        self._executemany("DELETE FROM inode WHERE ino = ?", ((ino,) for ino in numbers))

    # --- names ---

    def entry(self, parent: InodeNumber, name: bytes) -> InodeNumber | None:
        """What a name stands for."""
        row = self._execute(
            "SELECT ino FROM dentry WHERE parent = ? AND name = ?", (parent, name)
        ).fetchone()
        return row[0] if row else None

    def set_entry(self, parent: InodeNumber, name: bytes, ino: InodeNumber) -> None:
        """Add a name or give it another meaning."""
        self._execute("INSERT OR REPLACE INTO dentry VALUES (?, ?, ?)", (parent, name, ino))

    def delete_entry(self, parent: InodeNumber, name: bytes) -> None:
        """Remove a name."""
        self._execute("DELETE FROM dentry WHERE parent = ? AND name = ?", (parent, name))

    def any_parent(self, ino: InodeNumber) -> InodeNumber | None:
        """The oldest directory that holds a name of `ino`, None when there is no name."""
        sql = "SELECT parent FROM dentry WHERE ino = ? ORDER BY parent LIMIT 1"
        row = self._execute(sql, (ino,)).fetchone()
        return row[0] if row else None

    def name_in(self, parent: InodeNumber, ino: InodeNumber) -> bytes | None:
        """A name of `ino` in a directory, None when there is none."""
        sql = "SELECT name FROM dentry WHERE ino = ? AND parent = ? ORDER BY name LIMIT 1"
        row = self._execute(sql, (ino, parent)).fetchone()
        return row[0] if row else None

    # --- extended attributes ---

    def xattr_exists(self, ino: InodeNumber, name: bytes) -> bool:
        """Whether the inode has the attribute."""
        sql = "SELECT 1 FROM xattr WHERE ino = ? AND name = ?"
        return self._execute(sql, (ino, name)).fetchone() is not None

    def xattr_sizes(self, ino: InodeNumber) -> tuple[int, int]:
        """Bytes of all names with a terminator each, and of all values."""
        sizes: tuple[int, int] = self._execute(
            "SELECT coalesce(sum(length(name) + 1), 0), coalesce(sum(length(value)), 0)"
            " FROM xattr WHERE ino = ?",
            (ino,),
        ).fetchone()
        return sizes

    def xattr_value(self, ino: InodeNumber, name: bytes) -> bytes | None:
        """One value, None when there is none."""
        sql = "SELECT value FROM xattr WHERE ino = ? AND name = ?"
        row = self._execute(sql, (ino, name)).fetchone()
        return row[0] if row else None

    def xattr_value_size(self, ino: InodeNumber, name: bytes) -> int:
        """Bytes of one value, 0 when there is none."""
        sql = "SELECT length(value) FROM xattr WHERE ino = ? AND name = ?"
        row = self._execute(sql, (ino, name)).fetchone()
        return row[0] if row else 0

    def set_xattr(self, ino: InodeNumber, name: bytes, value: bytes) -> None:
        """Add or replace an attribute."""
        self._execute("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (ino, name, value))

    def delete_xattr(self, ino: InodeNumber, name: bytes) -> None:
        """Remove an attribute."""
        self._execute("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino, name))

    def delete_xattrs(self, ino: InodeNumber) -> None:
        """Remove all attributes of an inode."""
        self._execute("DELETE FROM xattr WHERE ino = ?", (ino,))

    def copy_xattrs(self, ino: InodeNumber, new_ino: InodeNumber) -> None:
        """Give the attributes of an inode to another one that has none."""
        self._execute(
            "INSERT INTO xattr SELECT ?2, name, value FROM xattr WHERE ino = ?1", (ino, new_ino)
        )

    # --- buckets ---

    def policy(self, bucket: InodeNumber) -> BucketPolicy | None:
        """The policy of a bucket, None when the inode is no bucket."""
        row = self._execute("SELECT policy FROM bucket WHERE ino = ?", (bucket,)).fetchone()
        return decode_policy(row[0]) if row else None

    def set_policy(self, bucket: InodeNumber, policy: BucketPolicy) -> None:
        """Make an inode a bucket or change its policy."""
        blob = _policy_encoder.encode(policy)
        self._execute(
            "INSERT INTO bucket (ino, policy, trash_days) VALUES (?, ?, ?) ON CONFLICT (ino)"
            " DO UPDATE SET policy = excluded.policy, trash_days = excluded.trash_days",
            (bucket, blob, policy.trash_days),
        )

    def delete_bucket(self, bucket: InodeNumber) -> None:
        """Forget that an inode is a bucket."""
        self._execute("DELETE FROM bucket WHERE ino = ?", (bucket,))

    def bucket_use(self, bucket: InodeNumber) -> int:
        """Bytes that the files of a bucket have allocated; 0 when the inode is no bucket."""
        row = self._execute("SELECT used FROM bucket WHERE ino = ?", (bucket,)).fetchone()
        return row[0] if row else 0

    def add_bucket_use(self, bucket: InodeNumber, difference: int) -> None:
        """Add to the bytes that the files of a bucket have allocated."""
        self._execute("UPDATE bucket SET used = used + ? WHERE ino = ?", (difference, bucket))

    def tree_use(self, directory: InodeNumber, names_max: int) -> int | None:
        """Bytes allocated to files whose `parent` is `directory` or lies in it, at any depth."""
        # One row is the directory itself, and one more tells that there are too many.
        count, use = self._execute(_TREE_USE, (directory, names_max + 2)).fetchone()
        return None if count > names_max + 1 else use

    def has_snapshots(self, bucket: InodeNumber) -> bool:
        """Whether a bucket has snapshots, or one is being taken."""
        sql = "SELECT 1 FROM snapshot WHERE bucket = ? AND name IS NOT NULL LIMIT 1"
        return self._execute(sql, (bucket,)).fetchone() is not None

    def note_policies_changed(self) -> None:
        """Say that inodes may have another policy than before: caches of it are stale."""
        self.has_policy_change = True

    # --- content ---

    def extents_touching(self, ino: InodeNumber, start: int, end: int) -> list[Extent]:
        """Extents that overlap `[start, end)` or touch it, in order of offset."""
        rows = self._execute(_EXTENTS_TOUCHING, (ino, start, end)).fetchall()
        extents = [Extent(*row) for row in rows]
        # Only the first can lie wholly before `start`.
        return extents if not extents or extents[0].end >= start else extents[1:]

    def first_extents(self, ino: InodeNumber, count_max: int) -> list[Extent]:
        """The first extents of a file, in order of offset."""
        rows = self._execute(
            "SELECT offset, length, chunk, chunk_offset FROM extent"
            " WHERE ino = ? ORDER BY offset LIMIT ?",
            (ino, count_max),
        )
        return [Extent(*row) for row in rows.fetchall()]

    def insert_extents(self, ino: InodeNumber, extents: Iterable[Extent]) -> None:
        """Add rows."""
        self._executemany(
            "INSERT INTO extent VALUES (?, ?, ?, ?, ?)",
            ((ino, e.offset, e.length, e.chunk_id, e.chunk_offset) for e in extents),
        )

    def delete_extents(self, ino: InodeNumber, extents: Iterable[Extent]) -> None:
        """Remove rows, known by their offsets."""
        self._executemany(
            "DELETE FROM extent WHERE ino = ? AND offset = ?", ((ino, e.offset) for e in extents)
        )

    def chunk(self, chunk_id: ChunkId) -> ChunkRecord | None:
        """A chunk, live or dead."""
        row = self._execute(
            "SELECT length, digest, refs, dead_since_ns IS NOT NULL,"
            " EXISTS (SELECT 1 FROM inline WHERE chunk = ?1), needed, digests"
            " FROM chunk WHERE id = ?1",
            (chunk_id,),
        ).fetchone()
        if row is None:
            return None
        return ChunkRecord(row[0], row[1], row[2], bool(row[3]), bool(row[4]), row[5], row[6])

    def is_collected(self, chunk_id: ChunkId) -> bool:
        """Whether a chunk was removed as an orphan."""
        found = self._execute("SELECT 1 FROM collected WHERE chunk = ?", (chunk_id,)).fetchone()
        return found is not None

    def insert_chunk(self, chunk: Chunk, refs: int, wanted: int, dead_since_ns: int | None) -> None:
        """Add a chunk and its replicas."""
        coding = chunk.coding
        needed, digests = (1, None) if coding is None else (coding.data, coding.digests)
        self._execute(
            "INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (chunk.id, chunk.length, chunk.digest, refs, wanted, dead_since_ns, needed, digests),
        )
        if chunk.peers:
            ranks = range(len(chunk.peers)) if coding is None else coding.indices
            self._executemany(
                "INSERT INTO replica VALUES (?, ?, ?)",
                ((chunk.id, rank, peer) for rank, peer in zip(ranks, chunk.peers, strict=True)),
            )

    def set_refs(self, chunk_id: ChunkId, refs: int, dead_since_ns: int | None) -> None:
        """Change the count of a chunk."""
        self._execute(
            "UPDATE chunk SET refs = ?, dead_since_ns = ? WHERE id = ?",
            (refs, dead_since_ns, chunk_id),
        )

    def delete_chunk(self, chunk_id: ChunkId) -> None:
        """Forget a chunk that no peer holds."""
        self._execute("DELETE FROM chunk WHERE id = ?", (chunk_id,))

    def insert_inline(self, chunk_id: ChunkId, body: bytes) -> None:
        """Keep the bytes of a chunk."""
        self._execute("INSERT INTO inline VALUES (?, ?)", (chunk_id, body))

    def replace_inline(self, old_id: ChunkId, chunk_id: ChunkId, body: bytes) -> None:
        """Keep the bytes of a chunk in the place of those of another, which are here."""
        # The row stays on its page. A row that goes and one that comes would be more pages to
        # write: of the list of free ones, and the first of the database, which counts them.
        self._execute(
            "UPDATE inline SET chunk = ?2, data = ?3 WHERE chunk = ?1", (old_id, chunk_id, body)
        )

    def delete_inline(self, chunk_id: ChunkId) -> None:
        """Let go of the bytes of a chunk, if they are here."""
        self._execute("DELETE FROM inline WHERE chunk = ?", (chunk_id,))

    def replicas(self, chunk_id: ChunkId) -> tuple[PeerNumber, ...]:
        """The peers that hold a chunk, in the order of the writer."""
        rows = self._execute("SELECT peer FROM replica WHERE chunk = ? ORDER BY rank", (chunk_id,))
        return tuple([peer for (peer,) in rows.fetchall()])

    def ranks(self, chunk_id: ChunkId) -> tuple[int, ...]:
        """The ranks of these replicas: of a coded chunk, which fragments they are."""
        rows = self._execute("SELECT rank FROM replica WHERE chunk = ? ORDER BY rank", (chunk_id,))
        return tuple([rank for (rank,) in rows.fetchall()])

    def add_replica(self, chunk_id: ChunkId, peer: PeerNumber, rank: int | None = None) -> None:
        """Record one more peer, at a rank that is free, by default last in the order."""
        if rank is None:
            self._execute(_ADD_REPLICA, (chunk_id, peer))
        else:
            self._execute("INSERT INTO replica VALUES (?, ?, ?)", (chunk_id, rank, peer))

    def raise_wanted(self, chunk_id: ChunkId, copies: int) -> None:
        """Want at least so many copies of a chunk."""
        self._execute(
            "UPDATE chunk SET wanted = ?2 WHERE id = ?1 AND wanted < ?2", (chunk_id, copies)
        )

    def given_up(self, chunk_id: ChunkId) -> tuple[PeerNumber, ...]:
        """The peers that may hold a copy of a chunk that does not count any more."""
        rows = self._execute("SELECT peer FROM given_up WHERE chunk = ?", (chunk_id,))
        return tuple([peer for (peer,) in rows.fetchall()])

    def peer_numbers(self) -> frozenset[PeerNumber]:
        """All peers of the map."""
        rows = self._execute("SELECT number FROM peer").fetchall()
        return frozenset(number for (number,) in rows)

    def retired_numbers(self) -> frozenset[PeerNumber]:
        """All peers that were, and never come back."""
        rows = self._execute("SELECT number FROM retired_peer").fetchall()
        return frozenset(number for (number,) in rows)

    # --- sessions ---

    def insert_session(
        self, session: SessionId, epoch: int, request: wire.OpenSession, seen_ns: int
    ) -> None:
        """Add a session."""
        self._execute(
            "INSERT INTO session VALUES (?, ?, ?, ?, ?, ?, 0, ?)",
            (
                *(session, epoch, request.host, request.pid, request.label, seen_ns),
                request.leases,
            ),
        )

    def session_epoch(self, session: SessionId) -> int | None:
        """The epoch of a session, None when it is unknown or ended."""
        row = self._execute(
            "SELECT epoch FROM session WHERE id = ? AND is_ended = 0", (session,)
        ).fetchone()
        return row[0] if row else None

    def end_session(self, session: SessionId) -> None:
        """Mark a session as ended and forget its last batch."""
        self._execute("UPDATE session SET is_ended = 1 WHERE id = ?", (session,))
        self._execute("DELETE FROM batch WHERE session = ?", (session,))

    def ended_session(self) -> SessionId | None:
        """Any session that has ended and is not deleted yet."""
        row = self._execute("SELECT id FROM session WHERE is_ended = 1 LIMIT 1").fetchone()
        return row[0] if row else None

    def delete_session(self, session: SessionId) -> None:
        """Forget an ended session."""
        self._execute("DELETE FROM session WHERE id = ?", (session,))

    def batch(self, session: SessionId) -> BatchRecord | None:
        """The last batch of a session, without its answer."""
        row = self._execute(
            "SELECT first_number, op_count, next_number FROM batch WHERE session = ?", (session,)
        ).fetchone()
        return BatchRecord(*row) if row else None

    def batch_answer(self, session: SessionId) -> bytes:
        """The answer to the last batch of a session that has one."""
        sql = "SELECT answer FROM batch WHERE session = ?"
        answer: bytes = self._execute(sql, (session,)).fetchone()[0]
        return answer

    def set_batch(self, session: SessionId, record: BatchRecord, answer: bytes) -> None:
        """Record the last batch of a session."""
        self._execute(
            # Not REPLACE, which would change the index too.
            "INSERT INTO batch VALUES (?, ?, ?, ?, ?) ON CONFLICT (session) DO UPDATE SET"
            " first_number = excluded.first_number, op_count = excluded.op_count,"
            " next_number = excluded.next_number, answer = excluded.answer",
            (session, record.first_number, record.op_count, record.next_number, answer),
        )

    # --- inodes without a name ---

    def add_sustained(self, session: SessionId, ino: InodeNumber) -> None:
        """Keep an inode for a session."""
        self._execute("INSERT OR IGNORE INTO sustained VALUES (?, ?)", (session, ino))

    def delete_sustained(self, session: SessionId, ino: InodeNumber) -> bool:
        """Let go of an inode; whether the session had sustained it."""
        if not 0 < ino <= INTEGER_MAX:
            return False
        cursor = self._execute(
            "DELETE FROM sustained WHERE session = ? AND ino = ?", (session, ino)
        )
        return cursor.rowcount > 0

    def sustained_by(self, session: SessionId, count_max: int) -> Sequence[InodeNumber]:
        """Some inodes that a session sustains."""
        sql = "SELECT ino FROM sustained WHERE session = ? LIMIT ?"
        return [ino for (ino,) in self._execute(sql, (session, count_max)).fetchall()]

    def is_sustained(self, ino: InodeNumber) -> bool:
        """Whether any session sustains an inode."""
        row = self._execute("SELECT 1 FROM sustained WHERE ino = ? LIMIT 1", (ino,)).fetchone()
        return row is not None

    def forget_sustained(self, ino: InodeNumber) -> None:
        """No session sustains an inode any more."""
        self._execute("DELETE FROM sustained WHERE ino = ?", (ino,))

    def add_doomed(self, ino: InodeNumber) -> None:
        """Leave the extents of a removed inode to the reclaimer."""
        self._execute("INSERT INTO doomed VALUES (?)", (ino,))

    def any_doomed(self) -> InodeNumber | None:
        """An inode whose extents wait for the reclaimer."""
        row = self._execute("SELECT ino FROM doomed LIMIT 1").fetchone()
        return row[0] if row else None

    def delete_doomed(self, ino: InodeNumber) -> None:
        """Say that an inode has no extents left."""
        self._execute("DELETE FROM doomed WHERE ino = ?", (ino,))
