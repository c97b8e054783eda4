"""What a bucket keeps of what it loses: removed inodes, and the content of files cut to nothing.

An item of the trash is a row beside the namespace. Nothing of it can be looked up, leased, linked
or counted in a quota; its extents stay where they are, and with them the references of chunks. For
how long it is kept is decided when it is lost, by the policy that its bucket has then.

::

    named --last name goes, nobody has it open--> kept --expires, is given up--> let go
      |                                            ^ |
      +--last name goes, open--> sustained --------+ +--Restore--> named, by another number
                                 (row in `trash` already)

Owns what becomes an item, and under which path. `removal` calls it and lets go of what has expired;
`restoring` gives items a name again.

Invariant: an item whose inode is still there is sustained, and no byte of it counts as trash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from mictlanfs import wire
from mictlanfs.model import TIME_NS_MAX, FileKind, InodeNumber
from mictlanfs_server.metadata.quotas import count
from mictlanfs_server.metadata.rows import TrashRecord

if TYPE_CHECKING:
    from mictlanfs_server.metadata.rows import InodeRecord
    from mictlanfs_server.metadata.transaction import Transaction

DAY_NS: Final = 24 * 3600 * 1_000_000_000


def item_of(
    tx: Transaction,
    record: InodeRecord,
    parent: InodeNumber,
    name: bytes,
    reason: wire.TrashReason,
) -> TrashRecord | None:
    """The item that an inode becomes which loses, or just lost, its last name; None: it is lost."""
    if not tx.keeps_trash():
        return None
    directory = tx.inode(parent)
    assert directory is not None, "a directory that held a name is gone"
    bucket = tx.bucket_of(directory)
    days = tx.trash_days(bucket) if bucket is not None else 0
    if not days:
        return None
    return TrashRecord(
        ino=record.ino,
        path=tx.path_of(parent) + b"/" + name,
        removed_ns=tx.now_ns,
        expires_ns=min(tx.now_ns + days * DAY_NS, TIME_NS_MAX),
        reason=reason,
        kind=record.kind,
    )


def announce(tx: Transaction, item: TrashRecord) -> None:
    """An inode that is still open will be this item."""
    tx.rows.trash.put(item)
    tx.counts.trash_items += 1


def keep(tx: Transaction, record: InodeRecord, item: TrashRecord, *, is_announced: bool) -> None:
    """An inode without a name, which nobody has open, goes and its item stays."""
    if record.kind is FileKind.FILE and tx.may_have_record():
        tx.rows.records.delete_part(record.ino)
    tx.rows.trash.put(_filled(item, record))
    tx.counts.trash_items += not is_announced
    tx.counts.trash_bytes += record.allocated
    tx.counts.bytes_logical -= record.allocated
    tx.delete(record)


def keep_version(tx: Transaction, record: InodeRecord) -> bool:
    """Take all content from a file that is cut to nothing, and is being changed, and keep it.

    Returns whether it was kept; else nothing has happened.
    """
    if not (record.nlink and tx.keeps_trash()):
        return False
    name = tx.rows.name_in(record.parent, record.ino)
    assert name is not None, "the parent of a file has no name of it"
    item = item_of(tx, record, record.parent, name, wire.TrashReason.OVERWRITTEN)
    if item is None:
        return False
    item = msgspec.structs.replace(item, ino=tx.new_number())
    tx.rows.trash.move_extents(record.ino, item.ino)
    if record.has_xattrs:
        tx.rows.copy_xattrs(record.ino, item.ino)
    tx.rows.trash.put(_filled(item, record))
    tx.counts.trash_items += 1
    tx.counts.trash_bytes += record.allocated
    tx.counts.bytes_logical -= record.allocated
    count(tx, record, -record.allocated)
    record.allocated = 0
    return True


def _filled(item: TrashRecord, record: InodeRecord) -> TrashRecord:
    return msgspec.structs.replace(
        item,
        mode=record.mode,
        uid=record.uid,
        gid=record.gid,
        size=0 if record.is_directory else record.size,
        atime_ns=record.atime_ns,
        mtime_ns=record.mtime_ns,
        rdev=record.rdev,
        allocated=record.allocated,
        content_version=record.content_version,
        has_xattrs=record.has_xattrs,
        target=record.target,
    )
