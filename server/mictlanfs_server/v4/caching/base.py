"""What a cache of the v4 door is, whatever its policy.

A cache holds whole values by their combined key, each with a *token* that names the content, such
as its SHA-256. Who asks says which token the value must have now, so what was changed behind the
cache is never served. A cache may forget anything at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mictlanfs.model import Buffer

# In bytes of UTF-8. A combined key is a bucket name and a path; a token is a digest in hex.
KEY_SIZE_BYTES_MAX = 8192
TOKEN_SIZE_BYTES_MAX = 256


def encoded(text: str) -> bytes:
    """A key or token as bytes; also one that stands for a name which is no UTF-8."""
    return text.encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How much a cache may hold.

    Attributes:
        entries: at most so many values, at least 1.
        size_bytes: at most so many bytes of values together, at least 1.
    """

    entries: int
    size_bytes: int

    def __post_init__(self) -> None:
        if self.entries < 1 or self.size_bytes < 1:
            raise ValueError("a cache needs room for one entry of one byte")


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache holds now, and what it did since it was opened.

    Attributes:
        total, used, available: bytes of values: the limit, what is held, what is left.
        uf: utilisation factor, `used` by `total`, 0 to 1; 0 of a cache that holds nothing ever.
        entries, entries_max: number of values: what is held, the limit.
        hits, misses: calls of `get` that were answered, and that were not.
        evictions: values given up for room.
    """

    total: int
    used: int
    available: int
    uf: float
    entries: int
    entries_max: int
    hits: int
    misses: int
    evictions: int


class Cache(Protocol):
    """Values by key. Not thread-safe: all methods are called by one thread, and return soon.

    No method raises for want of room or because of a failing medium: such a value is not kept.
    """

    def get(self, key: str, token: str) -> bytes | None:
        """The value of `key` if it is held and its token is `token`; a use of it.

        A value with another token is outdated: it is dropped.
        """
        ...

    def put(self, key: str, token: str, value: Buffer) -> bool:
        """Hold a copy of `value`, in the place of what `key` had; whether it is held now.

        Refused are empty values, values larger than the whole cache, and keys or tokens longer
        than `KEY_SIZE_BYTES_MAX` and `TOKEN_SIZE_BYTES_MAX`. What `key` had is gone even so.
        """
        ...

    def remove(self, key: str) -> bool:
        """Forget `key`, for every process that shares its value; whether it was held."""
        ...

    def clear(self) -> None:
        """Forget everything, for every process that shares it."""
        ...

    def keys(self) -> list[str]:
        """The keys held, in no order that means anything."""
        ...

    def stats(self) -> CacheStats:
        """The counters of now."""
        ...

    def close(self) -> None:
        """Give back what is held; from now on nothing is. Can be repeated."""
        ...


class NoCache:
    """The cache that is switched off: every lookup misses, nothing is ever held."""

    def __init__(self) -> None:
        self._misses = 0

    def get(self, key: str, token: str) -> bytes | None:
        """See `Cache`."""
        self._misses += 1
        return None

    def put(self, key: str, token: str, value: Buffer) -> bool:
        """See `Cache`."""
        return False

    def remove(self, key: str) -> bool:
        """See `Cache`."""
        return False

    def clear(self) -> None:
        """See `Cache`."""

    def keys(self) -> list[str]:
        """See `Cache`."""
        return []

    def stats(self) -> CacheStats:
        """See `Cache`."""
        return CacheStats(0, 0, 0, 0.0, 0, 0, 0, self._misses, 0)

    def close(self) -> None:
        """See `Cache`."""
