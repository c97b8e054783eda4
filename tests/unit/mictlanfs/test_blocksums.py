import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64

from mictlanfs.blocksums import (
    BLOCK_SIZE_BYTES,
    SUM_SIZE_BYTES,
    BlockSummer,
    block_count,
    is_good_block,
)

BODY = random.Random(1).randbytes(3 * BLOCK_SIZE_BYTES + 17)


def naive(body: bytes) -> bytes:
    starts = range(0, len(body), BLOCK_SIZE_BYTES)
    return b"".join(xxh3_64(body[start:][:BLOCK_SIZE_BYTES]).digest() for start in starts)


@given(
    length=st.one_of(
        st.integers(0, len(BODY)),
        st.builds(
            lambda blocks, more: max(0, blocks * BLOCK_SIZE_BYTES + more),
            st.integers(0, 3),
            st.integers(-1, 1),
        ),
    ),
    sizes=st.lists(st.integers(0, 2 * BLOCK_SIZE_BYTES + 1), max_size=20),
)
def test_pieces_of_any_size_have_the_sums_of_the_blocks(length: int, sizes: list[int]) -> None:
    body = BODY[:length]
    summer = BlockSummer()
    start = 0
    for size in sizes:
        summer.update(memoryview(body)[start : start + size])
        start += size
    summer.update(body[start:])
    sums = summer.sums()
    assert sums == naive(body)
    assert len(sums) == block_count(length) * SUM_SIZE_BYTES


@pytest.mark.parametrize("index", range(4))
def test_a_block_is_good_at_its_place_only(index: int) -> None:
    sums = naive(BODY)
    block = BODY[index * BLOCK_SIZE_BYTES :][:BLOCK_SIZE_BYTES]
    assert [is_good_block(block, place, sums) for place in range(4)] == [
        place == index for place in range(4)
    ]


@pytest.mark.parametrize("position", [0, 1, 16])
def test_a_block_with_a_flipped_bit_is_not_good(position: int) -> None:
    block = bytearray(BODY[-17:])
    block[position] ^= 1
    assert not is_good_block(block, 3, naive(BODY))
    assert not is_good_block(BODY[-17:-1], 3, naive(BODY))


def test_no_block_is_good_without_a_sum() -> None:
    assert not is_good_block(b"", 0, b"")
    assert not is_good_block(BODY[-17:], 4, naive(BODY))
