"""The messages about trash and snapshots; `mictlanfs.wire` offers them.

What a bucket with trash days loses is kept as *trash*: beside the names, under the path it had. A
*snapshot* is a directory as it was at one moment, which nobody can change.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from mictlanfs.model import FileKind, InodeNumber, Struct

TRASH_PAGE_MAX: Final = 1000
# Kept items that one `EmptyTrash` gives up.
TRASH_EMPTIED_MAX: Final = 10_000


class TrashReason(IntEnum):
    """How something came to be trash."""

    REMOVED = 0
    REPLACED = 1
    OVERWRITTEN = 2


class TrashItem(Struct, frozen=True):
    """Something that was removed, or the content that a file had before it was cut to nothing.

    Attributes:
        ino: names the item; never the number of anything else.
        path: from the root, with the name of the bucket, as it was then.
        removed_ns, expires_ns: by the router's clock; it is let go some time after the latter.
        nbytes: bytes of its content that are no holes.
        is_open: a session still has it open: it cannot be restored yet, and may still change.
    """

    ino: InodeNumber
    path: bytes
    removed_ns: int
    expires_ns: int
    reason: TrashReason
    kind: FileKind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nbytes: int
    is_open: bool


class ListTrash(Struct, frozen=True):
    """Read what lies in the trash at `path` and below it. Answer: `TrashPage`.

    Attributes:
        path: `BUCKET/a/b`; empty: everything.
        after: path, time and number of the last item of the page before.
    """

    path: bytes = b""
    after: tuple[bytes, int, int] = (b"", 0, 0)
    count_max: int = TRASH_PAGE_MAX


class TrashPage(Struct, frozen=True):
    """Items in order of paths, those of one path from the oldest on."""

    items: tuple[TrashItem, ...]
    is_last: bool


class EmptyTrash(Struct, frozen=True):
    """Give up what lies in the trash at `path` and below it, at most 10000 items.

    Answer: `Emptied`.

    Attributes:
        path: as in `ListTrash`.
        before_ns: only what was removed before.
    """

    path: bytes
    before_ns: int


class Emptied(Struct, frozen=True):
    """So many items are gone; `is_last`: there are no more.

    Attributes:
        nbytes: bytes of their content.
    """

    count: int
    nbytes: int
    is_last: bool


class Restore(Struct, frozen=True, tag="restore"):
    """Give an item of the trash a name again. Result: the new inode, the parent.

    The inode has a number of its own, as `MakeNode` has; content, mode, owner, times and extended
    attributes are those of the item, which is not in the trash any more.

    Errors: NOT_FOUND (item, parent), EXISTS, NOT_DIRECTORY, STALE (parent was removed),
    NOT_PERMITTED (in the root), BUSY (it is still open), QUOTA_EXCEEDED, INVALID (name, number in
    use), NAME_TOO_LONG.
    """

    item: InodeNumber
    ino: InodeNumber
    parent: InodeNumber
    name: bytes
    time_ns: int


class CreateSnapshot(Struct, frozen=True):
    """Keep a directory as it is now, for reading. Answer: `SnapshotInfo`.

    Everything that any session changed before is in it: leases for writing are recalled first. What
    lies in the directory does not change while it is taken; others are not held up.

    Attributes:
        path: of the bucket, or of a directory in it.
        name: of the snapshot; the directory is `BUCKET/.snapshots/NAME` then.

    Errors: NOT_FOUND, NOT_DIRECTORY, EXISTS, INVALID (name; not in a bucket), NAME_TOO_LONG,
    READ_ONLY (in a snapshot), TOO_LARGE (more names than one snapshot may have).
    """

    path: tuple[bytes, ...]
    name: bytes


class RemoveSnapshot(Struct, frozen=True):
    """Give up a snapshot; what only it held is let go by and by.

    Errors: NOT_FOUND. Answer: `Done`.
    """

    bucket: bytes
    name: bytes


class ListSnapshots(Struct, frozen=True):
    """Read the snapshots of a bucket; of all buckets if it is empty. Answer: `Snapshots`.

    Errors: NOT_FOUND.
    """

    bucket: bytes = b""


class SnapshotInfo(Struct, frozen=True):
    """A snapshot.

    Attributes:
        path: of the directory, with the name of the bucket, as it was then.
        created_ns: by the router's clock: what was changed before is in it.
        names: in it, and one for the directory itself.
        nbytes: bytes of their content that are no holes; shared with what is still the same.
    """

    bucket: bytes
    name: bytes
    path: bytes
    created_ns: int
    names: int
    nbytes: int


class Snapshots(Struct, frozen=True):
    """Snapshots in order of buckets and names."""

    snapshots: tuple[SnapshotInfo, ...]
