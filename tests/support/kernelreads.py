"""READs as the kernel sends them, for tests without one."""

from __future__ import annotations

from mictlanfs.model import Buffer
from mictlanfs_mount.filesystem import FileSystem
from mictlanfs_mount.handles import HandleNumber

# The kernel repeats one that failed, and the program what the kernel gives up.
TRIES_MAX = 10


async def read_again(
    filesystem: FileSystem, number: HandleNumber, offset: int, length: int
) -> Buffer:
    """What a program reads in the end: what is refused, as `ShortReads` says, is read again."""
    for _ in range(TRIES_MAX):
        try:
            return await filesystem.read(number, offset, length)
        except InterruptedError:
            inode = filesystem.handles.file(number).inode
            if offset > filesystem.attributes_of(inode).size:
                # Asked for the size the kernel sees that there is nothing to read.
                return b""
    raise AssertionError(f"refused {TRIES_MAX} times")
