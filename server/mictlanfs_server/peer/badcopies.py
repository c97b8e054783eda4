"""The copies that a peer took out of service: what the index keeps of them.

Owns the statements on the table `bad`. Knows neither files nor routers. A copy gets here in the
transaction in which its row in `chunks` goes, so it is served or bad, never both; and it leaves by
`forget`, when it was kept aside for long enough, or when a good copy of the same chunk is found bad
in its turn.

::

    in service --(found bad or missing)--> not told --(a router answered)--> told --> forgotten
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mictlanfs.model import ChunkId
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.index import take_row

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from mictlanfs_server.peer.index import Index, Transaction

# The reason of a copy that is not there; every other one is bad.
MISSING: Final = "it is missing"

_TOLD: Final = 1
_TOLD_LAST: Final = 2

_FIND: Final = "SELECT length, digest FROM chunks WHERE id = ?"
_ADD: Final = """
INSERT INTO bad (id, length, digest, body, is_file, reason, found_s, state)
VALUES (?, ?, ?, ?, ?, ?, ?, 0)
"""
_REMOVE: Final = "DELETE FROM bad WHERE id = ? RETURNING body"
_REMOVE_BODY: Final = "DELETE FROM bodies WHERE number = ?"
_NOT_TOLD: Final = "SELECT id FROM bad WHERE state = 0 ORDER BY number LIMIT ?"
_TELL: Final = "UPDATE bad SET state = ? WHERE id = ?"
# The last copies stay longest: some of their bytes may be all there is.
_ASIDE: Final = """
SELECT id, length, digest, is_file, found_s FROM bad WHERE state > 0
ORDER BY state = 2, found_s, number
"""
_TOTALS: Final = """
SELECT count(*), coalesce(sum(iif(is_file OR body IS NOT NULL, length, 0)), 0),
    coalesce(sum(state = 0), 0)
FROM bad
"""
_FILES: Final = "SELECT id, length, digest FROM bad WHERE is_file"


@dataclass(frozen=True, slots=True)
class Aside:
    """A bad copy of which a router knows.

    Attributes:
        is_file: whether the back end keeps it aside; a small or missing one is no file.
        found_s: seconds since the epoch.
    """

    chunk: StoredChunk
    is_file: bool
    found_s: int


def condemn(
    chunk: StoredChunk, reason: str, *, is_file: bool
) -> Callable[[Transaction], StoredChunk | None]:
    """A change that takes a chunk out of service; what it was, None when it was not in service.

    Args:
        chunk: as it was when it was found to be bad; another one of its id stays.
        reason: for people.
        is_file: whether the back end keeps its bytes aside.
    """

    def apply(transaction: Transaction) -> StoredChunk | None:
        if transaction.execute(_FIND, (chunk.id,)).fetchall() != [(chunk.length, chunk.digest)]:
            return None
        found = take_row(transaction, chunk.id)
        assert found is not None
        entry, body = found
        _forget(transaction, chunk.id)
        values = (entry.id, entry.length, entry.digest, body, is_file, reason, int(time.time()))
        transaction.execute(_ADD, values)
        return entry

    return apply


def not_told(index: Index, count_max: int) -> list[ChunkId]:
    """Chunks of which no router has confirmed that it knows, oldest first. In any thread."""
    return [ChunkId(row[0]) for row in index.select(_NOT_TOLD, (count_max,))]


def told(chunk_ids: Sequence[ChunkId], last: Collection[ChunkId]) -> Callable[[Transaction], None]:
    """A change that notes that a router knows; `last` are those that had no other copy."""

    def apply(transaction: Transaction) -> None:
        for chunk_id in chunk_ids:
            state = _TOLD_LAST if chunk_id in last else _TOLD
            transaction.execute(_TELL, (state, chunk_id))

    return apply


def kept_aside(index: Index) -> list[Aside]:
    """The bad copies of which routers know, in the order in which they may go. In any thread."""
    return [
        Aside(StoredChunk(ChunkId(row[0]), row[1], row[2]), bool(row[3]), row[4])
        for row in index.select(_ASIDE)
    ]


def files_aside(index: Index) -> set[StoredChunk]:
    """The bad copies that the back end keeps. In any thread."""
    return {StoredChunk(ChunkId(row[0]), row[1], row[2]) for row in index.select(_FILES)}


def totals(index: Index) -> tuple[int, int, int]:
    """Number of bad copies, bytes kept of them, and how many no router knows. In any thread."""
    [(count, size, untold_count)] = index.select(_TOTALS)
    return count, size, untold_count


def forget(chunk_ids: Sequence[ChunkId]) -> Callable[[Transaction], None]:
    """A change that lets go of bad copies, but for their files."""

    def apply(transaction: Transaction) -> None:
        for chunk_id in chunk_ids:
            _forget(transaction, chunk_id)

    return apply


def _forget(transaction: Transaction, chunk_id: ChunkId) -> None:
    for (body,) in transaction.execute(_REMOVE, (chunk_id,)).fetchall():
        if body is not None:
            transaction.execute(_REMOVE_BODY, (body,))
