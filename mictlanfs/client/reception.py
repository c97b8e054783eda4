"""Where a large body goes while it arrives, so that what has arrived outlives the connection.

Owned by whoever asks for the body. One transfer at a time fills it; when that breaks off, another
one, from the same server or another, may go on where it ended.
"""

from __future__ import annotations

from typing import Final

from mictlanfs.model import KIB, Buffer

# How finely progress is noted: of a transfer that breaks off, less than this is lost.
STEP_SIZE_BYTES: Final = 256 * KIB


class Reception:
    """A body of `size` bytes.

    Attributes:
        buffer: all of it; bytes from `count` on mean nothing.
        count: bytes that have arrived, from the start.
    """

    __slots__ = ("buffer", "count")

    def __init__(self, size: int) -> None:
        self.buffer = bytearray(size)
        self.count = 0

    @property
    def is_complete(self) -> bool:
        """Whether all bytes have arrived."""
        return self.count == len(self.buffer)

    @property
    def missing_size(self) -> int:
        """Bytes that have not arrived."""
        return len(self.buffer) - self.count

    def rest(self) -> memoryview:
        """The part of the buffer that is still to be filled, for writing."""
        return memoryview(self.buffer)[self.count :]

    def add(self, part: Buffer) -> None:
        """Take `part`, the bytes that come next, which must not be too many."""
        end = self.count + len(part)
        if end > len(self.buffer):
            raise ValueError(f"{len(part)} bytes are too many: {self.missing_size} are missing")
        memoryview(self.buffer)[self.count : end] = part
        self.count = end
