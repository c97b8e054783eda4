import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.cache import ENTRY_SIZE_BYTES, BallCache, EvictionPolicy


def view(size: int) -> memoryview:
    return memoryview(bytes(size))


def test_what_was_put_is_given_out_for_its_checksum_only() -> None:
    cache = BallCache(10_000)
    data = memoryview(b"meow")
    cache.put("b", "cat", "c1", data)
    assert cache.get("b", "cat", "c1") is data
    assert cache.get("x", "cat", "c1") is None
    assert cache.get("b", "cat", "") is None
    assert cache.get("b", "cat", "c2") is None
    # It was the bytes of a ball that is no more.
    assert cache.get("b", "cat", "c1") is None
    assert cache.used == 0


def test_the_bytes_are_bounded() -> None:
    cache = BallCache(10 * (1_000 + ENTRY_SIZE_BYTES))
    for index in range(100):
        cache.put("b", f"ball{index}", "c", view(1_000))
        assert cache.used <= 10 * (1_000 + ENTRY_SIZE_BYTES)
    kept = [index for index in range(100) if cache.get("b", f"ball{index}", "c") is not None]
    assert kept == list(range(90, 100))


def test_empty_balls_take_room_too() -> None:
    cache = BallCache(10 * ENTRY_SIZE_BYTES)
    for index in range(100):
        cache.put("b", f"ball{index}", "c", view(0))
    assert sum(cache.get("b", f"ball{index}", "c") is not None for index in range(100)) == 10


@pytest.mark.parametrize(("policy", "gone"), [("LRU", "often"), ("LFU", "new")])
def test_the_policy_says_what_goes_first(policy: EvictionPolicy, gone: str) -> None:
    cache = BallCache(2 * (1_000 + ENTRY_SIZE_BYTES), policy)
    cache.put("b", "often", "c", view(1_000))
    for _ in range(5):
        cache.get("b", "often", "c")
    cache.put("b", "new", "c", view(1_000))
    cache.get("b", "new", "c")
    cache.put("b", "newest", "c", view(1_000))
    assert cache.get("b", gone, "c") is None
    assert cache.get("b", "newest", "c") is not None


def test_what_is_too_large_is_not_kept_and_nothing_goes_for_it() -> None:
    cache = BallCache(5_000)
    cache.put("b", "small", "c", view(1_000))
    cache.put("b", "large", "c", view(5_000))
    assert cache.get("b", "large", "c") is None
    assert cache.get("b", "small", "c") is not None


def test_a_new_version_takes_the_place_of_the_old_one_even_when_it_is_not_kept() -> None:
    cache = BallCache(5_000)
    cache.put("b", "cat", "c1", view(1_000))
    cache.put("b", "cat", "c2", view(6_000))
    assert cache.used == 0
    cache.put("b", "cat", "", view(10))
    assert cache.used == 0


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(MictlanError) as caught:
        BallCache(1, "FIFO")  # type: ignore[arg-type]
    assert caught.value.kind is Kind.INVALID
