"""The keys of leases from SQLite: many at once, over the connection of the reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mictlanfs.model import FileKind, InodeNumber
from mictlanfs_server.metadata.base import KeyedInode, KeysFound
from mictlanfs_server.metadata.checks import INTEGER_MAX

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

# Places of one statement; each is two variables, of which old builds take 999.
_PLACES_MAX: Final = 256
_INODES_MAX: Final = 512


def is_own_key(kind: int, nlink: int) -> bool:
    """Whether an inode is the key of its own lease; else the directory that names it is."""
    return kind == FileKind.DIRECTORY or nlink != 1


class SqliteKeys:
    """Finds keys. Each call is one snapshot."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute

    def find(
        self, inodes: Collection[InodeNumber], places: Collection[tuple[InodeNumber, bytes]]
    ) -> KeysFound:
        """The keys of those inodes and names that exist."""
        found = KeysFound({}, {})
        if not inodes and not places:
            return found
        self._execute("BEGIN")
        try:
            self._find_inodes([ino for ino in inodes if 0 < ino <= INTEGER_MAX], found)
            self._find_places([p for p in places if 0 < p[0] <= INTEGER_MAX], found)
        finally:
            self._execute("COMMIT")
        return found

    def _find_inodes(self, inodes: list[InodeNumber], found: KeysFound) -> None:
        for start in range(0, len(inodes), _INODES_MAX):
            some = inodes[start : start + _INODES_MAX]
            marks = ",".join("?" * len(some))
            for row in self._execute(
                f"SELECT ino, kind, nlink, parent FROM inode WHERE ino IN ({marks})",  # noqa: S608
                some,
            ).fetchall():
                found.inodes[row[0]] = self._keyed(*row)

    def _find_places(self, places: list[tuple[InodeNumber, bytes]], found: KeysFound) -> None:
        for start in range(0, len(places), _PLACES_MAX):
            some = places[start : start + _PLACES_MAX]
            marks = ",".join(["(?,?)"] * len(some))
            # CROSS JOIN keeps the order: each place is one search of the primary key.
            for parent, name, *row in self._execute(
                f"WITH place(parent, name) AS (VALUES {marks})"  # noqa: S608
                " SELECT d.parent, d.name, i.ino, i.kind, i.nlink, i.parent FROM place AS p"
                " CROSS JOIN dentry AS d ON d.parent = p.parent AND d.name = p.name"
                " CROSS JOIN inode AS i ON i.ino = d.ino",
                [value for place in some for value in place],
            ).fetchall():
                found.places[parent, name] = self._keyed(*row)

    def _keyed(self, ino: InodeNumber, kind: int, nlink: int, parent: InodeNumber) -> KeyedInode:
        if not is_own_key(kind, nlink):
            return KeyedInode(ino, parent)
        parents: tuple[InodeNumber, ...] = ()
        if kind != FileKind.DIRECTORY:
            rows = self._execute("SELECT DISTINCT parent FROM dentry WHERE ino = ?", (ino,))
            parents = tuple([InodeNumber(number) for (number,) in rows.fetchall()])
        return KeyedInode(ino, ino, parents)
