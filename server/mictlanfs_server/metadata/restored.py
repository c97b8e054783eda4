"""A database that came from elsewhere, on its way to being served: checked, compared, revived.

Owns its one connection. Nothing is durable before the end, when the file is whole and without a
write-ahead log; whoever made it syncs it then.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from mictlanfs.errors import Kind, MictlanError
from mictlanfs_server.metadata.check import find_damage
from mictlanfs_server.metadata.migrations import migrate
from mictlanfs_server.metadata.revive import revive
from mictlanfs_server.metadata.sqlite_holdings import Holdings
from mictlanfs_server.metadata.sqlite_reads import SqliteReads
from mictlanfs_server.metadata.sqlite_writer import checkpoint, connect, transaction

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class RestoredDatabase:
    """The database in `path`, for the length of a block.

    Raises:
        MictlanError: CORRUPT: SQLite finds it damaged.
        UsageError: it is of a newer version, or none of ours.
    """

    def __init__(self, path: Path, now_ns: int) -> None:
        _check_file(path)
        migrate(path, now_ns, keeps_copy=False)
        self._connection = connect(path, read_only=False)
        self._connection.execute("PRAGMA synchronous=OFF")

    def __enter__(self) -> RestoredDatabase:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        checkpoint(self._connection, "TRUNCATE")
        self._connection.close()

    def counts(self) -> tuple[int, int]:
        """How many inodes and live chunks there are."""
        counts = SqliteReads(self._connection).counts()
        return counts.inodes, counts.chunks

    def holdings(self) -> Holdings:
        """What peers hold, to be compared with it; once."""
        return Holdings(self._connection)

    def revive(self, moment_ns: int, now_ns: int) -> None:
        """Make it safe to be served after `moment_ns`; see `revive`."""
        with transaction(self._connection):
            revive(self._connection, moment_ns, now_ns)

    def damage(self) -> list[str]:
        """The invariants that do not hold, as sentences."""
        return find_damage(self._connection)


def _check_file(path: Path) -> None:
    """Raises CORRUPT for what SQLite cannot read."""
    try:
        connection = connect(path, read_only=True)
        try:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise MictlanError(Kind.CORRUPT, "check database", path.name, str(error)) from error
    if found != "ok":
        raise MictlanError(Kind.CORRUPT, "check database", path.name, str(found))
