import sqlite3
from contextlib import closing

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import (
    ROOT_INODE,
    BucketPolicy,
    Chunk,
    Extent,
    FileKind,
    InodeNumber,
)
from mictlanfs_server.metadata import quotas
from mictlanfs_server.metadata.migrations import migrate
from tests.unit.server.metadata.space import Space, SpaceMaker, new_chunk, open_space


def limit(space: Space, bucket: InodeNumber, quota: int) -> None:
    space.do(wire.SetBucketPolicy(bucket, BucketPolicy(quota=quota), space.tick()))


def used(space: Space, bucket: InodeNumber) -> int:
    use = space.reads.bucket_use(wire.GetBucketUse(bucket))
    assert use.bucket == bucket
    return use.used


def file_of(space: Space, parent: InodeNumber, name: bytes, size: int) -> InodeNumber:
    file = space.make(parent, name)
    space.write(file, 0, new_chunk(size))
    return file


def write_op(ino: InodeNumber, offset: int, chunk: Chunk) -> wire.WriteExtents:
    extents = (Extent(offset, chunk.length, chunk.id, 0),)
    return wire.WriteExtents(ino, extents, (chunk,), 0, 1)


def test_bytes_count_once_and_only_where_they_are(space: Space) -> None:
    one, two = space.bucket(b"one"), space.bucket(b"two")
    file = file_of(space, one, b"file", 100)
    space.write(file, 50, new_chunk(100))
    assert (used(space, one), used(space, two)) == (150, 0)
    space.truncate(file, 120)
    space.truncate(file, 10_000)
    assert used(space, one) == 120
    space.unlink(one, b"file")
    assert used(space, one) == 0


def test_an_open_file_without_a_name_does_not_count(space: Space) -> None:
    bucket = space.bucket()
    file = file_of(space, bucket, b"file", 100)
    space.unlink(bucket, b"file", sustain=True)
    assert used(space, bucket) == 0
    space.write(file, 100, new_chunk(100))
    assert used(space, bucket) == 0


def test_a_file_counts_where_it_was_made_for_as_long_as_a_name_is_left_there(space: Space) -> None:
    older, home = space.bucket(b"older"), space.bucket(b"home")
    file = file_of(space, home, b"file", 100)
    space.link(file, home, b"again")
    space.link(file, older, b"file")
    space.unlink(home, b"file")
    assert (used(space, older), used(space, home)) == (0, 100)
    space.unlink(home, b"again")
    assert (used(space, older), used(space, home)) == (100, 0)


def test_a_write_beyond_the_quota_is_refused_and_leaves_no_trace(space: Space) -> None:
    bucket = space.bucket()
    limit(space, bucket, 150)
    file = file_of(space, bucket, b"file", 100)
    refused = new_chunk(51)
    assert space.error_of(write_op(file, 100, refused)) is Kind.QUOTA_EXCEEDED
    assert (space.attributes(file).size, used(space, bucket)) == (100, 100)
    assert space.references(refused) is None
    space.write(file, 100, new_chunk(50))
    assert used(space, bucket) == 150


def test_operations_of_one_batch_are_counted_together(space: Space) -> None:
    bucket = space.bucket()
    limit(space, bucket, 150)
    file = space.make(bucket, b"file")
    ops = [write_op(file, offset, new_chunk(100)) for offset in (0, 100)]
    first, second = space.commit(space.batch(*ops)).results
    assert first.error is None
    assert second.error is not None
    assert second.error.to_error().kind is Kind.QUOTA_EXCEEDED


def test_overwriting_and_removing_are_possible_beyond_a_lowered_quota(space: Space) -> None:
    bucket = space.bucket()
    file = file_of(space, bucket, b"file", 100)
    limit(space, bucket, 10)
    space.write(file, 20, new_chunk(50))
    assert space.error_of(write_op(file, 99, new_chunk(2))) is Kind.QUOTA_EXCEEDED
    space.truncate(file, 60)
    space.link(file, bucket, b"other")
    space.unlink(bucket, b"file")
    space.unlink(bucket, b"other")
    assert used(space, bucket) == 0


def test_what_was_refused_is_taken_once_there_is_room(space: Space) -> None:
    bucket = space.bucket()
    limit(space, bucket, 100)
    file_of(space, bucket, b"old", 100)
    file = space.make(bucket, b"file")
    op = write_op(file, 0, new_chunk(60))
    assert space.error_of(op) is Kind.QUOTA_EXCEEDED
    space.unlink(bucket, b"old")
    space.do(op)
    limit(space, bucket, 60)
    assert space.error_of(write_op(file, 60, new_chunk(1))) is Kind.QUOTA_EXCEEDED
    limit(space, bucket, 0)
    space.do(write_op(file, 60, new_chunk(1)))


def test_a_file_takes_its_bytes_along_to_another_bucket(space: Space) -> None:
    one, two = space.bucket(b"one"), space.bucket(b"two")
    file_of(space, one, b"file", 100)
    file_of(space, two, b"file", 30)
    space.rename(one, b"file", two, b"file")
    assert (used(space, one), used(space, two)) == (0, 100)


def test_a_file_with_two_names_counts_in_one_bucket(space: Space) -> None:
    one, two = space.bucket(b"one"), space.bucket(b"two")
    file = file_of(space, one, b"file", 100)
    limit(space, two, 50)
    space.link(file, two, b"file")
    assert (used(space, one), used(space, two)) == (100, 0)
    # Removing is always possible, also when the other bucket is over its quota by it.
    space.unlink(one, b"file")
    assert (used(space, one), used(space, two)) == (0, 100)


def test_a_directory_takes_what_is_in_it_along(space: Space) -> None:
    one, two = space.bucket(b"one"), space.bucket(b"two")
    top = space.mkdir(one, b"top")
    below = space.mkdir(top, b"below")
    file_of(space, top, b"a", 1)
    double = file_of(space, below, b"b", 10)
    space.link(double, below, b"again")
    outside = file_of(space, one, b"outside", 100)
    space.link(outside, below, b"outside")
    empty = space.make(below, b"pipe", FileKind.FIFO)
    assert space.exists(empty)
    space.rename(one, b"top", two, b"top")
    assert (used(space, one), used(space, two)) == (100, 11)
    assert space.damage() == []


def test_a_tree_made_and_moved_in_one_batch_is_counted(space: Space) -> None:
    one, two = space.bucket(b"one"), space.bucket(b"two")
    limit(space, two, 5)
    directory = space.make_op(one, b"d", FileKind.DIRECTORY)
    file = space.make_op(directory.ino, b"f")
    ops: list[wire.Operation] = [directory, file, write_op(file.ino, 0, new_chunk(10))]
    moving = space.rename_op(one, b"d", two, b"d")
    results = space.commit(space.batch(*ops, moving, space.make_op(directory.ino, b"g"))).results
    errors = [result.error.to_error().kind if result.error else None for result in results]
    assert errors == [None, None, None, Kind.QUOTA_EXCEEDED, None]
    assert (used(space, one), used(space, two)) == (10, 0)
    limit(space, two, 10)
    space.do(moving)
    assert (used(space, one), used(space, two)) == (0, 10)


def test_exchanged_trees_exchange_their_bytes(space: Space) -> None:
    one, two = space.bucket(b"one"), space.bucket(b"two")
    file_of(space, space.mkdir(one, b"d"), b"f", 10)
    file_of(space, space.mkdir(two, b"d"), b"f", 30)
    limit(space, one, 29)
    exchange = space.rename_op(one, b"d", two, b"d", wire.RenameMode.EXCHANGE)
    assert space.error_of(exchange) is Kind.QUOTA_EXCEEDED
    limit(space, one, 30)
    space.do(exchange)
    assert (used(space, one), used(space, two)) == (30, 10)


def test_a_larger_directory_than_can_be_counted_stays(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "MOVED_NAMES_MAX", 3)
    one, two = space.bucket(b"one"), space.bucket(b"two")
    top = space.mkdir(one, b"top")
    for name in (b"a", b"b", b"c"):
        file_of(space, top, name, 1)
    space.rename(one, b"top", two, b"top")
    space.make(top, b"d")
    assert space.error_of(space.rename_op(two, b"top", one, b"top")) is Kind.CROSS_DEVICE
    space.rename(two, b"top", two, b"other")
    assert (used(space, one), used(space, two)) == (0, 3)


def test_a_bucket_keeps_its_bytes_under_another_name_and_another_policy(space: Space) -> None:
    bucket = space.bucket()
    file_of(space, bucket, b"file", 7)
    space.rename(ROOT_INODE, b"bucket", ROOT_INODE, b"renamed")
    limit(space, bucket, 100)
    (info,) = space.reads.buckets().buckets
    assert (info.name, info.used, info.policy.quota) == (b"renamed", 7, 100)


def test_what_lies_in_no_bucket_has_no_quota(space: Space) -> None:
    bucket = space.bucket()
    space.rmdir(ROOT_INODE, b"bucket", sustain=True)
    for ino in (ROOT_INODE, bucket):
        assert space.reads.bucket_use(wire.GetBucketUse(ino)) == wire.BucketUse()


@pytest.mark.parametrize("quota", [-1, 2**63])
def test_impossible_quota_is_refused(space: Space, quota: int) -> None:
    op = wire.SetBucketPolicy(space.bucket(), BucketPolicy(quota=quota), 1)
    assert space.error_of(op) is Kind.INVALID


def test_migration_counts_what_an_older_program_wrote(space_maker: SpaceMaker) -> None:
    path = space_maker.new_database()
    with open_space(path) as space:
        bucket = space.bucket(b"one")
        space.bucket(b"two")
        file_of(space, space.mkdir(bucket, b"d"), b"f", 10)
        file_of(space, bucket, b"g", 3)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "DROP VIEW bucket_counted; ALTER TABLE bucket DROP COLUMN used; DROP TABLE inline;"
            " ALTER TABLE session DROP COLUMN leases; DROP TABLE record; DROP TABLE part;"
            " DROP INDEX replica_peer; DROP TABLE given_up; DROP TABLE retired_peer;"
            " DROP TABLE peer_store; DROP TABLE move_order;"
            " ALTER TABLE peer DROP COLUMN is_draining;"
            " ALTER TABLE chunk DROP COLUMN needed; ALTER TABLE chunk DROP COLUMN digests;"
            " DROP INDEX bucket_trash; ALTER TABLE bucket DROP COLUMN trash_days;"
            " DROP TABLE trash; DROP TABLE snapshot;"
            " DROP TABLE damaged; DROP TABLE collected;"
            " DELETE FROM meta WHERE name LIKE 'trash_%' OR name LIKE '%snapshot%';"
            " DELETE FROM _sqlite_migrations WHERE name > '0002'; PRAGMA user_version = 1"
        )
    migrate(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT used FROM bucket ORDER BY ino").fetchall() == [
            (13,),
            (0,),
        ]
