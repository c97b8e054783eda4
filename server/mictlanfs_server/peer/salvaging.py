"""What can still be read of a damaged index. Nothing is changed there.

SQLite refuses a query that meets a damaged page. So rows are asked for a few hundred at a time,
then one by one; behind a row that cannot be had others are looked for over all ids, and the first
of them by halves.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mictlanfs.checksums import DIGEST_SIZE_BYTES
from mictlanfs.model import CHUNK_ID_SIZE_BYTES, CHUNK_SIZE_BYTES_MAX, ChunkId
from mictlanfs_server.peer.backends.base import StoredChunk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

_ROWS: Final = "SELECT id, length, digest, body FROM chunks WHERE id > ? ORDER BY id LIMIT ?"
_BODY: Final = "SELECT body FROM bodies WHERE number = ?"
_PAGE_COUNT: Final = 256
# Places that cannot be read; each costs some hundred looks at pages.
_FAILURES_MAX: Final = 1000
_PROBES: Final = 256
_POSITIONS: Final = 2 ** (8 * CHUNK_ID_SIZE_BYTES)


class Salvaged(NamedTuple):
    """A row: a chunk, whether the index had its bytes, and these, if they can be read."""

    chunk: StoredChunk
    is_small: bool
    body: bytes | None


def salvaged(path: Path) -> Iterator[Salvaged]:
    """The rows of the index at `path` that can be read, in order of ids. Blocks."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as found:
            for row in _rows(found):
                chunk_id, length, digest, number = row
                body = None if number is None else _body(found, number)
                chunk = StoredChunk(ChunkId(chunk_id), length, digest)
                yield Salvaged(chunk, number is not None, body)
    except sqlite3.Error as error:
        log.warning("nothing more of the index can be read: %s", error)


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[bytes, int, bytes, int | None]]:
    after, count = b"", _PAGE_COUNT
    for _ in range(_FAILURES_MAX):
        try:
            while rows := connection.execute(_ROWS, (after, count)).fetchall():
                for row in rows:
                    _check(row, after)
                    after = row[0]
                    yield row
            return
        except sqlite3.DatabaseError:
            # One by one up to the row that cannot be had.
            if count > 1:
                count = 1
                continue
        behind = _behind(connection, int.from_bytes(after, "big"))
        if behind is None:
            return
        after, count = behind, _PAGE_COUNT


def _behind(connection: sqlite3.Connection, low: int) -> bytes | None:
    """Where rows can be read again behind `low`, where they cannot; None: nowhere is found."""
    span = _POSITIONS - 1 - low
    while span:
        step = max(1, span // _PROBES)
        for high in range(low + step, low + span + 1, step):
            if _is_readable(connection, high):
                return _first_readable(connection, high - step, high)
        # Everything further away is damaged as well; ids may be close together.
        span //= _PROBES
    return None


def _first_readable(connection: sqlite3.Connection, low: int, high: int) -> bytes:
    """A place in `(low, high]` behind which rows can be read, and in front of which they cannot."""
    while high - low > 1:
        middle = (low + high) // 2
        if _is_readable(connection, middle):
            high = middle
        else:
            low = middle
    return _id_at(high)


def _is_readable(connection: sqlite3.Connection, position: int) -> bool:
    after = _id_at(position)
    try:
        for row in connection.execute(_ROWS, (after, 1)).fetchall():
            _check(row, after)
    except sqlite3.DatabaseError:
        return False
    return True


def _id_at(position: int) -> bytes:
    return position.to_bytes(CHUNK_ID_SIZE_BYTES, "big")


def _check(row: tuple[Any, ...], after: bytes) -> None:
    """Raise for what no index ever had: a damaged page may say anything, in any order."""
    chunk_id, length, digest, number = row
    is_good = (
        (isinstance(chunk_id, bytes) and len(chunk_id) == CHUNK_ID_SIZE_BYTES and chunk_id > after)
        and (isinstance(length, int) and 1 <= length <= CHUNK_SIZE_BYTES_MAX)
        and (isinstance(digest, bytes) and len(digest) == DIGEST_SIZE_BYTES)
        and (number is None or isinstance(number, int))
    )
    if not is_good:
        raise sqlite3.DatabaseError(f"a row of the index is damaged: {row!r:.200}")


def _body(connection: sqlite3.Connection, number: int) -> bytes | None:
    try:
        row = connection.execute(_BODY, (number,)).fetchone()
    except sqlite3.DatabaseError:
        return None
    return row[0] if row is not None and isinstance(row[0], bytes) else None
