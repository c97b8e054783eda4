"""The invariants of schema.sql, checked on a whole database: for tests, and for fsck.

Only reads. One query for each invariant that finds what breaks it; all in one moment. Rows of
snapshots obey the rules of the live ones, but are not counted among them; while a snapshot is taken
or let go its rows are incomplete, and most rules leave it out.
"""

# Queries are put together from constants.
# ruff: noqa: S608

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mictlanfs.snapshotnumbers import (
    LIVE_INODES_END,
    SNAPSHOT_INODES_FIRST,
    SNAPSHOT_SPAN,
)

if TYPE_CHECKING:
    import sqlite3

SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class Invariant:
    """What must hold, and a query for the keys of the rows for which it does not."""

    rule: str
    offenders: str


# An inode lives; it is the directory of snapshots of a bucket; it is in the snapshot so numbered.
_LIVE = f"({{0}} < {LIVE_INODES_END})"
_DIRECTORY = f"({{0}} > {LIVE_INODES_END} AND {{0}} < {SNAPSHOT_INODES_FIRST})"
_NUMBER = f"(({{0}} - {SNAPSHOT_INODES_FIRST}) / {SNAPSHOT_SPAN})"


def _complete(column: str) -> str:
    """The condition that an inode lives, or is in a snapshot that is complete."""
    number = _NUMBER.format(column)
    ready = f"{number} IN (SELECT number FROM snapshot WHERE is_ready = 1)"
    return f"({_LIVE.format(column)} OR ({column} >= {SNAPSHOT_INODES_FIRST} AND {ready}))"


INVARIANTS = (
    # --- counters ---
    Invariant(
        "the counters of the space are exact",
        f"""
        SELECT name, value, counted FROM meta JOIN (
            SELECT 'inode_count' AS counter,
                (SELECT count(*) FROM inode WHERE {_LIVE.format("ino")}) AS counted
            UNION ALL SELECT 'chunk_count', (SELECT count(*) FROM chunk WHERE refs > 0)
            UNION ALL SELECT 'tombstone_count', (SELECT count(*) FROM chunk WHERE refs = 0)
            UNION ALL SELECT 'bytes_logical',
                (SELECT coalesce(sum(allocated), 0) FROM inode WHERE {_LIVE.format("ino")})
            UNION ALL SELECT 'trash_count', (SELECT count(*) FROM trash)
            UNION ALL SELECT 'trash_bytes', (SELECT coalesce(sum(allocated), 0) FROM trash)
        ) ON counter = name WHERE value <> counted
        """,
    ),
    Invariant(
        "what a bucket uses is allocated to the files in it",
        """
        SELECT ino, used, counted FROM bucket LEFT JOIN bucket_counted ON bucket = ino
        WHERE used <> coalesce(counted, 0)
        """,
    ),
    Invariant(
        "inode numbers were handed out",
        f"""
        SELECT ino FROM inode WHERE ino < 1 OR (
            {_LIVE.format("ino")} AND ino >= (SELECT value FROM meta WHERE name = 'next_ino'))
        UNION ALL SELECT ino FROM trash
            WHERE ino < 1 OR ino >= (SELECT value FROM meta WHERE name = 'next_ino')
        """,
    ),
    # --- names ---
    Invariant(
        "the root is a directory, its own parent, without a name",
        """
        SELECT 1 WHERE NOT EXISTS
            (SELECT 1 FROM inode WHERE ino = 1 AND kind = 4 AND parent = 1 AND nlink >= 2)
        UNION ALL SELECT ino FROM dentry WHERE ino = 1
        """,
    ),
    Invariant(
        "a name stands in a directory that has not been removed",
        f"""
        SELECT dentry.parent, name FROM dentry LEFT JOIN inode ON inode.ino = dentry.parent
        WHERE (inode.ino IS NULL OR kind <> 4 OR nlink = 0) AND {_complete("dentry.parent")}
        """,
    ),
    Invariant(
        "a name stands for an inode",
        f"""
        SELECT dentry.parent, name, dentry.ino FROM dentry
        LEFT JOIN inode ON inode.ino = dentry.ino
        WHERE inode.ino IS NULL AND {_complete("dentry.ino")}
        """,
    ),
    Invariant(
        "a name has 1 to 255 bytes, no '/' and no NUL, and is neither '.' nor '..'",
        """
        SELECT parent, name FROM dentry
        WHERE length(name) NOT BETWEEN 1 AND 255 OR name IN (x'2e', x'2e2e')
            OR instr(name, x'2f') OR instr(name, x'00')
        """,
    ),
    Invariant(
        "the root holds directories only, and they are the buckets",
        """
        SELECT ino FROM dentry WHERE parent = 1 AND ino NOT IN (SELECT ino FROM bucket)
        UNION ALL SELECT ino FROM dentry JOIN inode USING (ino)
            WHERE dentry.parent = 1 AND kind <> 4
        UNION ALL SELECT ino FROM bucket
            WHERE ino NOT IN (SELECT ino FROM dentry WHERE parent = 1)
        """,
    ),
    Invariant(
        "the size of a directory is the number of its entries",
        f"""
        SELECT ino, size FROM inode
        WHERE kind = 4 AND size <> (SELECT count(*) FROM dentry WHERE dentry.parent = inode.ino)
            AND {_complete("ino")}
        """,
    ),
    Invariant(
        "a directory has 2 links and one for each directory in it, none once removed",
        f"""
        SELECT ino, nlink FROM inode WHERE kind = 4 AND {_complete("ino")} AND nlink <> iif(
            ino = 1 OR EXISTS (SELECT 1 FROM dentry WHERE dentry.ino = inode.ino),
            2 + (SELECT count(*) FROM dentry AS d JOIN inode AS i ON i.ino = d.ino
                WHERE d.parent = inode.ino AND i.kind = 4),
            0)
        """,
    ),
    Invariant(
        "a directory has one name, in its parent",
        f"""
        SELECT inode.ino FROM inode JOIN dentry ON dentry.ino = inode.ino
        WHERE kind = 4 AND {_complete("inode.ino")}
        GROUP BY inode.ino HAVING count(*) > 1 OR max(dentry.parent <> inode.parent)
        """,
    ),
    Invariant(
        "the links of what is not a directory are its names",
        f"""
        SELECT ino, nlink FROM inode
        WHERE kind <> 4 AND nlink <> (SELECT count(*) FROM dentry WHERE dentry.ino = inode.ino)
            AND {_complete("ino")}
        """,
    ),
    Invariant(
        "the parent of what is not a directory holds a name of it",
        f"""
        SELECT ino, parent FROM inode
        WHERE kind <> 4 AND nlink > 0 AND {_complete("ino")} AND NOT EXISTS
            (SELECT 1 FROM dentry WHERE dentry.ino = inode.ino AND dentry.parent = inode.parent)
        """,
    ),
    Invariant(
        "every directory with a name can be reached from the root",
        f"""
        WITH RECURSIVE reached(ino) AS (
            SELECT 1
            UNION SELECT ino FROM dentry WHERE {_DIRECTORY.format("parent")}
            UNION SELECT dentry.ino FROM reached
                JOIN dentry ON dentry.parent = reached.ino
                JOIN inode ON inode.ino = dentry.ino AND kind = 4
        )
        SELECT ino FROM inode
        WHERE kind = 4 AND nlink > 0 AND ino NOT IN reached AND {_complete("ino")}
        """,
    ),
    # --- inodes without a name ---
    Invariant(
        "an inode without a name is sustained by a session",
        "SELECT ino FROM inode WHERE nlink = 0 AND ino NOT IN (SELECT ino FROM sustained)",
    ),
    Invariant(
        "what is sustained is an inode, by a session",
        """
        SELECT session, ino FROM sustained WHERE ino NOT IN (SELECT ino FROM inode)
            OR session NOT IN (SELECT id FROM session)
        """,
    ),
    Invariant(
        "a doomed inode is not an inode any more",
        "SELECT ino FROM doomed WHERE ino IN (SELECT ino FROM inode)",
    ),
    # --- attributes ---
    Invariant(
        "only a symlink has a target, and its size is the target's",
        """
        SELECT ino FROM inode
        WHERE (kind = 10) <> (length(target) > 0) OR (kind = 10 AND size <> length(target))
        """,
    ),
    Invariant(
        "an inode says whether it has extended attributes",
        f"""
        SELECT ino FROM inode
        WHERE has_xattrs <> EXISTS (SELECT 1 FROM xattr WHERE xattr.ino = inode.ino)
            AND {_complete("ino")}
        UNION ALL SELECT ino FROM trash WHERE ino NOT IN (SELECT ino FROM inode)
            AND has_xattrs <> EXISTS (SELECT 1 FROM xattr WHERE xattr.ino = trash.ino)
        UNION ALL SELECT ino FROM xattr WHERE ino NOT IN (SELECT ino FROM inode)
            AND ino NOT IN (SELECT ino FROM trash)
        """,
    ),
    # --- content ---
    Invariant(
        "an extent belongs to a file, to an item of the trash or to a doomed inode",
        """
        SELECT ino, offset FROM extent
        WHERE ino NOT IN (SELECT ino FROM inode WHERE kind = 8)
            AND ino NOT IN (SELECT ino FROM trash WHERE kind = 8)
            AND ino NOT IN (SELECT ino FROM doomed)
        """,
    ),
    Invariant(
        "an extent lies within its file and its chunk",
        """
        SELECT extent.ino, offset FROM extent LEFT JOIN chunk ON chunk.id = extent.chunk
        LEFT JOIN inode ON inode.ino = extent.ino LEFT JOIN trash ON trash.ino = extent.ino
        WHERE chunk.id IS NULL OR extent.length < 1 OR offset < 0 OR chunk_offset < 0
            OR chunk_offset + extent.length > chunk.length
            OR offset + extent.length > coalesce(inode.size, trash.size)
        """,
    ),
    Invariant(
        "extents of a file do not overlap, and are joined where they can be",
        """
        SELECT ino, offset FROM (
            SELECT ino, offset, chunk, chunk_offset,
                lag(offset + length) OVER file AS end_before,
                lag(chunk) OVER file AS chunk_before,
                lag(chunk_offset + length) OVER file AS chunk_end_before
            FROM extent WINDOW file AS (PARTITION BY ino ORDER BY offset)
        )
        WHERE end_before > offset OR (
            end_before = offset AND chunk_before = chunk AND chunk_end_before = chunk_offset)
        """,
    ),
    Invariant(
        "what is allocated is the sum of the extents",
        f"""
        SELECT ino, allocated FROM inode WHERE allocated <> coalesce(
            (SELECT sum(length) FROM extent WHERE extent.ino = inode.ino), 0)
            AND {_complete("ino")}
        UNION ALL SELECT ino, allocated FROM trash WHERE allocated <> iif(
            ino IN (SELECT ino FROM inode), 0,
            coalesce((SELECT sum(length) FROM extent WHERE extent.ino = trash.ino), 0))
        """,
    ),
    Invariant(
        "the references of a chunk are the extents that name it",
        """
        SELECT hex(id), refs FROM chunk LEFT JOIN
            (SELECT chunk, count(*) AS counted FROM extent GROUP BY chunk) ON chunk = id
        WHERE refs <> coalesce(counted, 0)
        """,
    ),
    Invariant(
        "a chunk is dead exactly when nothing refers to it",
        "SELECT hex(id) FROM chunk WHERE (refs = 0) <> (dead_since_ns IS NOT NULL)",
    ),
    Invariant(
        "a chunk that is referred to has a replica, or else its bytes here",
        """
        SELECT hex(id) FROM chunk
        WHERE refs > 0 AND EXISTS (SELECT 1 FROM replica WHERE replica.chunk = chunk.id)
            = EXISTS (SELECT 1 FROM inline WHERE inline.chunk = chunk.id)
        """,
    ),
    Invariant(
        "bytes that are here are of a chunk that is referred to, all of it",
        """
        SELECT hex(chunk), length(data) FROM inline LEFT JOIN chunk ON chunk.id = inline.chunk
        WHERE chunk.id IS NULL OR refs = 0 OR chunk.length <> length(data)
        """,
    ),
    Invariant(
        "a replica is of a chunk, on a peer, once",
        """
        SELECT hex(chunk), peer FROM replica
        WHERE chunk NOT IN (SELECT id FROM chunk) OR peer NOT IN (
            SELECT number FROM peer UNION ALL SELECT number FROM retired_peer)
        UNION ALL SELECT hex(chunk), peer FROM replica GROUP BY chunk, peer HAVING count(*) > 1
        """,
    ),
    Invariant(
        "a copy that was given up is on a peer, and is no replica",
        """
        SELECT hex(chunk), peer FROM given_up
        WHERE peer NOT IN (SELECT number FROM peer) OR EXISTS (
            SELECT 1 FROM replica
            WHERE replica.chunk = given_up.chunk AND replica.peer = given_up.peer)
        """,
    ),
    Invariant(
        "a number that was retired is no peer any more",
        "SELECT number FROM retired_peer JOIN peer USING (number)",
    ),
    Invariant(
        "a coded chunk wants all of its fragments, more than are needed to read it",
        """
        SELECT hex(id) FROM chunk WHERE needed < 1 OR (needed > 1) <> (digests IS NOT NULL)
            OR digests IS NOT NULL AND (length(digests) <> 32 * wanted OR needed >= wanted)
        """,
    ),
    Invariant(
        "a replica of a coded chunk is one of its fragments",
        """
        SELECT hex(chunk), rank FROM replica JOIN chunk ON chunk.id = replica.chunk
        WHERE digests IS NOT NULL AND rank NOT BETWEEN 0 AND wanted - 1
        """,
    ),
    # --- records ---
    Invariant(
        "a record is of a file, of one content that it has or had, its pieces counted from 0",
        """
        SELECT ino FROM record LEFT JOIN (
            SELECT ino, kind, content_version FROM inode UNION ALL
            SELECT ino, kind, content_version FROM trash WHERE ino NOT IN (SELECT ino FROM inode)
        ) AS file USING (ino) GROUP BY ino
        HAVING coalesce(kind, 0) <> 8 OR min(position) <> 0 OR max(position) <> count(*) - 1
            OR min(record.content_version) <> max(record.content_version)
            OR min(record.content_version) < 1
            OR max(record.content_version) > file.content_version
        """,
    ),
    Invariant(
        "the pieces of a record that is not stale make up the file",
        """
        SELECT ino, inode.size FROM record JOIN inode USING (ino, content_version) GROUP BY ino
        HAVING sum(record.size) <> inode.size OR min(record.size) < 0
        """,
    ),
    Invariant(
        "a part has a record, and a place among the parts of its ball",
        """
        SELECT ino FROM part WHERE ino NOT IN (SELECT ino FROM record)
            OR part_count < 1 OR position NOT BETWEEN 0 AND part_count - 1
        """,
    ),
    # --- trash and snapshots ---
    Invariant(
        "what is in the trash has no inode, or one without a name that a session sustains",
        "SELECT ino FROM trash WHERE ino IN (SELECT ino FROM inode WHERE nlink > 0)"
        " OR ino IN (SELECT ino FROM doomed)",
    ),
    Invariant(
        "a row far behind the live ones belongs to a snapshot",
        f"""
        SELECT ino FROM inode WHERE NOT {_LIVE.format("ino")} AND (
            ino < {SNAPSHOT_INODES_FIRST}
            OR {_NUMBER.format("ino")} NOT IN (SELECT number FROM snapshot))
        UNION ALL SELECT parent FROM dentry WHERE parent >= {SNAPSHOT_INODES_FIRST}
            AND {_NUMBER.format("parent")} NOT IN (SELECT number FROM snapshot)
        UNION ALL SELECT number FROM snapshot
            WHERE number >= (SELECT value FROM meta WHERE name = 'next_snapshot')
        """,
    ),
    Invariant(
        "a complete snapshot, and no other, has its name in the directory of its bucket",
        f"""
        SELECT number, snapshot.name FROM snapshot
        LEFT JOIN dentry ON parent = {LIVE_INODES_END} + bucket AND dentry.name = snapshot.name
        WHERE is_ready <> (coalesce(dentry.ino, 0)
            = {SNAPSHOT_INODES_FIRST} + number * {SNAPSHOT_SPAN} + root)
            OR (is_ready = 0 AND dentry.ino IS NOT NULL)
        UNION ALL SELECT parent, dentry.name FROM dentry
        LEFT JOIN snapshot
            ON bucket = parent - {LIVE_INODES_END} AND snapshot.name = dentry.name AND is_ready = 1
        WHERE {_DIRECTORY.format("parent")} AND number IS NULL
        """,
    ),
    Invariant(
        "a snapshot with a name is of a bucket that is there",
        """
        SELECT number FROM snapshot
        WHERE name IS NOT NULL AND bucket NOT IN (SELECT ino FROM bucket)
        """,
    ),
    # --- sessions ---
    Invariant(
        "a batch is of an open session",
        """
        SELECT session FROM batch
        WHERE session NOT IN (SELECT id FROM session WHERE is_ended = 0)
        """,
    ),
)


def find_damage(connection: sqlite3.Connection) -> list[str]:
    """The invariants that do not hold, each with the first rows that break it; empty when sound."""
    damage = []
    connection.execute("BEGIN")
    try:
        for invariant in INVARIANTS:
            rows = connection.execute(invariant.offenders).fetchmany(SHOWN_MAX)
            if rows:
                damage.append(f"not true that {invariant.rule}: {rows}")
    finally:
        connection.execute("ROLLBACK")
    return damage
