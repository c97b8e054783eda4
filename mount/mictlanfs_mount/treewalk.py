"""How far ahead of a walk over a tree its directories are listed: pure policies, no I/O.

Programs that walk a tree (find, ls -R, grep -r, tar, git) come to the directories of one directory
in the order of a listing, which is that of names, and to what is below each before the next. Once
that is seen, whole trees are asked for: a small one first, for who only looks around, and more at
a time the longer it goes on. Several programs, or several threads of one, may walk one tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from mictlanfs.model import InodeNumber
from mictlanfs.wire import LIST_ENTRIES_MAX
from mictlanfs_mount.neighbours import AHEAD_FIRST, STEP_MAX, Numbered

ENTRIES_FIRST = 256

T = TypeVar("T", bound=Numbered)


class Siblings(Generic[T]):
    """The directories in one directory, in order of names, and which of them were read."""

    def __init__(self, directories: Sequence[T]) -> None:
        self._directories = directories
        self._index = {directory.ino: index for index, directory in enumerate(directories)}
        self._is_read = bytearray(len(directories))

    def knows(self, ino: InodeNumber) -> bool:
        """Whether a directory was there when they were listed."""
        return ino in self._index

    def on_read(self, ino: InodeNumber) -> bool:
        """A directory is read. Whether in order: it is the first, or one just before it was."""
        index = self._index.get(ino)
        if index is None:
            return False
        self._is_read[index] = 1
        return index == 0 or any(self._is_read[max(0, index - STEP_MAX) : index])

    def before(self, ino: InodeNumber) -> Sequence[T]:
        """The few from which a walk may have come to a directory; none to one not known."""
        index = self._index.get(ino, 0)
        return self._directories[max(0, index - STEP_MAX) : index]

    def behind(self, ino: InodeNumber | None) -> Sequence[T]:
        """Those that follow a directory; all of them behind none, none behind one not known."""
        index = -1 if ino is None else self._index.get(ino, len(self._index))
        return self._directories[index + 1 :]


class TreeWalk:
    """A walk over a tree: how much was listed ahead of it, and when to list more.

    Args:
        entries_max: of one tree at the most, as the mount may not keep more.

    Attributes:
        is_fetching: whether a tree is being listed.
        files_ahead: how many files were fetched at once in the directory read last.
    """

    def __init__(self, entries_max: int = LIST_ENTRIES_MAX) -> None:
        self._entries_max = min(entries_max, LIST_ENTRIES_MAX)
        self._entries_next = ENTRIES_FIRST
        self._fetched = 0
        self._left = 0
        self.is_fetching = False
        self.files_ahead = AHEAD_FIRST

    def next_entries(self, *, is_ahead: bool) -> int:
        """How many entries to ask for now; not ahead, when the walk has caught up."""
        if not is_ahead:
            self._left = 0
        count = min(self._entries_next, self._entries_max)
        self._entries_next = 2 * count
        return count

    def on_fetched(self, entries: int) -> None:
        """So many entries were listed ahead; none: there is nothing more to list for now."""
        self._fetched = entries
        self._left += entries

    def on_read(self, entries: int) -> bool:
        """A directory that was listed ahead is read. Whether to list more, in the background."""
        self._left -= entries
        return not self.is_fetching and self._fetched > 0 and self._left <= self._fetched // 2
