"""A plain pass-through file system in pyfuse3: how much of the time is the kernel's and Python's.

Serves a local directory as it is, without any cache of its own. Run as
`python -m tests.benchmarks.passthrough SOURCE MOUNTPOINT`; ends when it is unmounted.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, FUSEError, InodeT, ModeT

VALIDITY_S = 1.0


@contextmanager
def os_errors() -> Iterator[None]:
    """Answer with the errno of the local file system."""
    try:
        yield
    except OSError as error:
        raise FUSEError(error.errno or errno.EIO) from None


class PassThrough(pyfuse3.Operations):
    """Every request is one call on the local directory. Only what the workloads need."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self._paths: dict[int, str] = {pyfuse3.ROOT_INODE: source}
        self._lists: dict[int, list[os.DirEntry[str]]] = {}

    def _entry(self, path: str) -> pyfuse3.EntryAttributes:
        with os_errors():
            stat = os.lstat(path)
        entry = pyfuse3.EntryAttributes()
        is_root = path == self._paths[pyfuse3.ROOT_INODE]
        entry.st_ino = pyfuse3.ROOT_INODE if is_root else InodeT(stat.st_ino)
        for name in ("mode", "nlink", "uid", "gid", "rdev", "size", "blocks"):
            setattr(entry, f"st_{name}", getattr(stat, f"st_{name}"))
        for name in ("atime_ns", "mtime_ns", "ctime_ns"):
            setattr(entry, f"st_{name}", getattr(stat, f"st_{name}"))
        entry.entry_timeout = entry.attr_timeout = VALIDITY_S
        return entry

    def _child(self, parent: InodeT, name: FileNameT) -> str:
        return f"{self._paths[parent]}/{os.fsdecode(name)}"

    def _looked_up(self, path: str) -> pyfuse3.EntryAttributes:
        entry = self._entry(path)
        self._paths[entry.st_ino] = path
        return entry

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Resolve a name."""
        return self._looked_up(self._child(parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Paths are kept: a benchmark ends soon."""

    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Attributes of an inode."""
        return self._entry(self._paths[inode])

    async def setattr(
        self,
        inode: InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Change attributes."""
        path = self._paths[inode]
        with os_errors():
            if fields.update_size:
                os.truncate(path, attr.st_size)
            if fields.update_mode:
                os.chmod(path, attr.st_mode & 0o7777)
            if fields.update_uid or fields.update_gid:
                uid = attr.st_uid if fields.update_uid else -1
                os.lchown(path, uid, attr.st_gid if fields.update_gid else -1)
            if fields.update_mtime:
                stat = os.lstat(path)
                atime_ns = attr.st_atime_ns if fields.update_atime else stat.st_atime_ns
                os.utime(path, ns=(atime_ns, attr.st_mtime_ns), follow_symlinks=False)
        return self._entry(path)

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Create a directory."""
        path = self._child(parent_inode, name)
        with os_errors():
            os.mkdir(path, mode & 0o7777)
        return self._looked_up(path)

    async def symlink(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        target: FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Create a symlink."""
        path = self._child(parent_inode, name)
        with os_errors():
            os.symlink(os.fsdecode(target), path)
        return self._looked_up(path)

    async def readlink(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileNameT:
        """The target of a symlink."""
        with os_errors():
            return FileNameT(os.fsencode(os.readlink(self._paths[inode])))

    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Create a hard link."""
        path = self._child(new_parent_inode, new_name)
        with os_errors():
            os.link(self._paths[inode], path)
        return self._looked_up(path)

    async def unlink(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Remove a name."""
        with os_errors():
            os.unlink(self._child(parent_inode, name))

    async def rmdir(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Remove a directory."""
        with os_errors():
            os.rmdir(self._child(parent_inode, name))

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Move a name."""
        old, new = self._child(parent_inode_old, name_old), self._child(parent_inode_new, name_new)
        with os_errors():
            os.rename(old, new)
        self._paths[os.lstat(new).st_ino] = new

    async def opendir(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileHandleT:
        """Open a directory."""
        with os_errors(), os.scandir(self._paths[inode]) as entries:
            self._lists[inode] = list(entries)
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Send entries until the kernel's buffer is full."""
        for index, found in enumerate(self._lists[fh][start_id:], start_id):
            entry = self._looked_up(found.path)
            if not pyfuse3.readdir_reply(
                token, FileNameT(os.fsencode(found.name)), entry, index + 1
            ):
                return

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Create a file and open it."""
        path = self._child(parent_inode, name)
        with os_errors():
            descriptor = os.open(path, flags | os.O_CREAT, mode & 0o7777)
        return pyfuse3.FileInfo(fh=FileHandleT(descriptor)), self._looked_up(path)

    async def open(
        self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Open a file."""
        with os_errors():
            descriptor = os.open(self._paths[inode], flags & ~os.O_CREAT)
        return pyfuse3.FileInfo(fh=FileHandleT(descriptor))

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read from a file."""
        with os_errors():
            return os.pread(fh, size, off)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write to a file."""
        with os_errors():
            return os.pwrite(fh, buf, off)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a file durable."""
        with os_errors():
            os.fsync(fh)

    async def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        os.close(fh)


def main() -> None:
    """Serve until unmounted."""
    source, mountpoint = sys.argv[1:]
    options = set(pyfuse3.default_options) | {"fsname=passthrough", "default_permissions"}
    pyfuse3.init(PassThrough(source), mountpoint, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
