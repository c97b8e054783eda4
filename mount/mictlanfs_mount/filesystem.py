"""The verbs of the file system, free of pyfuse3, so that they are tested without a kernel.

Owns the inode and handle tables and decides what the kernel may remember and for how long. Every
change of names and attributes is applied at the router before its verb returns; content is written
back (`content`). What the router said of an inode is used for `attr_timeout_s`, then asked again;
`open` always asks, so that what another mount closed before is seen.

Verbs raise `MictlanError` or `OSError`. A cancelled verb may or may not have changed the space.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from mictlanfs import acl, wire
from mictlanfs.client.inline import INLINE_WITH_NODE_SIZE_BYTES
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session
from mictlanfs.clock import Clock
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import (
    ROOT_INODE,
    TIME_NS_MAX,
    TIME_NS_MIN,
    Attributes,
    BucketPolicy,
    Buffer,
    FileKind,
    InodeNumber,
    Node,
)
from mictlanfs_mount.content import Content
from mictlanfs_mount.gone import stale_when_gone
from mictlanfs_mount.handles import DirectoryHandle, FileHandle, HandleNumber, HandleTable
from mictlanfs_mount.inodes import Inode, InodeTable
from mictlanfs_mount.quotas import within_quota
from mictlanfs_mount.setids import IsMember, after_open_truncating, in_every_group
from mictlanfs_mount.shortreads import ShortReads

log = logging.getLogger(__name__)

# What the peers have not got of the last moments stays in the metadata rather than hold the end up.
MOVE_S_MAX = 5.0
# Nor does it wait long for files that were written in pieces: they are whole, only slow to read.
DEFRAGMENT_S_MAX = 2.0
STATFS_VALIDITY_S = 1.0
# How long a known answer about space is kept waiting for a newer one.
STATFS_PATIENCE_S = 2.0
XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.")
LABEL_XATTR = b"security.selinux"
# The kernel repeats an open that was refused as stale at once; later it is another open.
REOPEN_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request: the ids that new nodes belong to, and the bits they do not get.

    Attributes:
        umask: has no say over symlinks, nor where a default access list takes its place.
    """

    uid: int
    gid: int
    umask: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """The answer to an open.

    Attributes:
        keep_cache: whether pages the kernel has cached are still the file's content.
        direct_io: whether the kernel keeps no pages, and asks for every read whatever the size.
    """

    handle: HandleNumber
    keep_cache: bool
    direct_io: bool = False


class FileSystem:
    """A Virtual Storage Space as a tree of inodes.

    Args:
        attr_timeout_s: how long attributes and names may be used without asking.
        sync_on_close: whether closing a written file waits until it is durable.

    Attributes:
        has_acls: whether access control lists are shown and can be set; the kernel enforces them.
        reopen_within_s: how soon the kernel repeats an open that was refused as stale.
    """

    reopen_within_s = REOPEN_WITHIN_S

    def __init__(
        self,
        router: RouterClient,
        session: Session,
        content: Content,
        inodes: InodeTable,
        clock: Clock,
        *,
        attr_timeout_s: float,
        sync_on_close: bool = False,
    ) -> None:
        self._router = router
        self._session = session
        self._content = content
        self._clock = clock
        self._attr_timeout_s = attr_timeout_s
        self._sync_on_close = sync_on_close
        self.has_acls = True
        self.inodes = inodes
        self.handles = HandleTable()
        self.short_reads = ShortReads(clock)
        # Removals under way of what nobody had open when they were sent.
        self._removals: set[trio.Event] = set()
        self._statfs: wire.StatFs | None = None
        self._statfs_until_s = 0.0

    @property
    def wants_flush(self) -> bool:
        """Whether closing a file means anything here; for good, once the kernel was told."""
        return True

    # --- what is known of inodes -----------------------------------------------------------------

    def attributes_of(self, inode: Inode) -> Attributes:
        """Attributes as an application must see them now."""
        return self._content.effective(inode.attributes)

    def validity_s(self, inode: Inode) -> float:
        """For how many seconds more the kernel may use the inode's attributes."""
        return max(0.0, inode.valid_until_s - self._clock.monotonic_s())

    def name_validity_s(self, parent: InodeNumber, name: bytes, inode: Inode | None) -> float:
        """For how many seconds more the kernel may use a name, or believe that there is none."""
        return 0.0 if inode is None else self.validity_s(inode)

    def remembered(self, node: Node, valid_until_s: float | None = None) -> Inode:
        """The inode of a node the router sent, entered in the table."""
        if valid_until_s is None:
            valid_until_s = self._valid_from_now()
        inode = self.inodes.learn(node.attributes, valid_until_s)
        inode.target = node.target
        if node.policy is not None and node.policy != inode.policy:
            inode.policy = node.policy
        return inode

    def _valid_from_now(self) -> float:
        return self._clock.monotonic_s() + self._attr_timeout_s

    async def _known(self, ino: InodeNumber) -> Inode:
        """The inode, asked for when the table does not hold it."""
        return self.inodes.get(ino) or await self._asked(ino)

    async def _asked(self, ino: InodeNumber, extents_max: int = 0) -> Inode:
        with stale_when_gone("ask for", ino):
            inline_max = INLINE_WITH_NODE_SIZE_BYTES if extents_max else 0
            node = await self._router.node(wire.GetNode(ino, extents_max, inline_max))
        inode = self.remembered(node)
        if extents_max:
            self._content.keep_inline(node)
            self._learn_extents(inode, node)
        return inode

    @staticmethod
    def _learn_extents(inode: Inode, node: Node) -> None:
        version = node.attributes.content_version
        is_known = version == inode.extents.content_version and (
            inode.extents.first_unknown(0, 1) is None
        )
        is_overtaken = version != inode.attributes.content_version
        if is_known or is_overtaken:
            return
        if version > inode.extents.content_version:
            inode.extents.reset(version)
        end = None if node.has_all_extents else (node.extents[-1].end if node.extents else 0)
        inode.extents.learn(0, end, node.extents, node.chunks)

    async def _apply(self, op: wire.Operation) -> tuple[Attributes, ...]:
        touched = await self._session.apply(op)
        valid_until_s = self._valid_from_now()
        for attributes in touched:
            self.inodes.refresh(attributes, valid_until_s)
        return touched

    # --- names -----------------------------------------------------------------------------------

    async def lookup(self, parent: InodeNumber, name: bytes) -> Inode:
        """Resolve a name. Raises NOT_FOUND, NOT_DIRECTORY."""
        return self.remembered(await self._router.lookup(wire.Lookup(parent, name)))

    async def getattr(self, ino: InodeNumber) -> Inode:
        """The inode with attributes that may be shown now."""
        inode = self.inodes.get(ino)
        if inode is not None and inode.valid_until_s > self._clock.monotonic_s():
            return inode
        return await self._asked(ino)

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
        """Create a node; the errors are those of `wire.MakeNode`."""
        directory = await self._known(parent)
        gid, mode = inherited(directory.attributes, kind, caller.gid, mode)
        umask = 0 if kind is FileKind.SYMLINK else caller.umask & 0o777
        ino = await self._session.new_inode()
        op = wire.MakeNode(
            parent,
            name,
            ino,
            kind,
            mode & 0o7777 & ~umask,
            caller.uid,
            gid,
            self._clock.wall_ns(),
            rdev,
            target,
            masked=mode & umask,
        )
        touched = await self._apply(op)
        policy = BucketPolicy() if parent == ROOT_INODE else directory.policy
        inode = self.remembered(Node(touched[0], target, policy=policy))
        inode.extents.reset(touched[0].content_version)
        inode.extents.learn(0, None, (), ())
        if kind is FileKind.FILE:
            await self._content.quotas.inherit(inode, directory)
        return inode

    async def link(self, ino: InodeNumber, parent: InodeNumber, name: bytes) -> Inode:
        """Give an inode another name; the errors are those of `wire.Link`."""
        inode = await self._known(ino)
        await self._apply(wire.Link(ino, parent, name, self._clock.wall_ns()))
        return inode

    async def unlink(self, parent: InodeNumber, name: bytes) -> None:
        """Remove a name of what is not a directory."""
        sustain = self._has_handles
        op = wire.Unlink(parent, name, self._clock.wall_ns(), sustain)
        touched = await self._apply_removal(op, sustain=sustain)
        await self._let_go(touched[0], sustain=sustain)

    async def rmdir(self, parent: InodeNumber, name: bytes) -> None:
        """Remove an empty directory; in the root, an empty bucket."""
        sustain = self._has_handles
        op = wire.RemoveDirectory(parent, name, self._clock.wall_ns(), sustain)
        touched = await self._apply_removal(op, sustain=sustain)
        await self._let_go(touched[0], sustain=sustain)

    async def rename(
        self,
        parent: InodeNumber,
        name: bytes,
        new_parent: InodeNumber,
        new_name: bytes,
        mode: int,
    ) -> None:
        """Move a name; `mode` is one of `wire.RenameMode`."""
        if mode not in {
            wire.RenameMode.REPLACE,
            wire.RenameMode.NO_REPLACE,
            wire.RenameMode.EXCHANGE,
        }:
            raise MictlanError(Kind.INVALID, "rename", os.fsdecode(name), f"flags {mode:#x}")
        sustain = self._has_handles
        op = wire.Rename(parent, name, new_parent, new_name, self._clock.wall_ns(), mode, sustain)
        touched = await self._apply_removal(op, sustain=sustain)
        for attributes in touched[3:]:
            await self._let_go(attributes, sustain=sustain)

    @property
    def _has_handles(self) -> bool:
        """Whether an inode that loses its last name may be open here, so must be sustained."""
        return len(self.handles) > 0

    async def _apply_removal(self, op: wire.Operation, *, sustain: bool) -> tuple[Attributes, ...]:
        """Apply what may take the last name of an inode; `open` waits for it unless it sustains."""
        if sustain:
            return await self._apply(op)
        done = trio.Event()
        self._removals.add(done)
        try:
            return await self._apply(op)
        finally:
            self._removals.discard(done)
            done.set()

    async def _let_go(self, attributes: Attributes, *, sustain: bool) -> None:
        """Forget an inode that lost its last name, unless a handle here still uses it."""
        inode = self.inodes.get(attributes.ino)
        if attributes.nlink > 0 or (inode is not None and inode.open_count > 0):
            return
        self._content.discard(attributes.ino)
        if sustain:
            await self._release(attributes.ino)

    async def _release(self, ino: InodeNumber) -> None:
        """Let the router forget an inode that it sustains for this session."""
        try:
            await self._session.apply(wire.Release(ino))
        except MictlanError as error:
            # What the caller asked for is done. The end of the session lets go of the inode too.
            log.warning("inode %d stays sustained: %s", ino, error)

    async def readlink(self, ino: InodeNumber) -> bytes:
        """The target of a symlink."""
        inode = await self._known(ino)
        if inode.attributes.kind is not FileKind.SYMLINK:
            raise MictlanError(Kind.INVALID, "readlink", str(ino))
        if not inode.target:
            inode = await self._asked(ino)
        return inode.target

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
        """Change attributes; None leaves one as it is."""
        inode = await self._known(ino)
        times_ns = (nearest_time(atime_ns), nearest_time(mtime_ns))
        if size == 0:
            self._content.drop_refused(ino)
        # What was written before must not be applied after: it would undo the size or the time.
        await self._content.flush(ino)
        op = wire.SetAttributes(
            ino,
            self._clock.wall_ns(),
            None if mode is None else stat.S_IMODE(mode),
            uid,
            gid,
            size,
            *times_ns,
        )
        with stale_when_gone("setattr", ino):
            (attributes,) = await self._session.apply(op)
        if size is not None:
            inode.note_own_change(attributes)
            inode.extents.truncate(size, attributes.content_version)
            self.short_reads.on_cut(inode, size)
        inode.learn(attributes, self._valid_from_now())
        return inode

    # --- directories -----------------------------------------------------------------------------

    async def opendir(self, ino: InodeNumber) -> HandleNumber:
        """Open a directory."""
        inode = await self._known(ino)
        if inode.attributes.kind is not FileKind.DIRECTORY:
            raise MictlanError(Kind.NOT_DIRECTORY, "opendir", str(ino))
        inode.open_count += 1
        return self.handles.add(DirectoryHandle(inode))

    def rewinddir(self, number: HandleNumber) -> None:
        """The directory is read from its start: as it is from now on."""
        self.handles.directory(number).restart()

    async def readdir(self, number: HandleNumber, index: int) -> DirectoryHandle:
        """The directory handle with the entry at `index` read, unless the directory ends before."""
        handle = self.handles.directory(number)
        while index >= len(handle.entries) and not handle.is_complete:
            after = handle.entries[-1].name if handle.entries else b""
            page = await self._router.list(wire.ListDirectory(handle.inode.ino, after))
            handle.add_page(page, self._valid_from_now())
        return handle

    def listed(self, handle: DirectoryHandle, index: int) -> tuple[bytes, Inode, float]:
        """An entry that `readdir` has read: name, inode, and for how long the name may be used."""
        found = handle.entries[index]
        valid_until_s = handle.valid_until_s(index)
        inode = self.remembered(found.node, valid_until_s)
        left_s = min(valid_until_s, inode.valid_until_s) - self._clock.monotonic_s()
        return found.name, inode, max(0.0, left_s)

    async def releasedir(self, number: HandleNumber) -> None:
        """Close a directory."""
        await self._close(number)

    async def fsyncdir(self, number: HandleNumber) -> None:
        """Make every change of names made here durable."""
        self.handles.directory(number)
        await self._session.sync()

    # --- files -----------------------------------------------------------------------------------

    async def create(
        self, parent: InodeNumber, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Opened, Inode]:
        """Create a file and open it; without O_EXCL, open the one another mount just made."""
        try:
            inode = await self.make(parent, name, FileKind.FILE, mode, caller)
        except MictlanError as error:
            if error.kind is not Kind.EXISTS or flags & os.O_EXCL:
                raise
            return await self._open_existing(await self.lookup(parent, name), flags, caller)
        inode.kernel_content_version = inode.attributes.content_version
        return Opened(self._add_file_handle(inode, flags), keep_cache=True), inode

    async def _open_existing(
        self, inode: Inode, flags: int, caller: Caller
    ) -> tuple[Opened, Inode]:
        """Open what a program wanted to create and was made elsewhere meanwhile."""
        if inode.attributes.kind not in {FileKind.FILE, FileKind.DIRECTORY}:
            # Whatever it is, the kernel knows how to open it once it has looked it up.
            self.inodes.drop_unused(inode)
            raise MictlanError(Kind.STALE, "create", str(inode.ino))
        # The answer tells the kernel the size too.
        return await self.open(inode.ino, flags, None, is_root=caller.uid == 0), inode

    async def open(
        self,
        ino: InodeNumber,
        flags: int,
        thread: int | None = 0,
        *,
        is_root: bool = False,
        is_member: IsMember = in_every_group,
    ) -> Opened:
        """Open a file, with what was closed elsewhere before. Raises STALE when it is gone.

        `thread` is the one that opens; None: the kernel is told the size without being refused.
        With O_TRUNC set-user-id and set-group-id go, as `setids` says of who opens.
        """
        # Counted as open before anything is asked, so that a removal meanwhile sustains it.
        number = self._add_file_handle(await self._known(ino), flags)
        try:
            for removal in tuple(self._removals):
                await removal.wait()
            inode = await self._asked(ino, wire.EXTENTS_PAGE_MAX)
            if inode.attributes.kind is FileKind.DIRECTORY:
                raise MictlanError(Kind.IS_DIRECTORY, "open", str(ino))
            if thread is not None:
                self._renew_size(inode, thread)
            if flags & os.O_TRUNC:
                # Of an empty file too: its times change.
                known = inode.attributes
                mode = after_open_truncating(known, is_root=is_root, is_member=is_member)
                await self.setattr(ino, size=0, mode=mode)
        except BaseException:
            await self._close(number)
            raise
        version = inode.attributes.content_version
        keep_cache = inode.kernel_content_version == version
        inode.kernel_content_version = version
        return Opened(number, keep_cache)

    def _renew_size(self, inode: Inode, thread: int) -> None:
        """Refuse an open, once, of a file whose size the kernel was told before it changed.

        The kernel would append at the old size and read no further than it, and the answer to an
        open cannot tell it another. STALE makes it look the path up anew, which can, and open
        again, in the same thread; a second STALE in a row would reach the program.
        """
        now_s = self._clock.monotonic_s()
        is_repeated = now_s < inode.reopening.get(thread, now_s)
        if inode.reopening:
            inode.reopening = {
                key: until
                for key, until in inode.reopening.items()
                if now_s < until and key != thread
            }
        is_told = inode.told_content_version in {-1, inode.attributes.content_version}
        if is_told or is_repeated:
            return
        inode.reopening = {**inode.reopening, thread: now_s + self.reopen_within_s}
        raise MictlanError(Kind.STALE, "open", str(inode.ino), "it was changed elsewhere")

    def _add_file_handle(self, inode: Inode, flags: int) -> HandleNumber:
        inode.open_count += 1
        # The inode may have been forgotten while the router answered.
        self.inodes.keep(inode)
        is_writable = flags & os.O_ACCMODE != os.O_RDONLY
        is_direct, is_append = bool(flags & os.O_DIRECT), bool(flags & os.O_APPEND)
        return self.handles.add(FileHandle(inode, is_writable, is_direct, is_append))

    def read_now(self, number: HandleNumber, offset: int, length: int) -> Buffer | None:
        """What `read` would return, if that is at hand. Never suspends."""
        return None

    async def read(self, number: HandleNumber, offset: int, length: int) -> Buffer:
        """Bytes of an open file; fewer than `length` only at its end."""
        handle = self.handles.file(number)
        body = await self._content.read(handle, offset, length)
        if not handle.is_direct and len(body) < length:
            size = self.attributes_of(handle.inode).size
            self.short_reads.check(handle.inode, offset, offset + length, len(body), size)
        return body

    async def write(self, number: HandleNumber, offset: int, data: bytes) -> int:
        """Write to an open file; returns the number of bytes taken, always all."""
        handle = self.handles.file(number)
        await self._content.write(handle, offset, data)
        self.short_reads.on_written(handle.inode, offset + len(data))
        return len(data)

    async def flush(self, number: HandleNumber) -> None:
        """close(2) was called on a descriptor of the handle: what it wrote is committed.

        Reports errors of write-back that nobody was told of yet. What a program wrote into mapped
        memory may have come through another handle, so every one that can write is flushed.
        """
        handle = self.handles.file(number)
        if not handle.is_writable:
            return
        if self._sync_on_close:
            await self._content.fsync(handle.inode.ino)
        else:
            await self._content.flush(handle.inode.ino)

    async def fsync(self, number: HandleNumber) -> None:
        """Make the file, its name and every change before durable."""
        await self._content.fsync(self.handles.file(number).inode.ino)

    async def release(self, number: HandleNumber) -> None:
        """The last descriptor of the handle is closed."""
        await self._close(number)

    async def _close(self, number: HandleNumber) -> None:
        handle = self.handles.remove(number)
        if handle is None:
            return
        inode = handle.inode
        inode.open_count -= 1
        if inode.open_count > 0:
            return
        self.inodes.drop_unused(inode)
        if inode.attributes.nlink == 0:
            if self._has_bytes_to_keep(inode):
                await self._store_what_is_kept(inode)
            self._content.discard(inode.ino)
            await self._release(inode.ino)

    def _has_bytes_to_keep(self, inode: Inode) -> bool:
        """Whether a file, which nobody has open, has bytes that its bucket keeps when it goes."""
        is_wanted = inode.policy.trash_days > 0 and inode.open_count == 0
        return is_wanted and not self._content.is_clean(inode.ino)

    async def _store_what_is_kept(self, inode: Inode) -> None:
        """Commit the bytes of a file that is about to go, as far as there is room for them."""
        try:
            await self._content.flush(inode.ino)
        except MictlanError as error:
            log.warning("inode %d is kept without its last bytes: %s", inode.ino, error)

    # --- extended attributes ---------------------------------------------------------------------

    async def _xattrs(self, ino: InodeNumber) -> Mapping[bytes, bytes]:
        inode = await self.getattr(ino)
        if not inode.attributes.has_xattrs:
            return {}
        version = inode.attributes.version
        if inode.xattrs_version != version:
            with stale_when_gone("getxattr", ino):
                inode.xattrs = await self._router.xattrs(ino)
            inode.xattrs_version = version
        return inode.xattrs

    def _check_xattr_name(self, name: bytes) -> None:
        """Refuse names of the system that are not served: as plain bytes they would do nothing.

        Refuses names outside of every namespace too; see xattr(7).
        """
        is_refused_system = name.startswith(b"system.") and not (
            self.has_acls and name in acl.NAMES
        )
        if is_refused_system or not name.startswith(XATTR_NAMESPACES):
            raise MictlanError(Kind.UNSUPPORTED, "xattr", os.fsdecode(name))
        if name in XATTR_NAMESPACES:
            raise MictlanError(Kind.INVALID, "xattr", os.fsdecode(name), "nothing follows the dot")

    def lacks_xattr(self, ino: InodeNumber, name: bytes) -> bool:
        """Whether `getxattr` is known to raise NO_DATA, as it does most often, without asking."""
        return False

    async def getxattr(self, ino: InodeNumber, name: bytes) -> bytes:
        """The value of an extended attribute. Raises NO_DATA, UNSUPPORTED."""
        self._check_xattr_name(name)
        value = (await self._xattrs(ino)).get(name)
        if value is None:
            raise MictlanError(kind_of_absence(name), "getxattr", str(ino))
        return value

    async def cache_request(self, ino: InodeNumber, name: bytes, *, is_owner: bool) -> bytes:
        """The answer to a request about the cache; see `mictlanfs.mounts.cachewords`.

        Args:
            ino: of what it is about.
            name: the request.
            is_owner: whether who asks is root or runs the mount.

        Raises:
            MictlanError: NO_DATA when there is nothing to tell, NOT_PERMITTED.
        """
        raise MictlanError(Kind.NO_DATA, "getxattr", str(ino))

    async def listxattr(self, ino: InodeNumber) -> list[bytes]:
        """The names of all extended attributes."""
        names = await self._xattrs(ino)
        return sorted(names if self.has_acls else names.keys() - acl.NAMES)

    async def setxattr(
        self,
        ino: InodeNumber,
        name: bytes,
        value: bytes,
        flags: int = 0,
        *,
        is_member: IsMember | None = None,
    ) -> None:
        """Give an extended attribute a value; `flags` are those of the system call.

        `is_member` tells whether who sets it is in a group, and so may keep the set-group-id bit
        of a file of that group; None: may.
        """
        self._check_xattr_name(name)
        clears = False
        if name == acl.ACCESS_NAME and is_member is not None:
            known = (await self.getattr(ino)).attributes
            clears = bool(known.mode & stat.S_ISGID) and not is_member(known.gid)
        op = wire.SetXattr(ino, name, value, self._clock.wall_ns(), flags, clears)
        with stale_when_gone("setxattr", ino):
            await self._apply(op)

    async def removexattr(self, ino: InodeNumber, name: bytes) -> None:
        """Remove an extended attribute. Raises NO_DATA, UNSUPPORTED."""
        self._check_xattr_name(name)
        with stale_when_gone("removexattr", ino):
            await self._apply(wire.RemoveXattr(ino, name, self._clock.wall_ns()))

    # --- the whole -------------------------------------------------------------------------------

    async def statfs(self) -> wire.StatFs:
        """Space and counts, at most `STATFS_VALIDITY_S` old.

        Older, if a router does not answer soon: `df`, and whoever looks whether the mount is there,
        would rather have these than wait.
        """
        now_s = self._clock.monotonic_s()
        if self._statfs is None or now_s >= self._statfs_until_s:
            patience_s = float("inf") if self._statfs is None else STATFS_PATIENCE_S
            try:
                with trio.move_on_after(patience_s):
                    space = await self._router.statfs()
                    root = self.inodes.get(self.inodes.root or ROOT_INODE)
                    self._statfs = await within_quota(self._router, root, space)
            except MictlanError:
                if self._statfs is None:
                    raise
            self._statfs_until_s = self._clock.monotonic_s() + STATFS_VALIDITY_S
        assert self._statfs is not None
        return self._statfs

    async def flush_all(self, deadline_s: float) -> int:
        """Store all that is dirty and make it durable; returns how many bytes could not be."""
        lost_bytes = await self._content.writeback.flush_all(deadline_s)
        with trio.move_on_after(MOVE_S_MAX):
            await self._content.move_owed(0.0)
        with trio.move_on_after(DEFRAGMENT_S_MAX):
            await self._content.defragmenter.rewrite_all()
        with trio.move_on_after(deadline_s):
            try:
                await self._session.sync()
            except MictlanError as error:
                log.warning("the last changes may not be durable: %s", error)
        return lost_bytes


def kind_of_absence(name: bytes) -> Kind:
    """What the answer is to who asks for an extended attribute that a file does not have.

    UNSUPPORTED of a label of SELinux: `ls -l` then asks for no more of them in the whole mount. A
    kernel with SELinux gives FUSE mounts labels itself, and does not ask.
    """
    return Kind.UNSUPPORTED if name == LABEL_XATTR else Kind.NO_DATA


def nearest_time(time_ns: int | None) -> int | None:
    """The nearest time that can be kept, as other file systems do it; see utimensat(2)."""
    return None if time_ns is None else min(max(time_ns, TIME_NS_MIN), TIME_NS_MAX)


def inherited(directory: Attributes, kind: FileKind, gid: int, mode: int) -> tuple[int, int]:
    """Group and mode of a new node: a set-group-id directory passes its group on. See mkdir(2)."""
    if not directory.mode & stat.S_ISGID:
        return gid, mode
    if kind is FileKind.DIRECTORY:
        mode |= stat.S_ISGID
    return directory.gid, mode
