"""The rows of the trash in SQLite, for changes and for reads. Knows no rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mictlanfs import wire
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs_server.metadata.checks import INTEGER_MAX
from mictlanfs_server.metadata.rows import KINDS, TrashRecord

if TYPE_CHECKING:
    import sqlite3

_PUT = "INSERT OR REPLACE INTO trash VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
# While the inode is there, what it says holds.
_ITEM = """
    SELECT t.ino, path, removed_ns, expires_ns, reason, t.kind, coalesce(i.mode, t.mode),
        coalesce(i.uid, t.uid), coalesce(i.gid, t.gid), coalesce(i.size, t.size),
        coalesce(i.mtime_ns, t.mtime_ns), coalesce(i.allocated, t.allocated), i.ino IS NOT NULL
    FROM trash AS t LEFT JOIN inode AS i ON i.ino = t.ino
"""
_AFTER = "(path, removed_ns, t.ino) > (?1, ?2, ?3) AND expires_ns > 0"
_ALL = f"{_ITEM} WHERE {_AFTER} ORDER BY path, removed_ns, t.ino LIMIT ?4"
# What has the path, then what is below it; in between other names may come: "a", "a-b", "a/b".
_AT_AND_BELOW = f"""
    {_ITEM} WHERE path = ?5 AND {_AFTER}
    UNION ALL {_ITEM} WHERE path > ?6 AND path < ?7 AND {_AFTER}
    ORDER BY path, removed_ns, 1 LIMIT ?4
"""
_GIVE_UP = """
    UPDATE trash SET expires_ns = 0 WHERE ino IN (
        SELECT ino FROM trash
        WHERE (?1 = x'' OR path = ?1 OR (path > ?4 AND path < ?5))
            AND removed_ns < ?2 AND expires_ns > 0
        LIMIT ?3
    ) RETURNING allocated
"""


class SqliteTrash:
    """`TrashRows` over one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute

    def has_any(self) -> bool:
        """Whether there is any item."""
        return bool(self._execute("SELECT EXISTS (SELECT 1 FROM trash)").fetchone()[0])

    def is_wanted(self) -> bool:
        """Whether any bucket keeps what it loses."""
        sql = "SELECT EXISTS (SELECT 1 FROM bucket WHERE trash_days > 0)"
        return bool(self._execute(sql).fetchone()[0])

    def get(self, ino: InodeNumber) -> TrashRecord | None:
        """An item; None also for a number that none can have."""
        if not 0 < ino <= INTEGER_MAX:
            return None
        row = self._execute("SELECT * FROM trash WHERE ino = ?", (ino,)).fetchone()
        return _record(row) if row else None

    def put(self, item: TrashRecord) -> None:
        """Add or replace an item."""
        self._execute(_PUT, msgspec.structs.astuple(item))

    def delete(self, ino: InodeNumber) -> None:
        """Remove an item alone, without what belongs to it."""
        self._execute("DELETE FROM trash WHERE ino = ?", (ino,))

    def expired(self, now_ns: int, count_max: int) -> list[TrashRecord]:
        """Items whose time is over, the first ones first."""
        rows = self._execute(
            "SELECT * FROM trash WHERE expires_ns <= ? ORDER BY expires_ns LIMIT ?",
            (now_ns, count_max),
        )
        return [_record(row) for row in rows.fetchall()]

    def move_extents(self, ino: InodeNumber, new_ino: InodeNumber) -> None:
        """Give all content of an inode to another number, which has none."""
        self._execute("UPDATE extent SET ino = ?2 WHERE ino = ?1", (ino, new_ino))

    def move_all(self, ino: InodeNumber, new_ino: InodeNumber) -> None:
        """Give content, extended attributes and record to another number, which has none."""
        self.move_extents(ino, new_ino)
        self._execute("UPDATE xattr SET ino = ?2 WHERE ino = ?1", (ino, new_ino))
        self._execute("UPDATE record SET ino = ?2 WHERE ino = ?1", (ino, new_ino))

    def give_up(self, path: bytes, before_ns: int, count_max: int) -> wire.Emptied:
        """Let items expire now that lie at a path or below it and were removed before a time."""
        values = (path, before_ns, count_max, *_bounds(path))
        rows = self._execute(_GIVE_UP, values).fetchall()
        nbytes = sum(allocated for (allocated,) in rows)
        return wire.Emptied(len(rows), nbytes, len(rows) < count_max)


def read_trash(connection: sqlite3.Connection, request: wire.ListTrash) -> wire.TrashPage:
    """A page of the items at a path and below it, but for those that were given up."""
    count_max = max(1, min(request.count_max, wire.TRASH_PAGE_MAX))
    after, *numbers = request.after
    after_ns, after_ino = (min(max(number, 0), INTEGER_MAX) for number in numbers)
    values: tuple[object, ...] = (after, after_ns, after_ino, count_max + 1)
    if request.path:
        values = (*values, request.path, *_bounds(request.path))
        rows = connection.execute(_AT_AND_BELOW, values).fetchall()
    else:
        rows = connection.execute(_ALL, values).fetchall()
    items = tuple([_item(row) for row in rows[:count_max]])
    return wire.TrashPage(items, len(rows) <= count_max)


def _bounds(path: bytes) -> tuple[bytes, bytes]:
    """What is below a path lies between these."""
    return path + b"/", path + b"0"


def _item(row: tuple[Any, ...]) -> wire.TrashItem:
    ino, path, removed_ns, expires_ns, reason, kind, mode, uid, gid, *rest = row
    size, mtime_ns, nbytes, is_open = rest
    return wire.TrashItem(
        ino=ino,
        path=path,
        removed_ns=removed_ns,
        expires_ns=expires_ns,
        reason=wire.TrashReason(reason),
        kind=FileKind(kind),
        mode=mode,
        uid=uid,
        gid=gid,
        size=size,
        mtime_ns=mtime_ns,
        nbytes=nbytes,
        is_open=bool(is_open),
    )


def _record(row: tuple[Any, ...]) -> TrashRecord:
    record = TrashRecord(*row)
    record.kind = KINDS[record.kind]
    record.reason = wire.TrashReason(record.reason)
    record.has_xattrs = bool(record.has_xattrs)
    return record
