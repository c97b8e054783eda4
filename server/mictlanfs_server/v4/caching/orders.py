"""In which order values are given up for room: by last use, or by number of uses. Pure, O(1)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol


class EvictionOrder(Protocol):
    """An order over keys; each method takes constant time."""

    def add(self, key: str) -> None:
        """Take in `key`, which must not be there, as used just now and never before."""
        ...

    def touch(self, key: str) -> None:
        """Note a use of `key`, which must be there."""
        ...

    def discard(self, key: str) -> None:
        """Take out `key`, which must be there."""
        ...

    def victim(self) -> str:
        """The key that goes first. There must be one."""
        ...

    def clear(self) -> None:
        """Take out every key."""
        ...


class RecencyOrder:
    """Least recently used first."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()

    def add(self, key: str) -> None:
        """See `EvictionOrder`."""
        assert key not in self._keys
        self._keys[key] = None

    def touch(self, key: str) -> None:
        """See `EvictionOrder`."""
        self._keys.move_to_end(key)

    def discard(self, key: str) -> None:
        """See `EvictionOrder`."""
        del self._keys[key]

    def victim(self) -> str:
        """See `EvictionOrder`."""
        return next(iter(self._keys))

    def clear(self) -> None:
        """See `EvictionOrder`."""
        self._keys.clear()


class _Chain:
    """The keys that were used `uses` times, oldest use first, between chains of fewer and more."""

    __slots__ = ("after", "before", "keys", "uses")

    def __init__(self, uses: int) -> None:
        self.uses = uses
        self.keys: OrderedDict[str, None] = OrderedDict()
        self.before = self.after = self

    def insert_after(self, other: _Chain) -> None:
        self.before, self.after = other, other.after
        other.after.before = self
        other.after = self

    def unlink(self) -> None:
        self.before.after, self.after.before = self.after, self.before


class FrequencyOrder:
    """Least often used first; of those used as often, the least recently used.

    Chains of keys with the same number of uses form a ring, by rising number, around `_ring`,
    which is a chain of no uses and no keys. No other chain is empty. A use moves a key to the next
    chain, which is made when the next one has another number.
    """

    def __init__(self) -> None:
        self._chains: dict[str, _Chain] = {}
        self._ring = _Chain(0)

    def add(self, key: str) -> None:
        """See `EvictionOrder`."""
        assert key not in self._chains
        self._hang(key, self._ring)

    def touch(self, key: str) -> None:
        """See `EvictionOrder`."""
        chain = self._chains[key]
        self._hang(key, chain)
        self._unhang(key, chain)

    def discard(self, key: str) -> None:
        """See `EvictionOrder`."""
        self._unhang(key, self._chains.pop(key))

    def victim(self) -> str:
        """See `EvictionOrder`."""
        return next(iter(self._ring.after.keys))

    def clear(self) -> None:
        """See `EvictionOrder`."""
        self._chains.clear()
        self._ring = _Chain(0)

    def _hang(self, key: str, before: _Chain) -> None:
        """Put `key` into the chain of one use more than `before`."""
        chain = before.after
        if chain.uses != before.uses + 1:
            chain = _Chain(before.uses + 1)
            chain.insert_after(before)
        chain.keys[key] = None
        self._chains[key] = chain

    def _unhang(self, key: str, chain: _Chain) -> None:
        del chain.keys[key]
        if not chain.keys:
            chain.unlink()
