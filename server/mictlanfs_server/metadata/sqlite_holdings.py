"""Comparing a database with what peers really hold, and making its replicas say the same.

For a database of an earlier moment: chunks were copied and moved since, and the peers know best.
Owns the temporary table of what is held. Changes nothing but replicas of live chunks and the list
of peers; never takes the last replica of one away.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.errors import MictlanError
from mictlanfs.model import InodeNumber, PeerNumber, PeerState
from mictlanfs_server.metadata.sqlite_reads import SqliteReads
from mictlanfs_server.metadata.sqlite_writer import transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable

PATHS_MAX: Final = 10_000

_MAKE = """
    CREATE TEMP TABLE held (
        chunk BLOB NOT NULL,
        peer INTEGER NOT NULL,
        rank INTEGER NOT NULL,      -- of a fragment; -1: it is a copy
        PRIMARY KEY (chunk, peer)
    ) WITHOUT ROWID
"""
# A fragment is known by its digest, which is one of those in the chunk's row, in order of rank.
_NOTE = """
    INSERT OR IGNORE INTO held
    SELECT id, ?4, iif(digests IS NULL, -1, (instr(digests, ?3) - 1) / 32) FROM chunk
    WHERE id = ?1 AND refs > 0 AND iif(
        digests IS NULL, length = ?2 AND digest = ?3, instr(digests, ?3) % 32 = 1)
"""
# How many of those that give the chunk were found, and how many may be on peers not asked (?1).
_FIND_ABSENT = """
    CREATE TEMP TABLE absent AS
    SELECT id, found + elsewhere >= needed AS is_elsewhere FROM (
        SELECT id, needed, (
            SELECT count(DISTINCT iif(rank < 0, peer, rank)) FROM held WHERE chunk = id
        ) AS found, (
            SELECT count(*) FROM replica
            WHERE chunk = id AND peer NOT IN (SELECT value FROM json_each(?1)) AND NOT EXISTS (
                SELECT 1 FROM held WHERE held.chunk = id AND held.rank = replica.rank)
        ) AS elsewhere
        FROM chunk WHERE refs > 0 AND NOT EXISTS (SELECT 1 FROM inline WHERE chunk = id)
    ) WHERE found < needed
"""
# Of a fragment that has moved the row goes first: each rank has one.
_REMOVE_MOVED = """
    DELETE FROM replica WHERE peer IN (SELECT value FROM json_each(?1))
    AND EXISTS (
        SELECT 1 FROM held WHERE held.chunk = replica.chunk AND held.rank = replica.rank
            AND held.peer > 0)
    AND NOT EXISTS (
        SELECT 1 FROM held WHERE held.chunk = replica.chunk AND held.rank = replica.rank
            AND held.peer = replica.peer)
"""
_ADD = """
    INSERT OR IGNORE INTO replica
    SELECT held.chunk, iif(held.rank >= 0, held.rank,
        (SELECT coalesce(max(rank), -1) FROM replica WHERE chunk = held.chunk)
        + row_number() OVER (PARTITION BY held.chunk ORDER BY held.peer)), held.peer
    FROM held WHERE held.peer > 0 AND NOT EXISTS (
        SELECT 1 FROM replica WHERE replica.chunk = held.chunk AND replica.peer = held.peer)
"""
# Of those peers that were asked; not where nothing better is known.
_REMOVE = """
    DELETE FROM replica WHERE peer IN (SELECT value FROM json_each(?1))
    AND NOT EXISTS (
        SELECT 1 FROM held WHERE held.chunk = replica.chunk AND held.peer = replica.peer)
    AND EXISTS (SELECT 1 FROM chunk WHERE id = replica.chunk AND refs > 0)
    AND NOT EXISTS (SELECT 1 FROM absent WHERE id = replica.chunk AND is_elsewhere = 0)
    AND EXISTS (
        SELECT 1 FROM replica AS other WHERE other.chunk = replica.chunk AND (
            other.peer NOT IN (SELECT value FROM json_each(?1)) OR EXISTS (
                SELECT 1 FROM held WHERE held.chunk = other.chunk AND held.peer = other.peer)))
"""
# What counts again is not deleted, although it was given up at the moment of the database.
_KEEP = """
    DELETE FROM given_up WHERE EXISTS (
        SELECT 1 FROM replica WHERE replica.chunk = given_up.chunk AND replica.peer = given_up.peer)
"""
_RETIRE = (
    "DELETE FROM peer WHERE number = ?",
    "DELETE FROM peer_store WHERE number = ?",
    "DELETE FROM given_up WHERE peer = ?",
)
_NUMBERS = "SELECT number FROM peer UNION SELECT number FROM retired_peer"
_FILES = """
    SELECT DISTINCT ino FROM extent
    WHERE chunk IN (SELECT id FROM absent WHERE is_elsewhere = 0) ORDER BY ino LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class HoldingsReport:
    """What a comparison found.

    Attributes:
        missing: live chunks that no peer has that was asked, and none that was not is known to.
        elsewhere: those that only peers are known to have that were not asked.
        paths: of the files that `missing` are of, up to 10,000; without a name: its inode number.
    """

    missing: int
    elsewhere: int
    paths: list[bytes]


class Holdings:
    """What peers hold, beside the database of `connection`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._strangers = 0
        self._listed: set[int] = set()
        # By the number of a peer's store, that of the lost one in its place.
        self._replaced: dict[int, int] = {}
        connection.execute(_MAKE)

    def peer_ids(self) -> list[str]:
        """The peers of the space."""
        rows = self._connection.execute("SELECT id FROM peer ORDER BY number")
        return [peer_id for (peer_id,) in rows]

    def number_of(self, peer_id: str) -> PeerNumber | None:
        """The number of a peer, None when the database does not know it."""
        row = self._connection.execute("SELECT number FROM peer WHERE id = ?", (peer_id,))
        found = row.fetchone()
        return PeerNumber(found[0]) if found else None

    def is_store_of(self, number: PeerNumber, store_id: str) -> bool:
        """Whether a number stands for this store, as far as is known."""
        query = "SELECT store FROM peer_store WHERE number = ?"
        known = self._connection.execute(query, (number,)).fetchone()
        return not store_id or known is None or known[0] in ("", store_id)

    def retire(self, number: PeerNumber, peer_id: str) -> None:
        """Say that another store has taken the place of the one that a number stands for."""
        with transaction(self._connection):
            self._connection.execute(
                "INSERT INTO retired_peer SELECT ?1, ?2, store, 0 FROM peer_store"
                " WHERE number = ?1",
                (number, peer_id),
            )
            for statement in _RETIRE:
                self._connection.execute(statement, (number,))

    def note_store(
        self, number: PeerNumber, store_id: str, replaced: PeerNumber | None = None
    ) -> None:
        """Say which store a number stands for, and which number the lost one had in its place."""
        self._connection.execute(
            "INSERT OR REPLACE INTO peer_store VALUES (?, ?)", (number, store_id)
        )
        if replaced is not None:
            self._replaced[number] = replaced

    def add_peer(self, peer_id: str, number: int, url: str, zone: str) -> PeerNumber:
        """Add a peer that joined later, under the number it had, unless somebody else has it."""
        taken = {number for (number,) in self._connection.execute(_NUMBERS)}
        if number < 1 or number in taken:
            number = max(taken, default=0) + 1
        self._connection.execute(
            "INSERT INTO peer (number, id, url, zone, capacity, used, state, is_full, boot_id)"
            " VALUES (?, ?, ?, ?, 0, 0, ?, 0, '')",
            (number, peer_id, url, zone, PeerState.DOWN),
        )
        return PeerNumber(number)

    def move_peer(self, number: PeerNumber, url: str) -> None:
        """Say where a peer answers now."""
        self._connection.execute("UPDATE peer SET url = ? WHERE number = ?", (url, number))

    def begin_peer(self, number: PeerNumber | None) -> int:
        """Begin with what a peer holds; None: nobody knows which one it is. Returns its mark."""
        if number is not None:
            self._listed.add(number)
            return number
        self._strangers += 1
        return -self._strangers

    def note(self, mark: int, chunks: Iterable[wire.FrameChunk]) -> None:
        """Note chunks that a peer holds: the same bytes count, or a fragment of the chunk."""
        with transaction(self._connection):
            self._connection.executemany(
                _NOTE, ((chunk.id, chunk.length, chunk.digest, mark) for chunk in chunks)
            )

    def doubt(self, mark: int) -> None:
        """Say that what a peer holds is not known to its end: what is missing may be there."""
        self._listed.discard(mark)

    def settle(self) -> HoldingsReport:
        """Make the replicas of live chunks those that were found; tell what was not."""
        # Of a store that was replaced nothing is left: its peer has told all that it has.
        lost = {old for number, old in self._replaced.items() if number in self._listed}
        listed = json.dumps(sorted(self._listed | lost))
        execute = self._connection.execute
        with transaction(self._connection):
            execute(_FIND_ABSENT, (listed,))
            execute("CREATE INDEX absent_id ON absent (id)")
            execute(_REMOVE_MOVED, (listed,))
            execute(_ADD)
            execute(_REMOVE, (listed,))
            execute(_KEEP)
        missing, elsewhere = execute(
            "SELECT count(*) - coalesce(sum(is_elsewhere), 0), coalesce(sum(is_elsewhere), 0)"
            " FROM absent"
        ).fetchone()
        files = [InodeNumber(ino) for (ino,) in execute(_FILES, (PATHS_MAX,)).fetchall()]
        return HoldingsReport(missing, elsewhere, self._paths(files))

    def _paths(self, files: Collection[InodeNumber]) -> list[bytes]:
        reads = SqliteReads(self._connection)
        paths = []
        for ino in files:
            try:
                paths.append(b"/".join(reads.path(wire.GetPath(ino)).names))
            except MictlanError:
                paths.append(b"inode %d" % ino)
        return sorted(paths)
