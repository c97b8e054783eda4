"""The copies of chunks in SQLite: what `copies.CopyStore` says, as statements.

Reads run in the thread of the scans, over its connection; changes in the writer's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mictlanfs.model import Chunk, Coding
from mictlanfs_server.metadata.copies import (
    ChunkCopies,
    CopiesAsked,
    CopiesPage,
    GivenUp,
    PeerBook,
    RetiredPeer,
    ShortChunk,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from mictlanfs.model import ChunkId, PeerNumber
    from mictlanfs_server.metadata.sqlite_rows import SqliteRows

# Both tables are in the order of chunks, so the groups need no sorting.
_SURVEY = """
    WITH
    counted(number) AS MATERIALIZED (SELECT value FROM json_each(?3)),
    steady(number) AS MATERIALIZED (SELECT value FROM json_each(?4)),
    readable(number) AS MATERIALIZED (SELECT value FROM json_each(?5))
    SELECT chunk.id, length,
        coalesce(sum(peer IN (SELECT number FROM counted)), 0) AS copies,
        coalesce(sum(peer IN (SELECT number FROM readable)), 0) >= needed AS is_readable,
        coalesce(sum(peer IN (SELECT number FROM steady)), 0) > wanted AS is_surplus, needed
    FROM chunk LEFT JOIN replica ON replica.chunk = chunk.id
    WHERE chunk.id > ?1 AND chunk.id <= ?2 AND refs > 0
    GROUP BY chunk.id
    HAVING (
        copies < min(wanted, (SELECT count(*) FROM counted)) OR is_surplus OR NOT is_readable
    ) AND (
        count(peer) > 0 OR NOT EXISTS (SELECT 1 FROM inline WHERE inline.chunk = chunk.id))
"""
_COPIES = """
    SELECT id, length, digest, wanted,
        (SELECT json_group_array(peer) FROM
            (SELECT peer FROM replica WHERE replica.chunk = chunk.id ORDER BY rank)),
        (SELECT json_group_array(peer) FROM given_up WHERE given_up.chunk = chunk.id),
        needed, digests, (SELECT json_group_array(rank) FROM
            (SELECT rank FROM replica WHERE replica.chunk = chunk.id ORDER BY rank))
    FROM chunk
    WHERE id = ? AND refs > 0 AND NOT EXISTS (SELECT 1 FROM inline WHERE inline.chunk = chunk.id)
"""
_LOCATE = """
    SELECT length, digest, needed, digests, (SELECT json_group_array(peer) FROM
        (SELECT peer FROM replica WHERE replica.chunk = chunk.id ORDER BY rank)),
        (SELECT json_group_array(rank) FROM
        (SELECT rank FROM replica WHERE replica.chunk = chunk.id ORDER BY rank))
    FROM chunk WHERE id = ? AND refs > 0
"""
_PEER_CHUNKS = """
    SELECT replica.chunk FROM replica JOIN chunk ON chunk.id = replica.chunk
    WHERE peer = ? AND replica.chunk > ? AND refs > 0 ORDER BY replica.chunk LIMIT ?
"""
_ONLY_COPIES = """
    SELECT count(*) FROM replica JOIN chunk ON chunk.id = replica.chunk
    WHERE peer = ?1 AND refs > 0 AND needed > (
        SELECT count(*) FROM replica AS other WHERE other.chunk = replica.chunk
            AND other.peer IN (SELECT value FROM json_each(?2)))
"""
_GIVEN_UP = """
    SELECT delete_at_ns, chunk, peer FROM given_up
    WHERE delete_at_ns <= ?1 AND (delete_at_ns, chunk, peer) > (?2, ?3, ?4)
    ORDER BY delete_at_ns, chunk, peer LIMIT ?5
"""
_PURGE = """
    DELETE FROM replica WHERE peer = ?1 AND chunk > ?2 AND chunk <= ?3 AND (
        NOT ?4 AND EXISTS (SELECT 1 FROM replica AS other
            WHERE other.chunk = replica.chunk AND other.peer IN (SELECT number FROM peer))
        OR EXISTS (SELECT 1 FROM chunk WHERE id = replica.chunk AND refs = 0))
"""


class SqliteCopies:
    """Reads over one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def survey(self, asked: CopiesAsked, after: ChunkId | None, count_max: int) -> CopiesPage:
        """Look at the next `count_max` chunks behind `after`."""
        start = after or b""
        last, count = self._end_of_page(start, count_max)
        if last is None:
            return CopiesPage(None, 0, (), (), 0)
        peers = [json.dumps(list(part)) for part in (asked.counted, asked.steady, asked.readable)]
        short, surplus, unreadable_count = [], [], 0
        rows = self._connection.execute(_SURVEY, (start, last, *peers))
        for chunk_id, length, copies, is_readable, is_surplus, needed in rows:
            if is_surplus:
                surplus.append(chunk_id)
            elif is_readable:
                short.append(ShortChunk(chunk_id, copies - needed + 1, length))
            else:
                unreadable_count += 1
        return CopiesPage(
            last if count == count_max else None,
            count,
            tuple(short),
            tuple(surplus),
            unreadable_count,
        )

    def live_chunks(self, after: ChunkId | None, count_max: int) -> list[ChunkId]:
        """Live chunks in order of ids, behind `after`."""
        rows = self._connection.execute(
            "SELECT id FROM chunk WHERE id > ? AND refs > 0 ORDER BY id LIMIT ?",
            (after or b"", count_max),
        )
        return [chunk_id for (chunk_id,) in rows.fetchall()]

    def _end_of_page(self, start: bytes, count_max: int) -> tuple[ChunkId | None, int]:
        row: tuple[ChunkId | None, int] = self._connection.execute(
            "SELECT max(id), count(*) FROM (SELECT id FROM chunk WHERE id > ? ORDER BY id LIMIT ?)",
            (start, count_max),
        ).fetchone()
        return row

    def copies(self, ids: Sequence[ChunkId]) -> list[ChunkCopies]:
        """Those of the chunks that are live and not inline."""
        found = []
        for chunk_id in ids:
            row = self._connection.execute(_COPIES, (chunk_id,)).fetchone()
            if row is not None:
                length, digest, wanted = row[1:4]
                peers, given_up = tuple(json.loads(row[4])), tuple(json.loads(row[5]))
                coding = row[7] and Coding(row[6], row[7], tuple(json.loads(row[8])))
                found.append(ChunkCopies(chunk_id, length, digest, wanted, peers, given_up, coding))
        return found

    def peer_chunks(self, peer: PeerNumber, after: ChunkId | None, count_max: int) -> list[ChunkId]:
        """Live chunks that a peer holds, behind `after`."""
        rows = self._connection.execute(_PEER_CHUNKS, (peer, after or b"", count_max))
        return [chunk_id for (chunk_id,) in rows.fetchall()]

    def peer_chunk_count(self, peer: PeerNumber) -> int:
        """Live chunks that a peer holds."""
        return self._number(
            "SELECT count(*) FROM replica JOIN chunk ON chunk.id = replica.chunk"
            " WHERE peer = ? AND refs > 0",
            peer,
        )

    def only_copies_count(self, peer: PeerNumber, others: Sequence[PeerNumber]) -> int:
        """Live chunks that `peer` holds and none of `others` does."""
        return self._number(_ONLY_COPIES, peer, json.dumps(list(others)))

    def given_up(self, before_ns: int, after: GivenUp | None, count_max: int) -> list[GivenUp]:
        """Copies whose time to be deleted has come, behind `after`."""
        last = after or (-1, b"", 0)
        rows = self._connection.execute(_GIVEN_UP, (before_ns, *last, count_max))
        return [GivenUp(*row) for row in rows.fetchall()]

    def given_up_count(self) -> int:
        """Copies that wait for their deletion."""
        return self._number("SELECT count(*) FROM given_up")

    def _number(self, statement: str, *values: object) -> int:
        (number,) = self._connection.execute(statement, values).fetchone()
        return int(number)


def locate(connection: sqlite3.Connection, ids: Sequence[ChunkId]) -> dict[ChunkId, Chunk]:
    """Those of the chunks that are live, with their peers."""
    found = {}
    for chunk_id in ids:
        row = connection.execute(_LOCATE, (chunk_id,)).fetchone()
        if row is not None:
            length, digest, needed, digests, peers, ranks = row
            coding = digests and Coding(needed, digests, tuple(json.loads(ranks)))
            found[chunk_id] = Chunk(chunk_id, length, digest, tuple(json.loads(peers)), coding)
    return found


def read_peer_book(connection: sqlite3.Connection) -> PeerBook:
    """What is known of peers beside the map."""
    stores = connection.execute("SELECT number, store FROM peer_store").fetchall()
    retired = connection.execute("SELECT number, id, store, is_removed FROM retired_peer")
    return PeerBook(
        dict(stores),
        {
            number: RetiredPeer(peer_id, store, bool(is_removed))
            for number, peer_id, store, is_removed in retired.fetchall()
        },
    )


def read_move_orders(connection: sqlite3.Connection) -> dict[str, bytes]:
    """Moves that were ordered and have not ended."""
    return dict(connection.execute("SELECT name, position FROM move_order").fetchall())


# --- changes --------------------------------------------------------------------------------------


def add_replicas(
    rows: SqliteRows, added: Mapping[ChunkId, Sequence[PeerNumber]], *, raises_wanted: bool
) -> list[tuple[ChunkId, PeerNumber]]:
    """Record copies; those that no row stands for."""
    refused: list[tuple[ChunkId, PeerNumber]] = []
    known_peers = rows.peer_numbers()
    for chunk_id, peers in added.items():
        chunk = rows.chunk(chunk_id)
        holders = set(rows.replicas(chunk_id))
        takes_none = chunk is None or chunk.is_inline or chunk.digests is not None
        given_up = set(rows.given_up(chunk_id))
        for peer in peers:
            if takes_none or peer in given_up or peer not in known_peers:
                refused.append((chunk_id, peer))
            elif peer not in holders:
                rows.add_replica(chunk_id, peer)
                holders.add(peer)
        if raises_wanted and not takes_none:
            rows.raise_wanted(chunk_id, len(holders))
    return refused


def move_fragments(
    rows: SqliteRows, moved: Sequence[tuple[ChunkId, int, PeerNumber]], delete_at_ns: int
) -> list[tuple[ChunkId, PeerNumber]]:
    """Record fragments in the place of those that other peers had; those that no row stands for."""
    refused: list[tuple[ChunkId, PeerNumber]] = []
    known_peers = rows.peer_numbers()
    for chunk_id, index, peer in moved:
        chunk = rows.chunk(chunk_id)
        held = dict(zip(rows.ranks(chunk_id), rows.replicas(chunk_id), strict=True))
        if peer in held.values():
            # It has this one, or another one, which has to be given up first.
            continue
        takes_none = chunk is None or chunk.digests is None
        if takes_none or peer in rows.given_up(chunk_id) or peer not in known_peers:
            refused.append((chunk_id, peer))
            continue
        if index in held:
            _remove(rows.connection, chunk_id, [held[index]], delete_at_ns, known_peers)
        rows.add_replica(chunk_id, peer, index)
    return refused


def drop_replicas(
    rows: SqliteRows,
    dropped: Mapping[ChunkId, Sequence[PeerNumber]],
    counted: Collection[PeerNumber] | None,
    delete_at_ns: int,
) -> list[ChunkId]:
    """Give up copies of live chunks; the chunks of which a row had to stay."""
    kept = []
    known_peers = rows.peer_numbers()
    for chunk_id, peers in dropped.items():
        chunk = rows.chunk(chunk_id)
        if chunk is None or chunk.is_dead:
            continue
        left = list(rows.replicas(chunk_id))
        going = []
        for peer in peers:
            if peer not in left:
                continue
            rest = [other for other in left if other != peer]
            if not _is_enough(rows, chunk_id, chunk.needed, rest, counted):
                kept.append(chunk_id)
                break
            left = rest
            going.append(peer)
        _remove(rows.connection, chunk_id, going, delete_at_ns, known_peers)
    return kept


def _is_enough(
    rows: SqliteRows,
    chunk_id: ChunkId,
    needed: int,
    holders: Sequence[PeerNumber],
    counted: Collection[PeerNumber] | None,
) -> bool:
    if counted is None:
        return len(holders) >= needed
    (wanted,) = rows.connection.execute(
        "SELECT wanted FROM chunk WHERE id = ?", (chunk_id,)
    ).fetchone()
    copies = sum(peer in counted for peer in holders)
    return copies >= max(needed, min(int(wanted), len(counted)))


def _remove(
    connection: sqlite3.Connection,
    chunk_id: ChunkId,
    peers: Iterable[PeerNumber],
    delete_at_ns: int,
    known_peers: Collection[PeerNumber],
) -> None:
    for peer in peers:
        connection.execute("DELETE FROM replica WHERE chunk = ? AND peer = ?", (chunk_id, peer))
        # Of a peer that never comes back nothing is to be deleted.
        if peer in known_peers:
            connection.execute(
                "INSERT OR REPLACE INTO given_up VALUES (?, ?, ?)", (chunk_id, peer, delete_at_ns)
            )


def forget_given_up(rows: SqliteRows, deleted: Sequence[GivenUp]) -> None:
    """Record that peers hold these copies no more."""
    rows.connection.executemany(
        "DELETE FROM given_up WHERE chunk = ? AND peer = ?",
        ((copy.chunk, copy.peer) for copy in deleted),
    )


def save_peer_book(rows: SqliteRows, book: PeerBook) -> None:
    """Replace what is known of peers beside the map; retired ones leave the map.

    Their rows in `replica` are purged later.
    """
    connection = rows.connection
    connection.execute("DELETE FROM peer_store")
    connection.executemany("INSERT INTO peer_store VALUES (?, ?)", book.stores.items())
    connection.execute("DELETE FROM retired_peer")
    connection.executemany(
        "INSERT INTO retired_peer VALUES (?, ?, ?, ?)",
        ((number, *peer) for number, peer in book.retired.items()),
    )
    connection.execute("DELETE FROM peer WHERE number IN (SELECT number FROM retired_peer)")
    # Nobody can be asked to delete anything there.
    connection.execute("DELETE FROM given_up WHERE peer IN (SELECT number FROM retired_peer)")


def purge_retired(
    rows: SqliteRows,
    peer: PeerNumber,
    after: ChunkId | None,
    count_max: int,
    *,
    dead_only: bool,
) -> ChunkId | None:
    """Remove some rows of a retired peer, or those of dead chunks; where to go on."""
    start = after or b""
    last, count = rows.connection.execute(
        "SELECT max(chunk), count(*) FROM (SELECT chunk FROM replica"
        " WHERE peer = ? AND chunk > ? ORDER BY chunk LIMIT ?)",
        (peer, start, count_max),
    ).fetchone()
    if last is None:
        return None
    rows.connection.execute(_PURGE, (peer, start, last, dead_only))
    return last if count == count_max else None


def save_move_order(rows: SqliteRows, name: str, position: bytes | None) -> None:
    """Note where an ordered move stands; None: it has ended."""
    if position is None:
        rows.connection.execute("DELETE FROM move_order WHERE name = ?", (name,))
    else:
        rows.connection.execute("INSERT OR REPLACE INTO move_order VALUES (?, ?)", (name, position))
