"""The bytes each bucket uses, and the limit that its policy sets.

A file counts, with what it has allocated, in the bucket that the way up from its `parent` leads
to, for as long as it has a name. Owns every change of that count; the rows are written with the
batch. Never looks at what a bucket holds, but for a directory that moves to another one.

Invariant: `bucket.used` is the sum of `allocated` of the files with a name that lie in the bucket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mictlanfs.config import format_size
from mictlanfs.errors import Kind
from mictlanfs_server.metadata.checks import failure

if TYPE_CHECKING:
    from mictlanfs.model import InodeNumber
    from mictlanfs_server.metadata.rows import InodeRecord
    from mictlanfs_server.metadata.transaction import Transaction

# Names in a directory that moves to another bucket: counting them keeps the router busy, for about
# a second. mv(1) copies what is larger.
MOVED_NAMES_MAX = 500_000


def count(tx: Transaction, record: InodeRecord, difference: int) -> None:
    """The bytes allocated to a file change by `difference`."""
    if difference and record.nlink:
        _add(tx, tx.bucket_of(record), difference)


def moved(tx: Transaction, record: InodeRecord, before: InodeNumber | None) -> None:
    """A file or directory that lay in bucket `before` has another parent, or no name any more.

    Raises:
        MictlanError: CROSS_DEVICE when it is a directory in which too much would be counted.
    """
    after = tx.bucket_of(record) if record.nlink else None
    if before == after:
        return
    use: int | None = record.allocated
    if record.is_directory:
        tx.write_early()
        use = tx.rows.tree_use(record.ino, MOVED_NAMES_MAX)
    if use is None:
        detail = f"more than {MOVED_NAMES_MAX} names cannot be moved to another bucket at once"
        raise failure(Kind.CROSS_DEVICE, "rename", record.ino, detail)
    if use:
        _add(tx, before, -use)
        _add(tx, after, use)


def _add(tx: Transaction, bucket: InodeNumber | None, difference: int) -> None:
    if bucket is not None:
        tx.uses[bucket] = tx.uses.get(bucket, 0) + difference


def check_quota(tx: Transaction, record: InodeRecord, operation: str) -> None:
    """Refuse the operation under way if it makes the bucket of `record` larger than its quota.

    Raises:
        MictlanError: QUOTA_EXCEEDED.
    """
    bucket = tx.bucket_of(record)
    if bucket is None or not tx.has_grown(bucket):
        return
    policy = tx.rows.policy(bucket)
    if policy is not None and 0 < policy.quota < tx.rows.bucket_use(bucket) + tx.uses[bucket]:
        detail = f"the quota of the bucket, {format_size(policy.quota)}, would be exceeded"
        raise failure(Kind.QUOTA_EXCEEDED, operation, bucket, detail)
