"""Which part of each chunk a read needs, when a file alternates between pieces of a few chunks.

A file that was written here and there has hundreds of extents in one MiB, of two or three chunks.
Asking for each piece would cost more than copying all that lies between them. Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mictlanfs.model import KIB, Buffer, Chunk, ChunkId
from mictlanfs_mount.extents import Segment

# Pieces of a chunk are read as one range when it is at most so many times as long as they are ...
RATIO_MAX = 4
# ... or shorter than this: a request costs as much as so many bytes.
SHORT_SIZE_BYTES = 64 * KIB


@dataclass(slots=True)
class ChunkPart:
    """Bytes `[start, end)` of a chunk.

    Attributes:
        segments: of the file, whose bytes are in the range.
    """

    chunk: Chunk
    start: int
    end: int
    segments: list[Segment]

    def copy(self, body: Buffer, into: memoryview, offset: int) -> None:
        """Copy the bytes of the part, `body`, into those of the file from `offset` on."""
        source = memoryview(body)
        for segment in self.segments:
            first, length = segment.chunk_offset - self.start, segment.end - segment.offset
            place = segment.offset - offset
            into[place : place + length] = source[first : first + length]


def parts_of(segments: Sequence[Segment]) -> list[ChunkPart]:
    """What is to be read of which chunks so that all `segments` are; holes need nothing."""
    pieces: dict[ChunkId, list[Segment]] = {}
    for segment in segments:
        if segment.chunk is not None:
            pieces.setdefault(segment.chunk.id, []).append(segment)
    parts: list[ChunkPart] = []
    for of_chunk in pieces.values():
        whole = _part(of_chunk)
        used = sum(segment.end - segment.offset for segment in of_chunk)
        if whole.end - whole.start <= max(RATIO_MAX * used, SHORT_SIZE_BYTES):
            parts.append(whole)
        else:
            parts += [_part([segment]) for segment in of_chunk]
    return parts


def _part(segments: list[Segment]) -> ChunkPart:
    """The part that all these segments of one chunk are in."""
    chunk = segments[0].chunk
    assert chunk is not None
    start = min(segment.chunk_offset for segment in segments)
    end = max(s.chunk_offset + s.end - s.offset for s in segments)
    return ChunkPart(chunk, start, end, segments)
