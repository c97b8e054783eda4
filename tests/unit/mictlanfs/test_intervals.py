from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.intervals import merge, split_at
from tests.support.strategies import ranges

Range = tuple[int, int]


def integers(*parts: Range) -> set[int]:
    """The integers in half-open ranges: the model everything here is held against."""
    return {i for start, end in parts for i in range(start, end)}


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 9))
def test_split_covers_the_range_and_cuts_at_every_multiple(start: int, end: int, step: int) -> None:
    parts = list(split_at(start, end, step))
    assert integers(*parts) == integers((start, end))
    assert [part[0] for part in parts[1:]] == [part[1] for part in parts[:-1]]
    assert all(left // step == (right - 1) // step for left, right in parts)
    assert all(right % step == 0 for _, right in parts[:-1])


@pytest.mark.parametrize("step", [0, -1])
def test_split_refuses_a_step_that_goes_nowhere(step: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        next(split_at(0, 1, step))


@given(st.lists(ranges))
def test_merge_is_union_of_ranges_that_neither_overlap_nor_touch(parts: list[Range]) -> None:
    merged = merge(parts)
    assert integers(*merged) == integers(*parts)
    assert all(start < end for start, end in merged)
    assert all(a[1] < b[0] for a, b in pairwise(merged))


@given(st.lists(ranges))
def test_merging_again_changes_nothing(parts: list[Range]) -> None:
    assert merge(merge(parts)) == merge(parts)
