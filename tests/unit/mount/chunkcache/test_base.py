import pytest

from mictlanfs.model import KIB
from mictlanfs_mount.chunkcache.base import BLOCK_SIZE_BYTES, block_bounds, block_indices, owned

BLOCK = BLOCK_SIZE_BYTES


@pytest.mark.parametrize(
    ("start", "end", "indices"),
    [
        (0, 1, [0]),
        (0, BLOCK, [0]),
        (0, BLOCK + 1, [0, 1]),
        (BLOCK - 1, BLOCK, [0]),
        (BLOCK, BLOCK + 1, [1]),
        (BLOCK - 1, 3 * BLOCK + 1, [0, 1, 2, 3]),
    ],
)
def test_a_range_touches_these_blocks(start: int, end: int, indices: list[int]) -> None:
    assert list(block_indices(start, end)) == indices


def test_the_last_block_ends_with_the_chunk() -> None:
    assert block_bounds(0, 3 * BLOCK - 5) == (0, BLOCK)
    assert block_bounds(2, 3 * BLOCK - 5) == (2 * BLOCK, 3 * BLOCK - 5)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_buffer_of_its_own_is_kept_as_it_is(kind: type) -> None:
    body = kind(b"x" * KIB)
    view = owned(body)
    assert view.readonly
    assert view == b"x" * KIB
    assert view.obj is (body.obj if isinstance(body, memoryview) else body)


def test_a_small_part_of_a_buffer_is_copied() -> None:
    large = bytes(10 * KIB)
    view = owned(memoryview(large)[:KIB])
    assert view.obj is not large
    assert view.nbytes == KIB


def test_almost_all_of_a_buffer_is_not_worth_a_copy() -> None:
    large = bytes(10 * KIB)
    assert owned(memoryview(large)[100:]).obj is large
