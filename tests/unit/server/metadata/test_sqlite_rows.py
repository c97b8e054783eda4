import pytest

from mictlanfs.model import Extent, FileKind, InodeNumber, SessionId
from mictlanfs_server.metadata.rows import BatchRecord, CountChange, InodeRecord
from tests.unit.server.metadata.space import Space, new_chunk

EXTREME = 2**63 - 1


def test_inode_keeps_every_field(space: Space, bucket: InodeNumber) -> None:
    ino = space.new_inode()
    record = InodeRecord(
        ino, FileKind.SOCKET, 0o7777, 2**32 - 2, 3, EXTREME, -EXTREME - 1, EXTREME, 5, 6, 7, 8, 9,
        10, True, bucket, b"\0\xff",
    )  # fmt: skip
    space.rows.insert_inodes([record])
    found = space.rows.inode(ino)
    assert found == record
    assert found is not None
    assert found.kind is FileKind.SOCKET
    assert found.has_xattrs is True
    record.mode, record.target, record.has_xattrs = 0, b"", False
    space.rows.update_inodes([record])
    assert space.rows.inode(ino) == record
    space.rows.delete_inodes([ino])
    assert space.rows.inode(ino) is None


@pytest.mark.parametrize("number", [0, -1, 2**63, 2**64])
def test_number_no_inode_can_have_finds_nothing(space: Space, number: int) -> None:
    assert space.rows.inode(InodeNumber(number)) is None
    assert space.rows.delete_sustained(space.session, InodeNumber(number)) is False


def test_savepoints_nest(space: Space) -> None:
    rows = space.rows
    with space.transaction():
        rows.savepoint()
        rows.set_counter("flush_count", 1)
        rows.savepoint()
        rows.set_counter("flush_count", 2)
        rows.rollback()
        assert rows.counter("flush_count") == 1
        rows.savepoint()
        rows.set_counter("flush_count", 3)
        rows.release()
        assert rows.counter("flush_count") == 3
        rows.rollback()
        assert rows.counter("flush_count") == 0


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 9, []),
        (0, 10, [10]),
        (12, 13, [10]),
        (10, 20, [10, 20]),
        (20, 25, [10, 20]),
        (21, 25, [20]),
        (30, 35, [20]),
        (31, 39, []),
        (35, 40, [40]),
        (0, 100, [10, 20, 40]),
        (50, EXTREME, [40]),
        (51, EXTREME, []),
    ],
)
def test_extents_touching_a_range_include_those_at_its_edges(
    space: Space, bucket: InodeNumber, start: int, end: int, expected: list[int]
) -> None:
    file = space.make(bucket, b"file")
    for offset in (10, 20, 40):
        space.write(file, offset, new_chunk(10))
    found = space.rows.extents_touching(file, start, end)
    assert [row.offset for row in found] == expected


def test_counts_are_added(space: Space) -> None:
    before = space.reads.counts()
    space.rows.add_counts(CountChange(1, 2, 3, 4))
    after = space.reads.counts()
    differences = (
        after.inodes - before.inodes,
        after.chunks - before.chunks,
        after.tombstones - before.tombstones,
        after.bytes_logical - before.bytes_logical,
    )
    assert differences == (1, 2, 3, 4)
    space.rows.add_counts(CountChange(-1, -2, -3, -4))
    assert space.reads.counts() == before


def test_batch_is_replaced_by_the_next(space: Space) -> None:
    session = SessionId("first")
    for number in (1, 2):
        record = BatchRecord(number, 3, number + 3)
        space.rows.set_batch(session, record, b"%d" % number)
        assert space.rows.batch(session) == record
        assert space.rows.batch_answer(session) == b"%d" % number


def test_replica_is_added_last(space: Space, bucket: InodeNumber) -> None:
    chunk = new_chunk()
    file = space.make(bucket, b"file")
    space.write(file, 0, chunk)
    space.rows.add_replica(chunk.id, space_peer := max(space.rows.peer_numbers()))
    assert space.rows.replicas(chunk.id) == (*chunk.peers, space_peer)


def test_extents_are_deleted_by_offset(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    space.write(file, 0, new_chunk(10))
    space.write(file, 10, new_chunk(10))
    with space.transaction():
        space.rows.savepoint()
        space.rows.delete_extents(file, [Extent(10, 1, new_chunk().id, 0)])
        assert [row.offset for row in space.rows.first_extents(file, 9)] == [0]
        space.rows.rollback()
