import pytest

from mictlanfs.model import ROOT_INODE, BucketPolicy, FileKind, InodeNumber
from mictlanfs_server.metadata.rows import InodeRecord
from mictlanfs_server.metadata.transaction import Transaction
from tests.unit.server.metadata.space import Space


@pytest.fixture
def file(space: Space, bucket: InodeNumber) -> InodeNumber:
    return space.make(bucket, b"file")


def begin(space: Space) -> Transaction:
    tx = Transaction(space.rows, space.session, space.clock_ns)
    tx.begin()
    return tx


def get(tx: Transaction, ino: InodeNumber) -> InodeRecord:
    record = tx.inode(ino)
    assert record is not None
    return record


def record_of(ino: InodeNumber, parent: InodeNumber) -> InodeRecord:
    return InodeRecord(ino, FileKind.FILE, 0, 0, 0, 0, 0, 0, 0, 1, parent=parent)


def test_undo_takes_back_inodes_rows_and_counts(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    with space.transaction():
        tx = begin(space)
        tx.change(get(tx, file)).mode = 0o777
        tx.insert(record_of(space.new_inode(), bucket))
        tx.rows.set_entry(bucket, b"new", file)
        tx.delete(get(tx, bucket))
        tx.undo()
        assert get(tx, file).mode == 0o644
        assert tx.inode(bucket) is not None
        tx.flush()
    assert space.attributes(file).mode == 0o644
    assert space.names(bucket) == {b"file": file}


def test_undo_takes_back_only_the_operation_under_way(space: Space, file: InodeNumber) -> None:
    with space.transaction():
        tx = begin(space)
        tx.change(get(tx, file)).mode = 0o600
        tx.keep()
        tx.begin()
        tx.change(get(tx, file)).uid = 77
        tx.change(get(tx, file)).mode = 0o700
        tx.undo()
        tx.flush()
    after = space.attributes(file)
    assert (after.mode, after.uid) == (0o600, 1)


def test_inode_made_undone_and_made_again_is_written_once(
    space: Space, bucket: InodeNumber
) -> None:
    ino = space.new_inode()
    with space.transaction():
        tx = begin(space)
        tx.insert(record_of(ino, bucket))
        tx.undo()
        assert tx.inode(ino) is None
        tx.begin()
        tx.insert(record_of(ino, bucket))
        tx.keep()
        tx.flush()
        assert tx.rows.inode(ino) is not None
        assert tx.rows.counter("inode_count") == 3
        tx.rows.delete_inodes([ino])
        tx.rows.set_counter("inode_count", 2)


def test_inode_made_and_removed_in_one_batch_is_never_written(
    space: Space, bucket: InodeNumber
) -> None:
    ino = space.new_inode()
    with space.transaction():
        tx = begin(space)
        tx.insert(record_of(ino, bucket))
        tx.keep()
        tx.begin()
        tx.delete(get(tx, ino))
        tx.keep()
        tx.flush()
    assert not space.exists(ino)


def test_changes_reach_the_rows_at_the_flush(space: Space, file: InodeNumber) -> None:
    with space.transaction():
        tx = begin(space)
        tx.change(get(tx, file)).mode = 0o600
        tx.keep()
        stored = tx.rows.inode(file)
        assert stored is not None
        assert stored.mode == 0o644
        tx.flush()
    assert space.attributes(file).mode == 0o600


def test_directory_lies_below_itself_and_its_ancestors(space: Space, bucket: InodeNumber) -> None:
    a = space.mkdir(bucket, b"a")
    b = space.mkdir(a, b"b")
    other = space.mkdir(bucket, b"other")
    tx = Transaction(space.rows, space.session, 0)
    above = [ino for ino in (ROOT_INODE, bucket, a, b, other) if tx.is_below(get(tx, b), ino)]
    assert above == [ROOT_INODE, bucket, a, b]


def test_policy_comes_from_the_bucket_at_any_depth(space: Space, bucket: InodeNumber) -> None:
    directory = space.mkdir(space.mkdir(bucket, b"a"), b"b")
    file = space.make(directory, b"file")
    space.rows.set_policy(bucket, BucketPolicy(replicas=5))
    tx = Transaction(space.rows, space.session, 0)
    assert {tx.policy_of(get(tx, ino)).replicas for ino in (bucket, directory, file)} == {5}
    assert tx.policy_of(get(tx, ROOT_INODE)) == BucketPolicy()


def test_damaged_tree_that_forms_a_loop_does_not_hang(
    space: Space, bucket: InodeNumber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mictlanfs_server.metadata.transaction.DEPTH_MAX", 100)
    a = space.mkdir(bucket, b"a")
    b = space.mkdir(a, b"b")
    space.connection.execute("UPDATE inode SET parent = ? WHERE ino = ?", (b, a))
    tx = Transaction(space.rows, space.session, 0)
    with pytest.raises(AssertionError):
        tx.policy_of(get(tx, a))
    with pytest.raises(AssertionError):
        tx.is_below(get(tx, a), bucket)
    space.connection.execute("UPDATE inode SET parent = ? WHERE ino = ?", (bucket, a))
