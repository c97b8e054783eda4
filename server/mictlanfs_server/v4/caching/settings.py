"""Which cache a v4 door has: parsed from the variables of MictlanX, made by `open_cache`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from mictlanfs.errors import UsageError
from mictlanfs.sizes import parse_decimal_size
from mictlanfs_server.v4.caching.base import Cache, CacheLimits, NoCache
from mictlanfs_server.v4.caching.bounded import BoundedCache
from mictlanfs_server.v4.caching.orders import FrequencyOrder, RecencyOrder
from mictlanfs_server.v4.caching.shared import SHARED_MEMORY, SharedValues
from mictlanfs_server.v4.caching.values import ProcessValues

log = logging.getLogger(__name__)

SWITCH = "MICTLANX_CACHE"
POLICY = "MICTLANX_CACHE_EVICTION_POLICY"
ENTRIES = "MICTLANX_CACHE_CAPACITY"
SIZE = "MICTLANX_CACHE_CAPACITY_STORAGE"
# Defaults of MictlanX.
ENTRIES_DEFAULT = 100
SIZE_BYTES_DEFAULT = 1_000_000_000

_SWITCH_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


class Policy(Enum):
    """What is given up first, and where values are."""

    LRU = "LRU"
    LFU = "LFU"
    LRU_SM = "LRU_SM"


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """The settings of one cache.

    Attributes:
        is_on: whether anything is kept at all.
    """

    is_on: bool = True
    policy: Policy = Policy.LRU_SM
    limits: CacheLimits = field(
        default_factory=lambda: CacheLimits(ENTRIES_DEFAULT, SIZE_BYTES_DEFAULT)
    )

    @classmethod
    def parse(cls, variables: Mapping[str, str]) -> CacheSettings:
        """The settings that `variables` give, with the defaults of MictlanX for the others.

        Raises:
            UsageError: one has a value that means nothing; names it.
        """
        switch = variables.get(SWITCH, "1").strip().lower()
        if switch not in _SWITCH_WORDS:
            raise _refusal(SWITCH, variables[SWITCH], "it is neither 1 nor 0")
        policy = variables.get(POLICY, Policy.LRU_SM.value).strip().upper()
        if policy not in Policy.__members__:
            raise _refusal(POLICY, variables[POLICY], f"known are {', '.join(Policy.__members__)}")
        return cls(_SWITCH_WORDS[switch], Policy[policy], _parse_limits(variables))


def _parse_limits(variables: Mapping[str, str]) -> CacheLimits:
    entries, size = variables.get(ENTRIES), variables.get(SIZE)
    entries_max, size_bytes = ENTRIES_DEFAULT, SIZE_BYTES_DEFAULT
    if entries is not None:
        text = entries.strip()
        if not re.fullmatch("0*[1-9][0-9]{0,17}", text):
            raise _refusal(ENTRIES, entries, "it is not a whole number from 1")
        entries_max = int(text)
    if size is not None:
        try:
            size_bytes = parse_decimal_size(size)
        except ValueError as error:
            raise _refusal(SIZE, size, str(error)) from error
        if size_bytes < 1:
            raise _refusal(SIZE, size, "it is less than a byte")
    return CacheLimits(entries_max, size_bytes)


def _refusal(name: str, value: str, reason: str) -> UsageError:
    return UsageError(f"{name}={value}: {reason}")


def open_cache(settings: CacheSettings, namespace: str, memory: Path = SHARED_MEMORY) -> Cache:
    """The cache that `settings` ask for.

    Without usable shared memory LRU_SM is LRU in the memory of this process, with a warning.

    Args:
        settings: what is asked for.
        namespace: names the space and its metadata, so that no two of them share values.
        memory: where shared memory is mounted.
    """
    if not settings.is_on:
        return NoCache()
    if settings.policy is Policy.LFU:
        return BoundedCache(settings.limits, FrequencyOrder(), ProcessValues())
    if settings.policy is Policy.LRU_SM:
        try:
            return BoundedCache(settings.limits, RecencyOrder(), SharedValues(namespace, memory))
        except OSError as error:
            log.warning("no shared memory for the cache, it keeps values itself: %s", error)
    return BoundedCache(settings.limits, RecencyOrder(), ProcessValues())
