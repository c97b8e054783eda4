"""How many extents of files a mount remembers.

Where the bytes of a file are is asked once and kept with its inode, and inodes are kept for as long
as their names are: for months, of a tree that is read all the time. A file of 4 GiB has a thousand
extents, one that was written here and there many more. So when there are too many, the largest maps
are forgotten, of open files last. Who reads there again asks again, for up to 2,048 at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from mictlanfs_mount.inodes import Inode, InodeTable

LOOK_EVERY_S = 5.0
# So many are part of what a name takes.
COUNT_FREE = 4


async def keep_extents_few(
    inodes: InodeTable, count_max: int, may_forget: Callable[[Inode], bool]
) -> None:
    """See that there are not many more than `count_max`, until cancelled."""
    while True:
        await trio.sleep(LOOK_EVERY_S)
        forget_excess(inodes, count_max, may_forget)


def forget_excess(inodes: InodeTable, count_max: int, may_forget: Callable[[Inode], bool]) -> None:
    """Forget extents when there are more than `count_max`, and a quarter of that besides.

    Args:
        inodes: of all files.
        count_max: extents in maps that have more than `COUNT_FREE`.
        may_forget: whether a file's can be asked for again now.
    """
    large = [inode for inode in inodes if len(inode.extents) > COUNT_FREE]
    excess = sum(len(inode.extents) for inode in large) - count_max
    if excess <= 0:
        return
    excess += count_max // 4
    for inode in sorted(large, key=_last_forgotten):
        if excess <= 0:
            return
        if may_forget(inode):
            excess -= len(inode.extents)
            inode.extents.reset(inode.extents.content_version)


def _last_forgotten(inode: Inode) -> tuple[bool, int]:
    return (inode.open_count > 0, -len(inode.extents))
