"""Operations on attributes: setattr, extended attributes, the policy of a bucket.

Each function checks everything before it changes anything and returns the inodes it touched.
Source: setattr(2) family, xattr(7), setxattr(2).
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from mictlanfs import acl
from mictlanfs.errors import Kind
from mictlanfs.model import (
    CHUNK_SIZE_BYTES_MAX,
    CHUNK_SIZE_BYTES_MIN,
    DATA_FRAGMENTS_MAX,
    DATA_FRAGMENTS_MIN,
    FILE_SIZE_BYTES_MAX,
    REPLICAS_MAX,
    TRASH_DAYS_MAX,
    XATTR_LIST_SIZE_BYTES_MAX,
    XATTR_NAME_SIZE_BYTES_MAX,
    XATTR_VALUE_SIZE_BYTES_MAX,
    BucketPolicy,
)
from mictlanfs_server.metadata.acls import accepted, follow_mode, keep_xattr
from mictlanfs_server.metadata.checks import (
    MODE_MAX,
    OWNER_MAX,
    check_range,
    check_time,
    existing,
    failure,
)
from mictlanfs_server.metadata.content import check_size, truncate

if TYPE_CHECKING:
    from mictlanfs import wire
    from mictlanfs_server.metadata.rows import InodeRecord
    from mictlanfs_server.metadata.transaction import Transaction

# Flags of setxattr(2).
XATTR_CREATE = 1
XATTR_REPLACE = 2
# All values of an inode together: `wire.Xattrs` carries them in one answer.
XATTR_VALUES_SIZE_BYTES_MAX = 1024 * 1024

Touched = list["InodeRecord"]


def set_attributes(tx: Transaction, op: wire.SetAttributes) -> Touched:
    """Change attributes of an inode; see `wire.SetAttributes`."""
    record = existing(tx, op.ino, "setattr")
    _check_attributes(op)
    if op.size is not None:
        check_size(record, op.size, "setattr")
    tx.change(record)
    if op.size is not None:
        truncate(tx, record, op.size, op.time_ns)
    else:
        record.mark_changed(op.time_ns)
    if op.mode is not None:
        record.mode = op.mode
        follow_mode(tx, record)
    if op.uid is not None:
        record.uid = op.uid
    if op.gid is not None:
        record.gid = op.gid
    if op.atime_ns is not None:
        record.atime_ns = op.atime_ns
    if op.mtime_ns is not None:
        record.mtime_ns = op.mtime_ns
    return [record]


def _check_attributes(op: wire.SetAttributes) -> None:
    check_time(op.time_ns, "setattr")
    if op.mode is not None:
        check_range(op.mode, 0, MODE_MAX, "mode", "setattr")
    for owner in (op.uid, op.gid):
        if owner is not None:
            check_range(owner, 0, OWNER_MAX, "owner", "setattr")
    for time_ns in (op.atime_ns, op.mtime_ns):
        if time_ns is not None:
            check_time(time_ns, "setattr")


def set_xattr(tx: Transaction, op: wire.SetXattr) -> Touched:
    """Set an extended attribute; see `wire.SetXattr`."""
    check_time(op.time_ns, "setxattr")
    _check_xattr(op)
    record = existing(tx, op.ino, "setxattr")
    exists = record.has_xattrs and tx.rows.xattr_exists(op.ino, op.name)
    if op.flags == XATTR_CREATE and exists:
        raise failure(Kind.EXISTS, "setxattr", op.name)
    if op.flags == XATTR_REPLACE and not exists:
        raise failure(Kind.NO_DATA, "setxattr", op.name)
    value: bytes | None = op.value
    mode = record.mode
    if op.name in acl.NAMES:
        value, mode = accepted(record, op.name, op.value)
        if op.clear_set_gid and op.name == acl.ACCESS_NAME:
            mode &= ~stat.S_ISGID
    if value is not None:
        _check_xattr_space(tx, op, record, exists=exists)
    tx.change(record)
    keep_xattr(tx, record, op.name, value)
    record.mode = mode
    record.mark_changed(op.time_ns)
    return [record]


def _check_xattr(op: wire.SetXattr) -> None:
    if not 0 < len(op.name) <= XATTR_NAME_SIZE_BYTES_MAX:
        raise failure(Kind.RANGE, "setxattr", op.name, "a name has 1 to 255 bytes")
    if b"\0" in op.name:
        raise failure(Kind.INVALID, "setxattr", op.name, "a name has no NUL")
    if len(op.value) > XATTR_VALUE_SIZE_BYTES_MAX:
        raise failure(Kind.TOO_LARGE, "setxattr", op.name, "a value has at most 64 KiB")
    if op.flags not in (0, XATTR_CREATE, XATTR_REPLACE):
        raise failure(Kind.INVALID, "setxattr", op.name, "unknown flags")


def _check_xattr_space(
    tx: Transaction, op: wire.SetXattr, record: InodeRecord, *, exists: bool
) -> None:
    names_size, values_size = tx.rows.xattr_sizes(op.ino) if record.has_xattrs else (0, 0)
    if exists:
        values_size -= tx.rows.xattr_value_size(op.ino, op.name)
    else:
        # listxattr(2) ends each name with a NUL.
        names_size += len(op.name) + 1
    if names_size > XATTR_LIST_SIZE_BYTES_MAX:
        raise failure(Kind.NO_SPACE, "setxattr", op.name, "the names together exceed 64 KiB")
    if values_size + len(op.value) > XATTR_VALUES_SIZE_BYTES_MAX:
        raise failure(Kind.NO_SPACE, "setxattr", op.name, "the values together exceed 1 MiB")


def remove_xattr(tx: Transaction, op: wire.RemoveXattr) -> Touched:
    """Remove an extended attribute; see `wire.RemoveXattr`."""
    check_time(op.time_ns, "removexattr")
    record = existing(tx, op.ino, "removexattr")
    if not record.has_xattrs or not tx.rows.xattr_exists(op.ino, op.name):
        if op.name in acl.NAMES:
            # As Linux does it: the mode alone is an access control list too.
            return [record]
        raise failure(Kind.NO_DATA, "removexattr", op.name)
    tx.change(record)
    keep_xattr(tx, record, op.name, None)
    record.mark_changed(op.time_ns)
    return [record]


def set_bucket_policy(tx: Transaction, op: wire.SetBucketPolicy) -> Touched:
    """Change how new data of a bucket is kept; see `wire.SetBucketPolicy`."""
    check_time(op.time_ns, "set policy")
    record = existing(tx, op.ino, "set policy")
    if tx.rows.policy(op.ino) is None:
        raise failure(Kind.NOT_FOUND, "set policy", op.ino, "this is not a bucket")
    check_policy(op.policy)
    tx.rows.set_policy(op.ino, op.policy)
    tx.rows.note_policies_changed()
    tx.forget_places()
    tx.change(record)
    record.mark_changed(op.time_ns)
    return [record]


def check_policy(policy: BucketPolicy) -> None:
    """Raises INVALID for a policy that cannot be kept."""
    operation = "set policy"
    check_range(policy.replicas, 1, REPLICAS_MAX, "replicas", operation)
    check_range(policy.replicas_min, 1, policy.replicas, "replicas_min", operation)
    check_range(
        policy.chunk_size, CHUNK_SIZE_BYTES_MIN, CHUNK_SIZE_BYTES_MAX, "chunk_size", operation
    )
    check_range(policy.quota, 0, FILE_SIZE_BYTES_MAX, "quota", operation)
    if policy.data:
        check_range(policy.data, DATA_FRAGMENTS_MIN, DATA_FRAGMENTS_MAX, "data", operation)
        # One more than the fragments of parity, of which there is at least one.
        check_range(policy.replicas, 2, REPLICAS_MAX, "replicas", operation)
    check_range(policy.trash_days, 0, TRASH_DAYS_MAX, "trash_days", operation)
