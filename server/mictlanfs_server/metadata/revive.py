"""What a database needs that others have gone on without: a restored one, or one that was loaded.

Since its moment the space went on with another database that is gone. Mounts that lived through it
know numbers that this one would hand out again: of inodes, sessions, versions, the peer map, peers.
So every counter goes ahead, further than the lost one can have come, and every version with it:
what a mount knows under a number is never taken for something else, and what it is told next counts
as newer than all that it was told before.

How far. No counter grows faster than once a nanosecond; the lost database lived no longer than from
the moment until now. Measured from the moment, also a second restore from the same snapshot gets
ahead of what the first one did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mictlanfs.identifiers import new_token
from mictlanfs_server.metadata.sqlite_upkeep import PEER_NUMBER_MIN, RESTORED_TO_NS

if TYPE_CHECKING:
    import sqlite3

# For clocks of two machines that do not agree: four seconds would be enough for what they differ.
MARGIN_MIN: Final = 2**32
# New peers since the moment: a space has that many in years.
PEER_NUMBERS_SKIPPED: Final = 1000
GUARD_LABEL: Final = "mounts of before the restore"

_VERSIONS = (
    "UPDATE inode SET version = version + ?1, content_version = content_version + ?1",
    "UPDATE record SET content_version = content_version + ?1",
)
_COUNTERS = """
    UPDATE meta SET value = value + ?1
    WHERE name IN ('next_ino', 'next_epoch', 'next_snapshot', 'peer_map_version')
"""


def margin(moment_ns: int, now_ns: int) -> int:
    """How far ahead the counters of a database of `moment_ns` go when it is revived `now_ns`."""
    return MARGIN_MIN + max(0, now_ns - moment_ns)


def revive(connection: sqlite3.Connection, moment_ns: int, now_ns: int) -> None:
    """Make a database safe to be served, in the caller's transaction.

    No session goes on: each opens a new one, and what it had not committed does not come in under
    the old one. Since some that nobody knows of may trust leases for a while, one session that
    never answers stands for them: a router grants nothing that they might hold before it has
    fenced that one.
    """
    ahead = margin(moment_ns, now_ns)
    connection.execute(_COUNTERS, (ahead,))
    for statement in _VERSIONS:
        connection.execute(statement, (ahead,))
    connection.execute("UPDATE session SET is_ended = 1")
    connection.execute("DELETE FROM batch")
    connection.execute(
        "INSERT INTO session SELECT ?, value, '', 0, ?, ?, 0, 1"
        " FROM meta WHERE name = 'next_epoch'",
        (new_token(), GUARD_LABEL, now_ns),
    )
    connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'next_epoch'")
    (number,) = connection.execute("SELECT coalesce(max(number), 0) FROM peer").fetchone()
    connection.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)",
        [(PEER_NUMBER_MIN, number + PEER_NUMBERS_SKIPPED), (RESTORED_TO_NS, moment_ns)],
    )
