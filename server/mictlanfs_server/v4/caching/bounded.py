"""The one cache there is: an index with limits, over an order of eviction and a store of values.

Owns which keys are held and how large they are. Knows neither where the values are (`values`) nor
which one goes first (`orders`). Invariants: the index never counts more entries or bytes than the
limits; each key is counted once, with the size of the value it has now; order and index hold the
same keys.
"""

from __future__ import annotations

import errno
import logging

from mictlanfs.model import Buffer
from mictlanfs_server.v4.caching.base import (
    KEY_SIZE_BYTES_MAX,
    TOKEN_SIZE_BYTES_MAX,
    CacheLimits,
    CacheStats,
    encoded,
)
from mictlanfs_server.v4.caching.orders import EvictionOrder
from mictlanfs_server.v4.caching.values import ValueStore

log = logging.getLogger(__name__)

# No room in the memory of this machine, which may be less than the limit: others use it too.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM})


class BoundedCache:
    """A `Cache` that keeps both limits, whatever its order and store.

    Takes over what the store holds already, oldest first, as far as it fits.
    """

    def __init__(self, limits: CacheLimits, order: EvictionOrder, values: ValueStore) -> None:
        self._limits = limits
        self._order = order
        self._values = values
        self._sizes: dict[str, int] = {}
        self._used = self._hits = self._misses = self._evictions = 0
        self._is_closed = self._has_complained = False
        for key, size in values.held():
            if size <= limits.size_bytes:
                self._make_room(size)
                self._note(key, size)
            else:
                values.discard(key)

    def get(self, key: str, token: str) -> bytes | None:
        """See `Cache`. A value that another process put is taken over."""
        body = self._current(key, token)
        if body is None:
            self._misses += 1
            return None
        if self._sizes.get(key) == len(body):
            self._order.touch(key)
        else:
            self._adopt(key, len(body))
        self._hits += 1
        return body

    def put(self, key: str, token: str, value: Buffer) -> bool:
        """See `Cache`."""
        view = memoryview(value).cast("B")
        self.remove(key)
        if self._is_closed or not self._is_acceptable(key, token, view.nbytes):
            return False
        self._make_room(view.nbytes)
        if not self._written(key, token, view):
            return False
        self._note(key, view.nbytes)
        return True

    def remove(self, key: str) -> bool:
        """See `Cache`."""
        if self._is_closed:
            return False
        was_held = key in self._sizes
        self._forget(key)
        return self._values.discard(key) or was_held

    def clear(self) -> None:
        """See `Cache`."""
        if self._is_closed:
            return
        self._values.clear()
        self._order.clear()
        self._sizes.clear()
        self._used = 0

    def keys(self) -> list[str]:
        """See `Cache`."""
        return list(self._sizes)

    def stats(self) -> CacheStats:
        """See `Cache`."""
        total = self._limits.size_bytes
        return CacheStats(
            total=total,
            used=self._used,
            available=total - self._used,
            uf=self._used / total,
            entries=len(self._sizes),
            entries_max=self._limits.entries,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )

    def close(self) -> None:
        """See `Cache`."""
        if self._is_closed:
            return
        for key in list(self._sizes):
            self.remove(key)
        self._values.close()
        self._is_closed = True

    def _current(self, key: str, token: str) -> bytes | None:
        """The value of `key` if its token is `token`; whatever else is there is dropped."""
        if self._is_closed:
            return None
        found = self._values.read(key, token)
        if found is None:
            self._forget(key)
        return found

    def _adopt(self, key: str, size: int) -> None:
        """Count a value that is there, but not as it was counted."""
        self._forget(key)
        # One of a process with a larger limit: it is answered, and left to that process.
        if size <= self._limits.size_bytes:
            self._make_room(size)
            self._note(key, size)

    def _is_acceptable(self, key: str, token: str, size: int) -> bool:
        return (
            0 < size <= self._limits.size_bytes
            and len(encoded(key)) <= KEY_SIZE_BYTES_MAX
            and len(encoded(token)) <= TOKEN_SIZE_BYTES_MAX
        )

    def _written(self, key: str, token: str, view: memoryview) -> bool:
        """Whether the value could be stored, if need be by giving up others."""
        while True:
            try:
                self._values.write(key, token, view)
            except OSError as error:
                if error.errno not in _NO_ROOM or not self._sizes:
                    self._complain(error)
                    return False
                self._evict()
            else:
                return True

    def _complain(self, error: OSError) -> None:
        # Once: it would be said for every value.
        if not self._has_complained:
            self._has_complained = True
            log.warning("values cannot be cached: %s", error)

    def _make_room(self, size: int) -> None:
        limits = self._limits
        while len(self._sizes) >= limits.entries or self._used + size > limits.size_bytes:
            self._evict()

    def _evict(self) -> None:
        key = self._order.victim()
        self._forget(key)
        self._values.discard(key)
        self._evictions += 1

    def _note(self, key: str, size: int) -> None:
        self._sizes[key] = size
        self._used += size
        self._order.add(key)

    def _forget(self, key: str) -> None:
        size = self._sizes.pop(key, None)
        if size is not None:
            self._used -= size
            self._order.discard(key)
