"""Where the kernel may believe that a file ends which other mounts make longer. No I/O.

The kernel sends what is appended to where it believes that the file ends, and learns of another end
from nothing but the answers to its own questions. So a write through a descriptor that was opened
with O_APPEND, to just such an end, is to go to where the file ends in truth.

Only such: mapped memory is written out through any descriptor of its file, to anywhere before the
end. `Inode.kernel_size` is what the kernel was told last. It may not have taken note of that (it
sent the write before, or prefers what it knows from a write of its own). So of files that it was
told another size of, while they were open, the former ones are remembered too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from mictlanfs.model import InodeNumber
from mictlanfs_mount.inodes import Inode

# Former ends of one file that are remembered, and files of which any are: the last ones.
ENDS_MAX = 32
FILES_MAX = 256


class FileEnds:
    """Former ends of the files of one mount."""

    def __init__(self) -> None:
        self._ends: OrderedDict[InodeNumber, tuple[int, ...]] = OrderedDict()

    def note(self, ino: InodeNumber, *ends: int) -> None:
        """The kernel may believe in these, whatever it is told."""
        known = self._ends.pop(ino, ())
        self._ends[ino] = (*(end for end in known if end not in ends), *ends)[-ENDS_MAX:]
        if len(self._ends) > FILES_MAX:
            self._ends.popitem(last=False)

    def forget(self, inodes: Iterable[InodeNumber]) -> None:
        """The kernel gives these files a size itself."""
        for ino in inodes:
            self._ends.pop(ino, None)

    def may_be_end(self, inode: Inode, offset: int) -> bool:
        """Whether the kernel may send what is appended to an offset."""
        return offset == inode.kernel_size or offset in self._ends.get(inode.ino, ())

    def is_contested(self, ino: InodeNumber) -> bool:
        """Whether others have changed the size of a file while it was open here."""
        return ino in self._ends
