"""The dirty bytes of a window against a model: a bytearray and a mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.model import KIB, Buffer
from mictlanfs_mount import pieces as pieces_module
from mictlanfs_mount.pieces import JOINED_SIZE_BYTES_MAX, Pieces

SIZE = 60


@dataclass
class Model:
    """The same bytes, one by one."""

    content: bytearray = field(default_factory=lambda: bytearray(SIZE))
    is_dirty: list[bool] = field(default_factory=lambda: [False] * SIZE)

    def write(self, start: int, data: Buffer) -> None:
        self.content[start : start + len(data)] = data
        self.is_dirty[start : start + len(data)] = [True] * len(data)

    def runs(self) -> list[tuple[int, int]]:
        marks = [False, *self.is_dirty, False]
        borders = [o for o, (one, other) in enumerate(pairwise(marks)) if one != other]
        return list(zip(borders[::2], borders[1::2], strict=True))

    def bytes_of(self, start: int, end: int) -> dict[int, int]:
        return {o: self.content[o] for o in range(start, end) if self.is_dirty[o]}


def bytes_of(found: list[tuple[int, bytes]]) -> dict[int, int]:
    laid_out = [(start + i, byte) for start, data in found for i, byte in enumerate(data)]
    assert len(dict(laid_out)) == len(laid_out), "a byte was given twice"
    return dict(laid_out)


@st.composite
def writes(draw: st.DrawFn) -> list[tuple[int, Buffer]]:
    """Writes as the kernel and the splitting at windows give them: bytes, or views of bytes."""
    found: list[tuple[int, Buffer]] = []
    for _ in range(draw(st.integers(1, 14))):
        # Often where the last one ended, since those are joined.
        follows_on = draw(st.booleans())
        end = found[-1][0] + len(found[-1][1]) if found else 0
        start = end if follows_on else draw(st.integers(0, SIZE - 1))
        length = draw(st.integers(1, 16))
        if start + length > SIZE:
            continue
        data = draw(st.binary(min_size=length, max_size=length))
        is_view = draw(st.booleans())
        found.append((start, memoryview(b"<" + data + b">")[1:-1] if is_view else data))
    return found


@given(writes(), st.integers(0, SIZE), st.integers(0, SIZE), st.integers(1, 20))
def test_bytes_and_ranges_are_those_of_a_plain_array(
    steps: list[tuple[int, Buffer]], a: int, b: int, joined_max: int
) -> None:
    # Small, so that the limit of joining is met.
    limit, pieces_module.JOINED_SIZE_BYTES_MAX = pieces_module.JOINED_SIZE_BYTES_MAX, joined_max
    try:
        pieces, model = Pieces(), Model()
        for start, data in steps:
            before = pieces.size
            grown = pieces.write(start, data)
            model.write(start, data)
            assert grown == pieces.size - before >= 0
            assert pieces.size == sum(model.is_dirty)
            assert pieces.runs() == model.runs()
            assert bytes_of(pieces.collect(0, SIZE)) == model.bytes_of(0, SIZE)
        low, high = sorted((a, b))
        assert bytes_of(pieces.collect(low, high)) == model.bytes_of(low, high)
        dirty = bytes(byte for _, byte in sorted(model.bytes_of(0, SIZE).items()))
        assert b"".join(pieces.buffers()) == dirty
    finally:
        pieces_module.JOINED_SIZE_BYTES_MAX = limit


@given(writes(), writes())
def test_what_was_collected_never_changes(
    before: list[tuple[int, Buffer]], after: list[tuple[int, Buffer]]
) -> None:
    pieces = Pieces()
    for start, data in before:
        pieces.write(start, data)
    found = pieces.collect(0, SIZE)
    kept = [(start, bytes(bytearray(data))) for start, data in found]
    for start, data in after:
        pieces.write(start, data)
    assert found == kept


@given(writes())
def test_data_handed_in_is_never_changed(steps: list[tuple[int, Buffer]]) -> None:
    pieces = Pieces()
    copies = [bytes(data) for _, data in steps]
    for start, data in steps:
        pieces.write(start, data)
    assert [bytes(data) for _, data in steps] == copies


def test_lines_of_a_log_become_one_buffer() -> None:
    pieces = Pieces()
    for number in range(1000):
        pieces.write(100 * number, b"x" * 100)
    assert len(pieces.buffers()) == 1
    assert pieces.runs() == [(0, 100_000)]


def test_joined_buffer_stops_growing_at_the_limit() -> None:
    pieces = Pieces()
    for number in range(8):
        pieces.write(number * 64 * KIB, b"x" * (64 * KIB))
    assert [len(buffer) for buffer in pieces.buffers()] == [JOINED_SIZE_BYTES_MAX] * 4
    assert pieces.runs() == [(0, 512 * KIB)]


def test_large_write_is_kept_as_it_came() -> None:
    pieces = Pieces()
    data = b"x" * (JOINED_SIZE_BYTES_MAX + 1)
    pieces.write(0, data)
    assert pieces.buffers()[0] is data


def test_part_cut_from_a_joined_buffer_does_not_forbid_its_growth() -> None:
    pieces = Pieces()
    pieces.write(0, b"aaaa")
    pieces.write(4, b"bbbb")
    pieces.write(2, b"-")
    pieces.write(8, b"cccc")
    assert b"".join(pieces.buffers()) == b"aa-abbbbcccc"


def test_nothing_is_collected_from_an_empty_window() -> None:
    pieces = Pieces()
    assert pieces.collect(0, 100) == []
    assert pieces.runs() == []
    assert pieces.buffers() == []


def test_what_is_left_of_large_writes_does_not_keep_all_of_them_in_memory() -> None:
    pieces = Pieces()
    for number in range(16):
        pieces.write(number * 4 * KIB, b"x" * (1024 * KIB))
    bases = [memoryview(buffer).obj for buffer in pieces.buffers()]
    held_bytes = sum(len(base) for base in bases if isinstance(base, bytes | bytearray))
    assert held_bytes <= 2 * pieces.size


def test_split_keeps_every_byte_in_windows_of_bounded_size() -> None:
    pieces = Pieces()
    pieces.write(100, b"a" * 250)
    pieces.write(1000, b"b" * 30)
    pieces.write(500, b"c" * 220)
    parts = pieces.split(200)
    assert [part.size for part in parts] == [200, 200, 100]
    located = [found for part in parts for found in part.located()]
    assert b"".join(data for _, data in located) == b"a" * 250 + b"c" * 220 + b"b" * 30
    assert [run for part in parts for run in part.runs()] == [
        (100, 300), (300, 350), (500, 650), (650, 720), (1000, 1030),
    ]  # fmt: skip
