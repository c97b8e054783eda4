"""Notifications to the kernel, written to this mount's own /dev/fuse: what to forget or to know.

libfuse 3.14 and pyfuse3 lack some of them, so the messages of include/uapi/linux/fuse.h are made
here. Owns a duplicate of the device's descriptor; knows nothing of names and inodes of ours.

Which may be sent where. A notification takes effect before the call returns, in the caller's
thread; some of them wait inside the kernel for a request in flight. Only the event loop answers
requests, so there such a wait would never end:

===========================  ==================================  =======================
notification                 waits for                           may be sent from
===========================  ==================================  =======================
increment_epoch              nothing                             anywhere
invalidate_attributes        nothing                             anywhere
expire_entry, drop_entry     the lock of the directory           a thread only
invalidate_pages             pages being read or written         a thread only
prune                        pages being read ahead              a thread only
store                        pages being read                    the loop, at open only
===========================  ==================================  =======================
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NewType

from mictlanfs.errors import Kind, MictlanError

DEVICE = "/dev/fuse"
KernelInode = NewType("KernelInode", int)

# enum fuse_notify_code
_INVALIDATE_INODE = 2
_INVALIDATE_ENTRY = 3
_STORE = 4
_INCREMENT_EPOCH = 8
_PRUNE = 9
_EXPIRE_ONLY = 1
# struct fuse_out_header: len, error (here the code), unique (0: no request is answered).
_HEAD = struct.Struct("=IiQ")
# struct fuse_notify_inval_inode_out: ino, offset, length.
_INODE = struct.Struct("=IiQQqq")
# struct fuse_notify_inval_entry_out: parent, size of the name, flags; name and a zero follow.
_ENTRY = struct.Struct("=IiQQII")
# struct fuse_notify_store_out: ino, offset, size, padding; the bytes follow.
_STORED = struct.Struct("=IiQQQII")
# struct fuse_notify_prune_out: count, padding, spare; the inodes follow.
_PRUNED = struct.Struct("=IiQIIQ")
_EPOCH_MESSAGE = _HEAD.pack(_HEAD.size, _INCREMENT_EPOCH, 0)
_OFFSET_ATTRIBUTES_ONLY = -1
# Every page from offset 0: a length that is not positive has no end.
_LENGTH_ALL = 0


class KernelNotifier:
    """Tells the kernel about changes it did not make.

    Attributes:
        has_epoch: whether the kernel (6.16 or later) knows `increment_epoch`.
        has_prune: whether the kernel (6.18 or later) knows `prune`.
    """

    def __init__(self, descriptor: int) -> None:
        """Use a descriptor of a mounted connection, which stays the caller's."""
        # A number of our own: the other may be closed, and reused, while a thread sends.
        self._descriptor = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            self.has_epoch = self._send_if_possible(_EPOCH_MESSAGE)
            self.has_prune = self._send_if_possible(_prune_message(()))
        except BaseException:
            os.close(self._descriptor)
            raise

    def increment_epoch(self) -> None:
        """Have the kernel look every name up again when it is used next; negative names too.

        Directories that are used (as working directory, by descriptor) stay usable. But the kernel
        detaches a file system that is mounted on a directory when that name is looked up again.

        Raises:
            MictlanError: UNSUPPORTED by this kernel, see `has_epoch`.
        """
        if not self._send_if_possible(_EPOCH_MESSAGE):
            raise MictlanError(Kind.UNSUPPORTED, "notify the kernel", DEVICE, "no epochs")

    def expire_entry(self, parent: KernelInode, name: bytes) -> bool:
        """Have a name looked up again when it is used next. False: the kernel knows no such name.

        Waits for the directory's lock, which a request in flight may hold: never from the loop.
        """
        return self._invalidate_entry(parent, name, _EXPIRE_ONLY)

    def drop_entry(self, parent: KernelInode, name: bytes) -> bool:
        """Have a name dropped, and its inode if nothing else uses that. False: there is none.

        Whoever uses it (an open file, a working directory, a mountpoint) sees it as deleted. Waits
        as `expire_entry`, which keeps name and inode in memory.
        """
        return self._invalidate_entry(parent, name, 0)

    def _invalidate_entry(self, parent: KernelInode, name: bytes, flags: int) -> bool:
        size = _ENTRY.size + len(name) + 1
        head = _ENTRY.pack(size, _INVALIDATE_ENTRY, 0, parent, len(name), flags)
        return self._send_if_known(head, name + b"\0")

    def invalidate_attributes(self, ino: KernelInode) -> bool:
        """Drop cached attributes and access lists. False: the kernel does not know the inode."""
        return self._invalidate(ino, _OFFSET_ATTRIBUTES_ONLY)

    def invalidate_pages(self, ino: KernelInode) -> bool:
        """Drop attributes and all cached pages. False: the kernel does not know the inode.

        Waits for pages that a request in flight reads: never from the loop.
        """
        return self._invalidate(ino, 0)

    def prune(self, inodes: Sequence[KernelInode]) -> None:
        """Have inodes dropped that nothing uses: no open file, no working directory, no child.

        Directories go with the last one in them, unless they are used. What is used stays as it
        is, unlike by `drop_entry`. Waits for pages that are read ahead: never from the loop.

        Raises:
            MictlanError: UNSUPPORTED by this kernel, see `has_prune`.
        """
        if not self._send_if_possible(_prune_message(inodes)):
            raise MictlanError(Kind.UNSUPPORTED, "notify the kernel", DEVICE, "no pruning")

    def store(self, ino: KernelInode, offset: int, data: bytes | memoryview) -> bool:
        """Put bytes into the page cache. False: they are not there, and a READ will come.

        Bytes behind the end the kernel knows make it ask for the size.
        """
        size = _STORED.size + len(data)
        try:
            os.writev(
                self._descriptor,
                (_STORED.pack(size, _STORE, 0, ino, offset, len(data), 0), data),
            )
        except OSError:
            # Nothing depends on it: whatever the reason, the kernel will ask.
            return False
        return True

    def close(self) -> None:
        """Give the descriptor back; while it is open the connection lives."""
        os.close(self._descriptor)

    def _send_if_possible(self, message: bytes) -> bool:
        """False: the kernel does not know such messages."""
        try:
            os.write(self._descriptor, message)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def _invalidate(self, ino: KernelInode, offset: int) -> bool:
        return self._send_if_known(
            _INODE.pack(_INODE.size, _INVALIDATE_INODE, 0, ino, offset, _LENGTH_ALL)
        )

    def _send_if_known(self, *parts: bytes) -> bool:
        try:
            os.writev(self._descriptor, parts)
        except FileNotFoundError:
            return False
        return True


def _prune_message(inodes: Sequence[KernelInode]) -> bytes:
    count = len(inodes)
    head = _PRUNED.pack(_PRUNED.size + 8 * count, _PRUNE, 0, count, 0, 0)
    return head + struct.pack(f"={count}Q", *inodes)


@contextmanager
def open_notifier() -> Iterator[KernelNotifier]:
    """The notifier of this process's only mount, which must be there already.

    Raises:
        MictlanError: UNSUPPORTED if the device cannot be told; nothing can be notified then.
    """
    notifier = KernelNotifier(find_device())
    try:
        yield notifier
    finally:
        notifier.close()


def find_device() -> int:
    """The descriptor by which this process serves its only mount.

    Raises:
        MictlanError: UNSUPPORTED if there is none, or more than one.
    """
    found = [number for number in _open_descriptors() if _is_device(number)]
    if len(found) != 1:
        raise MictlanError(
            Kind.UNSUPPORTED, "find the mount", DEVICE, f"it is open {len(found)} times"
        )
    return found[0]


def _open_descriptors() -> list[int]:
    return [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]


def _is_device(descriptor: int) -> bool:
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink() == Path(DEVICE)
    except OSError:
        # It was the descriptor of the listing itself, or a thread closed it.
        return False
