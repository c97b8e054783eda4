from hypothesis import given

from tests.support.ranges import subtract
from tests.support.strategies import ranges

Range = tuple[int, int]


def integers(*parts: Range) -> set[int]:
    return {i for start, end in parts for i in range(start, end)}


@given(ranges.filter(lambda r: r[0] < r[1]), ranges.filter(lambda r: r[0] <= r[1]))
def test_subtract_is_difference_in_order_without_empty_parts(a: Range, cut: Range) -> None:
    left = subtract(*a, *cut)
    assert integers(*left) == integers(a) - integers(cut)
    assert left == sorted(left)
    assert all(start < end for start, end in left)
    assert sum(end - start for start, end in left) == len(integers(*left))
