"""Directories that several mounts change in turn, of which the kernel is told to keep no names.

When such a directory is recalled while a request of ours holds its lock, names cannot be expired
one by one; all names of the mount have to go, and with them the pages of all files that are not
open. So once that has happened, the names of the directory are not told to be kept for a while: a
look-up more for each use, which the mount answers from memory. No I/O.
"""

from __future__ import annotations

from collections import OrderedDict

from mictlanfs.clock import Clock
from mictlanfs.model import InodeNumber

# After the last time that a recall met the lock.
CONTESTED_S = 10.0
COUNT_MAX = 1024


class ContestedDirectories:
    """The last `COUNT_MAX` of them. Owned by the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s: OrderedDict[InodeNumber, float] = OrderedDict()

    def add(self, ino: InodeNumber) -> None:
        """A recall met the lock of this directory."""
        self._until_s[ino] = self._clock.monotonic_s() + CONTESTED_S
        self._until_s.move_to_end(ino)
        if len(self._until_s) > COUNT_MAX:
            self._until_s.popitem(last=False)

    def has(self, ino: InodeNumber) -> bool:
        """Whether this was so a short while ago."""
        until_s = self._until_s.get(ino)
        return until_s is not None and self._clock.monotonic_s() < until_s
