from __future__ import annotations

import pytest

from mictlanfs_server.v4.caching.orders import EvictionOrder, FrequencyOrder, RecencyOrder


def drained(order: EvictionOrder) -> str:
    """All keys in the order in which they go."""
    gone = ""
    while True:
        try:
            key = order.victim()
        except StopIteration:
            return gone
        order.discard(key)
        gone += key


@pytest.mark.parametrize(
    ("order", "expected"), [(RecencyOrder(), "cbda"), (FrequencyOrder(), "cdba")]
)
def test_keys_go_by_last_use_or_by_number_of_uses(order: EvictionOrder, expected: str) -> None:
    for key in "abc":
        order.add(key)
    for key in "aab":
        order.touch(key)
    order.add("d")
    order.touch("a")
    assert drained(order) == expected


@pytest.mark.parametrize("order", [RecencyOrder(), FrequencyOrder()])
def test_after_clear_an_order_is_as_new(order: EvictionOrder) -> None:
    order.add("a")
    order.touch("a")
    order.clear()
    order.add("b")
    order.add("a")
    assert drained(order) == "ba"


def test_many_uses_leave_no_chains_behind() -> None:
    order = FrequencyOrder()
    order.add("a")
    for _ in range(1000):
        order.touch("a")
    order.add("b")
    assert drained(order) == "ba"
    assert order._ring.after is order._ring.before is order._ring
