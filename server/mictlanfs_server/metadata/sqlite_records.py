"""The rows of records and parts in SQLite, for changes and for reads. Knows no rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import InodeNumber
from mictlanfs_server.metadata.checks import INTEGER_MAX
from mictlanfs_server.metadata.rows import PartRecord

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

_PART = "SELECT ino, parent, name, ball, part_count, position FROM part"
_OF_BALL = "parent = ?1 AND ball = ?2 AND part_count = ?3"
_RECORD_OF_BALL = f"""
    SELECT record.size, record.body FROM part CROSS JOIN record ON record.ino = part.ino
    WHERE {_OF_BALL} ORDER BY part.position, record.position
"""  # noqa: S608
_FRESH = """
    SELECT record.size, body, record.content_version
    FROM record JOIN inode ON inode.ino = record.ino
    WHERE record.ino = ? AND record.content_version = inode.content_version ORDER BY position
"""
_NO_RECORD = wire.FileRecord(0, ())


class SqliteRecords:
    """`RecordRows` over one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._executemany = connection.executemany

    def has_any(self) -> bool:
        """Whether any file has a record."""
        return bool(self._execute("SELECT EXISTS (SELECT 1 FROM record)").fetchone()[0])

    def version(self, ino: InodeNumber) -> int:
        """The content version that the record of a file is of; 0 when it has none."""
        sql = "SELECT content_version FROM record WHERE ino = ? AND position = 0"
        row = self._execute(sql, (ino,)).fetchone()
        return row[0] if row else 0

    def replace(
        self, ino: InodeNumber, content_version: int, pieces: Iterable[wire.RecordPiece]
    ) -> None:
        """Give a file a record in the place of the one it has, if any."""
        self._execute("DELETE FROM record WHERE ino = ?", (ino,))
        self._executemany(
            "INSERT INTO record VALUES (?, ?, ?, ?, ?)",
            (
                (ino, position, piece.size, content_version, piece.body)
                for position, piece in enumerate(pieces)
            ),
        )

    def renew(self, ino: InodeNumber, before: int, after: int) -> None:
        """Make the record of a file, if it is of content version `before`, one of `after`."""
        self._execute(
            "UPDATE record SET content_version = ?3 WHERE ino = ?1 AND content_version = ?2",
            (ino, before, after),
        )

    def delete(self, ino: InodeNumber) -> None:
        """Forget the record of an inode, and that it is a part."""
        self._execute("DELETE FROM record WHERE ino = ?", (ino,))
        self.delete_part(ino)

    def part(self, ino: InodeNumber) -> PartRecord | None:
        """What a file is a part of."""
        row = self._execute(f"{_PART} WHERE ino = ?", (ino,)).fetchone()
        return PartRecord(*row) if row else None

    def part_at(
        self, parent: InodeNumber, ball: bytes, count: int, index: int
    ) -> PartRecord | None:
        """A part by its place."""
        sql = f"{_PART} WHERE {_OF_BALL} AND position = ?4"
        row = self._execute(sql, (parent, ball, count, index)).fetchone()
        return PartRecord(*row) if row else None

    def parts(self, parent: InodeNumber, ball: bytes, count: int) -> list[PartRecord] | None:
        """All parts of a ball, in order; None when there are fewer than `count`."""
        # Parts mostly come in order, so that the last one is missing up to the end: all are counted
        # only when both ends are there.
        for index in (count - 1, 0):
            if self.part_at(parent, ball, count, index) is None:
                return None
        place = (parent, ball, count)
        sql = f"SELECT count(*) FROM part WHERE {_OF_BALL}"  # noqa: S608
        if self._execute(sql, place).fetchone()[0] != count:
            return None
        rows = self._execute(f"{_PART} WHERE {_OF_BALL} ORDER BY position", place).fetchall()
        return [PartRecord(*row) for row in rows]

    def pieces_of_parts(
        self, parent: InodeNumber, ball: bytes, count: int
    ) -> list[wire.RecordPiece]:
        """The pieces of the records of all parts of a ball, one part behind the other."""
        rows = self._execute(_RECORD_OF_BALL, (parent, ball, count)).fetchall()
        return [wire.RecordPiece(*row) for row in rows]

    def delete_parts(self, parent: InodeNumber, ball: bytes, count: int) -> None:
        """Forget all parts of a ball and their records."""
        place = (parent, ball, count)
        of_ball = f"SELECT ino FROM part WHERE {_OF_BALL}"  # noqa: S608
        self._execute(f"DELETE FROM record WHERE ino IN ({of_ball})", place)  # noqa: S608
        self._execute(f"DELETE FROM part WHERE {_OF_BALL}", place)  # noqa: S608

    def insert_part(self, part: PartRecord) -> None:
        """Say that a file is a part."""
        self._execute(
            "INSERT INTO part VALUES (?, ?, ?, ?, ?, ?)",
            (part.ino, part.parent, part.name, part.ball, part.count, part.index),
        )

    def delete_part(self, ino: InodeNumber) -> None:
        """Forget that a file is a part, if it is one."""
        self._execute("DELETE FROM part WHERE ino = ?", (ino,))


def read_records(connection: sqlite3.Connection, request: wire.GetRecords) -> wire.Records:
    """The records of inodes that are not stale, as far as they fit into one answer.

    Belongs into a snapshot.

    Raises:
        MictlanError: INVALID, when these are too many inodes.
    """
    if len(request.inodes) > wire.RECORDS_COUNT_MAX:
        detail = f"at most {wire.RECORDS_COUNT_MAX} records are read at once"
        raise MictlanError(Kind.INVALID, "records", detail=detail)
    found: list[wire.FileRecord] = []
    left = wire.RECORDS_ANSWER_SIZE_BYTES_MAX
    for ino in request.inodes:
        known = 0 < ino <= INTEGER_MAX
        rows = connection.execute(_FRESH, (ino,)).fetchall() if known else []
        left -= sum([len(body) for _, body, _ in rows])
        if left < 0 and found:
            break
        pieces = tuple([wire.RecordPiece(size, body) for size, body, _ in rows])
        found.append(wire.FileRecord(rows[0][2], pieces) if rows else _NO_RECORD)
    return wire.Records(tuple(found))
