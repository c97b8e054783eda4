"""Access control lists inside a transaction: kept in step with the mode, inherited at creation.

The rules are those of `mictlanfs.acl`; here they meet rows. An access list that says no more than
the mode has no row. Callers have called `Transaction.change` on the records that are changed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mictlanfs import acl
from mictlanfs.errors import Kind
from mictlanfs.model import FileKind
from mictlanfs_server.metadata.checks import failure

if TYPE_CHECKING:
    from mictlanfs_server.metadata.rows import InodeRecord
    from mictlanfs_server.metadata.transaction import Transaction

_PERMISSION_BITS = 0o777


def accepted(record: InodeRecord, name: bytes, value: bytes) -> tuple[bytes | None, int]:
    """What setting one of `acl.NAMES` means: the value to keep, None for none, and the mode.

    Raises:
        MictlanError: UNSUPPORTED on a symlink, ACCESS_DENIED for a default list of what is not a
            directory, and the errors of `acl.decode`.
    """
    if record.kind is FileKind.SYMLINK:
        raise failure(Kind.UNSUPPORTED, "setxattr", name, "a symlink has no access control list")
    wanted = acl.decode(value)
    if name == acl.DEFAULT_NAME:
        if wanted is not None and not record.is_directory:
            detail = "only a directory has a default access control list"
            raise failure(Kind.ACCESS_DENIED, "setxattr", name, detail)
        return (None if wanted is None else acl.encode(wanted)), record.mode
    if wanted is None:
        return None, record.mode
    mode = record.mode & ~_PERMISSION_BITS | wanted.mode
    return (None if wanted.is_mode_only else acl.encode(wanted)), mode


def keep_xattr(tx: Transaction, record: InodeRecord, name: bytes, value: bytes | None) -> None:
    """Give an extended attribute a value, or with None take it away; it need not be there."""
    if value is not None:
        tx.rows.set_xattr(record.ino, name, value)
        record.has_xattrs = True
    elif record.has_xattrs:
        tx.rows.delete_xattr(record.ino, name)
        record.has_xattrs = tx.rows.xattr_sizes(record.ino) != (0, 0)


def follow_mode(tx: Transaction, record: InodeRecord) -> None:
    """The permission bits of `record` were set: its access list, if any, says the same."""
    kept = _kept(tx, record, acl.ACCESS_NAME)
    if kept is not None:
        changed = acl.encode(kept.after_chmod(record.mode))
        keep_xattr(tx, record, acl.ACCESS_NAME, changed)


def inherit(tx: Transaction, parent: InodeRecord, record: InodeRecord, masked: int) -> None:
    """A node is being made in `parent`: it gets what the default list there gives. See acl(5).

    `masked` are the permission bits that a umask took off its mode: a default list gives them back.
    """
    if record.kind is FileKind.SYMLINK:
        return
    default = _kept(tx, parent, acl.DEFAULT_NAME)
    if default is None:
        return
    access = default.inherited(record.mode | masked)
    record.mode = record.mode & ~_PERMISSION_BITS | access.mode
    if not access.is_mode_only:
        keep_xattr(tx, record, acl.ACCESS_NAME, acl.encode(access))
    if record.is_directory:
        keep_xattr(tx, record, acl.DEFAULT_NAME, acl.encode(default))


def _kept(tx: Transaction, record: InodeRecord, name: bytes) -> acl.Acl | None:
    # Nearly all inodes have none, and for those nothing is read.
    value = tx.rows.xattr_value(record.ino, name) if record.has_xattrs else None
    return None if value is None else acl.decode(value)
