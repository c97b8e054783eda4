"""Snapshots in SQLite: taken in slices, published in one step, let go in slices.

A snapshot is a copy of rows. Inode I becomes inode `base + I` with its names, extended attributes
and extents; the extents name the same chunks, whose references grow. The copies stand in the tables
of the live inodes, far behind them, so everything that reads finds them in the usual way. Nothing
leads to them before `publish` gives the copy of the directory its name in the hidden directory of
its bucket; nothing that changes them is let through (`checks.existing`).

The caller sees to it that the tree does not change from the first slice to the last (ADR 0022),
and that nobody reads what is being let go. What a crash leaves is an unfinished row of `snapshot`,
which `drop_unfinished` turns into one to be let go.

Each function is one slice of bounded work, inside a transaction of its caller.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from mictlanfs.errors import Kind
from mictlanfs.model import InodeNumber, SessionId
from mictlanfs.snapshotnumbers import (
    SNAPSHOT_NUMBER_MAX,
    SNAPSHOT_SPAN,
    inode_base,
    snapshots_directory,
)
from mictlanfs_server.metadata.base import CopyPlace, SnapshotPlan
from mictlanfs_server.metadata.checks import failure
from mictlanfs_server.metadata.removal import drop_references
from mictlanfs_server.metadata.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mictlanfs_server.metadata.base import SnapshotTree
    from mictlanfs_server.metadata.sqlite_rows import SqliteRows

_NAMES = "SELECT name, ino FROM dentry WHERE parent = ? AND name > ? ORDER BY name LIMIT ?"
_ADD_NAMES = "INSERT INTO dentry VALUES (?, ?, ?)"
# Files with several names come more than once.
_ADD_INODES = """
    INSERT OR IGNORE INTO inode
    SELECT ino + ?1, kind, mode, uid, gid, size, atime_ns, mtime_ns, ctime_ns, nlink, rdev,
        allocated, version, content_version, has_xattrs, inode.parent + ?1, target
    FROM json_each(?2) CROSS JOIN inode ON inode.ino = value WHERE kind <> 4 OR value IN (
        SELECT value FROM json_each(?3))
"""
_ADD_XATTRS = """
    INSERT OR IGNORE INTO xattr SELECT xattr.ino + ?1, name, xattr.value
    FROM json_each(?2) AS given CROSS JOIN xattr ON xattr.ino = given.value
"""
_SETTLE_LINKS = """
    UPDATE inode SET nlink = (SELECT count(*) FROM dentry WHERE dentry.ino = ?1),
        parent = (SELECT min(dentry.parent) FROM dentry WHERE dentry.ino = ?1)
    WHERE ino = ?1
"""
# In the order of the copies, which is that of both primary keys.
_EXTENTS = """
    SELECT e.ino, e.offset, e.length, e.chunk, e.chunk_offset
    FROM inode AS copy CROSS JOIN extent AS e ON e.ino = copy.ino - ?1
    WHERE copy.ino >= ?1 + ?2 AND copy.ino < ?1 + ?5 AND copy.allocated > 0
        AND (e.ino > ?2 OR e.offset > ?3)
    ORDER BY copy.ino, e.offset LIMIT ?4
"""


def begin(rows: SqliteRows, plan: SnapshotPlan, now_ns: int) -> int:
    """Reserve the name and the numbers of a snapshot; returns its number. Raises EXISTS."""
    connection = rows.connection
    known = connection.execute(
        "SELECT 1 FROM snapshot WHERE bucket = ? AND name = ?", (plan.bucket, plan.name)
    )
    if known.fetchone():
        raise failure(Kind.EXISTS, "snapshot", plan.name)
    if rows.policy(plan.bucket) is None:
        raise failure(Kind.NOT_FOUND, "snapshot", plan.bucket, "there is no such bucket")
    number = rows.counter("next_snapshot")
    if number > SNAPSHOT_NUMBER_MAX or rows.counter("next_ino") > SNAPSHOT_SPAN:
        raise failure(Kind.TOO_LARGE, "snapshot", plan.name, "the space has no numbers left for it")
    rows.set_counter("next_snapshot", number + 1)
    connection.execute(
        "INSERT INTO snapshot VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0)",
        (number, plan.bucket, plan.name, plan.root, plan.path, now_ns),
    )
    return number


def copy_names(
    rows: SqliteRows,
    number: int,
    directories: Sequence[InodeNumber],
    place: CopyPlace,
    count_max: int,
) -> CopyPlace | None:
    """Copy some directories, with the inodes and names in them, from `place` on.

    Returns where the next slice begins, None behind the last directory.
    """
    base, connection = inode_base(number), rows.connection
    index, after, left = place.index, place.after, count_max
    whole: list[InodeNumber] = []
    found: list[InodeNumber] = []
    names: list[tuple[int, bytes, int]] = []
    while left > 0 and index < len(directories):
        directory = directories[index]
        if not after:
            whole.append(directory)
            left -= 1
        page = connection.execute(_NAMES, (directory, after, max(left, 1))).fetchall()
        names += [(base + directory, name, base + ino) for name, ino in page]
        found += [ino for _, ino in page]
        if len(page) < max(left, 1):
            index, after = index + 1, b""
        else:
            after = page[-1][0]
        left -= len(page)
    given = json.dumps(whole + found)
    connection.execute(_ADD_INODES, (base, given, json.dumps(whole)))
    # A directory brings its own along when it is copied itself.
    connection.execute(_ADD_XATTRS, (base, given))
    connection.executemany(_ADD_NAMES, names)
    return CopyPlace(index, after) if index < len(directories) else None


def settle_links(rows: SqliteRows, number: int, inodes: Sequence[InodeNumber]) -> None:
    """Files that have, or had, several names have those that were copied."""
    base = inode_base(number)
    rows.connection.executemany(_SETTLE_LINKS, ((base + ino,) for ino in inodes))


def copy_extents(
    rows: SqliteRows, number: int, after: tuple[InodeNumber, int], count_max: int
) -> tuple[InodeNumber, int] | None:
    """Copy the extents behind `after`, an inode and an offset in it; returns the last one copied.

    None: there are no more.
    """
    base = inode_base(number)
    found = rows.connection.execute(_EXTENTS, (base, *after, count_max, SNAPSHOT_SPAN)).fetchall()
    rows.connection.executemany(
        "INSERT INTO extent VALUES (?, ?, ?, ?, ?)",
        ((base + ino, *extent) for ino, *extent in found),
    )
    references = Counter(chunk for _, _, _, chunk, _ in found)
    rows.connection.executemany(
        "UPDATE chunk SET refs = refs + ? WHERE id = ?",
        ((count, chunk) for chunk, count in references.items()),
    )
    return (found[-1][0], found[-1][1]) if len(found) == count_max else None


def publish(rows: SqliteRows, number: int, plan: SnapshotPlan, tree: SnapshotTree) -> None:
    """Give a snapshot that is complete its name."""
    base, directory = inode_base(number), snapshots_directory(plan.bucket)
    rows.connection.execute(
        "UPDATE inode SET parent = ? WHERE ino = ?", (directory, base + plan.root)
    )
    rows.set_entry(directory, plan.name, InodeNumber(base + plan.root))
    rows.connection.execute(
        "UPDATE snapshot SET is_ready = 1, names = ?, nbytes = ? WHERE number = ?",
        (tree.names, tree.nbytes, number),
    )
    _note_change(rows)


def drop(rows: SqliteRows, number: int) -> None:
    """Take the name from a snapshot, complete or not; `let_go` does the rest. Can be repeated."""
    row = rows.connection.execute(
        "SELECT bucket, name FROM snapshot WHERE number = ?", (number,)
    ).fetchone()
    if row is None or row[1] is None:
        return
    rows.delete_entry(snapshots_directory(InodeNumber(row[0])), row[1])
    rows.connection.execute(
        "UPDATE snapshot SET name = NULL, is_ready = 0 WHERE number = ?", (number,)
    )
    _note_change(rows)


def drop_unfinished(rows: SqliteRows) -> int:
    """Drop the snapshots that were being taken when the router stopped; returns how many."""
    found = rows.connection.execute(
        "SELECT number FROM snapshot WHERE is_ready = 0 AND name IS NOT NULL"
    ).fetchall()
    for (number,) in found:
        drop(rows, number)
    return len(found)


def _note_change(rows: SqliteRows) -> None:
    rows.set_counter("snapshot_changes", rows.counter("snapshot_changes") + 1)


def let_go(rows: SqliteRows, now_ns: int, count_max: int) -> bool:
    """Remove a slice of what belongs to dropped snapshots. Returns whether anything may be left."""
    connection = rows.connection
    row = connection.execute("SELECT number FROM snapshot WHERE name IS NULL LIMIT 1").fetchone()
    if row is None:
        return False
    low = inode_base(row[0])
    bounds = (low, low + SNAPSHOT_SPAN, count_max)
    if _let_extents_go(rows, now_ns, bounds):
        return True
    # Names before their inodes, so that none stands for nothing.
    for statement in (
        "DELETE FROM xattr WHERE (ino, name) IN ("
        "SELECT ino, name FROM xattr WHERE ino >= ? AND ino < ? LIMIT ?)",
        "DELETE FROM dentry WHERE (parent, name) IN ("
        "SELECT parent, name FROM dentry WHERE parent >= ? AND parent < ? LIMIT ?)",
        "DELETE FROM inode WHERE ino IN (SELECT ino FROM inode WHERE ino >= ? AND ino < ? LIMIT ?)",
    ):
        if connection.execute(statement, bounds).rowcount:
            return True
    connection.execute("DELETE FROM snapshot WHERE number = ?", row)
    return True


def _let_extents_go(rows: SqliteRows, now_ns: int, bounds: tuple[int, int, int]) -> bool:
    found = rows.connection.execute(
        "SELECT ino, offset, chunk FROM extent WHERE ino >= ? AND ino < ? LIMIT ?", bounds
    ).fetchall()
    rows.connection.executemany(
        "DELETE FROM extent WHERE ino = ? AND offset = ?",
        ((ino, offset) for ino, offset, _ in found),
    )
    tx = Transaction(rows, SessionId(""), now_ns)
    drop_references(tx, (chunk for _, _, chunk in found))
    tx.flush()
    return bool(found)
