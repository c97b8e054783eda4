"""The inodes the kernel knows, or this mount has open: one table.

Owns lookup counts, open counts and what is known of each inode's attributes, extents and extended
attributes. An entry lives while the kernel holds a reference, a handle is open, a name that a lease
keeps stands for it, a change made here is not answered yet, bytes of it are dirty, or the lease
lives under which it was changed. No I/O, no awaits. No descriptor is held per inode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import msgspec

from mictlanfs.model import Attributes, BucketPolicy, InodeNumber
from mictlanfs_mount.extents import ExtentMap
from mictlanfs_mount.leases import Lease

# One for all: a mount may know a million inodes.
_POLICY_DEFAULT = BucketPolicy()
_NOBODY: Mapping[int, float] = MappingProxyType({})
_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class Inode:
    """What the mount knows of one inode.

    Attributes:
        attributes: as the router last told.
        valid_until_s: until when (monotonic) `attributes` may be used without asking.
        lookup_count: references held by the kernel, dropped by `forget`.
        open_count: handles.
        kernel_content_version: the content that pages in the kernel's cache are of; -1: none.
        kernel_size: the largest size that the kernel may believe in.
        told_content_version: the content whose size the kernel was told last; -1: none.
        bucket: the bucket it was last known to lie in; 0: not asked for yet.
        reopening: for threads whose open was refused as stale, until when (monotonic) their next
            one is the kernel's repetition of it.
        xattrs, xattrs_version: extended attributes and the inode version they belong to.
        lease: that covers what is known; None: nothing does.
        name_count: names kept by leases that stand for it.
        pending_count: changes of attributes made here that the router has not answered yet. While
            there are any, `attributes` is ahead of what the router tells.
        is_mtime_set: one of them set the time of the last change.
        is_dirty: whether write-back has bytes of it, or an error to report.
        is_changed: it was changed here, so an answer that is under way may be of a state before.
    """

    __slots__ = (
        "attributes",
        "bucket",
        "extents",
        "ino",
        "is_changed",
        "is_dirty",
        "is_mtime_set",
        "kernel_content_version",
        "kernel_size",
        "lease",
        "lookup_count",
        "name_count",
        "open_count",
        "pending_count",
        "policy",
        "reopening",
        "target",
        "told_content_version",
        "valid_until_s",
        "xattrs",
        "xattrs_version",
    )

    def __init__(self, attributes: Attributes) -> None:
        self.ino = attributes.ino
        self.attributes = attributes
        self.valid_until_s = 0.0
        self.lookup_count = 0
        self.open_count = 0
        self.target = b""
        self.policy = _POLICY_DEFAULT
        self.bucket = InodeNumber(0)
        self.extents = ExtentMap()
        self.kernel_content_version = -1
        self.kernel_size = 0
        self.told_content_version = -1
        self.reopening: Mapping[int, float] = _NOBODY
        self.xattrs: Mapping[bytes, bytes] = _NO_XATTRS
        self.xattrs_version = -1
        self.lease: Lease | None = None
        self.name_count = 0
        self.pending_count = 0
        self.is_mtime_set = False
        self.is_dirty = False
        self.is_changed = False

    @property
    def is_kept_by_lease(self) -> bool:
        """Whether older answers may still be taken for true, as its lease lives on.

        A removed inode is in no answer that anybody could use.
        """
        lease = self.lease
        return self.is_changed and lease is not None and bool(lease.mode and self.attributes.nlink)

    def learn(self, attributes: Attributes, valid_until_s: float) -> None:
        """Take over attributes, unless newer ones are held already."""
        if attributes.version < self.attributes.version or self.pending_count:
            return
        if attributes.version == self.attributes.version:
            # A page of a directory may have been read before the attributes were last asked for.
            valid_until_s = max(valid_until_s, self.valid_until_s)
        if 0 <= self.extents.content_version < attributes.content_version:
            self.extents.reset(attributes.content_version)
        self.attributes = attributes
        self.valid_until_s = valid_until_s

    def note_answered(self) -> None:
        """A change made here was answered, or will not be asked for."""
        self.pending_count -= 1
        if not self.pending_count:
            self.is_mtime_set = False

    def note_own_change(self, attributes: Attributes) -> None:
        """A change of content made through this mount was applied.

        The kernel wrote it into its cached pages too, so those stay good, unless somebody else
        changed the file in between.
        """
        self.is_changed = True
        version = attributes.content_version
        if self.told_content_version == version - 1:
            self.told_content_version = version
        if self.kernel_content_version == version - 1:
            self.kernel_content_version = version
        if self.pending_count:
            known = self.attributes
            mtime_ns = known.mtime_ns if self.is_mtime_set else attributes.mtime_ns
            self.attributes = msgspec.structs.replace(
                known,
                size=attributes.size,
                allocated=attributes.allocated,
                mtime_ns=mtime_ns,
                ctime_ns=max(known.ctime_ns, attributes.ctime_ns),
                version=attributes.version,
                content_version=version,
            )
        elif attributes.version > self.attributes.version:
            self.attributes = attributes


class InodeTable:
    """All inodes of the mount by number.

    Attributes:
        root: the inode mounted, which the kernel refers to for ever without a lookup.
    """

    def __init__(self) -> None:
        self._inodes: dict[InodeNumber, Inode] = {}
        self.root: InodeNumber | None = None

    def __len__(self) -> int:
        return len(self._inodes)

    def __iter__(self) -> Iterator[Inode]:
        return iter(list(self._inodes.values()))

    def get(self, ino: InodeNumber) -> Inode | None:
        """The inode, None when it is not in the table."""
        return self._inodes.get(ino)

    def learn(self, attributes: Attributes, valid_until_s: float) -> Inode:
        """The inode of these attributes, entered when it is new."""
        inode = self._inodes.get(attributes.ino)
        if inode is None:
            inode = self._inodes[attributes.ino] = Inode(attributes)
        inode.learn(attributes, valid_until_s)
        return inode

    def refresh(self, attributes: Attributes, valid_until_s: float) -> None:
        """Take over attributes of an inode if it is in the table."""
        inode = self._inodes.get(attributes.ino)
        if inode is not None:
            inode.learn(attributes, valid_until_s)

    def keep(self, inode: Inode) -> None:
        """Enter an inode that is in use, should it have been dropped meanwhile."""
        self._inodes.setdefault(inode.ino, inode)

    def forget(self, ino: InodeNumber, lookup_count: int) -> None:
        """The kernel gave up `lookup_count` references."""
        inode = self._inodes.get(ino)
        if inode is not None:
            inode.lookup_count = max(0, inode.lookup_count - lookup_count)
            if inode.lookup_count == 0 and inode.open_count == 0:
                # Its pages went with it, and whatever the kernel was told.
                inode.kernel_content_version = -1
                if inode.lease is not None:
                    inode.lease.told_inodes.discard(ino)
            self.drop_unused(inode)

    def drop_unused(self, inode: Inode) -> None:
        """Remove the entry when nothing refers to it."""
        is_unused = inode.lookup_count == 0 and self._is_unused_here(inode)
        if is_unused and self._inodes.get(inode.ino) is inode:
            del self._inodes[inode.ino]

    def _is_unused_here(self, inode: Inode) -> bool:
        return (
            inode.open_count == 0
            and inode.name_count == 0
            and inode.pending_count == 0
            and not inode.is_dirty
            and not inode.is_kept_by_lease
            and inode.ino != self.root
        )

    def strays(self) -> list[InodeNumber]:
        """Inodes that only the kernel refers to and no lease covers, that known longest first."""
        return [
            inode.ino
            for inode in self._inodes.values()
            if (inode.lease is None or not inode.lease.mode) and self._is_unused_here(inode)
        ]
