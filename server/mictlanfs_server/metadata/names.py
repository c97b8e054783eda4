"""Operations on names: make, link, unlink, remove a directory, rename.

The rules of POSIX and Linux (link(2), unlink(2), rename(2), renameat2(2)) and those of the root,
which holds buckets only. Each function checks everything before it changes anything, changes one
transaction, and returns the inodes it touched in the order that `mictlanfs.wire` documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import (
    LINK_COUNT_MAX,
    ROOT_INODE,
    SYMLINK_SIZE_BYTES_MAX,
    BucketPolicy,
    FileKind,
    InodeNumber,
)
from mictlanfs_server.metadata.acls import inherit
from mictlanfs_server.metadata.checks import (
    INTEGER_MAX,
    MODE_MAX,
    OWNER_MAX,
    PERMISSIONS_MAX,
    check_name,
    check_new_name,
    check_range,
    check_root_name,
    check_time,
    directory,
    existing,
    failure,
    open_directory,
)
from mictlanfs_server.metadata.quotas import check_quota, moved
from mictlanfs_server.metadata.removal import drop
from mictlanfs_server.metadata.rows import InodeRecord
from mictlanfs_server.metadata.trash import item_of

if TYPE_CHECKING:
    from mictlanfs_server.metadata.transaction import Transaction

DEVICES = (FileKind.BLOCK_DEVICE, FileKind.CHARACTER_DEVICE)

Touched = list[InodeRecord]


# --- make ----------------------------------------------------------------------------------------


def make_node(tx: Transaction, op: wire.MakeNode) -> Touched:
    """Create an inode under a new name; see `wire.MakeNode`."""
    check_name(op.name, "make")
    parent = open_directory(tx, op.parent, "make")
    if tx.rows.entry(op.parent, op.name) is not None:
        raise failure(Kind.EXISTS, "make", op.name)
    if op.parent == ROOT_INODE and op.kind is not FileKind.DIRECTORY:
        detail = "the top directory holds buckets only; create this inside a bucket"
        raise failure(Kind.NOT_PERMITTED, "make", op.name, detail)
    check_root_name(op.parent, op.name, "make")
    check_new_name(parent, op.name, "make")
    _check_new_inode(tx, op)
    is_directory = op.kind is FileKind.DIRECTORY
    record = InodeRecord(
        ino=op.ino,
        kind=op.kind,
        mode=op.mode,
        uid=op.uid,
        gid=op.gid,
        size=len(op.target),
        atime_ns=op.time_ns,
        mtime_ns=op.time_ns,
        ctime_ns=op.time_ns,
        nlink=2 if is_directory else 1,
        rdev=op.rdev if op.kind in DEVICES else 0,
        version=1,
        content_version=1,
        parent=op.parent,
        target=op.target,
    )
    tx.insert(record)
    inherit(tx, parent, record, op.masked)
    tx.rows.set_entry(op.parent, op.name, op.ino)
    if op.parent == ROOT_INODE:
        tx.rows.set_policy(op.ino, BucketPolicy())
    change_entries(tx, parent, op.time_ns, entries=1, directories=int(is_directory))
    return [record, parent]


def _check_new_inode(tx: Transaction, op: wire.MakeNode) -> None:
    check_range(op.mode, 0, MODE_MAX, "mode", "make")
    check_range(op.masked, 0, PERMISSIONS_MAX, "masked mode", "make")
    check_range(op.uid, 0, OWNER_MAX, "uid", "make")
    check_range(op.gid, 0, OWNER_MAX, "gid", "make")
    check_range(op.rdev, 0, INTEGER_MAX, "device number", "make")
    check_time(op.time_ns, "make")
    if (op.kind is FileKind.SYMLINK) != bool(op.target) or b"\0" in op.target:
        raise failure(Kind.INVALID, "make", op.name, "a symlink, and nothing else, has a target")
    if len(op.target) > SYMLINK_SIZE_BYTES_MAX:
        raise failure(Kind.NAME_TOO_LONG, "make", op.name, "the target is too long")
    check_number(tx, op.ino, "make")


def check_number(tx: Transaction, ino: InodeNumber, operation: str) -> None:
    """Raises INVALID for a number that a new inode cannot have."""
    if not tx.is_handed_out(ino):
        raise failure(Kind.INVALID, operation, ino, "this number was not handed out")
    if tx.inode(ino) is not None:
        raise failure(Kind.INVALID, operation, ino, "this number is in use")


def change_entries(
    tx: Transaction, parent: InodeRecord, time_ns: int, *, entries: int, directories: int
) -> None:
    """A directory has so many entries more, and so many directories among them."""
    tx.change(parent)
    parent.size += entries
    parent.nlink += directories
    parent.mark_content_changed(time_ns)


# --- link and unlink -----------------------------------------------------------------------------


def link(tx: Transaction, op: wire.Link) -> Touched:
    """Give an inode one more name; see `wire.Link`."""
    check_name(op.name, "link")
    check_time(op.time_ns, "link")
    parent = open_directory(tx, op.parent, "link")
    if tx.rows.entry(op.parent, op.name) is not None:
        raise failure(Kind.EXISTS, "link", op.name)
    record = existing(tx, op.ino, "link")
    if record.is_directory:
        detail = "a directory has one name only"
        raise failure(Kind.NOT_PERMITTED, "link", op.name, detail)
    if op.parent == ROOT_INODE:
        detail = "the top directory holds buckets only; link it inside a bucket"
        raise failure(Kind.NOT_PERMITTED, "link", op.name, detail)
    check_new_name(parent, op.name, "link")
    if record.nlink == 0:
        raise failure(Kind.NOT_FOUND, "link", op.ino, "its last name was removed")
    if record.nlink >= LINK_COUNT_MAX:
        raise failure(Kind.TOO_MANY_LINKS, "link", op.name)
    tx.rows.set_entry(op.parent, op.name, op.ino)
    tx.change(record)
    record.nlink += 1
    record.mark_changed(op.time_ns)
    change_entries(tx, parent, op.time_ns, entries=1, directories=0)
    return [record, parent]


def unlink(tx: Transaction, op: wire.Unlink) -> Touched:
    """Remove a name of what is not a directory; see `wire.Unlink`."""
    parent, record = _named(tx, op.parent, op.name, op.time_ns, "unlink")
    if record.is_directory:
        raise failure(Kind.IS_DIRECTORY, "unlink", op.name)
    tx.rows.delete_entry(op.parent, op.name)
    change_entries(tx, parent, op.time_ns, entries=-1, directories=0)
    place = (op.parent, op.name)
    _lose_name(tx, record, place, op.time_ns, wire.TrashReason.REMOVED, sustain=op.sustain)
    return [record, parent]


def remove_directory(tx: Transaction, op: wire.RemoveDirectory) -> Touched:
    """Remove an empty directory; see `wire.RemoveDirectory`."""
    parent, record = _named(tx, op.parent, op.name, op.time_ns, "rmdir")
    if not record.is_directory:
        raise failure(Kind.NOT_DIRECTORY, "rmdir", op.name)
    if record.size:
        raise failure(Kind.NOT_EMPTY, "rmdir", op.name)
    _check_no_snapshots(tx, op.parent, record, "rmdir")
    tx.rows.delete_entry(op.parent, op.name)
    change_entries(tx, parent, op.time_ns, entries=-1, directories=-1)
    place = (op.parent, op.name)
    _lose_name(tx, record, place, op.time_ns, wire.TrashReason.REMOVED, sustain=op.sustain)
    return [record, parent]


def _check_no_snapshots(
    tx: Transaction, parent: InodeNumber, record: InodeRecord, operation: str
) -> None:
    """Raises NOT_EMPTY when a bucket, which is to be removed, has snapshots."""
    if parent == ROOT_INODE and tx.rows.has_snapshots(record.ino):
        detail = "the bucket has snapshots: remove them first"
        raise failure(Kind.NOT_EMPTY, operation, record.ino, detail)


def _named(
    tx: Transaction, parent_ino: InodeNumber, name: bytes, time_ns: int, operation: str
) -> tuple[InodeRecord, InodeRecord]:
    """The directory and the inode of a name that exists."""
    check_name(name, operation)
    check_time(time_ns, operation)
    parent = directory(tx, parent_ino, operation)
    ino = tx.rows.entry(parent_ino, name)
    if ino is None:
        raise failure(Kind.NOT_FOUND, operation, name)
    return parent, _target_of_entry(tx, ino)


def _target_of_entry(tx: Transaction, ino: InodeNumber) -> InodeRecord:
    record = tx.inode(ino)
    assert record is not None, "a name stands for an inode that is not there"
    return record


def _lose_name(
    tx: Transaction,
    record: InodeRecord,
    place: tuple[InodeNumber, bytes],
    time_ns: int,
    reason: wire.TrashReason,
    *,
    sustain: bool,
) -> None:
    """What the loss of a name, directory and bytes of it, means to the inode; it is removed."""
    parent, name = place
    tx.change(record)
    bucket = tx.bucket_of(record) if record.allocated else None
    record.mark_changed(time_ns)
    if record.is_directory:
        record.nlink = 0
        if parent == ROOT_INODE:
            tx.rows.delete_bucket(record.ino)
    else:
        record.nlink -= 1
    is_home = record.nlink > 0 and record.parent == parent
    if is_home and tx.rows.name_in(parent, record.ino) is None:
        # The way to its bucket must go through a directory that still names it.
        record.parent = tx.rows.any_parent(record.ino) or record.parent
    if record.allocated:
        moved(tx, record, bucket)
    if record.nlink == 0:
        # A bucket is nothing that could be put back: its policy is gone.
        item = None if parent == ROOT_INODE else item_of(tx, record, parent, name, reason)
        drop(tx, record, item, sustain=sustain)


# --- rename --------------------------------------------------------------------------------------


def rename(tx: Transaction, op: wire.Rename) -> Touched:
    """Move a name; see `wire.Rename`."""
    check_range(op.mode, wire.RenameMode.REPLACE, wire.RenameMode.EXCHANGE, "mode", "rename")
    check_name(op.new_name, "rename")
    parent, source = _named(tx, op.parent, op.name, op.time_ns, "rename")
    new_parent = open_directory(tx, op.new_parent, "rename")
    check_new_name(new_parent, op.new_name, "rename")
    target_ino = tx.rows.entry(op.new_parent, op.new_name)
    target = None if target_ino is None else _target_of_entry(tx, target_ino)
    if op.mode == wire.RenameMode.NO_REPLACE and target is not None:
        raise failure(Kind.EXISTS, "rename", op.new_name)
    if op.mode == wire.RenameMode.EXCHANGE and target is None:
        raise failure(Kind.NOT_FOUND, "rename", op.new_name)
    _check_no_loop(tx, op, source, target)
    if target is source:
        # rename(2): two names of one inode, nothing is done.
        return [source, parent, new_parent]
    _check_root_rules(op)
    if op.mode == wire.RenameMode.EXCHANGE:
        assert target is not None
        _exchange(tx, op, (parent, source), (new_parent, target))
        check_quota(tx, parent, "rename")
        check_quota(tx, new_parent, "rename")
        return [source, parent, new_parent, target]
    if target is not None:
        _check_replaceable(tx, op, source, target)
    _move(tx, op, parent, source, new_parent, target)
    check_quota(tx, new_parent, "rename")
    return [source, parent, new_parent, *([target] if target else [])]


def _check_no_loop(
    tx: Transaction, op: wire.Rename, source: InodeRecord, target: InodeRecord | None
) -> None:
    if op.parent == op.new_parent:
        return
    moved_into = [(source, op.new_parent)]
    if op.mode == wire.RenameMode.EXCHANGE and target is not None:
        moved_into.append((target, op.parent))
    for record, destination in moved_into:
        if record.is_directory and tx.is_below(directory(tx, destination, "rename"), record.ino):
            detail = "a directory cannot be moved into itself"
            raise failure(Kind.INVALID, "rename", op.name, detail)


def _check_root_rules(op: wire.Rename) -> None:
    if op.parent == ROOT_INODE == op.new_parent:
        check_root_name(op.new_parent, op.new_name, "rename")
    elif op.parent == ROOT_INODE:
        detail = "a bucket cannot be moved into another one"
        raise failure(Kind.NOT_PERMITTED, "rename", op.name, detail)
    elif op.new_parent == ROOT_INODE:
        detail = "the top directory holds buckets only; nothing can be moved there"
        raise failure(Kind.NOT_PERMITTED, "rename", op.name, detail)


def _check_replaceable(
    tx: Transaction, op: wire.Rename, source: InodeRecord, target: InodeRecord
) -> None:
    if source.is_directory and not target.is_directory:
        raise failure(Kind.NOT_DIRECTORY, "rename", op.new_name)
    if target.is_directory and not source.is_directory:
        raise failure(Kind.IS_DIRECTORY, "rename", op.new_name)
    if target.is_directory and target.size:
        raise failure(Kind.NOT_EMPTY, "rename", op.new_name)
    _check_no_snapshots(tx, op.new_parent, target, "rename")


def _exchange(
    tx: Transaction,
    op: wire.Rename,
    old: tuple[InodeRecord, InodeRecord],
    new: tuple[InodeRecord, InodeRecord],
) -> None:
    (parent, source), (new_parent, target) = old, new
    tx.rows.set_entry(op.new_parent, op.new_name, source.ino)
    tx.rows.set_entry(op.parent, op.name, target.ino)
    _settle(tx, source, parent.ino, new_parent.ino, op.time_ns)
    _settle(tx, target, new_parent.ino, parent.ino, op.time_ns)
    difference = int(target.is_directory) - int(source.is_directory)
    if parent is new_parent:
        change_entries(tx, parent, op.time_ns, entries=0, directories=0)
        return
    change_entries(tx, parent, op.time_ns, entries=0, directories=difference)
    change_entries(tx, new_parent, op.time_ns, entries=0, directories=-difference)


def _move(
    tx: Transaction,
    op: wire.Rename,
    parent: InodeRecord,
    source: InodeRecord,
    new_parent: InodeRecord,
    target: InodeRecord | None,
) -> None:
    directories = int(source.is_directory)
    tx.rows.delete_entry(op.parent, op.name)
    tx.rows.set_entry(op.new_parent, op.new_name, source.ino)
    change_entries(tx, parent, op.time_ns, entries=-1, directories=-directories)
    # A replaced target gives its place, and a directory its link, to the one that comes.
    replaced = int(target is not None)
    change_entries(
        tx,
        new_parent,
        op.time_ns,
        entries=1 - replaced,
        directories=directories * (1 - replaced),
    )
    _settle(tx, source, op.parent, op.new_parent, op.time_ns)
    if target is not None:
        place = (op.new_parent, op.new_name)
        _lose_name(tx, target, place, op.time_ns, wire.TrashReason.REPLACED, sustain=op.sustain)


def _settle(
    tx: Transaction,
    record: InodeRecord,
    parent: InodeNumber,
    new_parent: InodeNumber,
    time_ns: int,
) -> None:
    """Tell a moved inode where it is now."""
    tx.change(record)
    record.mark_changed(time_ns)
    if record.is_directory:
        tx.forget_places()
    if record.parent != new_parent:
        bucket = tx.bucket_of(record)
        record.parent = new_parent
        moved(tx, record, bucket)
        if record.is_directory:
            tx.rows.note_policies_changed()
