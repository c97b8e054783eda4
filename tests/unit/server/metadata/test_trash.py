"""What becomes trash, how long it stays, and how it comes back."""

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import BucketPolicy, FileKind, InodeNumber
from mictlanfs_server.metadata.sqlite_trash import read_trash
from mictlanfs_server.metadata.trash import DAY_NS
from tests.unit.server.metadata.space import Space, new_chunk

REMOVED, REPLACED, OVERWRITTEN = wire.TrashReason


def keep_for(space: Space, bucket: InodeNumber, days: int) -> None:
    policy = BucketPolicy(trash_days=days)
    space.do(wire.SetBucketPolicy(bucket, policy, space.tick()))


@pytest.fixture
def bucket(space: Space) -> InodeNumber:
    """A bucket that keeps what it loses for a day."""
    bucket = space.bucket()
    keep_for(space, bucket, 1)
    return bucket


def file_of(space: Space, parent: InodeNumber, name: bytes, length: int = 10) -> InodeNumber:
    ino = space.make(parent, name)
    space.write(ino, 0, new_chunk(length))
    return ino


def items(space: Space, path: bytes = b"") -> list[wire.TrashItem]:
    page = read_trash(space.connection, wire.ListTrash(path))
    assert page.is_last
    return list(page.items)


def summary(space: Space, path: bytes = b"") -> list[tuple[bytes, wire.TrashReason, int]]:
    return [(item.path, item.reason, item.nbytes) for item in items(space, path)]


def restore(space: Space, item: wire.TrashItem, parent: InodeNumber, name: bytes) -> InodeNumber:
    ino = space.new_inode()
    space.do(wire.Restore(item.ino, ino, parent, name, space.tick()))
    return ino


def reclaim(space: Space) -> None:
    while space.reclaim():
        pass


def test_removed_file_is_kept_with_everything_and_comes_back(
    space: Space, bucket: InodeNumber
) -> None:
    chunk = new_chunk(10)
    directory = space.mkdir(bucket, b"d")
    ino = space.make(directory, b"file")
    space.write(ino, 0, chunk)
    space.do(wire.SetXattr(ino, b"user.a", b"b", space.tick()))
    before = space.attributes(ino)
    space.unlink(directory, b"file")
    assert not space.exists(ino)
    assert space.reads.bucket_use(wire.GetBucketUse(bucket)).used == 0
    (item,) = items(space)
    assert (item.path, item.reason, item.nbytes) == (b"bucket/d/file", REMOVED, 10)
    assert (item.mode, item.mtime_ns, item.size) == (before.mode, before.mtime_ns, 10)
    assert item.expires_ns == item.removed_ns + DAY_NS
    new = restore(space, item, directory, b"file")
    node = space.node(new)
    assert [e.chunk_id for e in node.extents] == [chunk.id]
    assert space.references(chunk) == 1
    assert space.reads.xattrs(wire.GetXattrs(new)).values == {b"user.a": b"b"}
    assert node.attributes.mtime_ns == before.mtime_ns
    assert space.reads.bucket_use(wire.GetBucketUse(bucket)).used == 10
    assert items(space) == []


def test_nothing_is_kept_where_no_days_are_set(space: Space) -> None:
    bucket = space.bucket()
    chunk = new_chunk(10)
    ino = space.make(bucket, b"file")
    space.write(ino, 0, chunk)
    space.unlink(bucket, b"file")
    assert items(space) == []
    assert space.references(chunk) == 0


def test_days_count_from_the_batch_that_sets_them(space: Space) -> None:
    bucket = space.bucket()
    file_of(space, bucket, b"a")
    file_of(space, bucket, b"b")
    file_of(space, bucket, b"c")
    on, off = BucketPolicy(trash_days=1), BucketPolicy()
    space.commit(
        space.batch(
            wire.Unlink(bucket, b"a", 1),
            wire.SetBucketPolicy(bucket, on, 1),
            wire.Unlink(bucket, b"b", 1),
            wire.SetBucketPolicy(bucket, off, 1),
            wire.Unlink(bucket, b"c", 1),
        )
    )
    assert summary(space) == [(b"bucket/b", REMOVED, 10)]


def test_only_the_last_name_of_a_file_makes_an_item(space: Space, bucket: InodeNumber) -> None:
    ino = file_of(space, bucket, b"a")
    space.link(ino, bucket, b"b")
    space.unlink(bucket, b"a")
    assert items(space) == []
    space.unlink(bucket, b"b")
    assert summary(space) == [(b"bucket/b", REMOVED, 10)]


def test_replaced_file_and_removed_directory_are_kept(space: Space, bucket: InodeNumber) -> None:
    directory = space.mkdir(bucket, b"d")
    space.make(directory, b"link", FileKind.SYMLINK, b"target")
    space.unlink(directory, b"link")
    space.rmdir(bucket, b"d")
    file_of(space, bucket, b"old", 10)
    file_of(space, bucket, b"new", 20)
    space.rename(bucket, b"new", bucket, b"old")
    assert summary(space) == [
        (b"bucket/d", REMOVED, 0),
        (b"bucket/d/link", REMOVED, 0),
        (b"bucket/old", REPLACED, 10),
    ]
    found = {item.path: item for item in items(space)}
    directory = restore(space, found[b"bucket/d"], bucket, b"d")
    link = restore(space, found[b"bucket/d/link"], directory, b"link")
    assert space.node(link).target == b"target"
    assert space.attributes(directory).nlink == 2


def test_file_cut_to_nothing_leaves_its_content(space: Space, bucket: InodeNumber) -> None:
    ino = file_of(space, bucket, b"file", 10)
    space.do(wire.SetXattr(ino, b"user.a", b"b", space.tick()))
    space.truncate(ino, 0)
    space.write(ino, 0, new_chunk(20))
    # Neither a write over it nor a cut to less makes a version.
    space.write(ino, 0, new_chunk(20))
    space.truncate(ino, 5)
    assert summary(space) == [(b"bucket/file", OVERWRITTEN, 10)]
    assert space.reads.bucket_use(wire.GetBucketUse(bucket)).used == 5
    (item,) = items(space)
    assert space.error_of(wire.Restore(item.ino, space.new_inode(), bucket, b"file", 1)) is (
        Kind.EXISTS
    )
    old = restore(space, item, bucket, b"file.old")
    assert space.attributes(old).size == 10
    assert space.reads.xattrs(wire.GetXattrs(old)).values == {b"user.a": b"b"}
    assert space.attributes(ino).size == 5


def test_file_without_bytes_leaves_no_version(space: Space, bucket: InodeNumber) -> None:
    ino = space.make(bucket, b"file")
    space.truncate(ino, 100)
    space.truncate(ino, 0)
    assert items(space) == []


def test_file_open_while_removed_is_kept_as_it_is_when_closed(
    space: Space, bucket: InodeNumber
) -> None:
    ino = file_of(space, bucket, b"file", 10)
    space.unlink(bucket, b"file", sustain=True)
    (item,) = items(space)
    assert (item.is_open, item.ino) == (True, ino)
    assert space.error_of(wire.Restore(ino, space.new_inode(), bucket, b"file", 1)) is Kind.BUSY
    space.write(ino, 10, new_chunk(5))
    space.truncate(ino, 12)
    space.do(wire.Release(ino))
    (item,) = items(space)
    assert (item.is_open, item.size, item.nbytes) == (False, 12, 12)
    assert space.attributes(restore(space, item, bucket, b"file")).size == 12


def test_item_that_expires_while_it_is_open_goes_with_its_handle(
    space: Space, bucket: InodeNumber
) -> None:
    ino = file_of(space, bucket, b"file", 10)
    space.unlink(bucket, b"file", sustain=True)
    space.clock_ns += 2 * DAY_NS
    reclaim(space)
    assert items(space) == []
    assert space.exists(ino)
    space.do(wire.Release(ino))
    assert not space.exists(ino)
    assert items(space) == []


def test_items_go_in_slices_when_their_time_is_over(space: Space, bucket: InodeNumber) -> None:
    small, large = new_chunk(4096), new_chunk(4096)
    for index in range(5):
        ino = space.make(bucket, b"%d" % index)
        space.write(ino, 0, small)
    ino = space.make(bucket, b"large")
    for index in range(100):
        space.write(ino, 2 * index, large, length=1)
    for index in range(5):
        space.unlink(bucket, b"%d" % index)
    space.unlink(bucket, b"large")
    assert space.references(large) == 100
    assert not space.reclaim()
    space.clock_ns += DAY_NS + 1_000_000
    assert space.reclaim(3)
    assert 0 < len(items(space)) < 6
    assert space.damage() == []
    reclaim(space)
    assert (items(space), space.references(large), space.references(small)) == ([], 0, 0)


def test_restoring_beyond_the_quota_is_refused_and_leaves_the_item(
    space: Space, bucket: InodeNumber
) -> None:
    policy = BucketPolicy(trash_days=1, quota=15)
    space.do(wire.SetBucketPolicy(bucket, policy, space.tick()))
    file_of(space, bucket, b"a", 10)
    space.unlink(bucket, b"a")
    file_of(space, bucket, b"b", 10)
    (item,) = items(space)
    op = wire.Restore(item.ino, space.new_inode(), bucket, b"a", space.tick())
    assert space.error_of(op) is Kind.QUOTA_EXCEEDED
    assert items(space) == [item]
    space.unlink(bucket, b"b")
    restore(space, item, bucket, b"a")


def test_impossible_restore_is_refused(space: Space, bucket: InodeNumber) -> None:
    file_of(space, bucket, b"a")
    space.unlink(bucket, b"a")
    (item,) = items(space)
    new = space.new_inode()

    def error_of(item: int, ino: int, parent: int, name: bytes) -> Kind | None:
        numbers = InodeNumber(item), InodeNumber(ino), InodeNumber(parent)
        return space.error_of(wire.Restore(*numbers, name, space.tick()))

    assert error_of(10**6, new, bucket, b"a") is Kind.NOT_FOUND
    assert error_of(-1, new, bucket, b"a") is Kind.NOT_FOUND
    assert error_of(item.ino, 10**12, bucket, b"a") is Kind.INVALID
    assert error_of(item.ino, bucket, bucket, b"a") is Kind.INVALID
    assert error_of(item.ino, new, 10**6, b"a") is Kind.NOT_FOUND
    assert error_of(item.ino, new, 1, b"a") is Kind.NOT_PERMITTED
    assert error_of(item.ino, new, bucket, b"") is Kind.INVALID
    assert error_of(item.ino, new, bucket, b".snapshots") is Kind.EXISTS
    assert items(space) == [item]


def test_items_have_the_paths_that_they_had_and_survive_their_bucket(
    space: Space, bucket: InodeNumber
) -> None:
    a = space.mkdir(bucket, b"a")
    file_of(space, a, b"1")
    file_of(space, a, b"2")
    space.commit(
        space.batch(
            wire.Unlink(a, b"1", 1),
            space.rename_op(bucket, b"a", bucket, b"b"),
            wire.Unlink(a, b"2", 1),
            wire.RemoveDirectory(bucket, b"b", 1),
            wire.RemoveDirectory(InodeNumber(1), b"bucket", 1),
        )
    )
    paths = [path for path, _, _ in summary(space)]
    assert paths == [b"bucket/a/1", b"bucket/b", b"bucket/b/2"]
    assert [path for path, _, _ in summary(space, b"bucket/b")] == [b"bucket/b", b"bucket/b/2"]
    again = space.bucket()
    restore(space, items(space)[0], again, b"1")


def test_page_of_a_path_has_what_is_below_it_and_no_neighbours(
    space: Space, bucket: InodeNumber
) -> None:
    for name in (b"a", b"a-b", b"a0"):
        space.mkdir(bucket, name)
    for index in range(3):
        parent = space.lookup(bucket, b"a")
        assert parent is not None
        file_of(space, parent, b"%d" % index)
        space.unlink(parent, b"%d" % index)
    for name in (b"a", b"a-b", b"a0"):
        space.rmdir(bucket, name)
    found: list[bytes] = []
    after = (b"", 0, 0)
    while True:
        request = wire.ListTrash(b"bucket/a", after, 2)
        page = read_trash(space.connection, request)
        found += [item.path for item in page.items]
        if page.is_last:
            break
        last = page.items[-1]
        after = (last.path, last.removed_ns, last.ino)
    assert found == [b"bucket/a", b"bucket/a/0", b"bucket/a/1", b"bucket/a/2"]


def test_giving_up_lets_items_expire_at_once(space: Space, bucket: InodeNumber) -> None:
    chunk = new_chunk(10)
    ino = space.make(bucket, b"a")
    space.write(ino, 0, chunk)
    space.unlink(bucket, b"a")
    space.clock_ns += 1000
    file_of(space, bucket, b"b")
    space.unlink(bucket, b"b")
    first, second = items(space)
    with space.transaction():
        emptied = space.rows.trash.give_up(b"bucket", second.removed_ns, 10)
    assert emptied == wire.Emptied(1, 10, is_last=True)
    assert items(space) == [second]
    assert first.ino == ino
    reclaim(space)
    assert space.references(chunk) == 0
    assert items(space) == [second]


def test_record_of_a_file_comes_back_with_it(space: Space, bucket: InodeNumber) -> None:
    ino = file_of(space, bucket, b"a", 10)
    pieces = (wire.RecordPiece(4, b"one"), wire.RecordPiece(6, b"two"))
    space.do(wire.SetRecord(ino, 0, pieces))
    space.unlink(bucket, b"a")
    new = restore(space, items(space)[0], bucket, b"a")
    (record,) = space.reads.records(wire.GetRecords((new,))).records
    assert record.pieces == pieces


@pytest.mark.parametrize("days", [-1, 36_501])
def test_impossible_days_are_refused(space: Space, days: int) -> None:
    bucket = space.bucket()
    policy = BucketPolicy(trash_days=days)
    assert space.error_of(wire.SetBucketPolicy(bucket, policy, 1)) is Kind.INVALID
