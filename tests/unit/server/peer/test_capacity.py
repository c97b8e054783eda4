import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import GIB, MIB
from mictlanfs_server.peer.capacity import Capacity


def capacity(
    limit: int | None = None, *, reserve: int = 0, free: int | None = 100 * GIB, used: int = 0
) -> Capacity:
    return Capacity(limit, reserve, lambda: free, lambda: used)


def test_a_limit_is_the_total_when_the_disk_offers_it() -> None:
    assert capacity(10 * GIB + 1).total == 10 * GIB + 1


def test_a_small_disk_lowers_the_total_below_the_limit() -> None:
    assert capacity(10 * GIB, free=3 * GIB, reserve=GIB).total == 2 * GIB


def test_without_a_limit_the_total_is_what_the_disk_offers_and_what_is_held() -> None:
    assert capacity(free=6 * GIB, reserve=2 * GIB, used=4 * GIB).total == 8 * GIB


def test_without_a_limit_the_total_stays_when_others_write_a_little() -> None:
    assert capacity(free=64 * GIB - 1).total == capacity(free=64 * GIB - 100 * MIB).total


def test_without_a_limit_the_total_goes_down_when_others_write_much() -> None:
    assert capacity(free=20 * GIB).total < capacity(free=64 * GIB).total


@given(free=st.integers(0, 2**50), used=st.integers(0, 2**50), reserve=st.integers(0, 2**40))
def test_the_total_is_exact_to_two_percent_and_never_below_what_is_held(
    free: int, used: int, reserve: int
) -> None:
    exact = used + max(free - reserve, 0)
    total = capacity(free=free, used=used, reserve=reserve).total
    assert used <= total <= exact
    assert total >= exact * 62 // 64


def test_what_is_left_is_bounded_by_limit_and_disk() -> None:
    assert capacity(10, used=4).left == 6
    assert capacity(1000, used=4, free=50, reserve=20).left == 30


def test_what_is_left_is_negative_when_others_ate_the_reserve() -> None:
    assert capacity(free=5, reserve=20).left == -15


def test_a_promise_counts_while_it_lasts() -> None:
    space = capacity(10)
    with space.promise(7):
        assert space.left == 3
        with space.promise(3):
            assert space.left == 0
    assert space.left == 10


def test_a_promise_ends_with_an_error_too() -> None:
    space = capacity(10)
    with pytest.raises(ValueError, match="inside"), space.promise(7):
        raise ValueError("inside")
    assert space.left == 10


def test_more_than_is_left_is_not_promised() -> None:
    space = capacity(10)
    with space.promise(7), pytest.raises(MictlanError) as caught, space.promise(4):
        pass
    assert caught.value.kind is Kind.NO_SPACE
    assert space.left == 10


def test_a_peer_is_full_before_nothing_is_left() -> None:
    assert capacity(100 * GIB, used=100 * GIB - 63 * MIB).is_full
    assert not capacity(100 * GIB, used=100 * GIB - 65 * MIB).is_full


def test_a_small_peer_is_not_full_from_the_start() -> None:
    assert not capacity(8 * MIB).is_full
    assert capacity(8 * MIB, used=8 * MIB - 8 * MIB // 50 + 1).is_full


def test_a_peer_that_may_hold_nothing_is_full() -> None:
    assert capacity(0).is_full


def test_a_back_end_that_cannot_tell_leaves_the_limit_to_count() -> None:
    space = capacity(10, free=None, used=4)
    assert (space.total, space.left) == (10, 6)


def test_nothing_is_offered_when_nobody_can_tell() -> None:
    space = capacity(None, free=None)
    assert (space.total, space.left, space.is_full) == (0, 0, True)


def test_peers_on_one_disk_announce_it_once_together() -> None:
    free = 640 * MIB
    alone = Capacity(None, 0, lambda: free, lambda: 0)
    shared = Capacity(None, 0, lambda: free, lambda: 0, sharers=lambda: 4)
    assert alone.total == free
    assert shared.total == free // 4
    # Any one of them may still take what the disk has.
    assert shared.left == free
