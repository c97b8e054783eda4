"""`TruthStore` in SQLite.

Owns the tables `damaged` and `collected`. Scans run in the thread of the store's scans; the check
of the metadata in a thread and over a connection of its own: it takes as long as it takes.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from mictlanfs.checksums import DIGEST_SIZE_BYTES, digest_of
from mictlanfs.fragments import fragment_size
from mictlanfs.model import ROOT_INODE, Chunk, ChunkId, PeerNumber
from mictlanfs.wirepeers import FrameChunk
from mictlanfs_server.metadata.check import INVARIANTS, SHOWN_MAX
from mictlanfs_server.metadata.rows import CountChange
from mictlanfs_server.metadata.sqlite_writer import connect
from mictlanfs_server.metadata.truth import DamagedChunk, Standing

if TYPE_CHECKING:
    from pathlib import Path

    from mictlanfs_server.metadata.sqlite_rows import SqliteRows

T = TypeVar("T")

# Parameters of one statement; SQLite has a limit of its own.
_IDS_MAX: Final = 500
_DEPTH_MAX: Final = 2048

# Of a coded chunk a peer has the fragment that the rank says.
_ON_PEER: Final = """
    SELECT id, length, digest, needed, digests, rank FROM replica JOIN chunk ON id = replica.chunk
    WHERE replica.chunk > ?1 AND (?2 IS NULL OR replica.chunk <= ?2) AND peer = ?3 AND refs > 0
    ORDER BY replica.chunk LIMIT ?4
"""
_NAMED: Final = """
    SELECT id, length, digest, needed, digests, rank FROM chunk JOIN replica ON replica.chunk = id
    WHERE id = ? AND peer = ? AND refs > 0
"""
_STANDING: Final = """
    SELECT
        (SELECT refs FROM chunk WHERE id = ?1),
        EXISTS (SELECT 1 FROM replica WHERE chunk = ?1 AND peer = ?2)
            OR EXISTS (SELECT 1 FROM given_up WHERE chunk = ?1 AND peer = ?2)
"""
_IS_GIVEN_UP: Final = "SELECT 1 FROM given_up WHERE chunk = ? AND peer = ?"
_DAMAGED: Final = """
    SELECT id, length, digest, json_group_array(peer) FROM damaged JOIN chunk ON id = chunk
    WHERE refs > 0 GROUP BY id ORDER BY id LIMIT ?
"""
_CLEAN_DAMAGED: Final = (
    "DELETE FROM damaged WHERE chunk NOT IN (SELECT id FROM chunk WHERE refs > 0)"
)


class _Change(Protocol):
    def __call__(self, work: Callable[[SqliteRows], T], *, sync: bool = False) -> Awaitable[T]: ...


class _Scan(Protocol):
    def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...


class SqliteTruth:
    """The interface, over what the store lends.

    Args:
        path: of the database.
        scans: a connection for reading, used in the thread of `scan` only.
        change: runs a change in the writer.
        scan: runs a read in the thread of the scans.
        wall_ns: the router's clock, nanoseconds since the epoch.
    """

    def __init__(
        self,
        path: Path,
        scans: sqlite3.Connection,
        change: _Change,
        scan: _Scan,
        wall_ns: Callable[[], int],
    ) -> None:
        self._path = path
        self._wall_ns = wall_ns
        self._connection = scans
        self._change = change
        self._scan = scan

    async def on_peer(
        self, peer: PeerNumber, after: ChunkId, until: ChunkId | None, count_max: int
    ) -> list[FrameChunk]:
        """Live chunks of which a peer should have a copy; see `TruthStore`."""
        values = (after, until, peer, count_max)
        return await self._scan(lambda: _chunks(self._connection.execute(_ON_PEER, values)))

    async def named(self, peer: PeerNumber, ids: Collection[ChunkId]) -> list[FrameChunk]:
        """Those of which a peer should have a copy; see `TruthStore`."""

        def work() -> list[FrameChunk]:
            execute = self._connection.execute
            rows = [execute(_NAMED, (chunk_id, peer)).fetchone() for chunk_id in ids]
            return _chunks(row for row in rows if row is not None)

        return await self._scan(work)

    async def standing(self, peer: PeerNumber, ids: Sequence[ChunkId]) -> list[Standing]:
        """What is known of copies; see `TruthStore`."""

        def work() -> list[Standing]:
            execute = self._connection.execute
            return [_standing(execute(_STANDING, (i, peer)).fetchone()) for i in ids]

        return await self._scan(work)

    async def adopt(self, peer: PeerNumber, copies: Sequence[FrameChunk]) -> int:
        """Give copies a row each; see `TruthStore`."""
        return await self._change(partial(_adopt, peer, copies, self._wall_ns()), sync=True)

    async def note_damaged(self, peer: PeerNumber, ids: Collection[ChunkId]) -> None:
        """Record that last copies are not good; see `TruthStore`."""
        now_ns = self._wall_ns()

        def work(rows: SqliteRows) -> None:
            rows.connection.executemany(
                "INSERT OR IGNORE INTO damaged SELECT id, ?2, ?3 FROM chunk WHERE id = ?1"
                " AND refs > 0",
                ((chunk_id, peer, now_ns) for chunk_id in ids),
            )

        if ids:
            await self._change(work, sync=True)

    async def forget_damaged(self, ids: Collection[ChunkId]) -> None:
        """They have a good copy; see `TruthStore`."""

        def work(rows: SqliteRows) -> None:
            rows.connection.execute(_CLEAN_DAMAGED)
            rows.connection.executemany(
                "DELETE FROM damaged WHERE chunk = ?", ((chunk_id,) for chunk_id in ids)
            )

        if await self._scan(self._has_damaged):
            await self._change(work)

    def _has_damaged(self) -> bool:
        return self._connection.execute("SELECT 1 FROM damaged LIMIT 1").fetchone() is not None

    async def damaged(self, count_max: int, paths_max: int) -> list[DamagedChunk]:
        """Chunks without a good copy; see `TruthStore`."""

        def work() -> list[DamagedChunk]:
            rows = self._connection.execute(_DAMAGED, (count_max,)).fetchall()
            if not rows:
                return []
            files = _files_of(self._connection, [row[0] for row in rows])
            return [
                DamagedChunk(
                    FrameChunk(ChunkId(row[0]), row[1], row[2]),
                    tuple(json.loads(row[3])),
                    tuple(
                        [
                            names
                            for ino in files.get(row[0], [])[:paths_max]
                            if (names := path_of(self._connection, ino))
                        ]
                    ),
                )
                for row in rows
            ]

        return await self._scan(work)

    async def find_damage(self, *, deep: bool) -> list[str]:
        """What does not hold; see `TruthStore`."""
        return await asyncio.to_thread(find_damage, self._path, deep=deep)


# --- in the writer -------------------------------------------------------------------------------


def _adopt(peer: PeerNumber, copies: Sequence[FrameChunk], now_ns: int, rows: SqliteRows) -> int:
    adopted = new = 0
    for copy in copies:
        if rows.connection.execute(_IS_GIVEN_UP, (copy.id, peer)).fetchone() is not None:
            # It is about to be deleted: nobody may count on it.
            continue
        known = rows.chunk(copy.id)
        if known is None:
            chunk = Chunk(copy.id, copy.length, copy.digest, (peer,))
            rows.insert_chunk(chunk, 0, 0, now_ns)
            rows.connection.execute(
                "INSERT OR IGNORE INTO collected VALUES (?, ?)", (copy.id, now_ns)
            )
            new += 1
        elif (known.length, known.digest) == (copy.length, copy.digest) and (
            not known.is_inline and peer not in rows.replicas(copy.id)
        ):
            rows.add_replica(copy.id, peer)
        else:
            continue
        adopted += 1
    rows.add_counts(CountChange(tombstones=new))
    return adopted


# --- in a thread ---------------------------------------------------------------------------------


def _chunks(rows: Iterable[tuple[bytes, int, bytes, int, bytes | None, int]]) -> list[FrameChunk]:
    """What peers have of chunks: a copy, or a fragment."""
    found: list[FrameChunk] = []
    for chunk_id, length, digest, data, digests, rank in rows:
        if digests is not None:
            start = rank * DIGEST_SIZE_BYTES
            digest = digests[start : start + DIGEST_SIZE_BYTES]
            length = fragment_size(length, data)
        found.append(FrameChunk(ChunkId(chunk_id), length, digest))
    return found


def _standing(row: tuple[int | None, int]) -> Standing:
    refs, is_named = row
    if is_named:
        return Standing.NAMED
    if refs is None:
        return Standing.ORPHAN
    return Standing.SURPLUS if refs else Standing.LEFT


def _files_of(connection: sqlite3.Connection, ids: Sequence[bytes]) -> dict[bytes, list[int]]:
    """The inodes whose extents name these chunks. Looks at every extent: there is no index."""
    found: dict[bytes, list[int]] = {}
    for first in range(0, len(ids), _IDS_MAX):
        part = ids[first : first + _IDS_MAX]
        marks = ", ".join("?" * len(part))
        query = f"SELECT DISTINCT chunk, ino FROM extent WHERE chunk IN ({marks}) ORDER BY ino"  # noqa: S608 - only marks.
        for chunk_id, ino in connection.execute(query, part):
            found.setdefault(chunk_id, []).append(ino)
    return found


def path_of(connection: sqlite3.Connection, ino: int) -> tuple[bytes, ...]:
    """One path of an inode, as names from the root down; empty when it has none."""
    names: list[bytes] = []
    while ino != ROOT_INODE and len(names) < _DEPTH_MAX:
        row = connection.execute(
            "SELECT parent, name FROM dentry WHERE ino = ? ORDER BY parent, name LIMIT 1", (ino,)
        ).fetchone()
        if row is None:
            return ()
        ino = row[0]
        names.append(row[1])
    return tuple(reversed(names))


def find_damage(path: Path, *, deep: bool) -> list[str]:
    """The invariants that do not hold in the database at `path`. Blocks.

    Each query has a snapshot of its own: a long one would keep the log from being emptied.
    """
    with closing(connect(path, read_only=True)) as connection:
        found = []
        for invariant in INVARIANTS:
            rows = connection.execute(invariant.offenders).fetchmany(SHOWN_MAX)
            if rows:
                found.append(f"not true that {invariant.rule}: {rows}")
        if deep:
            found += [
                f"the database is damaged: {text}"
                for (text,) in connection.execute(f"PRAGMA integrity_check({SHOWN_MAX})")
                if text != "ok"
            ]
            found += _damaged_bodies(connection)
        return found


def _damaged_bodies(connection: sqlite3.Connection) -> list[str]:
    """The inline bytes that are not those of their digests, with the files that need them."""
    damaged: list[bytes] = []
    last = b""
    query = (
        "SELECT id, digest, data FROM inline JOIN chunk ON id = inline.chunk"
        " WHERE id > ? ORDER BY id LIMIT 256"
    )
    while page := connection.execute(query, (last,)).fetchall():
        last = page[-1][0]
        damaged += [chunk_id for chunk_id, digest, data in page if digest_of([data]) != digest]
    files = _files_of(connection, damaged)
    return [
        f"the bytes of chunk {chunk_id.hex()} in the metadata are damaged, needed by "
        + (", ".join(_shown(connection, ino) for ino in files.get(chunk_id, [])) or "no file")
        for chunk_id in damaged
    ]


def _shown(connection: sqlite3.Connection, ino: int) -> str:
    names = path_of(connection, ino)
    return b"/".join(names).decode("utf-8", "backslashreplace") if names else f"inode {ino}"
