"""The extent map against a model: a dict from each known byte to where it lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.model import Chunk, ChunkId, Extent, PeerNumber
from mictlanfs_mount.extents import END_OF_FILE, ExtentMap, Segment

# Offsets up to here are modelled byte by byte; what lies behind is one more byte of the model.
SIZE = 40
Place = tuple[ChunkId, int] | None


def chunk_of(number: int, length: int = 64) -> Chunk:
    return Chunk(ChunkId(number.to_bytes(16, "big")), length, b"d" * 32, (PeerNumber(1),))


def segment(offset: int, end: int, number: int, chunk_offset: int = 0) -> Segment:
    return Segment(offset, end, chunk_of(number), chunk_offset)


def places(segments: list[Segment]) -> dict[int, Place]:
    """Where each byte of some segments lies."""
    return {
        offset: None
        if part.chunk is None
        else (part.chunk.id, part.chunk_offset + offset - part.offset)
        for part in segments
        for offset in range(part.offset, part.end)
    }


@dataclass
class Model:
    """What the map should say: a byte that is missing is unknown, None is a hole."""

    version: int = -1
    known: dict[int, Place] = field(default_factory=dict)

    def set(self, start: int, end: int, found: dict[int, Place]) -> None:
        for offset in range(start, min(end, SIZE)):
            self.known[offset] = found.get(offset)


Ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 12)).map(
    lambda pair: (pair[0], min(SIZE, pair[0] + pair[1]))
)


@st.composite
def disjoint_segments(draw: st.DrawFn) -> list[Segment]:
    """Some segments of chunks that do not overlap, in any order."""
    borders = sorted(draw(st.sets(st.integers(0, SIZE), max_size=8)))
    pairs = list(zip(borders[::2], borders[1::2], strict=False))
    found = [
        segment(start, end, draw(st.integers(1, 4)), draw(st.integers(0, 20)))
        for start, end in pairs
    ]
    return draw(st.permutations(found))


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, object]]:
    kinds = st.one_of(
        st.tuples(
            st.just("learn"),
            st.tuples(Ranges, st.booleans(), disjoint_segments()),
        ),
        st.tuples(st.just("replace"), disjoint_segments()),
        st.tuples(st.just("replace behind"), disjoint_segments()),
        st.tuples(st.just("replace ahead"), disjoint_segments()),
        st.tuples(st.just("truncate"), st.integers(0, SIZE)),
        st.tuples(st.just("truncate ahead"), st.integers(0, SIZE)),
        st.tuples(st.just("reset"), st.none()),
    )
    return draw(st.lists(kinds, max_size=12))


def learn(extents: ExtentMap, model: Model, argument: object) -> None:
    assert isinstance(argument, tuple)
    (start, end), is_whole, found = argument
    rows = [Extent(s.offset, s.end - s.offset, s.chunk.id, s.chunk_offset) for s in found]
    chunks = [chunk_of(number) for number in range(5)]
    extents.learn(start, None if is_whole else end, rows, chunks)
    model.set(start, SIZE if is_whole else end, places(found))


def change(extents: ExtentMap, model: Model, kind: str, argument: object) -> None:
    """Change map and model alike; the model says it byte by byte."""
    if kind == "learn":
        learn(extents, model, argument)
        return
    step = {"ahead": 2, "behind": 0}.get(kind.rpartition(" ")[2], 1)
    version = model.version + step
    if kind == "reset":
        extents.reset(version)
    elif kind.startswith("replace"):
        assert isinstance(argument, list)
        extents.replace(argument, version)
    else:
        assert isinstance(argument, int)
        extents.truncate(argument, version)
    if step == 0:
        return
    model.version = version
    if step == 2 or kind == "reset":
        model.known.clear()
    elif isinstance(argument, list):
        model.known |= places(argument)
    elif isinstance(argument, int):
        model.set(argument, SIZE, {})


def assert_equal(extents: ExtentMap, model: Model) -> None:
    assert extents.content_version == model.version
    for start in range(SIZE):
        unknown = next((o for o in range(start, SIZE) if o not in model.known), None)
        assert extents.first_unknown(start, SIZE) == unknown
        end = SIZE if unknown is None else unknown
        if start < end:
            assert extents.first_unknown(start, end) is None
            found = extents.segments(start, end)
            assert found[0].offset == start
            assert found[-1].end == end
            assert all(one.end == other.offset for one, other in pairwise(found))
            assert all(part.offset < part.end for part in found)
            assert places(found) == {o: model.known[o] for o in range(start, end)}
            around = extents.around(start, end)
            is_one = len(found) == 1 and found[0].chunk is not None
            assert (None if around is None else around.cut(start, end)) == (
                found[0] if is_one else None
            )


@given(changes())
def test_map_says_what_a_dict_of_bytes_says(steps: list[tuple[str, object]]) -> None:
    extents, model = ExtentMap(), Model()
    for kind, argument in steps:
        change(extents, model, kind, argument)
        assert_equal(extents, model)


@given(changes(), Ranges)
def test_every_part_of_a_known_range_is_cut_from_the_whole(
    steps: list[tuple[str, object]], part: tuple[int, int]
) -> None:
    extents, model = ExtentMap(), Model()
    for kind, argument in steps:
        change(extents, model, kind, argument)
    extents.learn(0, None, [], [])
    whole = places(extents.segments(0, SIZE))
    start, end = part
    assert places(extents.segments(start, end)) == {o: whole[o] for o in range(start, end)}


def test_new_map_knows_nothing() -> None:
    extents = ExtentMap()
    assert extents.first_unknown(0, 1) == 0
    assert extents.first_unknown(7, 9) == 7


def test_page_without_extents_makes_a_hole() -> None:
    extents = ExtentMap(3)
    extents.learn(0, None, [], [])
    assert extents.first_unknown(0, 2**62) is None
    assert extents.segments(5, 9) == [Segment(5, 9)]


def test_extent_that_reaches_out_of_the_page_is_cut_to_it() -> None:
    extents = ExtentMap(0)
    one = chunk_of(1)
    extents.learn(10, 20, [Extent(5, 30, one.id, 2)], [one])
    assert extents.segments(10, 20) == [Segment(10, 20, one, 7)]
    assert extents.first_unknown(5, 20) == 5
    assert extents.first_unknown(10, 21) == 20


def test_commit_in_the_middle_of_an_extent_keeps_both_ends() -> None:
    extents = ExtentMap(0)
    old, new = chunk_of(1), chunk_of(2)
    extents.learn(0, None, [Extent(0, 30, old.id, 0)], [old])
    extents.replace([Segment(10, 20, new, 0)], 1)
    assert extents.segments(0, 30) == [
        Segment(0, 10, old, 0),
        Segment(10, 20, new, 0),
        Segment(20, 30, old, 20),
    ]


def test_commit_over_a_change_of_somebody_else_forgets_everything() -> None:
    extents = ExtentMap(4)
    extents.learn(0, None, [], [])
    extents.replace([segment(0, 5, 1)], 6)
    assert extents.content_version == 6
    assert extents.first_unknown(0, 5) == 0


@pytest.mark.parametrize("version", [3, 4])
def test_answer_to_a_commit_that_comes_late_changes_nothing(version: int) -> None:
    extents = ExtentMap(4)
    one = chunk_of(1)
    extents.learn(0, None, [Extent(0, 9, one.id, 0)], [one])
    extents.replace([segment(0, 5, 2)], version)
    extents.truncate(3, version)
    assert extents.content_version == 4
    assert extents.segments(0, 9) == [Segment(0, 9, one, 0)]


def test_behind_a_truncation_everything_is_known_as_a_hole() -> None:
    extents = ExtentMap(0)
    one = chunk_of(1)
    extents.learn(0, 20, [Extent(0, 20, one.id, 0)], [one])
    extents.truncate(8, 1)
    assert extents.segments(0, 50) == [Segment(0, 8, one, 0), Segment(8, 50)]
    assert extents.first_unknown(8, END_OF_FILE) is None


def test_segment_cut_moves_the_place_in_the_chunk() -> None:
    one = chunk_of(1)
    assert Segment(10, 30, one, 5).cut(12, 20) == Segment(12, 20, one, 7)
    assert Segment(10, 30, one, 5).cut(0, 99) == Segment(10, 30, one, 5)


def test_pieces_are_counted_where_they_begin() -> None:
    known = ExtentMap(1)
    chunk = chunk_of(1)
    extents = [Extent(offset, 5, chunk.id, 0) for offset in (0, 10, 20)]
    known.learn(0, None, extents, [chunk])
    assert [known.count(0, end) for end in (0, 1, 10, 11, 100)] == [0, 1, 1, 2, 3]
    assert (known.count(10, 20), known.count(21, 100)) == (1, 0)
