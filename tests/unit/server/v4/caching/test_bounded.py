from __future__ import annotations

import errno
import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mictlanfs_server.v4.caching.base import (
    KEY_SIZE_BYTES_MAX,
    TOKEN_SIZE_BYTES_MAX,
    Cache,
    CacheLimits,
    NoCache,
)
from mictlanfs_server.v4.caching.bounded import BoundedCache
from mictlanfs_server.v4.caching.orders import RecencyOrder
from mictlanfs_server.v4.caching.settings import CacheSettings, Policy, open_cache
from mictlanfs_server.v4.caching.values import ProcessValues
from tests.unit.server.v4.caching.naive import NaiveCache

Make = Callable[..., Cache]


@pytest.fixture(params=list(Policy))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    caches: list[Cache] = []
    names = itertools.count()

    def make_cache(entries: int = 100, size: int = 1000) -> Cache:
        wanted = CacheSettings(True, request.param, CacheLimits(entries, size))
        caches.append(open_cache(wanted, f"space {next(names)}", tmp_path))
        return caches[-1]

    yield make_cache
    for cache in caches:
        cache.close()


def test_a_value_is_answered_as_it_was_put(make: Make) -> None:
    cache = make()
    assert cache.put("b@k", "t", b"value")
    assert cache.get("b@k", "t") == b"value"
    assert cache.keys() == ["b@k"]


def test_a_value_is_not_changed_by_who_put_it(make: Make) -> None:
    cache = make()
    buffer = bytearray(b"value")
    cache.put("k", "t", memoryview(buffer))
    buffer[:] = b"other"
    assert cache.get("k", "t") == b"value"


def test_a_part_of_a_buffer_is_a_value(make: Make) -> None:
    cache = make()
    cache.put("k", "t", memoryview(b"0123456789")[2:5])
    assert cache.get("k", "t") == b"234"


def test_an_outdated_value_is_not_answered_and_dropped(make: Make) -> None:
    cache = make()
    cache.put("k", "old", b"value")
    assert cache.get("k", "new") is None
    assert cache.keys() == []
    assert cache.stats().used == 0
    assert cache.get("k", "old") is None


def test_overwriting_counts_once(make: Make) -> None:
    cache = make(size=1000)
    for _ in range(5):
        assert cache.put("k", "t", b"x" * 400)
    stats = cache.stats()
    assert (stats.used, stats.available, stats.total, stats.uf) == (400, 600, 1000, 0.4)
    assert (stats.entries, stats.evictions) == (1, 0)


def test_entries_are_limited(make: Make) -> None:
    cache = make(entries=2)
    for key in ("a", "b", "c"):
        cache.put(key, "t", b"x")
    assert sorted(cache.keys()) == ["b", "c"]
    assert cache.stats().evictions == 1


def test_as_many_values_go_as_a_new_one_needs(make: Make) -> None:
    cache = make(size=1000)
    for key in ("a", "b", "c", "d"):
        cache.put(key, "t", b"x" * 250)
    cache.put("e", "t", b"x" * 700)
    assert sorted(cache.keys()) == ["d", "e"]
    assert cache.stats().used == 950


def test_a_value_as_large_as_the_cache_is_held(make: Make) -> None:
    cache = make(size=1000)
    cache.put("a", "t", b"x")
    assert cache.put("k", "t", b"x" * 1000)
    assert cache.keys() == ["k"]
    assert cache.stats().uf == 1.0


@pytest.mark.parametrize("value", [b"", b"x" * 1001], ids=["empty", "too large"])
def test_a_value_that_is_refused_takes_the_old_one_with_it_and_no_other(
    make: Make, value: bytes
) -> None:
    cache = make(size=1000)
    cache.put("other", "t", b"x" * 500)
    cache.put("k", "t", b"old")
    assert not cache.put("k", "t", value)
    assert cache.get("k", "t") is None
    assert cache.keys() == ["other"]


@pytest.mark.parametrize(
    ("key", "token"),
    [("k" * (KEY_SIZE_BYTES_MAX + 1), "t"), ("k", "t" * (TOKEN_SIZE_BYTES_MAX + 1))],
    ids=["key", "token"],
)
def test_a_name_that_is_too_long_is_refused(make: Make, key: str, token: str) -> None:
    cache = make()
    assert not cache.put(key, token, b"x")
    assert cache.stats().entries == 0


@pytest.mark.parametrize("key", ["b@ä/ö ü", "b@\udcff", "..", "lock", "new-1", "a\0b", ""])
def test_any_text_is_a_key(make: Make, key: str) -> None:
    cache = make()
    assert cache.put(key, "t", b"value")
    assert cache.get(key, "t") == b"value"
    assert cache.remove(key)
    assert not cache.remove(key)
    assert cache.get(key, "t") is None


def test_after_clear_nothing_is_held_and_all_works(make: Make) -> None:
    cache = make()
    cache.put("a", "t", b"x")
    cache.clear()
    assert cache.keys() == []
    assert cache.stats().used == 0
    assert cache.put("a", "t", b"y")
    assert cache.get("a", "t") == b"y"


def test_hits_and_misses_are_counted(make: Make) -> None:
    cache = make()
    cache.get("a", "t")
    cache.put("a", "t", b"x")
    cache.get("a", "t")
    cache.get("a", "u")
    assert (cache.stats().hits, cache.stats().misses) == (1, 2)


def test_a_closed_cache_holds_nothing(make: Make) -> None:
    cache = make()
    cache.put("a", "t", b"x")
    cache.close()
    cache.close()
    assert cache.get("a", "t") is None
    assert not cache.put("a", "t", b"x")
    assert not cache.remove("a")
    cache.clear()
    assert cache.keys() == []
    assert cache.stats().used == 0


def test_the_cache_that_is_off_misses_always() -> None:
    cache = NoCache()
    assert not cache.put("a", "t", b"x")
    assert cache.get("a", "t") is None
    assert not cache.remove("a")
    cache.clear()
    assert cache.keys() == []
    stats = cache.stats()
    assert (stats.total, stats.used, stats.available, stats.uf, stats.misses) == (0, 0, 0, 0.0, 1)
    cache.close()


class SmallMemory(ProcessValues):
    """A store with room for so many bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, key: str, token: str, value: memoryview) -> None:
        if sum(len(body) for _, body in self._values.values()) + len(value) > self.room:
            raise OSError(errno.ENOSPC, "full")
        super().write(key, token, value)


def test_when_the_machine_has_less_room_than_the_limit_old_values_go() -> None:
    cache = BoundedCache(CacheLimits(100, 1000), RecencyOrder(), SmallMemory(20))
    for key in ("a", "b", "c"):
        assert cache.put(key, "t", b"x" * 10)
    assert cache.keys() == ["b", "c"]
    assert cache.put("d", "t", b"x" * 20)
    assert cache.keys() == ["d"]


def test_a_store_that_fails_is_complained_of_once(caplog: pytest.LogCaptureFixture) -> None:
    cache = BoundedCache(CacheLimits(100, 1000), RecencyOrder(), SmallMemory(20))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not cache.put("k", "t", b"x" * 21)
    assert [record.getMessage() for record in caplog.records] == [
        "values cannot be cached: [Errno 28] full"
    ]
    assert cache.put("k", "t", b"x")


class CacheModel(RuleBasedStateMachine):
    """A cache and a naive one are told the same, and must give the same answers."""

    policy = Policy.LRU
    keys = st.sampled_from("abcdefg")
    tokens = st.sampled_from("tu")

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    @initialize(entries=st.integers(1, 6), size=st.integers(1, 40))
    def open(self, entries: int, size: int) -> None:
        memory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        limits = CacheLimits(entries, size)
        self.real = open_cache(CacheSettings(True, self.policy, limits), "s", memory)
        self.stack.callback(self.real.close)
        self.naive = NaiveCache(entries, size, by_uses=self.policy is Policy.LFU)

    @rule(key=keys, token=tokens)
    def get(self, key: str, token: str) -> None:
        assert self.real.get(key, token) == self.naive.get(key, token)

    @rule(key=keys, token=tokens, value=st.binary(max_size=20) | st.binary(max_size=45))
    def put(self, key: str, token: str, value: bytes) -> None:
        assert self.real.put(key, token, value) == self.naive.put(key, token, value)

    @rule(key=keys)
    def remove(self, key: str) -> None:
        assert self.real.remove(key) == self.naive.remove(key)

    @precondition(lambda self: len(self.naive.entries) > 2)
    @rule()
    def clear(self) -> None:
        self.real.clear()
        self.naive.entries.clear()

    @invariant()
    def same(self) -> None:
        stats = self.real.stats()
        assert sorted(self.real.keys()) == sorted(entry.key for entry in self.naive.entries)
        assert stats.used == self.naive.used <= stats.total
        assert stats.entries == len(self.naive.entries) <= stats.entries_max

    def teardown(self) -> None:
        self.stack.close()


@pytest.mark.parametrize("policy", list(Policy))
def test_a_cache_does_what_a_naive_one_does(policy: Policy) -> None:
    machine = type("Machine", (CacheModel,), {"policy": policy})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
