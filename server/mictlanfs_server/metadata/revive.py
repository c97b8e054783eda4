"""What a database needs that others have gone on without: a restored one, or one that was loaded.

Since its moment the space went on with another database that is gone. Mounts that lived through it
know numbers that this one would hand out again: of inodes, sessions, versions, the peer map, peers.
So every counter goes ahead, further than the lost one can have come, and every version with it:
what a mount knows under a number is never taken for something else, and what it is told next counts
as newer than all that it was told before.

How far. The lost database lived no longer than from the moment until now, and nothing grows faster
than `_Pace` says. Measured from the moment, also a second restore from the same snapshot gets ahead
of what the first one did. Numbers of inodes and snapshots are not many (`snapshotnumbers`), so they
go no further than they must.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from mictlanfs.identifiers import new_token
from mictlanfs_server.metadata.sqlite_upkeep import (
    PEER_NUMBER_MIN,
    RESTORED_AT_NS,
    RESTORED_TO_NS,
)

if TYPE_CHECKING:
    import sqlite3


class _Pace(NamedTuple):
    """How fast a number grows at most, and what it goes ahead besides: clocks may not agree."""

    ns_each: int
    margin_min: int


VERSIONS: Final = _Pace(1, 2**32)
# A space hands out 1024 to each session that asks, and makes some 10,000 files a second.
INODES: Final = _Pace(10_000, 2**20)
SNAPSHOTS: Final = _Pace(10 * 10**9, 16)
# New peers since the moment: a space has that many in years.
PEER_NUMBERS_SKIPPED: Final = 1000
GUARD_LABEL: Final = "mounts of before the restore"

_VERSIONS = (
    "UPDATE inode SET version = version + ?1, content_version = content_version + ?1",
    "UPDATE record SET content_version = content_version + ?1",
)
_COUNTERS = {
    "next_ino": INODES,
    "next_epoch": VERSIONS,
    "next_snapshot": SNAPSHOTS,
    "peer_map_version": VERSIONS,
}


def margin(pace: _Pace, moment_ns: int, now_ns: int) -> int:
    """How far ahead a number of a database of `moment_ns` goes when it is revived `now_ns`."""
    return pace.margin_min + max(0, now_ns - moment_ns) // pace.ns_each


def revive(connection: sqlite3.Connection, moment_ns: int, now_ns: int) -> None:
    """Make a database safe to be served, in the caller's transaction.

    No session goes on: each opens a new one, and what it had not committed does not come in under
    the old one. Since some that nobody knows of may trust leases for a while, one session that
    never answers stands for them: a router grants nothing that they might hold before it has
    fenced that one.
    """
    for name, pace in _COUNTERS.items():
        connection.execute(
            "UPDATE meta SET value = value + ? WHERE name = ?",
            (margin(pace, moment_ns, now_ns), name),
        )
    ahead = margin(VERSIONS, moment_ns, now_ns)
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
        [
            (PEER_NUMBER_MIN, number + PEER_NUMBERS_SKIPPED),
            (RESTORED_TO_NS, moment_ns),
            (RESTORED_AT_NS, now_ns),
        ],
    )
