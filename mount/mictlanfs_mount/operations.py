"""The pyfuse3 adapter: decode the kernel's request, call the verb, encode the reply or the errno.

Makes no decisions. The one rule it enforces: nothing but `FUSEError` and cancellation leaves a
handler, because any other exception ends pyfuse3's main loop and with it the mount.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import FileHandleT, FileNameT, FlagT, FUSEError, InodeT, ModeT, XAttrNameT

from mictlanfs.errors import ERRNO, LOG_LEVEL, Kind, MictlanError
from mictlanfs.model import (
    NAME_SIZE_BYTES_MAX,
    XATTR_LIST_SIZE_BYTES_MAX,
    FileKind,
    InodeNumber,
)
from mictlanfs.mounts import cachewords
from mictlanfs.taskerrors import single_error
from mictlanfs_mount.attributes import Presentation, absent
from mictlanfs_mount.filesystem import Caller, FileSystem, Opened, kind_of_absence
from mictlanfs_mount.handles import DirectoryHandle, HandleNumber
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.notify import KernelInode
from mictlanfs_mount.setids import after_change

log = logging.getLogger(__name__)

STATFS_BLOCK_SIZE_BYTES = 4096

P = ParamSpec("P")
R = TypeVar("R")


def handler(
    verb: Callable[Concatenate[Operations, P], Awaitable[R]],
) -> Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]]:
    """Count the request, and let only `FUSEError` and a cancellation leave the handler."""
    name = verb.__name__

    @functools.wraps(verb)
    async def guarded(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.request_counts[name] += 1
        try:
            return await verb(self, *args, **kwargs)
        except FUSEError:
            raise
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - it must not leave.
            raise _answer(name, single_error(error)) from None

    return guarded


def _answer(operation: str, error: BaseException) -> BaseException:
    """What leaves a handler in the place of `error`. One that nobody expected becomes EIO."""
    if isinstance(error, FUSEError) or not isinstance(error, Exception):
        return error
    if isinstance(error, MictlanError):
        log.log(LOG_LEVEL[error.kind], "%s: %s", operation, error)
        return FUSEError(error.errno)
    if isinstance(error, OSError):
        log.debug("%s: %s", operation, error)
        return FUSEError(_errno_of(error))
    log.error("%s failed unexpectedly", operation, exc_info=error)
    return FUSEError(errno.EIO)


def _errno_of(error: OSError) -> int:
    """An errno that the kernel takes: some errors of the resolver are negative, others have none.

    ENOSYS would make it stop asking for ever.
    """
    number = error.errno or errno.EIO
    is_usable = number in errno.errorcode and number != errno.ENOSYS
    return number if is_usable else errno.EIO


class Operations(pyfuse3.Operations):
    """The handlers of one mount.

    Attributes:
        request_counts: requests of the kernel so far, by the name of their handler.
    """

    enable_writeback_cache = False
    supports_dot_lookup = True

    def __init__(
        self,
        filesystem: FileSystem,
        presentation: Presentation,
        request_counts: Counter[str] | None = None,
    ) -> None:
        super().__init__()
        self.request_counts: Counter[str] = Counter() if request_counts is None else request_counts
        self._fs = filesystem
        self._shown = presentation
        filesystem.inodes.root = presentation.root
        self.enable_acl = filesystem.has_acls = presentation.is_as_stored
        self._ends_set_ids = False

    def take_over_set_ids(self) -> None:
        """From now on the kernel leaves it to us to end set-user-id and set-group-id."""
        self._ends_set_ids = True

    def to_kernel(self, ino: InodeNumber) -> KernelInode:
        """The number by which the kernel knows an inode."""
        return KernelInode(self._shown.to_kernel(ino))

    def _entry(self, inode: Inode, name_validity_s: float = 0.0) -> pyfuse3.EntryAttributes:
        inode.told_content_version = inode.attributes.content_version
        shown = self._fs.attributes_of(inode)
        self._fs.short_reads.on_told(inode, shown.size)
        return self._shown.entry(shown, name_validity_s, self._fs.validity_s(inode))

    def _looked_up(self, inode: Inode, parent: InodeNumber, name: bytes) -> pyfuse3.EntryAttributes:
        """An entry that the kernel will count as a reference."""
        inode.lookup_count += 1
        self._fs.inodes.keep(inode)
        return self._entry(inode, self._fs.name_validity_s(parent, name, inode))

    # --- names -----------------------------------------------------------------------------------

    @handler
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Resolve a name."""
        parent = self._shown.from_kernel(parent_inode)
        if len(name) > NAME_SIZE_BYTES_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        try:
            inode = await self._fs.lookup(parent, name)
        except MictlanError as error:
            validity_s = self._fs.name_validity_s(parent, name, None)
            if error.kind is not Kind.NOT_FOUND or validity_s == 0:
                raise
            return absent(validity_s)
        return self._looked_up(inode, parent, name)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """The kernel gave up references. Must not raise, not even `FUSEError`."""
        self.request_counts["forget"] += 1
        for ino, count in inode_list:
            try:
                self._fs.inodes.forget(self._shown.from_kernel(ino), count)
            except Exception:
                log.exception("forget of inode %d failed", ino)

    @handler
    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Create a file or special file."""
        return await self._make(parent_inode, name, FileKind(mode >> 12), mode, ctx, rdev=rdev)

    @handler
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Create a directory."""
        return await self._make(parent_inode, name, FileKind.DIRECTORY, mode, ctx)

    @handler
    async def symlink(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        target: FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Create a symlink."""
        mode = ModeT(0o777)
        return await self._make(parent_inode, name, FileKind.SYMLINK, mode, ctx, target=target)

    async def _make(
        self,
        parent_inode: InodeT,
        name: bytes,
        kind: FileKind,
        mode: int,
        ctx: pyfuse3.RequestContext,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> pyfuse3.EntryAttributes:
        parent = self._shown.from_kernel(parent_inode)
        inode = await self._fs.make(
            parent,
            name,
            kind,
            mode,
            _caller(ctx),
            rdev=rdev,
            target=target,
        )
        return self._looked_up(inode, parent, name)

    @handler
    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Create a hard link."""
        new_parent = self._shown.from_kernel(new_parent_inode)
        linked = await self._fs.link(self._shown.from_kernel(inode), new_parent, new_name)
        return self._looked_up(linked, new_parent, new_name)

    @handler
    async def unlink(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Remove a name."""
        await self._fs.unlink(self._shown.from_kernel(parent_inode), name)

    @handler
    async def rmdir(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Remove an empty directory."""
        await self._fs.rmdir(self._shown.from_kernel(parent_inode), name)

    @handler
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Move a name. The numbers of `wire.RenameMode` are the flags of renameat2(2)."""
        await self._fs.rename(
            self._shown.from_kernel(parent_inode_old),
            name_old,
            self._shown.from_kernel(parent_inode_new),
            name_new,
            flags,
        )

    @handler
    async def readlink(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileNameT:
        """The target of a symlink."""
        return FileNameT(await self._fs.readlink(self._shown.from_kernel(inode)))

    # --- attributes ------------------------------------------------------------------------------

    @handler
    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Attributes of an inode."""
        return self._entry(await self._fs.getattr(self._shown.from_kernel(inode)))

    @handler
    async def setattr(
        self,
        inode: InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Change attributes."""
        ino = self._shown.from_kernel(inode)
        mode = await self._mode_after(ino, attr, fields, ctx)
        changed = await self._fs.setattr(
            ino,
            mode=mode,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._entry(changed)

    async def _mode_after(
        self,
        ino: InodeNumber,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        ctx: pyfuse3.RequestContext,
    ) -> int | None:
        """The mode that a change of attributes leads to; None: it stays."""
        mode = attr.st_mode if fields.update_mode else None
        is_given_away = fields.update_uid or fields.update_gid
        is_nothing = not (
            is_given_away
            or fields.update_size
            or fields.update_mode
            or fields.update_atime
            or fields.update_mtime
        )
        if not (is_given_away or fields.update_size or (is_nothing and self._ends_set_ids)):
            return mode
        known = (await self._fs.getattr(ino)).attributes
        is_kept = not self._ends_set_ids or (fields.update_size and ctx.uid == 0)
        ended = after_change(known, mode, functools.partial(_is_member, ctx), is_kept=is_kept)
        if (
            is_nothing
            and ended is not None
            and ctx.uid not in (0, known.uid)
            and not self._fs.handles.is_open_for_writing(ino)
        ):
            # Not somebody who writes, but chown(2) by somebody who may not change the mode.
            raise FUSEError(errno.EPERM)
        return ended

    @handler
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        """The value of an extended attribute."""
        ino = self._shown.from_kernel(inode)
        if self._fs.lacks_xattr(ino, name):
            # `ls -l` asks for some of each file, which hardly any has.
            raise FUSEError(ERRNO[kind_of_absence(name)])
        if cachewords.is_request(name):
            is_owner = ctx.uid in {0, os.getuid()}
            return await self._fs.cache_request(ino, name, is_owner=is_owner)
        return await self._fs.getxattr(ino, name)

    @handler
    async def listxattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> Sequence[XAttrNameT]:
        """The names of all extended attributes."""
        names = await self._fs.listxattr(self._shown.from_kernel(inode))
        if sum(len(name) + 1 for name in names) > XATTR_LIST_SIZE_BYTES_MAX:
            raise FUSEError(errno.E2BIG)
        return [XAttrNameT(name) for name in names]

    @handler
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        """Set an extended attribute.

        pyfuse3 tells nothing of XATTR_CREATE and XATTR_REPLACE.
        """
        is_member = functools.partial(_is_member, ctx)
        await self._fs.setxattr(self._shown.from_kernel(inode), name, value, is_member=is_member)

    @handler
    async def removexattr(
        self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Remove an extended attribute."""
        await self._fs.removexattr(self._shown.from_kernel(inode), name)

    # --- directories -----------------------------------------------------------------------------

    @handler
    async def opendir(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileHandleT:
        """Open a directory."""
        return FileHandleT(await self._fs.opendir(self._shown.from_kernel(inode)))

    @handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Send entries until the kernel's buffer is full. Ids 1 and 2 are behind `.` and `..`."""
        index = start_id
        if index == 0:
            self._fs.rewinddir(HandleNumber(fh))
        while True:
            handle = await self._fs.readdir(HandleNumber(fh), max(index - 2, 0))
            if index >= 2 + handle.count:
                return
            reply = self._reply_dot if index < 2 else self._reply_entry
            if not reply(token, handle, index):
                return
            index += 1

    def _reply_dot(self, token: pyfuse3.ReaddirToken, handle: DirectoryHandle, index: int) -> bool:
        own = handle.inode.ino
        # Above what is mounted there is nothing, also when it is a part of the space.
        parent = own if own == self._shown.root else handle.parent
        name, ino = ((b".", own), (b"..", parent))[index]
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = self._shown.to_kernel(ino)
        entry.st_mode = ModeT(FileKind.DIRECTORY << 12)
        return pyfuse3.readdir_reply(token, FileNameT(name), entry, index + 1)

    def _reply_entry(
        self, token: pyfuse3.ReaddirToken, handle: DirectoryHandle, index: int
    ) -> bool:
        name, inode, name_validity_s = self._fs.listed(handle, index - 2)
        shown = self._fs.attributes_of(inode)
        entry = self._shown.entry(shown, name_validity_s, self._fs.validity_s(inode))
        is_sent = pyfuse3.readdir_reply(token, FileNameT(name), entry, index + 1)
        if is_sent:
            inode.told_content_version = inode.attributes.content_version
            self._fs.short_reads.on_told(inode, shown.size)
            inode.lookup_count += 1
            self._fs.inodes.keep(inode)
        else:
            self._fs.inodes.drop_unused(inode)
        return is_sent

    @handler
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        await self._fs.releasedir(HandleNumber(fh))

    @handler
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Make changes of names durable."""
        await self._fs.fsyncdir(HandleNumber(fh))

    # --- files -----------------------------------------------------------------------------------

    @handler
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Create a file and open it."""
        parent = self._shown.from_kernel(parent_inode)
        opened, inode = await self._fs.create(parent, name, mode, flags, _caller(ctx))
        return _file_info(opened), self._looked_up(inode, parent, name)

    @handler
    async def open(
        self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Open a file."""
        opened = await self._fs.open(
            self._shown.from_kernel(inode),
            flags,
            ctx.pid,  # What the kernel calls so is the number of a thread.
            is_root=ctx.uid == 0,
            is_member=functools.partial(_is_member, ctx),
        )
        return _file_info(opened)

    @handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read from a file. Any buffer will do for pyfuse3, whatever its annotation says."""
        number = HandleNumber(fh)
        body: Any = self._fs.read_now(number, off, size)
        if body is None:
            body = await self._fs.read(number, off, size)
        return body  # type: ignore[no-any-return]  # See the docstring.

    @handler
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write to a file."""
        return await self._fs.write(HandleNumber(fh), off, buf)

    @handler
    async def flush(self, fh: FileHandleT) -> None:
        """A descriptor was closed."""
        if not self._fs.wants_flush:
            # The kernel does not ask again; it still writes mapped pages out when a file is closed.
            raise FUSEError(errno.ENOSYS)
        await self._fs.flush(HandleNumber(fh))

    @handler
    async def release(self, fh: FileHandleT) -> None:
        """The last descriptor was closed."""
        await self._fs.release(HandleNumber(fh))

    @handler
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a file durable."""
        await self._fs.fsync(HandleNumber(fh))

    # --- the whole -------------------------------------------------------------------------------

    @handler
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Space and counts."""
        space = await self._fs.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = STATFS_BLOCK_SIZE_BYTES
        data.f_blocks = space.capacity // STATFS_BLOCK_SIZE_BYTES
        data.f_bfree = data.f_bavail = space.free // STATFS_BLOCK_SIZE_BYTES
        # Inodes are limited by the router's disk only; programs want a number.
        data.f_files = space.inode_count + data.f_bfree
        data.f_ffree = data.f_favail = data.f_bfree
        data.f_namemax = NAME_SIZE_BYTES_MAX
        return data


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.umask)


def _is_member(ctx: pyfuse3.RequestContext, gid: int) -> bool:
    """Whether who makes a request is in a group, or is root. A process that is gone is in none."""
    if gid == ctx.gid or ctx.uid == 0:
        return True
    try:
        return gid in pyfuse3.get_sup_groups(ctx.pid)
    except (OSError, RuntimeError):
        return False


def _file_info(opened: Opened) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(
        fh=FileHandleT(opened.handle), keep_cache=opened.keep_cache, direct_io=opened.direct_io
    )
