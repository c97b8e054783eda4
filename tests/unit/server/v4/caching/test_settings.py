from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mictlanfs.errors import UsageError
from mictlanfs_server.v4.caching.base import CacheLimits, NoCache
from mictlanfs_server.v4.caching.settings import CacheSettings, Policy, open_cache


def test_the_defaults_are_those_of_mictlanx() -> None:
    assert CacheSettings.parse({}) == CacheSettings(
        True, Policy.LRU_SM, CacheLimits(100, 1_000_000_000)
    )


def test_every_variable_is_read() -> None:
    parsed = CacheSettings.parse(
        {
            "MICTLANX_CACHE": "0",
            "MICTLANX_CACHE_EVICTION_POLICY": "lfu",
            "MICTLANX_CACHE_CAPACITY": "2500",
            "MICTLANX_CACHE_CAPACITY_STORAGE": "1.5GB",
        }
    )
    assert parsed == CacheSettings(False, Policy.LFU, CacheLimits(2500, 1_500_000_000))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MICTLANX_CACHE", "perhaps"),
        ("MICTLANX_CACHE_EVICTION_POLICY", "FIFO"),
        ("MICTLANX_CACHE_CAPACITY", "0"),
        ("MICTLANX_CACHE_CAPACITY", "-1"),
        ("MICTLANX_CACHE_CAPACITY", "many"),
        ("MICTLANX_CACHE_CAPACITY", "9" * 5000),
        ("MICTLANX_CACHE_CAPACITY_STORAGE", "0"),
        ("MICTLANX_CACHE_CAPACITY_STORAGE", "lots"),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        CacheSettings.parse({name: value})


def test_a_cache_that_is_off_is_none(tmp_path: Path) -> None:
    assert isinstance(open_cache(CacheSettings(is_on=False), "s", tmp_path), NoCache)
    assert list(tmp_path.iterdir()) == []


def test_without_shared_memory_the_process_keeps_the_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        cache = open_cache(CacheSettings(), "s", tmp_path / "missing")
    assert "no shared memory" in caplog.text
    assert cache.put("k", "t", b"value")
    assert cache.get("k", "t") == b"value"
