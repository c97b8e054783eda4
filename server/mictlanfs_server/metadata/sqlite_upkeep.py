"""What the router itself reads and changes in SQLite: peers, sessions seen, deleted copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mictlanfs.model import PeerInfo, PeerMap
from mictlanfs_server.metadata.base import SessionRecord
from mictlanfs_server.metadata.rows import CountChange

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from mictlanfs.model import ChunkId, PeerNumber, SessionId
    from mictlanfs_server.metadata.sqlite_rows import SqliteRows

# Values of `meta` that came after the first schema; missing where they have not been set.
#   snapshot_ns         the moment of the newest snapshot that is complete on peers
#   peer_number_min     no smaller number is given to a new peer; set by a restore
#   restored_to_ns      which moment the database was restored to, or was dumped at
#   restored_at_ns      when that was done
#   lease_time_ns       the longest time for which a session may trust its leases without an answer
SNAPSHOT_NS = "snapshot_ns"
PEER_NUMBER_MIN = "peer_number_min"
RESTORED_TO_NS = "restored_to_ns"
RESTORED_AT_NS = "restored_at_ns"
LEASE_TIME_NS = "lease_time_ns"

_FORGET_CHUNK = """
    DELETE FROM chunk WHERE id = ?1 AND dead_since_ns IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM replica WHERE chunk = ?1)
"""


def read_sessions(connection: sqlite3.Connection) -> list[SessionRecord]:
    """All open sessions."""
    rows = connection.execute(
        "SELECT id, epoch, host, pid, label, seen_ns, leases FROM session"
        " WHERE is_ended = 0 ORDER BY epoch"
    )
    return [
        SessionRecord(session, epoch, host, pid, label, seen_ns, bool(leases))
        for session, epoch, host, pid, label, seen_ns, leases in rows.fetchall()
    ]


def touch_sessions(rows: SqliteRows, seen_ns: Mapping[SessionId, int]) -> None:
    """Record when sessions were last heard of."""
    rows.connection.executemany(
        "UPDATE session SET seen_ns = ? WHERE id = ?",
        ((time_ns, session) for session, time_ns in seen_ns.items()),
    )


def read_peers(connection: sqlite3.Connection) -> PeerMap:
    """The peers and the version of their map."""
    # One statement, so that both are from one moment; the version comes also without peers.
    rows = connection.execute(
        "SELECT meta.value, peer.* FROM meta LEFT JOIN peer ON true"
        " WHERE meta.name = 'peer_map_version' ORDER BY peer.number"
    ).fetchall()
    peers = tuple(
        msgspec.convert(row[1:], PeerInfo, strict=False) for row in rows if row[1] is not None
    )
    return PeerMap(rows[0][0], peers)


def save_peers(rows: SqliteRows, version: int, peers: Sequence[PeerInfo]) -> None:
    """Add or replace peers and set the version of the map."""
    rows.connection.executemany(
        "INSERT OR REPLACE INTO peer VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                *(p.number, p.id, p.url, p.zone, p.capacity, p.used, p.state, p.is_full),
                *(p.boot_id, p.is_draining),
            )
            for p in peers
        ),
    )
    rows.set_counter("peer_map_version", version)


def set_value(rows: SqliteRows, name: str, value: int | str) -> None:
    """Set a value of `meta`, there or not."""
    rows.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def forget_replicas(rows: SqliteRows, deleted: Mapping[ChunkId, Sequence[PeerNumber]]) -> None:
    """Remove replicas of dead chunks, and the chunks that nobody holds any more."""
    forgotten = 0
    for chunk_id, peers in deleted.items():
        chunk = rows.chunk(chunk_id)
        if chunk is None or not chunk.is_dead:
            continue
        rows.connection.executemany(
            "DELETE FROM replica WHERE chunk = ? AND peer = ?",
            ((chunk_id, peer) for peer in peers),
        )
        forgotten += rows.connection.execute(_FORGET_CHUNK, (chunk_id,)).rowcount
    rows.add_counts(CountChange(tombstones=-forgotten))
