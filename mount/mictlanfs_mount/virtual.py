"""What a mount shows besides the space: the hidden directory `.mictlanfs` and computed attributes.

`VirtualFileSystem` is a `FileSystem` whose verbs answer for inodes and names that exist in this
mount only, and pass everything else on. The directory is found by lookup in the root of the mount
and not listed there. Its files are texts made when they are opened, and never kept by the kernel.
Nothing here can be changed: NOT_PERMITTED.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, Buffer, FileKind, InodeNumber, Node
from mictlanfs.mounts import cachewords
from mictlanfs_mount import computed
from mictlanfs_mount.filesystem import Caller, Opened
from mictlanfs_mount.gone import stale_when_gone
from mictlanfs_mount.handles import DirectoryHandle, FileHandle, HandleNumber
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.setids import IsMember, in_every_group
from mictlanfs_mount.snapshots import SnapshotFileSystem
from mictlanfs_mount.warming import Warming

DIRECTORY_NAME: Final = b".mictlanfs"
# The router counts up from 1 and ends below, in no time of ours.
DIRECTORY_INODE: Final = InodeNumber(2**63 - 1)
_FIRST_FILE: Final = DIRECTORY_INODE - 1024

# An object is shown as JSON, a text as it is.
Document = Callable[[], Mapping[str, Any] | str]


@dataclass(frozen=True, slots=True)
class Views:
    """Where the texts come from.

    Attributes:
        documents: the files of the directory by name, in the order of their inode numbers.
        peer_name: the name of a peer.
        warming: answers requests about the cache; None: there are no answers.
    """

    documents: Mapping[bytes, Document] = field(default_factory=dict)
    peer_name: computed.PeerName = str
    warming: Warming | None = None


@dataclass(eq=False, slots=True)
class DocumentHandle(FileHandle):
    """One open of a text, as it was then."""

    text: bytes = b""


def is_virtual(ino: InodeNumber) -> bool:
    """Whether an inode is of this mount only."""
    return _FIRST_FILE <= ino <= DIRECTORY_INODE


class VirtualFileSystem(SnapshotFileSystem):
    """A file system with what its mount has to tell.

    Attributes:
        views: set once the parts that they tell of exist.
    """

    views = Views()

    # --- the directory ---------------------------------------------------------------------------

    def _is_taken(self, parent: InodeNumber, name: bytes) -> bool:
        """Whether a name belongs to the directory: its own, or any in it."""
        return is_virtual(parent) or (parent == self.inodes.root and name == DIRECTORY_NAME)

    def _refuse(self, operation: str, *names: tuple[InodeNumber, bytes]) -> None:
        for parent, name in names:
            if self._is_taken(parent, name):
                detail = "the mount itself keeps this; it cannot be changed"
                raise MictlanError(Kind.NOT_PERMITTED, operation, os.fsdecode(name), detail)

    def _refuse_inode(self, operation: str, ino: InodeNumber) -> None:
        if is_virtual(ino):
            detail = "the mount itself keeps this; it cannot be changed"
            raise MictlanError(Kind.NOT_PERMITTED, operation, str(ino), detail)

    def _names(self) -> dict[bytes, InodeNumber]:
        return {
            name: InodeNumber(_FIRST_FILE + index)
            for index, name in enumerate(self.views.documents)
        }

    def _text(self, ino: InodeNumber) -> bytes:
        """The text of a file, as of now. Raises NOT_FOUND."""
        for name, number in self._names().items():
            if number == ino:
                document = self.views.documents[name]()
                if isinstance(document, str):
                    return document.encode()
                return json.dumps(document, indent=2, default=os.fspath).encode() + b"\n"
        raise MictlanError(Kind.NOT_FOUND, "document", str(ino))

    def _virtual(self, ino: InodeNumber, text: bytes | None = None) -> Inode:
        """The inode with the attributes of now; while a file is open, with the size of its text."""
        inode = self.inodes.get(ino) or Inode(self._attributes(ino, 0))
        if ino == DIRECTORY_INODE:
            size = len(self.views.documents)
        elif text is None and inode.open_count > 0:
            size = inode.attributes.size
        else:
            size = len(self._text(ino) if text is None else text)
        inode.attributes = self._attributes(ino, size)
        return inode

    def _attributes(self, ino: InodeNumber, size: int) -> Attributes:
        is_directory = ino == DIRECTORY_INODE
        now_ns = self._clock.wall_ns()
        return Attributes(
            ino,
            FileKind.DIRECTORY if is_directory else FileKind.FILE,
            0o555 if is_directory else 0o444,
            os.getuid(),
            os.getgid(),
            size,
            now_ns,
            now_ns,
            now_ns,
            2 if is_directory else 1,
        )

    # --- names -----------------------------------------------------------------------------------

    async def lookup(self, parent: InodeNumber, name: bytes) -> Inode:
        """Resolve a name. Raises NOT_FOUND, NOT_DIRECTORY."""
        if not self._is_taken(parent, name):
            return await super().lookup(parent, name)
        if not is_virtual(parent):
            return self._virtual(DIRECTORY_INODE)
        ino = self._names().get(name)
        if ino is None or parent != DIRECTORY_INODE:
            raise MictlanError(Kind.NOT_FOUND, "lookup", os.fsdecode(name))
        return self._virtual(ino)

    async def getattr(self, ino: InodeNumber) -> Inode:
        """The inode with attributes that may be shown now."""
        return self._virtual(ino) if is_virtual(ino) else await super().getattr(ino)

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
        """Create a node, but not in the directory."""
        self._refuse("make", (parent, name))
        return await super().make(parent, name, kind, mode, caller, rdev=rdev, target=target)

    async def link(self, ino: InodeNumber, parent: InodeNumber, name: bytes) -> Inode:
        """Give an inode another name, but nothing of the directory."""
        self._refuse_inode("link", ino)
        self._refuse("link", (parent, name))
        return await super().link(ino, parent, name)

    async def unlink(self, parent: InodeNumber, name: bytes) -> None:
        """Remove a name of what is not a directory, but not in the directory."""
        self._refuse("unlink", (parent, name))
        await super().unlink(parent, name)

    async def rmdir(self, parent: InodeNumber, name: bytes) -> None:
        """Remove an empty directory, but not this one."""
        self._refuse("rmdir", (parent, name))
        await super().rmdir(parent, name)

    async def rename(
        self,
        parent: InodeNumber,
        name: bytes,
        new_parent: InodeNumber,
        new_name: bytes,
        mode: int,
    ) -> None:
        """Move a name, but not into or out of the directory."""
        self._refuse("rename", (parent, name), (new_parent, new_name))
        await super().rename(parent, name, new_parent, new_name, mode)

    async def opendir(self, ino: InodeNumber) -> HandleNumber:
        """Open a directory."""
        if not is_virtual(ino):
            return await super().opendir(ino)
        inode = self._virtual(ino)
        self.inodes.keep(inode)
        inode.open_count += 1
        return self.handles.add(DirectoryHandle(inode))

    async def readdir(self, number: HandleNumber, index: int) -> DirectoryHandle:
        """The directory handle with the entry at `index` read, unless the directory ends before."""
        handle = self.handles.directory(number)
        if not is_virtual(handle.inode.ino):
            return await super().readdir(number, index)
        if not handle.is_complete:
            entries = tuple(
                wire.Entry(name, Node(self._virtual(ino).attributes))
                for name, ino in sorted(self._names().items())
            )
            root = self.inodes.root
            assert root is not None
            handle.add_page(wire.ListPage(entries, handle.inode.attributes, root, True), 0.0)
        return handle

    # --- files -----------------------------------------------------------------------------------

    async def open(
        self,
        ino: InodeNumber,
        flags: int,
        thread: int | None = 0,
        *,
        is_root: bool = False,
        is_member: IsMember = in_every_group,
    ) -> Opened:
        """Open a file; a text of the directory is made now."""
        if not is_virtual(ino):
            return await super().open(ino, flags, thread, is_root=is_root, is_member=is_member)
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            self._refuse_inode("open", ino)
        text = self._text(ino)
        inode = self._virtual(ino, text)
        self.inodes.keep(inode)
        inode.open_count += 1
        number = self.handles.add(DocumentHandle(inode, is_writable=False, text=text))
        return Opened(number, keep_cache=False, direct_io=True)

    async def read(self, number: HandleNumber, offset: int, length: int) -> Buffer:
        """Bytes of an open file; fewer than `length` only at its end."""
        handle = self.handles.file(number)
        if isinstance(handle, DocumentHandle):
            return handle.text[offset : offset + length]
        return await super().read(number, offset, length)

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
        """Change attributes, but not here."""
        self._refuse_inode("setattr", ino)
        return await super().setattr(
            ino, mode=mode, uid=uid, gid=gid, size=size, atime_ns=atime_ns, mtime_ns=mtime_ns
        )

    # --- extended attributes ---------------------------------------------------------------------

    async def getxattr(self, ino: InodeNumber, name: bytes) -> bytes:
        """The value of an extended attribute, stored or computed. Raises NO_DATA, UNSUPPORTED."""
        if name not in computed.NAMES and not is_virtual(ino):
            return await super().getxattr(ino, name)
        value = None if is_virtual(ino) else await self._computed(ino, name)
        if value is None:
            raise MictlanError(Kind.NO_DATA, "getxattr", str(ino))
        return value

    async def _computed(self, ino: InodeNumber, name: bytes) -> bytes | None:
        inode = await self.getattr(ino)
        if inode.attributes.kind is not FileKind.FILE:
            return None
        if name == computed.SIZE:
            return b"%d" % self.attributes_of(inode).size
        await self._catch_up(ino)
        with stale_when_gone("getxattr", ino):
            if name in computed.OF_PATH:
                if inode.attributes.nlink == 0:
                    return None
                return computed.of_path(name, await self._router.path(ino))
            node = await self._router.node(wire.GetNode(ino, wire.EXTENTS_PAGE_MAX))
        is_dirty = self._content.effective(node.attributes) != node.attributes
        if is_dirty and name == computed.CHECKSUM:
            # The checksum of what is not stored yet is not known.
            return None
        return computed.of_content(name, node, self.views.peer_name)

    async def cache_request(self, ino: InodeNumber, name: bytes, *, is_owner: bool) -> bytes:
        """The answer to a request about the cache. Raises NO_DATA, NOT_PERMITTED."""
        warming = self.views.warming
        if warming is None or is_virtual(ino):
            return await super().cache_request(ino, name, is_owner=is_owner)
        if ino == self.inodes.root and name == cachewords.CLEAR:
            if not is_owner:
                detail = "only who made the mount can clear all of its cache"
                raise MictlanError(Kind.NOT_PERMITTED, "clear cache", detail=detail)
            return cachewords.encode(await warming.clear_all())
        inode = await self.getattr(ino)
        if inode.attributes.kind is not FileKind.FILE:
            return await super().cache_request(ino, name, is_owner=is_owner)
        with stale_when_gone("getxattr", ino):
            return await warming.answer(inode, name)

    async def listxattr(self, ino: InodeNumber) -> list[bytes]:
        """The names of the extended attributes that are stored; copies take no others along."""
        return [] if is_virtual(ino) else await super().listxattr(ino)

    async def setxattr(
        self,
        ino: InodeNumber,
        name: bytes,
        value: bytes,
        flags: int = 0,
        *,
        is_member: IsMember | None = None,
    ) -> None:
        """Give a stored extended attribute a value."""
        self._check_changeable("setxattr", ino, name)
        await super().setxattr(ino, name, value, flags, is_member=is_member)

    async def removexattr(self, ino: InodeNumber, name: bytes) -> None:
        """Remove a stored extended attribute."""
        self._check_changeable("removexattr", ino, name)
        await super().removexattr(ino, name)

    def _check_changeable(self, operation: str, ino: InodeNumber, name: bytes) -> None:
        self._refuse_inode(operation, ino)
        if name in computed.NAMES or cachewords.is_request(name):
            detail = "this is worked out, and cannot be set or removed"
            raise MictlanError(Kind.NOT_PERMITTED, operation, os.fsdecode(name), detail)
