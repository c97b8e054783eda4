"""A file system for `-o sync` and `-o dirsync`: no change of names returns before it is on a disk.

Owns no state. The kernel keeps the two options to itself for FUSE: of `sync` it makes an fsync
behind every write, and of `dirsync` nothing, so names and attributes are made durable here.
"""

from __future__ import annotations

from typing import Any

from mictlanfs import wire
from mictlanfs.model import Attributes, InodeNumber
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.virtual import VirtualFileSystem


class DurableFileSystem(VirtualFileSystem):
    """Every change of names and attributes is on the router's disk before its verb returns.

    A verb that fails after that may have changed the space all the same.
    """

    async def _apply(self, op: wire.Operation) -> tuple[Attributes, ...]:
        touched = await super()._apply(op)
        await self._session.sync()
        return touched

    async def _after_change(self) -> None:
        await self._session.sync()
        self._raise_refusal()
        await super()._after_change()

    async def setattr(self, ino: InodeNumber, **changes: Any) -> Inode:
        """Change attributes, as `FileSystem.setattr` does."""
        inode = await super().setattr(ino, **changes)
        # Also what waits for dirty bytes of the file.
        await self._content.flush(ino, sync=True)
        await self._session.sync()
        self._raise_refusal()
        return inode
