from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mictlanfs.model import KIB, MIB, Chunk
from mictlanfs_mount.chunkcache.base import BLOCK_SIZE_BYTES, block_bounds, block_indices
from mictlanfs_mount.chunkcache.memory import ENTRY_OVERHEAD_BYTES, MemoryLevel
from tests.unit.mount.chunkcache.making import content, make_chunk

BLOCK = BLOCK_SIZE_BYTES


def block_of(body: bytes, index: int) -> bytes:
    return body[index * BLOCK : (index + 1) * BLOCK]


def test_the_least_recently_used_chunk_goes_first() -> None:
    level = MemoryLevel(2 * (1000 + ENTRY_OVERHEAD_BYTES))
    (first, _), (second, _), (third, _) = chunks = [make_chunk(1000, seed) for seed in range(3)]
    for chunk, body in chunks[:2]:
        level.put_whole(chunk, body)
    assert level.get(first, 0, 1) is not None
    level.put_whole(*chunks[2])
    assert level.get(second, 0, 1) is None
    assert level.get(first, 0, 1) is not None
    assert level.get(third, 0, 1) is not None
    assert level.stats().evictions == 1


def test_a_chunk_larger_than_the_budget_evicts_nothing() -> None:
    level = MemoryLevel(10_000)
    small, small_body = make_chunk(100)
    level.put_whole(small, small_body)
    level.put_whole(*make_chunk(10_000))
    assert content(level.get(small, 0, 100)) == small_body
    assert level.stats().entries == 1


def test_a_budget_of_nothing_keeps_nothing() -> None:
    level = MemoryLevel(0)
    chunk, body = make_chunk(1)
    level.put_whole(chunk, body)
    level.put_block(chunk, 0, body)
    assert level.stats().entries == 0


def test_shrinking_the_budget_evicts_at_once() -> None:
    level = MemoryLevel(MIB)
    chunks = [make_chunk(1000, seed) for seed in range(10)]
    for chunk, body in chunks:
        level.put_whole(chunk, body)
    level.resize(3 * (1000 + ENTRY_OVERHEAD_BYTES))
    held = [chunk for chunk, _ in chunks if level.has_whole(chunk.id)]
    assert held == [chunk for chunk, _ in chunks[-3:]]


def test_a_range_inside_a_block_is_served_from_it() -> None:
    level = MemoryLevel(MIB)
    chunk, body = make_chunk(3 * BLOCK)
    level.put_block(chunk, BLOCK, block_of(body, 1))
    assert content(level.get(chunk, BLOCK + 10, BLOCK + 20)) == body[BLOCK + 10 : BLOCK + 20]
    assert content(level.get(chunk, BLOCK, 2 * BLOCK)) == block_of(body, 1)


def test_a_range_across_blocks_needs_all_of_them() -> None:
    level = MemoryLevel(MIB)
    chunk, body = make_chunk(3 * BLOCK - 5)
    level.put_block(chunk, BLOCK, block_of(body, 1))
    assert level.get(chunk, BLOCK - 1, BLOCK + 1) is None
    assert level.get(chunk, 2 * BLOCK - 1, 2 * BLOCK + 1) is None
    level.put_block(chunk, 2 * BLOCK, block_of(body, 2))
    assert content(level.get(chunk, 2 * BLOCK - 7, chunk.length)) == body[2 * BLOCK - 7 :]


def test_a_whole_chunk_takes_the_place_of_its_blocks() -> None:
    level = MemoryLevel(MIB)
    chunk, body = make_chunk(2 * BLOCK)
    level.put_block(chunk, 0, block_of(body, 0))
    level.put_whole(chunk, body)
    level.put_block(chunk, BLOCK, block_of(body, 1))
    stats = level.stats()
    assert stats.entries == 1
    assert stats.size_bytes == 2 * BLOCK + ENTRY_OVERHEAD_BYTES
    assert content(level.get(chunk, BLOCK - 1, BLOCK + 1)) == body[BLOCK - 1 : BLOCK + 1]


def test_discard_forgets_blocks_too() -> None:
    level = MemoryLevel(MIB)
    chunk, body = make_chunk(2 * BLOCK)
    level.put_block(chunk, 0, block_of(body, 0))
    level.discard(chunk.id)
    assert level.get(chunk, 0, 1) is None
    assert level.stats().size_bytes == 0


def test_a_view_given_out_outlives_the_entry() -> None:
    level = MemoryLevel(MIB)
    chunk, body = make_chunk(10 * KIB)
    level.put_whole(chunk, bytearray(body))
    view = level.get(chunk, 1, 9)
    level.resize(0)
    assert content(view) == body[1:9]


def test_what_is_given_out_cannot_be_written_to() -> None:
    level = MemoryLevel(MIB)
    chunk, body = make_chunk(10)
    level.put_whole(chunk, bytearray(body))
    view = level.get(chunk, 0, 10)
    assert view is not None
    with pytest.raises(TypeError):
        view[0] = 1


def test_a_slice_of_something_large_does_not_keep_it_alive() -> None:
    level = MemoryLevel(MIB)
    chunk, body = make_chunk(100)
    frame = bytearray(MIB)
    frame[50:150] = body
    level.put_whole(chunk, memoryview(frame)[50:150])
    # A bytearray that somebody still views cannot be resized.
    frame.clear()
    assert content(level.get(chunk, 0, 100)) == body


def test_a_body_of_its_own_is_not_copied() -> None:
    level = MemoryLevel(MIB)
    chunk, body = make_chunk(100)
    level.put_whole(chunk, body)
    view = level.get(chunk, 0, 100)
    assert view is not None
    assert view.obj is body


def test_hits_and_misses_are_counted() -> None:
    level = MemoryLevel(MIB)
    chunk, body = make_chunk(100)
    level.get(chunk, 0, 1)
    level.put_whole(chunk, body)
    level.get(chunk, 0, 1)
    level.get(chunk, 5, 100)
    stats = level.stats()
    assert (stats.hits, stats.misses) == (2, 1)
    assert stats.budget_bytes == MIB


# --- against a model -----------------------------------------------------------------------------

CHUNKS = [make_chunk(length, seed) for seed, length in enumerate([100, BLOCK, 2 * BLOCK + 77])]
BUDGETS = [0, 1000, BLOCK + 2000, 3 * BLOCK + 3000, MIB]


class Model:
    """What the level should hold: keys in order of use with what they count as."""

    def __init__(self) -> None:
        self.sizes: OrderedDict[tuple[int, int | None], int] = OrderedDict()
        self.budget = MIB

    def put(self, key: tuple[int, int | None], length: int) -> None:
        size = length + ENTRY_OVERHEAD_BYTES
        number, index = key
        if size > self.budget or (index is not None and (number, None) in self.sizes):
            return
        if index is None:
            self.discard(number)
        self.sizes[key] = size
        self.sizes.move_to_end(key)
        self.evict()

    def get(self, number: int, start: int, end: int) -> bool:
        if (number, None) in self.sizes:
            keys: list[tuple[int, int | None]] = [(number, None)]
        else:
            keys = [(number, index) for index in block_indices(start, end)]
        is_hit = all(key in self.sizes for key in keys)
        if is_hit:
            for key in keys:
                self.sizes.move_to_end(key)
        return is_hit

    def discard(self, number: int) -> None:
        for key in [key for key in self.sizes if key[0] == number]:
            del self.sizes[key]

    def resize(self, budget: int) -> None:
        self.budget = budget
        self.evict()

    def evict(self) -> None:
        while sum(self.sizes.values()) > self.budget:
            self.sizes.popitem(last=False)


def ranges_of(chunk: Chunk) -> st.SearchStrategy[tuple[int, int]]:
    edges = st.one_of(
        st.integers(0, chunk.length),
        st.sampled_from([e for e in (0, BLOCK, 2 * BLOCK, chunk.length) if e <= chunk.length]),
    )
    return (
        st.tuples(edges, edges)
        .filter(lambda pair: pair[0] != pair[1])
        .map(lambda pair: (min(pair), max(pair)))
    )


STEPS = st.one_of(
    st.tuples(st.just("whole"), st.sampled_from(range(len(CHUNKS)))),
    *(
        st.tuples(st.just("block"), st.just(number), st.sampled_from(block_indices(0, c.length)))
        for number, (c, _) in enumerate(CHUNKS)
    ),
    *(
        st.tuples(st.just("get"), st.just(number), ranges_of(chunk))
        for number, (chunk, _) in enumerate(CHUNKS)
    ),
    st.tuples(st.just("discard"), st.sampled_from(range(len(CHUNKS)))),
    st.tuples(st.just("resize"), st.sampled_from(BUDGETS)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_it_behaves_as_the_model_and_never_gives_wrong_bytes(
    steps: list[Any],
) -> None:
    level, model = MemoryLevel(MIB), Model()
    for step in steps:
        match step:
            case ("whole", number):
                level.put_whole(*CHUNKS[number])
                model.put((number, None), CHUNKS[number][0].length)
            case ("block", number, int(index)):
                chunk, body = CHUNKS[number]
                start, end = block_bounds(index, chunk.length)
                level.put_block(chunk, start, body[start:end])
                model.put((number, index), end - start)
            case ("get", number, (int(start), int(end))):
                chunk, body = CHUNKS[number]
                found = level.get(chunk, start, end)
                assert (found is not None) == model.get(number, start, end)
                assert found is None or content(found) == body[start:end]
            case ("discard", number):
                level.discard(CHUNKS[number][0].id)
                model.discard(number)
            case ("resize", budget):
                level.resize(budget)
                model.resize(budget)
        stats = level.stats()
        assert stats.size_bytes == sum(model.sizes.values()) <= model.budget
        assert stats.entries == len(model.sizes)
