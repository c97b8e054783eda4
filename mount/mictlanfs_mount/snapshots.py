"""Snapshots in a mount: found by name in their bucket, and changed by nobody.

What lies in a snapshot is read, leased and cached as everything else. Two things are special: the
name `.snapshots` is looked up past the leases, because it is in no listing, which a lease makes
complete; and every verb that changes something refuses it with READ_ONLY.
"""

from __future__ import annotations

import os

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind, InodeNumber, Node
from mictlanfs.snapshotnumbers import SNAPSHOTS_NAME, is_unchangeable, snapshots_directory
from mictlanfs_mount.filesystem import Caller, Opened
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.leased import LeasedFileSystem
from mictlanfs_mount.setids import IsMember, in_every_group


class SnapshotFileSystem(LeasedFileSystem):
    """A file system whose buckets show their snapshots."""

    # --- names -----------------------------------------------------------------------------------

    async def lookup(self, parent: InodeNumber, name: bytes) -> Inode:
        """Resolve a name. Raises NOT_FOUND, NOT_DIRECTORY."""
        if name == SNAPSHOTS_NAME and self.keeper is not None:
            return await self._look_past_leases(parent)
        return await super().lookup(parent, name)

    async def _look_past_leases(self, parent: InodeNumber) -> Inode:
        """What `.snapshots` is in a directory; if that is no bucket, a name like others."""
        assert self.keeper is not None
        known = self.inodes.get(snapshots_directory(parent))
        if known is not None and self._covers(known):
            return known
        lease = self.keeper.table.get(parent)
        if lease is None or lease.names.get(SNAPSHOTS_NAME) is None:
            request = wire.Lookup(parent, SNAPSHOTS_NAME)
            node, grants = await self.keeper.read(wire.Path.LOOKUP, request, Node)
            if is_unchangeable(node.attributes.ino):
                return self._learned(node, grants)
        return await super().lookup(parent, SNAPSHOTS_NAME)

    def _refuse_kept(self, operation: str, *inodes: InodeNumber) -> None:
        for ino in inodes:
            if is_unchangeable(ino):
                detail = "it is part of a snapshot"
                raise MictlanError(Kind.READ_ONLY, operation, str(ino), detail)

    async def _refuse_kept_name(self, operation: str, parent: InodeNumber, name: bytes) -> None:
        """Refuse what is in a snapshot, and the directory of snapshots itself."""
        self._refuse_kept(operation, parent)
        if name != SNAPSHOTS_NAME:
            return
        try:
            found = await self.lookup(parent, name)
        except MictlanError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return
        self._refuse_kept(operation, found.ino)

    # --- what changes something ------------------------------------------------------------------

    async def make(
        self,
        parent: InodeNumber,
        name: bytes,
        kind: FileKind,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Inode:
        """Create a node, but not in a snapshot."""
        await self._refuse_kept_name("make", parent, name)
        return await super().make(parent, name, kind, mode, caller, rdev=rdev, target=target)

    async def link(self, ino: InodeNumber, parent: InodeNumber, name: bytes) -> Inode:
        """Give an inode another name, but nothing of a snapshot."""
        self._refuse_kept("link", ino)
        await self._refuse_kept_name("link", parent, name)
        return await super().link(ino, parent, name)

    async def unlink(self, parent: InodeNumber, name: bytes) -> None:
        """Remove a name of what is not a directory, but not in a snapshot."""
        self._refuse_kept("unlink", parent)
        await super().unlink(parent, name)

    async def rmdir(self, parent: InodeNumber, name: bytes) -> None:
        """Remove an empty directory, but not in a snapshot."""
        await self._refuse_kept_name("rmdir", parent, name)
        await super().rmdir(parent, name)

    async def rename(
        self,
        parent: InodeNumber,
        name: bytes,
        new_parent: InodeNumber,
        new_name: bytes,
        mode: int,
    ) -> None:
        """Move a name, but not into or out of a snapshot."""
        await self._refuse_kept_name("rename", parent, name)
        await self._refuse_kept_name("rename", new_parent, new_name)
        await super().rename(parent, name, new_parent, new_name, mode)

    async def setattr(
        self,
        ino: InodeNumber,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Inode:
        """Change attributes, but not in a snapshot."""
        self._refuse_kept("setattr", ino)
        return await super().setattr(
            ino, mode=mode, uid=uid, gid=gid, size=size, atime_ns=atime_ns, mtime_ns=mtime_ns
        )

    async def open(
        self,
        ino: InodeNumber,
        flags: int,
        thread: int | None = 0,
        *,
        is_root: bool = False,
        is_member: IsMember = in_every_group,
    ) -> Opened:
        """Open a file; in a snapshot for reading only."""
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            self._refuse_kept("open", ino)
        return await super().open(ino, flags, thread, is_root=is_root, is_member=is_member)

    async def setxattr(
        self,
        ino: InodeNumber,
        name: bytes,
        value: bytes,
        flags: int = 0,
        *,
        is_member: IsMember | None = None,
    ) -> None:
        """Give an extended attribute a value, but not in a snapshot."""
        self._refuse_kept("setxattr", ino)
        await super().setxattr(ino, name, value, flags, is_member=is_member)

    async def removexattr(self, ino: InodeNumber, name: bytes) -> None:
        """Remove an extended attribute, but not in a snapshot."""
        self._refuse_kept("removexattr", ino)
        await super().removexattr(ino, name)
