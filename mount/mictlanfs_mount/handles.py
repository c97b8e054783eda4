"""Open files and directories: one table, from `open` to `release`. No I/O."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NewType

from mictlanfs import wire
from mictlanfs.model import ROOT_INODE, InodeNumber
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.readahead import ReadAhead

HandleNumber = NewType("HandleNumber", int)


@dataclass(eq=False, slots=True)
class FileHandle:
    """State of one open of a file.

    Attributes:
        is_writable: whether it was opened for writing, so that closing it must flush.
        is_direct: whether it was opened with O_DIRECT, so that the kernel fills nothing up.
        is_append: whether it was opened with O_APPEND. What comes through it may still be mapped
            memory, anywhere in the file.
    """

    inode: Inode
    is_writable: bool = True
    is_direct: bool = False
    is_append: bool = False
    readahead: ReadAhead = field(default_factory=ReadAhead)


@dataclass(eq=False, slots=True)
class DirectoryHandle:
    """State of one open of a directory.

    The entries read so far stay as they are, so that a program that reads on while the directory
    changes sees every name that stays exactly once. An entry's index is its position for seekdir.
    """

    inode: Inode
    entries: list[wire.Entry] = field(default_factory=list)
    parent: InodeNumber = ROOT_INODE
    is_complete: bool = False
    # For each entry until when it may be used, and the content of the directory that it is of.
    _origins: list[tuple[float, int]] = field(default_factory=list)

    # In the place of `entries`, where leases keep the names of the directory.
    snapshot: list[tuple[bytes, Inode]] | None = None

    @property
    def count(self) -> int:
        """How many entries were read so far."""
        return len(self.entries if self.snapshot is None else self.snapshot)

    def restart(self) -> None:
        """Read the directory anew: rewinddir(3)."""
        self.snapshot = None
        self.entries = []
        self._origins = []
        self.is_complete = False

    def add_page(self, page: wire.ListPage, valid_until_s: float) -> None:
        """Take over the next page, whose entries may be used until `valid_until_s`."""
        self.entries += page.entries
        self._origins += [(valid_until_s, page.directory.content_version)] * len(page.entries)
        self.parent = page.parent
        self.is_complete = page.is_last or not page.entries

    def valid_until_s(self, index: int) -> float:
        """Until when the kernel may use an entry without asking.

        0 when a name of the directory was changed here since: the kernel knows of that already, and
        must not believe the older entry.
        """
        valid_until_s, content_version = self._origins[index]
        is_old = content_version < self.inode.attributes.content_version
        return 0.0 if is_old else valid_until_s


Handle = FileHandle | DirectoryHandle


class HandleTable:
    """All open handles by number; numbers are not reused."""

    def __init__(self) -> None:
        self._handles: dict[HandleNumber, Handle] = {}
        self._next_number = 1

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: Handle) -> HandleNumber:
        """Enter a handle."""
        number = HandleNumber(self._next_number)
        self._next_number += 1
        self._handles[number] = handle
        return number

    def file(self, number: HandleNumber) -> FileHandle:
        """The open file. OSError EBADF when there is none."""
        handle = self._handles.get(number)
        if not isinstance(handle, FileHandle):
            raise OSError(errno.EBADF, f"no open file {number}")
        return handle

    def directory(self, number: HandleNumber) -> DirectoryHandle:
        """The open directory. OSError EBADF when there is none."""
        handle = self._handles.get(number)
        if not isinstance(handle, DirectoryHandle):
            raise OSError(errno.EBADF, f"no open directory {number}")
        return handle

    def opened_files(self) -> Iterator[Inode]:
        """The files that are open, once for each handle."""
        return (h.inode for h in self._handles.values() if isinstance(h, FileHandle))

    def is_open_for_writing(self, ino: InodeNumber) -> bool:
        """Whether a file is open for writing. Looks at every handle."""
        return any(
            isinstance(handle, FileHandle) and handle.inode.ino == ino and handle.is_writable
            for handle in self._handles.values()
        )

    def get(self, number: HandleNumber) -> Handle | None:
        """What is open under a number; None when nothing is."""
        return self._handles.get(number)

    def remove(self, number: HandleNumber) -> Handle | None:
        """Take a handle out; None when there is none."""
        return self._handles.pop(number, None)
