"""Inodes that only the kernel remembers, and how they are kept few.

The kernel keeps what it has looked up until it is short of memory, which on a large machine is
never, and what it keeps this mount has to keep as well. An inode that a lease covers is worth that.
A *stray* is not: no lease covers it, no name stands for it, nobody has it open; the kernel asks
anew before it uses it. Old ones are taken from the kernel when there are too many, as far as
nothing there uses them; it says so by its FORGET, and then they are gone here, too.

With the inode go the pages that the kernel has of a file, so some are left to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import trio

from mictlanfs.model import InodeNumber
from mictlanfs_mount.inodes import InodeTable

LOOK_EVERY_S = 10.0


class Pruner(Protocol):
    """The kernel's cache, as far as it is needed here."""

    async def prune(self, inodes: Sequence[InodeNumber]) -> None:
        """Have the kernel drop those of these inodes that nothing uses."""
        ...


async def keep_strays_few(inodes: InodeTable, kernel: Pruner, count_max: int) -> None:
    """See that there are not many more than `count_max` strays, until cancelled."""
    while True:
        await trio.sleep(LOOK_EVERY_S)
        if len(inodes) <= count_max:
            continue
        strays = inodes.strays()
        if len(strays) > count_max:
            await kernel.prune(strays[: len(strays) - count_max * 3 // 4])
