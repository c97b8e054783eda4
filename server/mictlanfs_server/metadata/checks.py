"""Checks that several operations share: names, numbers, directories. They change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import NAME_SIZE_BYTES_MAX, ROOT_INODE, TIME_NS_MAX, TIME_NS_MIN, InodeNumber
from mictlanfs.snapshotnumbers import SNAPSHOTS_NAME, is_unchangeable

if TYPE_CHECKING:
    from mictlanfs_server.metadata.rows import InodeRecord
    from mictlanfs_server.metadata.transaction import Transaction

MODE_MAX = 0o7777
PERMISSIONS_MAX = 0o777
# uid_t and gid_t; the largest value means "no change" to chown(2) and owns nothing.
OWNER_MAX = 2**32 - 2
# What a signed column of the database holds.
INTEGER_MAX = 2**63 - 1
# Served by the mounts themselves, so nothing in the space may have this name.
RESERVED_ROOT_NAME = b".mictlanfs"


def shown(target: bytes | int) -> str:
    """A name or an inode number as it appears in an error."""
    return f"inode {target}" if isinstance(target, int) else target.decode("utf-8", "replace")


def failure(kind: Kind, operation: str, target: bytes | int, detail: str = "") -> MictlanError:
    """The error of an operation on a name or an inode."""
    return MictlanError(kind, operation, shown(target), detail)


def check_name(name: bytes, operation: str) -> None:
    """Raises INVALID or NAME_TOO_LONG for what cannot be a name."""
    if len(name) > NAME_SIZE_BYTES_MAX:
        detail = f"a name has at most {NAME_SIZE_BYTES_MAX} bytes"
        raise failure(Kind.NAME_TOO_LONG, operation, name, detail)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise failure(Kind.INVALID, operation, name, "this cannot be a name")


def check_range(value: int, low: int, high: int, what: str, operation: str) -> None:
    """Raises INVALID when `value` is not in `[low, high]`."""
    if not low <= value <= high:
        raise MictlanError(Kind.INVALID, operation, "", f"{what} {value} is out of range")


def check_time(time_ns: int, operation: str) -> None:
    """Raises INVALID for a time that does not fit 64 bits."""
    check_range(time_ns, TIME_NS_MIN, TIME_NS_MAX, "time", operation)


def existing(tx: Transaction, ino: InodeNumber, operation: str) -> InodeRecord:
    """An inode that exists, with or without a name, to change it. Raises NOT_FOUND, READ_ONLY."""
    if is_unchangeable(ino):
        raise failure(Kind.READ_ONLY, operation, ino, "it is part of a snapshot")
    record = tx.inode(ino)
    if record is None:
        raise failure(Kind.NOT_FOUND, operation, ino)
    return record


def directory(tx: Transaction, ino: InodeNumber, operation: str) -> InodeRecord:
    """A directory, removed or not. Raises NOT_FOUND, NOT_DIRECTORY."""
    record = existing(tx, ino, operation)
    if not record.is_directory:
        raise failure(Kind.NOT_DIRECTORY, operation, ino)
    return record


def open_directory(tx: Transaction, ino: InodeNumber, operation: str) -> InodeRecord:
    """A directory that can take new names. Raises NOT_FOUND, NOT_DIRECTORY, STALE."""
    record = directory(tx, ino, operation)
    if record.nlink == 0:
        raise failure(Kind.STALE, operation, ino, "the directory was removed")
    return record


def check_root_name(parent: InodeNumber, name: bytes, operation: str) -> None:
    """Raises NOT_PERMITTED for the one name that is reserved."""
    if parent == ROOT_INODE and name == RESERVED_ROOT_NAME:
        detail = "this name is reserved for the control files of the mount"
        raise failure(Kind.NOT_PERMITTED, operation, name, detail)


def check_new_name(parent: InodeRecord, name: bytes, operation: str) -> None:
    """Raises EXISTS for the name under which a bucket shows its snapshots."""
    if name == SNAPSHOTS_NAME and parent.parent == ROOT_INODE != parent.ino:
        raise failure(Kind.EXISTS, operation, name, "the snapshots of the bucket are there")
