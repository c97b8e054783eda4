"""Reads the bytes of inline chunks from SQLite, as far as a request wants them.

Part of a read of `sqlite_reads`, in its snapshot. One prepared statement for each chunk: measured
for a thousand of 4 KiB, one statement for all of them is not faster, and this one never reads bytes
that do not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from mictlanfs.model import Chunk

_BODY = "SELECT data FROM inline WHERE chunk = ?"


class InlineReader:
    """The bytes that one answer carries, and how many more it may.

    Args:
        per_file_max: bytes for each file.
    """

    def __init__(self, connection: sqlite3.Connection, per_file_max: int) -> None:
        self._execute = connection.execute
        self._per_file_max = per_file_max
        self._left = wire.INLINE_ANSWER_SIZE_BYTES_MAX

    @property
    def is_spent(self) -> bool:
        """Whether a file may get less than what is asked for each."""
        return self._left < self._per_file_max

    def bodies(self, chunks: Iterable[Chunk]) -> tuple[bytes, ...]:
        """The bytes of the inline chunks of one file, in order, as far as they fit."""
        left = min(self._per_file_max, self._left)
        if left <= 0:
            return ()
        found: list[bytes] = []
        for chunk in chunks:
            if chunk.peers:
                continue
            if chunk.length > left:
                break
            row = self._execute(_BODY, (chunk.id,)).fetchone()
            # A chunk without either, in a damaged database, is for the reader to find out.
            body: bytes = row[0] if row else b""
            found.append(body)
            left -= len(body)
            self._left -= len(body)
        return tuple(found)


def read_bodies(connection: sqlite3.Connection, request: wire.GetInline) -> wire.InlineBodies:
    """The bytes of the chunks named, empty for those whose bytes are not here.

    Raises:
        MictlanError: INVALID, when these are too many for one answer.
    """
    if len(request.ids) > wire.FRAME_CHUNKS_MAX:
        detail = f"at most {wire.FRAME_CHUNKS_MAX} chunks are read at once"
        raise MictlanError(Kind.INVALID, "inline", detail=detail)
    # No snapshot is needed: a chunk never changes, and each is for itself.
    rows = [connection.execute(_BODY, (chunk_id,)).fetchone() for chunk_id in request.ids]
    return wire.InlineBodies(tuple([row[0] if row else b"" for row in rows]))
