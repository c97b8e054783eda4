"""Records of files, and parts that become one file: the rules, over real rows."""

import contextlib
import sqlite3
from collections.abc import Iterator

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import (
    FILE_SIZE_BYTES_MAX,
    ROOT_INODE,
    Attributes,
    BucketPolicy,
    Chunk,
    Extent,
    FileKind,
    InodeNumber,
)
from mictlanfs_server.metadata import records
from mictlanfs_server.metadata.removal import EXTENTS_AT_ONCE_MAX
from tests.unit.server.metadata.space import Space, new_chunk

MISSING = InodeNumber(9_999_999)
NO_RECORD = wire.FileRecord(0, ())
Piece = wire.RecordPiece


def record_of(space: Space, ino: InodeNumber) -> wire.FileRecord:
    (record,) = space.reads.records(wire.GetRecords((ino,))).records
    return record


def file_of(space: Space, parent: InodeNumber, name: bytes, size: int) -> InodeNumber:
    ino = space.make(parent, name)
    if size:
        space.write(ino, 0, new_chunk(size))
    return ino


def part_op(
    space: Space, ino: InodeNumber, parent: InodeNumber, name: bytes, index: int, count: int
) -> wire.PutPart:
    """Of the ball `x`; the body is `body INDEX`."""
    return wire.PutPart(
        *(ino, parent, name, b"x", space.new_inode(), index, count),
        *(b"body %d" % index, space.tick()),
    )


def put(
    space: Space, parent: InodeNumber, index: int, count: int, size: int = 10
) -> tuple[Attributes, ...]:
    """Store part `x_INDEX` of the ball `x`."""
    name = b"x_%d" % index
    ino = file_of(space, parent, name, size)
    return space.do(part_op(space, ino, parent, name, index, count))


def part_rows(space: Space) -> int:
    count: int = space.connection.execute("SELECT count(*) FROM part").fetchone()[0]
    return count


# --- records -------------------------------------------------------------------------------------


def test_record_is_kept_and_changes_nothing_of_its_file(space: Space, bucket: InodeNumber) -> None:
    file = file_of(space, bucket, b"file", 10)
    before = space.attributes(file)
    pieces = (Piece(4, b"one"), Piece(0, b""), Piece(6, b"three"))
    assert space.do(wire.SetRecord(file, before.content_version, pieces)) == (before,)
    assert space.attributes(file) == before
    assert record_of(space, file) == wire.FileRecord(before.content_version, pieces)
    again = (Piece(10, b"all"),)
    space.do(wire.SetRecord(file, 0, again))
    assert record_of(space, file).pieces == again
    space.do(wire.SetRecord(file, 0, ()))
    assert record_of(space, file) == NO_RECORD


def test_record_is_stale_when_the_content_changes_and_not_when_the_rest_does(
    space: Space, bucket: InodeNumber
) -> None:
    file = file_of(space, bucket, b"file", 10)
    space.do(wire.SetRecord(file, 0, (Piece(10, b"a"),)))
    space.do(wire.SetXattr(file, b"user.a", b"1", space.tick()))
    space.do(wire.SetAttributes(file, space.tick(), mode=0o600))
    space.link(file, bucket, b"other")
    space.rename(bucket, b"file", space.bucket(b"second"), b"moved")
    assert record_of(space, file).pieces == (Piece(10, b"a"),)
    changed = space.write(file, 0, new_chunk(10))
    assert record_of(space, file) == NO_RECORD
    old = wire.SetRecord(file, changed.content_version - 1, (Piece(10, b"b"),))
    assert space.error_of(old) is Kind.CONFLICT
    space.do(wire.SetRecord(file, changed.content_version, (Piece(10, b"b"),)))
    assert record_of(space, file).pieces == (Piece(10, b"b"),)
    space.truncate(file, 9)
    assert record_of(space, file) == NO_RECORD


def test_record_of_a_batch_is_of_what_the_batch_wrote(space: Space, bucket: InodeNumber) -> None:
    make, chunk = space.make_op(bucket, b"file"), new_chunk(10)
    write = wire.WriteExtents(make.ino, (Extent(0, 10, chunk.id, 0),), (chunk,), 10, 5)
    record = wire.SetRecord(make.ino, 0, (Piece(10, b"body"),))
    batch = space.batch(make, write, record)
    answer = space.commit(batch)
    assert [result.error for result in answer.results] == [None] * 3
    version = space.attributes(make.ino).content_version
    assert record_of(space, make.ino) == wire.FileRecord(version, record.pieces)
    assert space.commit(batch) == answer


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ((Piece(9, b""),), Kind.INVALID),
        ((Piece(11, b""), Piece(-1, b"")), Kind.INVALID),
        ((Piece(10, b"x" * (wire.RECORD_BODY_SIZE_BYTES_MAX + 1)),), Kind.INVALID),
        ((Piece(10, b"x" * wire.RECORD_BODY_SIZE_BYTES_MAX),), None),
        ((Piece(10, b""), *[Piece(0, b"")] * wire.RECORD_PIECES_MAX), Kind.INVALID),
        ((Piece(10, b""), *[Piece(0, b"x" * 65_536)] * 513), Kind.INVALID),
    ],
    ids=["short", "negative", "large body", "largest body", "many", "large"],
)
def test_pieces_make_up_the_file_and_are_bounded(
    space: Space, bucket: InodeNumber, pieces: tuple[Piece, ...], kind: Kind | None
) -> None:
    file = file_of(space, bucket, b"file", 10)
    assert space.error_of(wire.SetRecord(file, 0, pieces)) is kind
    assert (record_of(space, file) == NO_RECORD) is (kind is not None)


def test_only_a_file_has_a_record(space: Space, bucket: InodeNumber) -> None:
    link = space.make(bucket, b"link", FileKind.SYMLINK, b"target")
    for ino, kind in ((bucket, Kind.INVALID), (link, Kind.INVALID), (MISSING, Kind.NOT_FOUND)):
        assert space.error_of(wire.SetRecord(ino, 0, (Piece(0, b""),))) is kind
        assert record_of(space, ino) == NO_RECORD


def test_record_goes_with_its_file(space: Space, bucket: InodeNumber) -> None:
    small, large = file_of(space, bucket, b"small", 10), space.make(bucket, b"large")
    for index in range(EXTENTS_AT_ONCE_MAX + 1):
        space.write(large, 2 * index, new_chunk(1))
    for ino in (small, large):
        space.do(wire.SetRecord(ino, 0, (Piece(space.attributes(ino).size, b""),)))
    space.unlink(bucket, b"large")
    space.unlink(bucket, b"small", sustain=True)
    assert record_of(space, large) == NO_RECORD
    assert record_of(space, small) != NO_RECORD
    space.do(wire.Release(small))
    assert not space.rows.records.has_any()


def test_removals_ask_once_whether_there_are_records(space: Space, bucket: InodeNumber) -> None:
    names = [b"%d" % number for number in range(20)]
    for name in names:
        space.make(bucket, name)
    asked: list[str] = []
    space.connection.set_trace_callback(asked.append)
    space.commit(space.batch(*(wire.Unlink(bucket, name, 1) for name in names)))
    space.connection.set_trace_callback(None)
    of_records = [sql for sql in asked if " record" in sql or " part " in sql]
    assert of_records == ["SELECT EXISTS (SELECT 1 FROM record)"]


def test_other_batches_never_look_for_records(space: Space, bucket: InodeNumber) -> None:
    asked: list[str] = []
    space.connection.set_trace_callback(asked.append)
    file = file_of(space, bucket, b"file", 10)
    space.truncate(file, 3)
    space.rename(bucket, b"file", bucket, b"other")
    space.mkdir(bucket, b"d")
    space.rmdir(bucket, b"d")
    space.connection.set_trace_callback(None)
    assert [sql for sql in asked if " record" in sql or " part " in sql] == []


# --- reading -------------------------------------------------------------------------------------


def test_records_are_read_in_the_order_asked_for(space: Space, bucket: InodeNumber) -> None:
    files = [file_of(space, bucket, name, 5) for name in (b"a", b"b")]
    for ino in files:
        space.do(wire.SetRecord(ino, 0, (Piece(5, b"%d" % ino),)))
    wanted = (files[1], MISSING, bucket, InodeNumber(2**64 - 1), InodeNumber(-1), files[0])
    found = space.reads.records(wire.GetRecords(wanted)).records
    assert [record.pieces for record in found] == [
        (Piece(5, b"%d" % files[1]),),
        *[()] * 4,
        (Piece(5, b"%d" % files[0]),),
    ]


def test_answer_ends_where_it_would_be_too_large(space: Space, bucket: InodeNumber) -> None:
    body = b"x" * wire.RECORD_BODY_SIZE_BYTES_MAX
    files = []
    for name, count in ((b"a", 70), (b"b", 32), (b"c", 32), (b"d", 1)):
        files.append(space.make(bucket, name))
        space.do(wire.SetRecord(files[-1], 0, (Piece(0, body),) * count))
    found = space.reads.records(wire.GetRecords(tuple(files))).records
    assert [len(record.pieces) for record in found] == [70]
    found = space.reads.records(wire.GetRecords(tuple(files[1:]))).records
    assert [len(record.pieces) for record in found] == [32, 32]


def test_too_many_records_are_refused(space: Space) -> None:
    wanted = (MISSING,) * wire.RECORDS_COUNT_MAX
    assert len(space.reads.records(wire.GetRecords(wanted)).records) == len(wanted)
    with pytest.raises(MictlanError) as caught:
        space.reads.records(wire.GetRecords((*wanted, MISSING)))
    assert caught.value.kind is Kind.INVALID


# --- parts ---------------------------------------------------------------------------------------


def test_last_part_makes_the_ball_and_takes_the_parts_away(
    space: Space, bucket: InodeNumber
) -> None:
    chunks = [new_chunk(10) for _ in range(3)]
    inos = []
    for index, chunk in enumerate(chunks):
        inos.append(space.make(bucket, b"x_%d" % index))
        space.write(inos[-1], 0, chunk)
    space.truncate(inos[0], 7)
    space.truncate(inos[1], 15)
    for index in (2, 0):
        (part,) = space.do(part_op(space, inos[index], bucket, b"x_%d" % index, index, 3))
        assert part == space.attributes(inos[index])
        assert record_of(space, inos[index]).pieces == (Piece(part.size, b"body %d" % index),)
    inode_count = space.reads.counts().inodes
    last = part_op(space, inos[1], bucket, b"x_1", 1, 3)
    ball, parent = space.do(last)
    assert space.names(bucket) == {b"x": last.ball_ino}
    assert (ball, parent) == (space.attributes(last.ball_ino), space.attributes(bucket))
    assert (ball.size, ball.allocated, ball.nlink, ball.mtime_ns) == (32, 27, 1, last.time_ns)
    assert (ball.mode, ball.uid, ball.gid) == (0o644, 1, 2)
    assert space.layout(last.ball_ino) == [
        (0, 7, chunks[0].id, 0),
        (7, 17, chunks[1].id, 0),
        (22, 32, chunks[2].id, 0),
    ]
    assert record_of(space, last.ball_ino) == wire.FileRecord(
        ball.content_version, (Piece(7, b"body 0"), Piece(15, b"body 1"), Piece(10, b"body 2"))
    )
    assert not any(space.exists(ino) for ino in inos)
    assert [space.references(chunk) for chunk in chunks] == [1, 1, 1]
    assert space.reads.counts().inodes == inode_count - 2
    assert part_rows(space) == 0


def test_one_batch_can_make_a_whole_ball(space: Space, bucket: InodeNumber) -> None:
    ops: list[wire.Operation] = []
    for index in range(4):
        make, chunk = space.make_op(bucket, b"x_%d" % index), new_chunk(5)
        extents = (Extent(0, 5, chunk.id, 0),)
        ops += [
            make,
            wire.WriteExtents(make.ino, extents, (chunk,), 5, 5),
            part_op(space, make.ino, bucket, make.name, index, 4),
        ]
    ball = space.new_inode()
    last = ops[-1]
    assert isinstance(last, wire.PutPart)
    ops[-1] = wire.PutPart(
        last.ino, bucket, last.name, b"x", ball, last.index, 4, last.body, last.time_ns
    )
    batch = space.batch(*ops)
    answer = space.commit(batch)
    assert [result.error for result in answer.results] == [None] * 12
    assert space.names(bucket) == {b"x": ball}
    assert space.attributes(ball).size == 20
    # The answer was lost: nothing happens twice.
    assert space.commit(batch) == answer
    assert space.names(bucket) == {b"x": ball}


def test_ball_of_one_part_takes_another_name_or_the_same(space: Space, bucket: InodeNumber) -> None:
    ball, _ = put(space, bucket, 0, 1)
    assert space.names(bucket) == {b"x": ball.ino}
    folder = space.mkdir(bucket, b"folder")
    same = file_of(space, folder, b"x", 3)
    renewed, _ = space.do(part_op(space, same, folder, b"x", 0, 1))
    assert space.names(folder) == {b"x": renewed.ino}
    assert renewed.ino != same


def test_name_of_the_ball_may_be_that_of_a_part(space: Space, bucket: InodeNumber) -> None:
    first = file_of(space, bucket, b"x", 10)
    space.do(part_op(space, first, bucket, b"x", 0, 2))
    ball, _ = put(space, bucket, 1, 2)
    assert space.names(bucket) == {b"x": ball.ino}
    assert (ball.size, ball.ino == first) == (20, False)


def test_part_that_somebody_has_open_goes_like_the_others(
    space: Space, bucket: InodeNumber
) -> None:
    first = file_of(space, bucket, b"x_0", 10)
    space.do(part_op(space, first, bucket, b"x_0", 0, 2))
    space.rows.add_sustained(space.session, first)
    ball, _ = put(space, bucket, 1, 2)
    assert space.names(bucket) == {b"x": ball.ino}
    assert not space.rows.is_sustained(first)
    # What is found at the end of each test: no damage.
    space.do(wire.Release(first))


def test_empty_parts_make_an_empty_ball(space: Space, bucket: InodeNumber) -> None:
    put(space, bucket, 0, 2, size=0)
    ball, _ = put(space, bucket, 1, 2, size=0)
    assert (ball.size, ball.allocated) == (0, 0)
    assert record_of(space, ball.ino).pieces == (Piece(0, b"body 0"), Piece(0, b"body 1"))


def test_extended_attributes_of_the_first_part_stay(space: Space, bucket: InodeNumber) -> None:
    inos = [file_of(space, bucket, b"x_%d" % index, 1) for index in range(2)]
    for index, ino in enumerate(inos):
        space.do(wire.SetXattr(ino, b"user.part", b"%d" % index, space.tick()))
        space.do(wire.SetAttributes(ino, space.tick(), mode=0o600 + index, uid=70 + index))
    space.do(part_op(space, inos[1], bucket, b"x_1", 1, 2))
    ball, _ = space.do(part_op(space, inos[0], bucket, b"x_0", 0, 2))
    assert (ball.mode, ball.uid, ball.has_xattrs) == (0o600, 70, True)
    assert space.reads.xattrs(wire.GetXattrs(ball.ino)).values == {b"user.part": b"0"}


def test_parts_that_continue_each_other_in_a_chunk_are_joined(
    space: Space, bucket: InodeNumber
) -> None:
    chunk = new_chunk(20)
    inos = [space.make(bucket, b"x_%d" % index) for index in range(2)]
    for index, ino in enumerate(inos):
        space.write(ino, 0, chunk, length=10, skip=10 * index)
    assert space.references(chunk) == 2
    space.do(part_op(space, inos[0], bucket, b"x_0", 0, 2))
    ball, _ = space.do(part_op(space, inos[1], bucket, b"x_1", 1, 2))
    assert space.layout(ball.ino) == [(0, 20, chunk.id, 0)]
    assert space.references(chunk) == 1


def test_bytes_in_the_metadata_stay_there(space: Space, bucket: InodeNumber) -> None:
    inos = [space.make(bucket, b"x_%d" % index) for index in range(2)]
    chunks = [space.write_inline(ino, 0, b"bytes %d" % ino) for ino in inos]
    space.do(part_op(space, inos[0], bucket, b"x_0", 0, 2))
    ball, _ = space.do(part_op(space, inos[1], bucket, b"x_1", 1, 2))
    assert space.node(ball.ino).inline == tuple(b"bytes %d" % ino for ino in inos)
    assert [space.references(chunk) for chunk in chunks] == [1, 1]


def test_putting_parts_together_needs_no_quota(space: Space, bucket: InodeNumber) -> None:
    space.do(wire.SetBucketPolicy(bucket, BucketPolicy(quota=20), space.tick()))
    put(space, bucket, 0, 2)
    ball, _ = put(space, bucket, 1, 2)
    (info,) = space.reads.buckets().buckets
    assert (ball.size, info.used) == (20, 20)


# --- parts that are not as they were -------------------------------------------------------------


def test_part_is_not_stored_twice(space: Space, bucket: InodeNumber) -> None:
    put(space, bucket, 0, 3)
    other = file_of(space, bucket, b"other", 10)
    with pytest.raises(MictlanError) as caught:
        space.do(part_op(space, other, bucket, b"other", 0, 3))
    assert (caught.value.kind, caught.value.target) == (Kind.EXISTS, "x_0")
    assert record_of(space, other) == NO_RECORD
    # Nor is a file part of two.
    part = space.lookup(bucket, b"x_0")
    assert part is not None
    with pytest.raises(MictlanError) as caught:
        space.do(part_op(space, part, bucket, b"x_0", 1, 3))
    assert (caught.value.kind, caught.value.target) == (Kind.EXISTS, "x_0")


def spoil_by_write(space: Space, bucket: InodeNumber, part: InodeNumber) -> None:
    space.write(part, 0, new_chunk(10))


def spoil_by_new_record(space: Space, bucket: InodeNumber, part: InodeNumber) -> None:
    space.write(part, 0, new_chunk(10))
    space.do(wire.SetRecord(part, 0, (Piece(10, b"another"),)))


def spoil_by_no_record(space: Space, bucket: InodeNumber, part: InodeNumber) -> None:
    space.do(wire.SetRecord(part, 0, ()))


def spoil_by_rename(space: Space, bucket: InodeNumber, part: InodeNumber) -> None:
    space.rename(bucket, b"x_0", bucket, b"renamed")
    file_of(space, bucket, b"x_0", 4)


def spoil_by_move(space: Space, bucket: InodeNumber, part: InodeNumber) -> None:
    space.rename(bucket, b"x_0", space.mkdir(bucket, b"folder"), b"x_0")


def spoil_by_link(space: Space, bucket: InodeNumber, part: InodeNumber) -> None:
    space.link(part, bucket, b"linked")


def spoil_by_removal(space: Space, bucket: InodeNumber, part: InodeNumber) -> None:
    space.unlink(bucket, b"x_0")


def spoil_by_sustained_removal(space: Space, bucket: InodeNumber, part: InodeNumber) -> None:
    space.unlink(bucket, b"x_0", sustain=True)


SPOILERS = [value for name, value in globals().items() if name.startswith("spoil_by_")]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_part_that_was_changed_counts_no_more_and_can_be_replaced(
    space: Space, bucket: InodeNumber, spoil: object
) -> None:
    assert callable(spoil)
    (first,) = put(space, bucket, 0, 2)
    spoil(space, bucket, first.ino)
    names = set(space.names(bucket))
    (second,) = put(space, bucket, 1, 2)
    assert set(space.names(bucket)) == {*names, b"x_1"}
    # Stored again under another name, it completes the ball.
    again = file_of(space, bucket, b"again", 3)
    ball, _ = space.do(part_op(space, again, bucket, b"again", 0, 2))
    assert set(space.names(bucket)) == {*names, b"x"}
    assert (ball.size, space.exists(second.ino)) == (13, False)


def test_part_that_is_as_it_was_again_counts_again(space: Space, bucket: InodeNumber) -> None:
    (first,) = put(space, bucket, 0, 2)
    space.rename(bucket, b"x_0", bucket, b"elsewhere")
    space.rename(bucket, b"elsewhere", bucket, b"x_0")
    space.link(first.ino, bucket, b"linked")
    space.unlink(bucket, b"linked")
    ball, _ = put(space, bucket, 1, 2)
    assert space.names(bucket) == {b"x": ball.ino}


def test_written_part_can_be_put_again_as_what_it_is_now(space: Space, bucket: InodeNumber) -> None:
    (first,) = put(space, bucket, 0, 2)
    space.write(first.ino, 10, new_chunk(5))
    space.do(part_op(space, first.ino, bucket, b"x_0", 0, 2))
    ball, _ = put(space, bucket, 1, 2)
    assert [piece.size for piece in record_of(space, ball.ino).pieces] == [15, 10]


def test_parts_of_other_balls_do_not_count(space: Space, bucket: InodeNumber) -> None:
    folder = space.mkdir(bucket, b"folder")
    put(space, bucket, 0, 3)
    put(space, folder, 1, 2)
    assert len(put(space, bucket, 1, 2)) == 1
    assert set(space.names(bucket)) == {b"folder", b"x_0", b"x_1"}
    assert part_rows(space) == 3


@pytest.mark.parametrize("is_first", [True, False])
def test_taken_name_of_the_ball_refuses_the_part(
    space: Space, bucket: InodeNumber, is_first: bool
) -> None:
    if not is_first:
        put(space, bucket, 0, 2)
    space.make(bucket, b"x")
    index = 0 if is_first else 1
    with pytest.raises(MictlanError) as caught:
        put(space, bucket, index, 2)
    assert (caught.value.kind, caught.value.target) == (Kind.EXISTS, "x")
    late = space.lookup(bucket, b"x_%d" % index)
    assert late is not None
    assert record_of(space, late) == NO_RECORD
    space.unlink(bucket, b"x")
    space.do(part_op(space, late, bucket, b"x_%d" % index, index, 2))
    if is_first:
        put(space, bucket, 1, 2)
    assert set(space.names(bucket)) == {b"x"}


# --- errors --------------------------------------------------------------------------------------


@contextlib.contextmanager
def unchanged(connection: sqlite3.Connection) -> Iterator[None]:
    def dump() -> list[object]:
        tables = ("inode", "dentry", "extent", "chunk", "record", "part", "xattr", "bucket")
        return [connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables]

    before = dump()
    yield
    assert dump() == before


def test_errors_of_parts(space: Space, bucket: InodeNumber) -> None:
    file = file_of(space, bucket, b"file", 10)
    linked = file_of(space, bucket, b"linked", 10)
    space.link(linked, bucket, b"again")
    removed = space.mkdir(bucket, b"removed")
    space.rmdir(bucket, b"removed", sustain=True)
    large = wire.RECORD_BODY_SIZE_BYTES_MAX
    expected: list[tuple[dict[str, object], Kind]] = [
        ({"ino": MISSING}, Kind.NOT_FOUND),
        ({"ino": bucket}, Kind.INVALID),
        ({"ino": linked, "name": b"linked"}, Kind.INVALID),
        ({"parent": MISSING}, Kind.NOT_FOUND),
        ({"parent": file}, Kind.NOT_DIRECTORY),
        ({"parent": removed}, Kind.STALE),
        ({"parent": ROOT_INODE}, Kind.INVALID),
        ({"name": b"other"}, Kind.INVALID),
        ({"name": b"n" * 256}, Kind.NAME_TOO_LONG),
        ({"ball": b"a/b"}, Kind.INVALID),
        ({"ball": b"n" * 256}, Kind.NAME_TOO_LONG),
        ({"ball": b"linked"}, Kind.EXISTS),
        ({"ball_ino": MISSING}, Kind.INVALID),
        ({"ball_ino": file}, Kind.INVALID),
        ({"index": -1}, Kind.INVALID),
        ({"index": 2}, Kind.INVALID),
        ({"count": 0, "index": 0}, Kind.INVALID),
        ({"count": wire.RECORD_PIECES_MAX + 1}, Kind.INVALID),
        ({"body": b"x" * (large + 1)}, Kind.INVALID),
        ({"body": b"x" * 513, "count": wire.RECORD_PIECES_MAX}, Kind.INVALID),
        ({"time_ns": 2**63}, Kind.INVALID),
    ]
    for changed, kind in expected:
        fields: dict[str, object] = {
            "ino": file,
            "parent": bucket,
            "name": b"file",
            "ball": b"x",
            "index": 1,
            "ball_ino": space.new_inode(),
            "count": 2,
            "body": b"",
            "time_ns": 1,
        }
        op = wire.PutPart(**{**fields, **changed})  # type: ignore[arg-type]
        with unchanged(space.connection):
            assert space.error_of(op) is kind, changed


def test_ball_that_would_be_too_large_leaves_all_as_it_was(
    space: Space, bucket: InodeNumber
) -> None:
    put(space, bucket, 0, 2)
    huge = space.make(bucket, b"x_1")
    space.truncate(huge, FILE_SIZE_BYTES_MAX)
    op = part_op(space, huge, bucket, b"x_1", 1, 2)
    with unchanged(space.connection):
        assert space.error_of(op) is Kind.TOO_LARGE


def test_ball_of_too_many_extents_leaves_all_as_it_was(
    space: Space, bucket: InodeNumber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "ASSEMBLED_EXTENTS_MAX", 3)
    inos = [space.make(bucket, b"x_%d" % index) for index in range(2)]
    chunks: list[Chunk] = []
    for offset in (0, 20, 0, 20):
        chunks.append(new_chunk(10))
        space.write(inos[len(chunks) > 2], offset, chunks[-1])
    space.do(part_op(space, inos[0], bucket, b"x_0", 0, 2))
    last = part_op(space, inos[1], bucket, b"x_1", 1, 2)
    with unchanged(space.connection):
        assert space.error_of(last) is Kind.TOO_LARGE
    monkeypatch.setattr(records, "ASSEMBLED_EXTENTS_MAX", 4)
    ball, _ = space.do(last)
    assert [row[2] for row in space.layout(ball.ino)] == [chunk.id for chunk in chunks]


def test_records_of_parts_bound_that_of_the_ball(
    space: Space, bucket: InodeNumber, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = put(space, bucket, 0, 2)
    pieces = (Piece(4, b"cut"), Piece(6, b"in two"))
    space.do(wire.SetRecord(first.ino, 0, pieces))
    second = file_of(space, bucket, b"x_1", 10)
    last = part_op(space, second, bucket, b"x_1", 1, 2)
    with monkeypatch.context() as patch, unchanged(space.connection):
        patch.setattr(wire, "RECORD_PIECES_MAX", 2)
        assert space.error_of(last) is Kind.TOO_LARGE
    ball, _ = space.do(last)
    assert record_of(space, ball.ino).pieces == (*pieces, Piece(10, b"body 1"))


def test_part_that_was_refused_can_follow_in_the_same_batch(
    space: Space, bucket: InodeNumber
) -> None:
    put(space, bucket, 0, 2)
    last = file_of(space, bucket, b"x_1", 10)
    op = part_op(space, last, bucket, b"x_1", 1, 2)
    bad = wire.PutPart(last, bucket, b"x_1", b"x", op.ball_ino, 1, 2, b"", 2**63)
    rename = wire.Rename(bucket, b"x_1", bucket, b"moved", space.tick())
    back = wire.Rename(bucket, b"moved", bucket, b"x_1", space.tick())
    answer = space.commit(space.batch(rename, op, bad, back, op))
    kinds = [result.error and result.error.to_error().kind for result in answer.results]
    assert kinds == [None, Kind.INVALID, Kind.INVALID, None, None]
    assert space.names(bucket) == {b"x": op.ball_ino}
