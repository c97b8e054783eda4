"""What of a directory to fetch before it is asked for: a pure policy, one a directory.

Of files, their bytes; of directories in it, their names. Programs that read many small files
(grep -r, compilers, tar) open them in the order of a listing, which is that of names. Once two
files are opened so, the next ones are wanted, more of them the longer it goes on; what is fetched
together travels in few requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from mictlanfs.model import InodeNumber

# A step of this many names still counts as going on: not every file is opened.
STEP_MAX = 8
AHEAD_FIRST = 4
AHEAD_MAX = 64


class Numbered(Protocol):
    """Anything with an inode number."""

    @property
    def ino(self) -> InodeNumber:
        """The number."""
        ...


T = TypeVar("T", bound=Numbered)


class Neighbours(Generic[T]):
    """The files of one directory in order, and how far they were fetched.

    Attributes:
        is_going_on: whether the last two were opened in order.
    """

    def __init__(self, files: Sequence[T]) -> None:
        self._files = files
        self._index = {file.ino: index for index, file in enumerate(files)}
        # Who begins with the first one is likely to go on.
        self._last = -STEP_MAX
        self._fetched_to = 0
        self._ahead = AHEAD_FIRST
        self.is_going_on = False

    def knows(self, file: T) -> bool:
        """Whether the file was there when the directory was listed."""
        return file.ino in self._index

    def on_open(self, file: T) -> Sequence[T]:
        """A file is opened: those that should be fetched with it, in order, without itself."""
        index = self._index.get(file.ino)
        if index is None:
            return ()
        step = index - self._last
        self._last = index
        self.is_going_on = 0 < step <= STEP_MAX
        if not self.is_going_on:
            self._ahead, self._fetched_to = AHEAD_FIRST, index + 1
            return ()
        if index + self._ahead // 2 < self._fetched_to:
            return ()
        start = max(index + 1, self._fetched_to)
        self._fetched_to = max(start, min(index + 1 + self._ahead, len(self._files)))
        self._ahead = min(2 * self._ahead, AHEAD_MAX)
        return self._files[start : self._fetched_to]
