"""Dirty bytes of one window of a file, newest wins.

Owns the buffers: a large write's buffer is kept as it came from the kernel, small neighbouring ones
are joined, so that a log written in short lines does not become thousands of buffers. Pieces are
sorted and never overlap. No I/O, no awaits.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from operator import attrgetter

from mictlanfs.model import KIB, Buffer

JOINED_SIZE_BYTES_MAX = 128 * KIB
_start_of = attrgetter("start")


@dataclass(slots=True)
class Piece:
    """Bytes `data` at offset `start` of the file. A bytearray is owned and may grow."""

    start: int
    data: Buffer

    @property
    def end(self) -> int:
        """The offset just behind the piece."""
        return self.start + len(self.data)

    def cut(self, start: int, end: int) -> Piece:
        """The part within `[start, end)`."""
        part = memoryview(self.data)[start - self.start : end - self.start]
        # A view would forbid growing a bytearray, and a small one keeps all of a large write in
        # memory that nobody counts: such parts get a copy.
        is_small = 2 * len(part) < _held_size(part)
        if isinstance(self.data, bytearray) or is_small:
            return Piece(start, bytes(part))
        return Piece(start, part)


def _held_size(view: memoryview) -> int:
    """Bytes that stay in memory for as long as a view of some of them does."""
    return len(view.obj) if isinstance(view.obj, bytes | bytearray) else len(view)


class Pieces:
    """The dirty bytes of a window.

    Attributes:
        size: bytes in all pieces.
    """

    __slots__ = ("_pieces", "size")

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self.size = 0

    @property
    def count(self) -> int:
        """How many pieces there are: at least as many as `runs`."""
        return len(self._pieces)

    def write(self, start: int, data: Buffer) -> int:
        """Put `data` at `start`; returns by how many bytes `size` changed, at least 0."""
        before = self.size
        end = start + len(data)
        last = self._pieces[-1] if self._pieces else None
        if last is None or last.end <= start:
            self._append(last, start, data)
        else:
            self._cut_out(start, end)
            index = bisect_right(self._pieces, start, key=_start_of)
            self._pieces.insert(index, Piece(start, data))
            self.size += len(data)
        return self.size - before

    def _append(self, last: Piece | None, start: int, data: Buffer) -> None:
        self.size += len(data)
        is_joinable = (
            last is not None
            and last.end == start
            and len(last.data) + len(data) <= JOINED_SIZE_BYTES_MAX
        )
        if last is None or not is_joinable:
            self._pieces.append(Piece(start, data))
            return
        if not isinstance(last.data, bytearray):
            last.data = bytearray(last.data)
        last.data += data

    def collect(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """Copies of the dirty bytes within `[start, end)`, each with its offset."""
        found: list[tuple[int, bytes]] = []
        index = max(bisect_right(self._pieces, start, key=_start_of) - 1, 0)
        for piece in self._pieces[index:]:
            if piece.start >= end:
                break
            low, high = max(piece.start, start), min(piece.end, end)
            if low < high:
                found.append((low, bytes(piece.data[low - piece.start : high - piece.start])))
        return found

    def split(self, size_max: int) -> list[Pieces]:
        """The same bytes as several windows, of at most `size_max` bytes each."""
        parts = [Pieces()]
        for piece in self._pieces:
            start = piece.start
            while start < piece.end:
                if parts[-1].size == size_max:
                    parts.append(Pieces())
                end = min(piece.end, start + size_max - parts[-1].size)
                # Copies: they are small, and nobody else counts what a view would keep in memory.
                parts[-1]._append(None, start, bytes(piece.cut(start, end).data))
                start = end
        return parts

    def located(self) -> list[tuple[int, Buffer]]:
        """All dirty bytes in order of offset, each piece with its own."""
        return [(piece.start, piece.data) for piece in self._pieces]

    def buffers(self) -> list[Buffer]:
        """All dirty bytes in order of offset. The pieces must not change while they are used."""
        return [piece.data for piece in self._pieces]

    def runs(self) -> list[tuple[int, int]]:
        """The dirty ranges, neighbours joined, in order of offset."""
        joined: list[tuple[int, int]] = []
        for piece in self._pieces:
            if joined and joined[-1][1] == piece.start:
                joined[-1] = (joined[-1][0], piece.end)
            else:
                joined.append((piece.start, piece.end))
        return joined

    def _cut_out(self, start: int, end: int) -> None:
        first = max(bisect_right(self._pieces, start, key=_start_of) - 1, 0)
        last = first
        kept: list[Piece] = []
        while last < len(self._pieces) and self._pieces[last].start < end:
            piece = self._pieces[last]
            last += 1
            self.size -= len(piece.data)
            if piece.start < start:
                kept.append(piece.cut(piece.start, start) if piece.end > start else piece)
            if piece.end > end:
                kept.append(piece.cut(end, piece.end))
        self.size += sum(len(piece.data) for piece in kept)
        self._pieces[first:last] = kept
