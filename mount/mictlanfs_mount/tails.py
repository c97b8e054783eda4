"""The last bytes of files that were committed as inline chunks by this mount.

A log that is flushed after each line would become thousands of tiny extents. So a window that
continues such bytes is committed together with them, as one new inline chunk over both, for as long
as that is small enough. Nothing may be lost by that when another mount writes in between: the
commit carries the content version that the file had with these bytes, and the router refuses it
when the file is of another one; then only what is new is committed. Pure data, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachetools import LRUCache

if TYPE_CHECKING:
    from mictlanfs.model import InodeNumber
    from mictlanfs_mount.pieces import Pieces

# Files that are appended to in turn.
FILES_MAX = 256


@dataclass(frozen=True, slots=True)
class Tail:
    """Committed bytes of a file from `start` on, when it was of `content_version`."""

    start: int
    body: bytes
    content_version: int


class Tails:
    """What was committed last of each file, while it can be continued.

    Args:
        size_max: of an inline chunk.
    """

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._tails: LRUCache[InodeNumber, Tail] = LRUCache(FILES_MAX)

    def note(self, ino: InodeNumber, start: int, body: bytes, content_version: int) -> None:
        """This mount committed `body` at `start`; empty: something that cannot be continued."""
        if 0 < len(body) < self._size_max:
            self._tails[ino] = Tail(start, body, content_version)
        else:
            self._tails.pop(ino, None)

    def forget(self, ino: InodeNumber) -> None:
        """What follows shall be committed by itself."""
        self._tails.pop(ino, None)

    def before(self, ino: InodeNumber, pieces: Pieces) -> Tail | None:
        """What `pieces` continue and still fit behind."""
        tail = self._tails.get(ino)
        if tail is None or len(tail.body) + pieces.size > self._size_max:
            return None
        return tail if tail.start + len(tail.body) == pieces.runs()[0][0] else None
