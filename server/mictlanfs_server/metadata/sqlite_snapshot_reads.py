"""Reads about snapshots from SQLite: the hidden directory of a bucket, lists, trees to be copied.

What lies in a snapshot is read as everything else is (`sqlite_reads`). Its directory of snapshots
has names and no inode: that follows from the bucket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import ROOT_INODE, FileKind, InodeNumber
from mictlanfs.snapshotnumbers import bucket_of_directory, snapshots_directory
from mictlanfs_server.metadata.base import SnapshotRecord, SnapshotTree
from mictlanfs_server.metadata.checks import failure

if TYPE_CHECKING:
    import sqlite3

DIRECTORY_MODE = 0o555
# The bucket, how many snapshots it has, when the last was taken, and how often any came or went.
_DIRECTORY = """
    SELECT uid, gid, ctime_ns, count(number), max(coalesce(created_ns, 0), ctime_ns),
        (SELECT value FROM meta WHERE name = 'snapshot_changes')
    FROM (SELECT * FROM inode WHERE ino = ?1 AND parent = ?2)
    LEFT JOIN snapshot ON bucket = ?1 AND is_ready = 1
    GROUP BY ino
"""
_LIST = """
    SELECT dentry.name, snapshot.name, path, created_ns, names, nbytes
    FROM dentry JOIN snapshot ON snapshot.bucket = dentry.ino AND is_ready = 1
    WHERE dentry.parent = ?1 AND (?2 = x'' OR dentry.name = ?2)
    ORDER BY dentry.name, snapshot.name
"""
_TREE = """
    WITH RECURSIVE item(ino, kind, nlink, allocated) AS (
        SELECT ino, kind, nlink, allocated FROM inode WHERE ino = ?1 AND kind = 4 AND nlink > 0
        UNION ALL
        SELECT inode.ino, inode.kind, inode.nlink, inode.allocated
        FROM item JOIN dentry ON dentry.parent = item.ino JOIN inode ON inode.ino = dentry.ino
        WHERE item.kind = 4 LIMIT ?2
    )
"""
_COUNT = f"{_TREE} SELECT count(*), sum(iif(nlink = 1, allocated, 0)) FROM item"  # noqa: S608
_KEYS = f"{_TREE} SELECT DISTINCT ino, kind, allocated FROM item WHERE kind = 4 OR nlink <> 1"  # noqa: S608


def snapshots_row(connection: sqlite3.Connection, bucket: InodeNumber) -> tuple[Any, ...] | None:
    """The row of `inode` that the directory of snapshots of a bucket would have.

    None when the inode is no bucket.
    """
    found = connection.execute(_DIRECTORY, (bucket, ROOT_INODE)).fetchone()
    if found is None or bucket == ROOT_INODE:
        return None
    uid, gid, made_ns, count, changed_ns, changes = found
    return (
        *(snapshots_directory(bucket), int(FileKind.DIRECTORY), DIRECTORY_MODE, uid, gid, count),
        *(made_ns, changed_ns, changed_ns, 2 + count, 0, 0, 1 + changes, 1 + changes, 0),
        *(bucket, b""),
    )


def row_of_directory(connection: sqlite3.Connection, ino: InodeNumber) -> tuple[Any, ...] | None:
    """The same by the number of the directory; None when it is none."""
    bucket = bucket_of_directory(ino)
    return None if bucket is None else snapshots_row(connection, bucket)


def read_snapshots(connection: sqlite3.Connection, request: wire.ListSnapshots) -> wire.Snapshots:
    """The snapshots of one bucket, or of all. Raises NOT_FOUND for a bucket that is not there."""
    if request.bucket:
        sql = "SELECT 1 FROM dentry WHERE parent = ? AND name = ?"
        if connection.execute(sql, (ROOT_INODE, request.bucket)).fetchone() is None:
            raise failure(Kind.NOT_FOUND, "snapshots", request.bucket, "there is no such bucket")
    rows = connection.execute(_LIST, (ROOT_INODE, request.bucket)).fetchall()
    return wire.Snapshots(tuple(wire.SnapshotInfo(*row) for row in rows))


def find_snapshot(
    connection: sqlite3.Connection, bucket: bytes, name: bytes
) -> SnapshotRecord | None:
    """A snapshot that is complete."""
    row = connection.execute(
        "SELECT number, bucket, root FROM snapshot WHERE is_ready = 1 AND name = ?2"
        " AND bucket = (SELECT ino FROM dentry WHERE parent = ?3 AND name = ?1)",
        (bucket, name, ROOT_INODE),
    ).fetchone()
    return SnapshotRecord(*row) if row else None


def read_tree(connection: sqlite3.Connection, root: InodeNumber, names_max: int) -> SnapshotTree:
    """The directories of a tree and its files with several names.

    Raises:
        MictlanError: NOT_FOUND when it is no directory with a name, TOO_LARGE when there are more
            than `names_max` names in it.
    """
    connection.execute("BEGIN")
    try:
        # One row is the directory itself, and one more tells that there are too many.
        values = (root, names_max + 2)
        count, nbytes = connection.execute(_COUNT, values).fetchone()
        if count > names_max + 1:
            detail = f"there are more than {names_max} names in it: choose directories below"
            raise failure(Kind.TOO_LARGE, "snapshot", root, detail)
        rows = connection.execute(_KEYS, values).fetchall()
    finally:
        connection.execute("COMMIT")
    if not rows:
        raise failure(Kind.NOT_FOUND, "snapshot", root, "the directory is gone")
    directories = [ino for ino, kind, _ in rows if kind == FileKind.DIRECTORY]
    linked = [(ino, allocated) for ino, kind, allocated in rows if kind != FileKind.DIRECTORY]
    return SnapshotTree(
        tuple(directories),
        tuple([ino for ino, _ in linked]),
        count,
        nbytes + sum([allocated for _, allocated in linked]),
    )
