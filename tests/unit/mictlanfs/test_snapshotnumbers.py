import pytest

from mictlanfs.model import InodeNumber
from mictlanfs.snapshotnumbers import (
    SNAPSHOT_NUMBER_MAX,
    SNAPSHOT_SPAN,
    bucket_of_directory,
    inode_base,
    is_unchangeable,
    snapshots_directory,
)
from mictlanfs_mount.virtual import is_virtual


def test_numbers_of_snapshots_are_apart_from_all_others() -> None:
    bucket, last = InodeNumber(2), InodeNumber(SNAPSHOT_SPAN - 1)
    first = InodeNumber(inode_base(1))
    highest = InodeNumber(inode_base(SNAPSHOT_NUMBER_MAX) + last)
    directories = [snapshots_directory(bucket), snapshots_directory(last)]
    for ino in (*directories, first, highest):
        assert is_unchangeable(ino)
        assert not is_virtual(ino)
    for ino in (bucket, last, InodeNumber(highest + 1), InodeNumber(2**63 - 1)):
        assert not is_unchangeable(ino)
    assert [bucket_of_directory(ino) for ino in directories] == [bucket, last]
    for ino in (bucket, first, highest):
        assert bucket_of_directory(ino) is None
    assert inode_base(2) == inode_base(1) + SNAPSHOT_SPAN


@pytest.mark.parametrize("number", [0, SNAPSHOT_NUMBER_MAX + 1])
def test_there_are_no_other_snapshots(number: int) -> None:
    with pytest.raises(AssertionError):
        inode_base(number)
