"""Attributes as the kernel wants them: the one translation from our values to pyfuse3's."""

from __future__ import annotations

from dataclasses import dataclass

import pyfuse3

from mictlanfs.model import Attributes, FileKind, InodeNumber

# What programs should read and write at once: a read of the kernel's largest request.
PREFERRED_IO_SIZE_BYTES = 1024 * 1024
_BLOCK_SIZE_BYTES = 512
_ROOT = pyfuse3.ROOT_INODE
_FILE = FileKind.FILE


@dataclass(frozen=True, slots=True)
class Presentation:
    """How inodes are shown.

    Attributes:
        root: the inode mounted; the kernel knows it as 1.
        uid, gid: owner shown for everything; None: as stored.
        umask: permission bits hidden; 0: none.
    """

    root: InodeNumber
    uid: int | None = None
    gid: int | None = None
    umask: int = 0

    @property
    def is_as_stored(self) -> bool:
        """Whether owners and modes are those stored, so that access control lists fit to them."""
        return self.uid is None and self.gid is None and self.umask == 0

    def to_kernel(self, ino: InodeNumber) -> pyfuse3.InodeT:
        """The number the kernel knows an inode by."""
        return pyfuse3.ROOT_INODE if ino == self.root else pyfuse3.InodeT(ino)

    def from_kernel(self, ino: pyfuse3.InodeT) -> InodeNumber:
        """The inode that the kernel means."""
        return self.root if ino == pyfuse3.ROOT_INODE else InodeNumber(ino)

    def entry(
        self, attributes: Attributes, name_validity_s: float, validity_s: float
    ) -> pyfuse3.EntryAttributes:
        """Attributes, and for how long the kernel may trust the name and them."""
        # Nearly every request ends here, so it does without calls, and sets no zero: a new entry
        # is all zeros but for what is set. Numbers are never reused: the generation stays 0.
        entry = pyfuse3.EntryAttributes()
        ino, kind = attributes.ino, attributes.kind
        entry.st_ino = _ROOT if ino == self.root else ino
        entry.entry_timeout = name_validity_s
        entry.attr_timeout = validity_s
        # As `Attributes.st_mode` makes it.
        mode = (kind << 12) | attributes.mode
        entry.st_mode = mode & ~self.umask
        entry.st_nlink = attributes.nlink
        entry.st_uid = attributes.uid if self.uid is None else self.uid
        entry.st_gid = attributes.gid if self.gid is None else self.gid
        entry.st_size = attributes.size
        entry.st_blksize = PREFERRED_IO_SIZE_BYTES
        if attributes.rdev:
            entry.st_rdev = attributes.rdev
        if kind is _FILE:
            entry.st_blocks = -(-attributes.allocated // _BLOCK_SIZE_BYTES)
        entry.st_atime_ns = attributes.atime_ns
        entry.st_mtime_ns = attributes.mtime_ns
        entry.st_ctime_ns = attributes.ctime_ns
        return entry


def absent(validity_s: float) -> pyfuse3.EntryAttributes:
    """The answer to a lookup of a name that does not exist, which the kernel may remember."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = validity_s
    return entry
