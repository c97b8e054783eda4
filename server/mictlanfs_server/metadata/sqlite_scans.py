"""Reads of the collector from SQLite that may take long: they look at every chunk.

Run in a thread of their own over a connection of their own; each is one statement, so one snapshot.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mictlanfs_server.metadata.base import DeadChunk, ReplicaCounts

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from mictlanfs.model import PeerNumber

# A chunk cannot have more copies than there are peers, so it is not short of what cannot be.
_REPLICA_COUNTS = """
    WITH
    live(number) AS MATERIALIZED (SELECT value FROM json_each(?1)),
    held(wanted, needed, count) AS (
        SELECT max(min(chunk.wanted, (SELECT count(*) FROM peer)), needed), needed, (
            SELECT count(*) FROM replica
            WHERE replica.chunk = chunk.id AND replica.peer IN (SELECT number FROM live)
        )
        FROM chunk WHERE refs > 0 AND id NOT IN (SELECT chunk FROM inline)
    )
    SELECT coalesce(sum(count < wanted), 0), coalesce(sum(count < needed), 0),
        (SELECT count(*) FROM inline)
    FROM held
"""
_DEAD_CHUNKS = """
    SELECT chunk.id, chunk.dead_since_ns, (
        SELECT json_group_array(peer) FROM replica WHERE replica.chunk = chunk.id
    )
    FROM chunk
    WHERE dead_since_ns IS NOT NULL AND dead_since_ns < ?1 AND (dead_since_ns, id) > (?2, ?3)
    ORDER BY dead_since_ns, id LIMIT ?4
"""


class SqliteScans:
    """Scans over one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def replica_counts(self, peers: Sequence[PeerNumber]) -> ReplicaCounts:
        """Live chunks with too few replicas on `peers`, among them those that cannot be read."""
        row = self._connection.execute(_REPLICA_COUNTS, (json.dumps(list(peers)),)).fetchone()
        return ReplicaCounts(*row)

    def dead_chunks(
        self, before_ns: int, after: DeadChunk | None, count_max: int
    ) -> list[DeadChunk]:
        """Chunks dead since before a time, oldest first, behind `after`."""
        last = (after.dead_since_ns, after.id) if after else (-1, b"")
        rows = self._connection.execute(_DEAD_CHUNKS, (before_ns, *last, count_max))
        return [
            DeadChunk(chunk_id, since_ns, tuple(json.loads(peers)))
            for chunk_id, since_ns, peers in rows.fetchall()
        ]
