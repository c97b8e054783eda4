"""Gives items of the trash a name again; see `wire.Restore`. `trash` says what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mictlanfs.errors import Kind
from mictlanfs.model import ROOT_INODE
from mictlanfs_server.metadata.checks import (
    check_name,
    check_new_name,
    check_time,
    failure,
    open_directory,
)
from mictlanfs_server.metadata.names import change_entries, check_number
from mictlanfs_server.metadata.quotas import check_quota, count
from mictlanfs_server.metadata.rows import InodeRecord

if TYPE_CHECKING:
    from mictlanfs import wire
    from mictlanfs_server.metadata.transaction import Transaction

Touched = list[InodeRecord]


def restore(tx: Transaction, op: wire.Restore) -> Touched:
    """Make an inode of an item, under a new number; see `wire.Restore`."""
    check_name(op.name, "restore")
    check_time(op.time_ns, "restore")
    parent = open_directory(tx, op.parent, "restore")
    if tx.rows.entry(op.parent, op.name) is not None:
        raise failure(Kind.EXISTS, "restore", op.name)
    check_new_name(parent, op.name, "restore")
    if op.parent == ROOT_INODE:
        detail = "the top directory holds buckets only; restore it inside a bucket"
        raise failure(Kind.NOT_PERMITTED, "restore", op.name, detail)
    item = tx.rows.trash.get(op.item)
    if item is None:
        raise failure(Kind.NOT_FOUND, "restore", op.item, "it is not in the trash")
    if tx.inode(op.item) is not None:
        raise failure(Kind.BUSY, "restore", op.item, "a program still has it open")
    check_number(tx, op.ino, "restore")
    version = max(1, item.content_version)
    record = InodeRecord(
        ino=op.ino,
        kind=item.kind,
        mode=item.mode,
        uid=item.uid,
        gid=item.gid,
        size=item.size,
        atime_ns=item.atime_ns,
        mtime_ns=item.mtime_ns,
        ctime_ns=op.time_ns,
        nlink=1,
        rdev=item.rdev,
        allocated=item.allocated,
        # That of the content, so that a record of it stays true.
        version=version,
        content_version=version,
        has_xattrs=item.has_xattrs,
        parent=op.parent,
        target=item.target,
    )
    if record.is_directory:
        record.nlink = 2
    tx.insert(record)
    tx.rows.trash.move_all(op.item, op.ino)
    tx.rows.trash.delete(op.item)
    tx.counts.trash_items -= 1
    tx.counts.trash_bytes -= item.allocated
    tx.counts.bytes_logical += item.allocated
    tx.rows.set_entry(op.parent, op.name, op.ino)
    change_entries(tx, parent, op.time_ns, entries=1, directories=int(record.is_directory))
    count(tx, record, item.allocated)
    check_quota(tx, record, "restore")
    return [record, parent]
