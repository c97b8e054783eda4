"""Inodes that the kernel refers to and the space has no more, for another mount removed them.

Owns what such a request is answered with. Which answer depends on what the kernel can do with it:

- *Walk the path anew*, before it fails: the name may stand for another inode by now. STALE asks for
  that (`stale_when_gone`), where the inode itself is needed: its bytes, its extended attributes.
- *Nothing*, when there is no path: a program stands in the directory, or has it open, as `rm -r`
  does; or when what the path leads to is replaced all the time, and gone again. Attributes are
  answered as other file systems do it, which keep what somebody is looking at (`removed`), and a
  change of them is one that nobody sees. In a directory that is gone there is nothing: NOT_FOUND.

Without leases a name may stand for an inode for a second after that is gone, so there it is always
the path that has to be walked anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs_mount.inodes import Inode


@contextmanager
def stale_when_gone(operation: str, ino: InodeNumber) -> Iterator[None]:
    """Say STALE of an inode that the kernel knows and the router does not any more.

    The kernel then looks the path up anew before it fails: the name may stand for another file by
    now. NOT_FOUND would be the end. Source: LOOKUP_REVAL in the kernel's path-lookup.rst.
    """
    try:
        yield
    except MictlanError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        detail = "it was removed or replaced"
        raise MictlanError(Kind.STALE, operation, str(ino), detail) from error


def removed(inode: Inode | None, error: MictlanError) -> Inode:
    """What is gone, with the attributes that it had, but no name; of a directory also no entries.

    It existed when the kernel was told of it, in the same system call: see rmdir(2), unlink(2). Of
    a file that is open here `error` is raised: its bytes are gone, and its size would be of no use.

    Args:
        inode: as far as it is known.
        error: met when the router was asked. Raised, unless it says that the inode is gone.
    """
    if error.kind is not Kind.STALE or inode is None:
        raise error
    known = inode.attributes
    if known.kind is FileKind.DIRECTORY:
        known = msgspec.structs.replace(known, size=0, has_xattrs=False)
    elif inode.open_count:
        raise error
    inode.lease = None
    inode.attributes = msgspec.structs.replace(known, nlink=0)
    return inode
