"""Which bytes to fetch before they are asked for: a pure window policy, one instance per handle.

A *stream* is a run of reads each starting about where the one before ended. A handle may have two
at a time (a program that reads two places of a file in turn). A stream's window starts at one
chunk's worth and doubles each time the reader has used up half of what was announced, up to
`WINDOW_SIZE_BYTES_MAX`::

    first read --(next one follows on)--> sequential --(reader catches up)--> window doubles
        |                                     |
        +--(jumps elsewhere)--> random        +--(jumps elsewhere)--> another stream

A read at offset 0 counts as sequential at once: most files are read from start to end.
"""

from __future__ import annotations

from dataclasses import dataclass

from mictlanfs.model import MIB

STREAMS_MAX = 2
# The kernel's own read-ahead sends neighbouring requests out of order; a read this far from where
# the stream stands still belongs to it.
TOLERANCE_SIZE_BYTES = 2 * MIB
WINDOW_SIZE_BYTES_FIRST = 4 * MIB
WINDOW_SIZE_BYTES_MAX = 32 * MIB
# So many jumps of one handle to where nothing was read before mean that more will follow.
JUMPS_MAX = 2


@dataclass(slots=True)
class _Stream:
    position: int
    window: int
    announced_end: int
    is_sequential: bool


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about one read.

    Attributes:
        is_sequential: whole chunks are worth fetching; otherwise only the range asked for.
        prefetch_start, prefetch_end: range to fetch in the background; empty when equal.
        is_scattered: the reader turns out to read here and there: any chunk may be the next one.
            Said once.
    """

    is_sequential: bool
    prefetch_start: int = 0
    prefetch_end: int = 0
    is_scattered: bool = False


RANDOM = Advice(is_sequential=False)
SCATTERED = Advice(is_sequential=False, is_scattered=True)


class ReadAhead:
    """The streams of one handle, most recently used last."""

    __slots__ = ("_jumps", "_streams")

    def __init__(self) -> None:
        self._streams: list[_Stream] = []
        self._jumps = 0

    def on_read(self, offset: int, length: int) -> Advice:
        """Note a read of `[offset, offset + length)` and say what to fetch besides it."""
        end = offset + length
        stream = self._find(offset)
        if stream is None:
            is_start = offset == 0
            stream = _Stream(end, WINDOW_SIZE_BYTES_FIRST, end, is_sequential=is_start)
            self._streams.append(stream)
            del self._streams[:-STREAMS_MAX]
            if is_start:
                return Advice(is_sequential=True)
            self._jumps += 1
            return SCATTERED if self._jumps == JUMPS_MAX else RANDOM
        self._streams.remove(stream)
        self._streams.append(stream)
        stream.is_sequential = True
        stream.position = max(stream.position, end)
        return self._announce(stream)

    def _find(self, offset: int) -> _Stream | None:
        for stream in reversed(self._streams):
            if abs(offset - stream.position) <= (
                TOLERANCE_SIZE_BYTES if stream.is_sequential else 0
            ):
                return stream
        return None

    @staticmethod
    def _announce(stream: _Stream) -> Advice:
        ahead = stream.announced_end - stream.position
        if ahead > stream.window // 2:
            return Advice(is_sequential=True)
        start = max(stream.announced_end, stream.position)
        stream.announced_end = stream.position + stream.window
        stream.window = min(2 * stream.window, WINDOW_SIZE_BYTES_MAX)
        return Advice(True, start, max(start, stream.announced_end))
