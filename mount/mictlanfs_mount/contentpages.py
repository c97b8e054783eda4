"""How many files of a directory the router is asked to tell the content of at once: a pure policy.

A listing for programs that look at names and attributes brings neither extents nor bytes, which
cost more than all the rest. Who then opens files gets them by pages, in order of names: one file
first, since most opens stay alone, and more the longer it goes on, the next page before it is
wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from mictlanfs.model import InodeNumber
from mictlanfs_mount.neighbours import Numbered

COUNT_FIRST: Final = 1
# For a directory whose files are likely to be read all: those of another one were just read.
COUNT_FIRST_READING: Final = 64
COUNT_SECOND: Final = 16
COUNT_FACTOR: Final = 4
COUNT_MAX: Final = 1024

T = TypeVar("T", bound=Numbered)


class Page(NamedTuple):
    """So many entries behind the name `after`."""

    after: bytes
    entries_max: int


class ContentPages(Generic[T]):
    """The files of one directory in order of names, and how far their content was asked for.

    Args:
        files: with their names, sorted.
        count: entries of the first page.
    """

    def __init__(self, files: Sequence[tuple[bytes, T]], count: int = COUNT_FIRST) -> None:
        self._names = [name for name, _ in files]
        self._index = {file.ino: index for index, (_, file) in enumerate(files)}
        self._count = count
        # The page asked for last: from and up to these files.
        self._half = self._end = len(files)

    def knows(self, ino: InodeNumber) -> bool:
        """Whether the file was there when the directory was listed."""
        return ino in self._index

    def on_missing(self, ino: InodeNumber) -> Page:
        """A known file is opened whose content is not known: the page that begins with it."""
        return self._page(self._index[ino])

    def on_found(self, ino: InodeNumber) -> Page | None:
        """A file is opened whose content is known: the page to ask for in the background."""
        index = self._index.get(ino)
        if index is None or not self._half <= index < self._end < len(self._names):
            return None
        return self._page(self._end)

    def _page(self, start: int) -> Page:
        count = self._count
        self._half, self._end = start + count // 2, start + count
        self._count = min(max(COUNT_SECOND, count * COUNT_FACTOR), COUNT_MAX)
        return Page(self._names[start - 1] if start else b"", count)
