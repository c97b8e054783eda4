"""Which parts of chunks a read needs, and that each byte lands where it belongs."""

from __future__ import annotations

import random

import pytest

from mictlanfs.checksums import digest_of
from mictlanfs.model import KIB, MIB, Chunk, ChunkId, PeerNumber
from mictlanfs_mount.chunkparts import RATIO_MAX, SHORT_SIZE_BYTES, parts_of
from mictlanfs_mount.extents import Segment


def chunk_of(body: bytes, number: int) -> Chunk:
    return Chunk(ChunkId(bytes([number]) * 16), len(body), digest_of([body]), (PeerNumber(1),))


OLD_BODY, NEW_BODY = random.Random(1).randbytes(MIB), random.Random(2).randbytes(64 * KIB)
OLD, NEW = chunk_of(OLD_BODY, 1), chunk_of(NEW_BODY, 2)
BODIES = {OLD.id: OLD_BODY, NEW.id: NEW_BODY}


def alternating() -> tuple[list[Segment], bytes]:
    """A file of 1 MiB whose every 16th page was written anew, and its content."""
    segments: list[Segment] = []
    content = bytearray(OLD_BODY)
    for index in range(16):
        start, middle = index * 64 * KIB, index * 64 * KIB + 4 * KIB
        segments.append(Segment(start, middle, NEW, index * 4 * KIB))
        segments.append(Segment(middle, start + 64 * KIB, OLD, middle))
        content[start:middle] = NEW_BODY[index * 4 * KIB : (index + 1) * 4 * KIB]
    return segments, bytes(content)


def test_alternating_pieces_of_two_chunks_are_one_part_of_each() -> None:
    segments, content = alternating()
    parts = parts_of(segments)
    assert [(part.chunk.id, part.start, part.end) for part in parts] == [
        (NEW.id, 0, 64 * KIB),
        (OLD.id, 4 * KIB, MIB),
    ]
    buffer = bytearray(MIB)
    for part in parts:
        part.copy(BODIES[part.chunk.id][part.start : part.end], memoryview(buffer), 0)
    assert bytes(buffer) == content


def test_bytes_land_where_they_belong_in_a_buffer_of_a_part_of_the_file() -> None:
    segments, content = alternating()
    start, end = 100 * KIB + 1, 300 * KIB + 3
    cut = [s.cut(start, end) for s in segments if s.end > start and s.offset < end]
    buffer = bytearray(end - start)
    for part in parts_of(cut):
        part.copy(BODIES[part.chunk.id][part.start : part.end], memoryview(buffer), start)
    assert bytes(buffer) == content[start:end]


def test_holes_need_nothing() -> None:
    assert parts_of([Segment(0, 10), Segment(10, 20, OLD, 5), Segment(20, 30)])[0].end == 15
    assert parts_of([Segment(0, 10)]) == []


@pytest.mark.parametrize("is_near", [True, False])
def test_pieces_far_apart_are_read_for_themselves(is_near: bool) -> None:
    used = SHORT_SIZE_BYTES
    end = RATIO_MAX * used + (0 if is_near else 1)
    one = Segment(0, used // 2, OLD, 0)
    other = Segment(used // 2, used, OLD, end - used // 2)
    ranges = [(part.start, part.end) for part in parts_of([one, other])]
    far = [(0, used // 2), (end - used // 2, end)]
    assert ranges == ([(0, end)] if is_near else far)


def test_short_pieces_that_are_not_far_apart_are_read_together() -> None:
    one = Segment(0, 1, OLD, 0)
    other = Segment(1, 2, OLD, SHORT_SIZE_BYTES - 1)
    assert [(part.start, part.end) for part in parts_of([one, other])] == [(0, SHORT_SIZE_BYTES)]
