"""Checksums of the blocks of a chunk: for who reads a part of it and cannot check its digest.

XXH3, 64 bits, over blocks of 16 KiB. They find damage, not deceit: they come from the peer that the
bytes come from. Measured: XXH3 11.8 GB/s, so a block costs 2 us, and reading it for a page in it
3 us; the digest of a whole chunk of 4 MiB, which a random read would otherwise wait for, 1 ms.
"""

from __future__ import annotations

from typing import Final

from xxhash import xxh3_64, xxh3_64_digest

from mictlanfs.model import KIB, Buffer

BLOCK_SIZE_BYTES: Final = 16 * KIB
SUM_SIZE_BYTES: Final = 8


def block_count(length: int) -> int:
    """Blocks of a chunk of `length` bytes; the last one may be shorter."""
    return -(-length // BLOCK_SIZE_BYTES)


def is_good_block(block: Buffer, index: int, sums: Buffer) -> bool:
    """Whether `block` is block `index` of the chunk whose checksums are `sums`."""
    expected = sums[index * SUM_SIZE_BYTES : (index + 1) * SUM_SIZE_BYTES]
    return xxh3_64_digest(block) == expected


class BlockSummer:
    """The checksums of a chunk that comes in pieces of any size."""

    def __init__(self) -> None:
        self._sums: list[bytes] = []
        # The beginning of a block of which the end has not come yet.
        self._begun: xxh3_64 | None = None
        self._room = BLOCK_SIZE_BYTES

    def update(self, data: Buffer) -> None:
        """Add bytes."""
        view = memoryview(data)
        start = 0
        if self._begun is not None:
            start = min(self._room, len(view))
            self._add(view[:start])
        whole_end = start + (len(view) - start) // BLOCK_SIZE_BYTES * BLOCK_SIZE_BYTES
        self._sums += [
            xxh3_64_digest(view[offset : offset + BLOCK_SIZE_BYTES])
            for offset in range(start, whole_end, BLOCK_SIZE_BYTES)
        ]
        if whole_end < len(view):
            self._add(view[whole_end:])

    def sums(self) -> bytes:
        """The checksums, one behind the other; nothing may be added afterwards."""
        if self._begun is not None:
            self._sums.append(self._begun.digest())
            self._begun = None
        return b"".join(self._sums)

    def _add(self, part: memoryview) -> None:
        """Add a part of a block, which does not reach beyond it."""
        if self._begun is None:
            self._begun, self._room = xxh3_64(), BLOCK_SIZE_BYTES
        self._begun.update(part)
        self._room -= len(part)
        if not self._room:
            self._sums.append(self._begun.digest())
            self._begun = None
