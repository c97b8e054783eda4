"""Which files of a directory to fetch before they are asked for: a pure policy, one a directory.

Programs that read many small files (grep -r, compilers, tar) open them in the order of a listing,
which is that of names. Once two files are opened so, the next ones are wanted, more of them the
longer it goes on; what is fetched together travels in few requests. A walk that read the files of
one directory goes on in the next with as many.
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

    Args:
        ahead: how many files to fetch at first.

    Attributes:
        ahead: how many are fetched next.
        is_going_on: whether the last two were opened in order.
    """

    def __init__(self, files: Sequence[T], ahead: int = AHEAD_FIRST) -> None:
        self._files = files
        self._index = {file.ino: index for index, file in enumerate(files)}
        # Who begins with the first one is likely to go on.
        self._last = -STEP_MAX
        self._fetched_to = 0
        self.ahead = ahead
        self.is_going_on = False

    def knows(self, file: T) -> bool:
        """Whether the file was there when the directory was listed."""
        return file.ino in self._index

    def on_listed(self) -> Sequence[T]:
        """A walk that reads files has come to the directory: the first ones, in order."""
        if self._fetched_to or self.ahead <= AHEAD_FIRST:
            # Nobody has read enough files to be sure of these.
            return ()
        self._fetched_to = min(self.ahead, len(self._files))
        return self._files[: self._fetched_to]

    def on_open(self, file: T) -> Sequence[T]:
        """A file is opened: those that should be fetched with it, in order, without itself."""
        index = self._index.get(file.ino)
        if index is None:
            return ()
        step = index - self._last
        self._last = index
        self.is_going_on = 0 < step <= STEP_MAX
        if not self.is_going_on:
            self.ahead, self._fetched_to = AHEAD_FIRST, index + 1
            return ()
        if index + self.ahead // 2 < self._fetched_to:
            return ()
        start = max(index + 1, self._fetched_to)
        self._fetched_to = max(start, min(index + 1 + self.ahead, len(self._files)))
        self.ahead = min(2 * self.ahead, AHEAD_MAX)
        return self._files[start : self._fetched_to]
