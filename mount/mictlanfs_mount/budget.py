"""How much memory bytes that are not committed may take, shared by all files. No I/O.

Owned by the trio loop: read and changed without an await.
"""

from __future__ import annotations

import trio


class Budget:
    """How many dirty bytes the mount may hold.

    Attributes:
        charged_bytes: all that ever became dirty; only grows.
        reserved_bytes: held by others than writers, in the same memory.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.charged_bytes = 0
        self.reserved_bytes = 0
        self._changed = trio.Event()

    @property
    def is_exhausted(self) -> bool:
        """Whether a writer has to wait."""
        return self.used_bytes + self.reserved_bytes >= self.limit_bytes

    @property
    def is_filling(self) -> bool:
        """Whether bytes should be released without delay, lest writers have to wait soon."""
        return 2 * (self.used_bytes + self.reserved_bytes) >= self.limit_bytes

    def charge(self, count: int) -> None:
        """Count bytes that are dirty now. May overshoot the limit by one write."""
        self.used_bytes += count
        self.charged_bytes += count

    def release(self, count: int) -> None:
        """Bytes were committed or discarded."""
        self.used_bytes -= count
        assert self.used_bytes >= 0, "more bytes released than charged"
        self.note_change()

    def reserve(self, count: int) -> None:
        """Hold so many bytes more in memory that are not dirty; less when it is negative."""
        self.reserved_bytes += count
        assert self.reserved_bytes >= 0, "more bytes given back than reserved"
        if count < 0:
            self.note_change()

    def note_change(self) -> None:
        """Let those who wait look again."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_changed(self) -> None:
        """Wait until bytes are released, or a window failed to leave."""
        await self._changed.wait()
