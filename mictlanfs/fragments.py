"""Erasure code: a chunk as fragments, any `data` of which give it back. The only user of zfec.

Reed-Solomon over GF(2^8), systematic: fragment `i < data` is the bytes `[i * size, (i + 1) * size)`
of the chunk, where `size` is the length divided by `data`, rounded up; what lies behind the end of
the chunk is zeros. The code works byte by byte: the bytes `[lo, hi)` of any `data` fragments give
the bytes `[lo, hi)` of every other one, so a short read never needs whole fragments.

Pure, and slow enough for a thread: see `IN_LOOP_SIZE_BYTES_MAX`. zfec is loaded at first use: its
package brings command line tools along, which would cost every command 40 ms. Source: J. S. Plank,
"A Tutorial on Reed-Solomon Coding for Fault-Tolerance in RAID-like Systems"; zfec's README for its
form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mictlanfs.checksums import digest_of
from mictlanfs.model import KIB, Buffer, Coding

# Bytes of all fragments that are put in together: below this, coding costs less than a thread.
IN_LOOP_SIZE_BYTES_MAX: Final = 64 * KIB


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chunk as fragments.

    Attributes:
        digest: BLAKE3 of the chunk.
        fragments: all of them, those of data first, each of the same size.
        digests: of the fragments, joined.
    """

    digest: bytes
    fragments: Sequence[Buffer]
    digests: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `[start, end)` of fragment `index`, which holds data."""

    index: int
    start: int
    end: int


def fragment_size(length: int, data: int) -> int:
    """Bytes of each fragment of a chunk of `length` bytes."""
    return -(-length // data)


def parts_of(start: int, end: int, length: int, data: int) -> list[Part]:
    """Where the bytes `[start, end)` of a chunk lie, in order; 0 <= start < end <= length."""
    size = fragment_size(length, data)
    return [
        Part(index, max(start - index * size, 0), min(end - index * size, size))
        for index in range(start // size, -(-end // size))
    ]


def encode(pieces: Sequence[Buffer], data: int, parity: int) -> Encoded:
    """The fragments of the chunk that `pieces`, joined, are; its length must be at least `data`.

    The fragments of data may be views of `pieces`, which must not change while they are used.
    """
    whole = _padded(pieces, data)
    from zfec import Encoder  # type: ignore[import-untyped]  # It has no stubs.

    size = len(whole) // data
    cut: list[Buffer] = [whole[index * size : (index + 1) * size] for index in range(data)]
    count = data + parity
    computed = Encoder(data, count).encode(cut, tuple(range(data, count)))
    fragments = [*cut, *computed]
    digests = b"".join([digest_of([fragment]) for fragment in fragments])
    return Encoded(digest_of(pieces), fragments, digests)


def decode(have: Mapping[int, Buffer], coding: Coding, wanted: Sequence[int]) -> list[Buffer]:
    """The same bytes of the fragments `wanted` that `have` gives of at least `data` others.

    Args:
        have: by index, of equal length.
        coding: of the chunk.
        wanted: indices, of data or of parity.

    Raises:
        ValueError: `have` has fewer than `data` fragments.
    """
    if all(index in have for index in wanted):
        return [have[index] for index in wanted]
    if len(have) < coding.data:
        raise ValueError(f"{len(have)} fragments are less than {coding.data}")
    from zfec import Decoder, Encoder

    # Those of data first: what is there need not be computed.
    chosen = sorted(have)[: coding.data]
    decoder = Decoder(coding.data, coding.count)
    primary = decoder.decode([have[index] for index in chosen], tuple(chosen))
    missing = [index for index in wanted if index >= coding.data and index not in have]
    computed: dict[int, Buffer] = dict(enumerate(primary))
    if missing:
        encoder = Encoder(coding.data, coding.count)
        computed.update(zip(missing, encoder.encode(primary, tuple(missing)), strict=True))
    return [have[index] if index in have else computed[index] for index in wanted]


def join(fragments: Sequence[Buffer], length: int) -> memoryview:
    """The chunk of `length` bytes whose fragments of data these are, without the zeros behind."""
    return memoryview(b"".join(fragments))[:length]


def _padded(pieces: Sequence[Buffer], data: int) -> memoryview:
    """`pieces` as one buffer, with zeros up to a multiple of `data`. A single fit one is itself."""
    length = sum(len(piece) for piece in pieces)
    if len(pieces) == 1 and length % data == 0:
        return memoryview(pieces[0]).cast("B")
    return memoryview(b"".join([*pieces, bytes(-length % data)]))
