"""Inode numbers of snapshots: which belong to one, and which name each inode has in it. Pure.

Numbers below `LIVE_INODES_END` are handed out to sessions. The hidden directory of a bucket, which
holds its snapshots, and everything in a snapshot have numbers above it that follow from those of
the live inodes, so that they are known without a table:

::

    2**61 + B                 the directory `.snapshots` of bucket B
    2**62 + S * 2**40 + I     inode I as it was when snapshot S was taken

What has such a number never changes.
"""

from __future__ import annotations

from typing import Final

from mictlanfs.model import InodeNumber

# The name, in each bucket, of the directory with its snapshots; never listed.
SNAPSHOTS_NAME: Final = b".snapshots"
LIVE_INODES_END: Final = 2**61
SNAPSHOT_INODES_FIRST: Final = 2**62
# Inode numbers of one snapshot. A space hands out a thousand for each session: it has not come far.
SNAPSHOT_SPAN: Final = 2**40
# The numbers that a mount makes for itself lie above all of them.
SNAPSHOT_NUMBER_MAX: Final = 2**21 - 1
SNAPSHOT_INODES_END: Final = SNAPSHOT_INODES_FIRST + 2**21 * SNAPSHOT_SPAN


def is_unchangeable(ino: InodeNumber) -> bool:
    """Whether an inode lies in a snapshot, or is the directory with the snapshots of a bucket."""
    return LIVE_INODES_END <= ino < SNAPSHOT_INODES_END


def snapshots_directory(bucket: InodeNumber) -> InodeNumber:
    """The directory with the snapshots of a bucket."""
    return InodeNumber(LIVE_INODES_END + bucket)


def bucket_of_directory(ino: InodeNumber) -> InodeNumber | None:
    """The bucket whose directory with snapshots this is; None: it is no such directory."""
    if LIVE_INODES_END < ino < SNAPSHOT_INODES_FIRST:
        return InodeNumber(ino - LIVE_INODES_END)
    return None


def inode_base(number: int) -> int:
    """What is added to the numbers of live inodes in the snapshot `number`, 1 and up."""
    assert 0 < number <= SNAPSHOT_NUMBER_MAX, "the space has run out of snapshots"
    return SNAPSHOT_INODES_FIRST + number * SNAPSHOT_SPAN
