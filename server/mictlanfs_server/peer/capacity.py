"""How much a peer may still take: arithmetic over what it holds, what is on its way, and the disk.

Owns the bytes that are promised to uploads in flight. Never touches the disk itself. Used in the
event loop only; nothing here awaits, so a promise is checked and made in one step.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A peer calls itself full while it can still take what is on its way to it.
FULL_BELOW_BYTES: Final = 64 * MIB
FULL_BELOW_PERCENT: Final = 2
# Other users of the disk change what it offers all the time. Steps of 1/64 (of the next power of
# two) keep the announced figure, and with it the peer map, from changing with every heartbeat.
_STEP_BITS: Final = 6


class Capacity:
    """The space of one peer.

    Args:
        limit: bytes it may hold; None: what the disk offers.
        reserve: bytes that stay free on the disk.
        free_bytes: of the disk; None where there is no telling, then `limit` alone counts.
        used_bytes: what the peer holds.
        sharers: tells how many peers are on the same disk, at least 1. Each counts its part of
            what is free, so that together they do not announce the disk several times over.
    """

    def __init__(
        self,
        limit: int | None,
        reserve: int,
        free_bytes: Callable[[], int | None],
        used_bytes: Callable[[], int],
        sharers: Callable[[], int] = lambda: 1,
    ) -> None:
        self._limit = limit
        self._reserve = reserve
        self._free_bytes = free_bytes
        self._used_bytes = used_bytes
        self._sharers = sharers
        self._promised = 0

    @property
    def total(self) -> int:
        """Bytes the peer may hold: `limit`, or less when the disk does not offer as much."""
        offered = self._offered()
        if offered is None:
            return self._limit or 0
        used = self._used_bytes()
        total = max(used, _rounded_down(used + max(offered, 0) // self._sharers()))
        return total if self._limit is None else min(self._limit, total)

    @property
    def left(self) -> int:
        """Bytes it can still promise; below 0 when others filled the disk."""
        bounds = []
        offered = self._offered()
        if offered is not None:
            bounds.append(offered)
        if self._limit is not None:
            bounds.append(self._limit - self._used_bytes())
        return min(bounds, default=0) - self._promised

    @property
    def is_full(self) -> bool:
        """Whether writers should look elsewhere."""
        return self.left < min(FULL_BELOW_BYTES, self.total * FULL_BELOW_PERCENT // 100) or (
            self.left <= 0
        )

    @contextmanager
    def promise(self, length: int) -> Iterator[None]:
        """Keep `length` bytes for an upload while it runs.

        Raises:
            MictlanError: NO_SPACE.
        """
        if length > self.left:
            raise MictlanError(Kind.NO_SPACE, "put chunk", detail="this peer is full")
        self._promised += length
        try:
            yield
        finally:
            self._promised -= length

    def _offered(self) -> int | None:
        free = self._free_bytes()
        return None if free is None else free - self._reserve


def _rounded_down(size: int) -> int:
    bits = max(size.bit_length() - _STEP_BITS, 0)
    return size >> bits << bits
