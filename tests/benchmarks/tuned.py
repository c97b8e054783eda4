"""The pass-through as quick as pyfuse3 allows without a patch: what a mount may hope for.

Waits for requests as our mount does, puts small files into the page cache while `open` is answered,
has the kernel keep its pages and send no FLUSH, and reads ahead by 4 MiB. Run as
`python -m tests.benchmarks.tuned SOURCE MOUNTPOINT`.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, FUSEError, InodeT, ModeT

from mictlanfs.config import parse_mount_options
from mictlanfs_mount.kernel import raise_limits
from mictlanfs_mount.notify import KernelInode, KernelNotifier, open_notifier
from mictlanfs_mount.requestloop import quick_requests
from tests.benchmarks.passthrough import PassThrough

STORED_SIZE_BYTES_MAX = 128 * 1024


class TunedPassThrough(PassThrough):
    """Sends the kernel more than it asks for, so that it asks less."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.notifier: KernelNotifier | None = None

    async def flush(self, fh: FileHandleT) -> None:
        """Never again."""
        raise FUSEError(errno.ENOSYS)

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Create a file and open it."""
        info, entry = await super().create(parent_inode, name, mode, flags, ctx)
        return pyfuse3.FileInfo(fh=info.fh, keep_cache=True), entry

    async def open(
        self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Open a file; a small one that is read comes along."""
        info = await super().open(inode, flags, ctx)
        if self.notifier is not None and flags & os.O_ACCMODE == os.O_RDONLY:
            size = os.fstat(info.fh).st_size
            if 0 < size <= STORED_SIZE_BYTES_MAX:
                self.notifier.store(KernelInode(inode), 0, os.pread(info.fh, size, 0))
        return pyfuse3.FileInfo(fh=info.fh, keep_cache=True)


async def widen(mountpoint: Path) -> None:
    """Have the kernel read ahead as on our mount, in a thread: the answer comes from this loop."""
    read_ahead_kib = parse_mount_options("").read_ahead_kib
    await trio.to_thread.run_sync(lambda: raise_limits(mountpoint, read_ahead_kib))


async def serve(source: str, mountpoint: str) -> None:
    """Serve until unmounted."""
    operations = TunedPassThrough(source)
    options = set(pyfuse3.default_options) | {"fsname=tuned", "default_permissions"}
    pyfuse3.init(operations, mountpoint, options)
    try:
        with open_notifier() as operations.notifier, quick_requests():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(widen, Path(mountpoint))
                await pyfuse3.main()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], sys.argv[2])
