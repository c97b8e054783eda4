"""The policies at their plainest: a list of entries that is searched again at each step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Entry:
    key: str
    token: str
    value: bytes
    uses: int
    last_use: int


class NaiveCache:
    """A cache that gives up by last use, or (`by_uses`) by number of uses and then by last use."""

    def __init__(self, entries_max: int, size_max: int, *, by_uses: bool) -> None:
        self.entries: list[Entry] = []
        self.entries_max = entries_max
        self.size_max = size_max
        self.by_uses = by_uses
        self.now = 0

    def get(self, key: str, token: str) -> bytes | None:
        for entry in self.entries:
            if entry.key == key and entry.token == token:
                entry.uses += 1
                self.now += 1
                entry.last_use = self.now
                return entry.value
        self.remove(key)
        return None

    def put(self, key: str, token: str, value: bytes) -> bool:
        self.remove(key)
        if not 0 < len(value) <= self.size_max:
            return False
        while len(self.entries) + 1 > self.entries_max or self.used + len(value) > self.size_max:
            self.entries.remove(min(self.entries, key=self._rank))
        self.now += 1
        self.entries.append(Entry(key, token, value, 1, self.now))
        return True

    def remove(self, key: str) -> bool:
        count = len(self.entries)
        self.entries = [entry for entry in self.entries if entry.key != key]
        return len(self.entries) < count

    @property
    def used(self) -> int:
        return sum(len(entry.value) for entry in self.entries)

    def _rank(self, entry: Entry) -> tuple[int, int]:
        return (entry.uses if self.by_uses else 0, entry.last_use)
