"""Snapshots step by step: the database is sound after each, and garbage goes in slices."""

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs.snapshotnumbers import SNAPSHOT_NUMBER_MAX, SNAPSHOT_SPAN
from mictlanfs_server.metadata import sqlite_snapshots
from mictlanfs_server.metadata.base import CopyPlace, SnapshotPlan
from mictlanfs_server.metadata.sqlite_snapshot_reads import read_tree
from tests.unit.server.metadata.space import Space, new_chunk


@pytest.fixture
def bucket(space: Space) -> InodeNumber:
    bucket = space.bucket()
    directory = space.mkdir(bucket, b"d")
    for index in range(3):
        file = space.make(directory, b"%d" % index)
        for offset in range(3):
            space.write(file, 20 * offset, new_chunk(10))
        space.do(wire.SetXattr(file, b"user.a", b"b", 1))
    linked = space.make(bucket, b"linked")
    space.write_inline(linked, 0, b"small")
    space.link(linked, directory, b"again")
    space.make(bucket, b"symlink", FileKind.SYMLINK, b"target")
    return bucket


def test_database_is_sound_after_each_slice_of_taking_and_letting_go(
    space: Space, bucket: InodeNumber
) -> None:
    plan = SnapshotPlan(bucket, bucket, b"monday", b"bucket")
    steps = 0

    def sound() -> None:
        nonlocal steps
        steps += 1
        assert space.damage() == []

    number = sqlite_snapshots.begin(space.rows, plan, 1)
    tree = read_tree(space.connection, bucket, 100)
    place: CopyPlace | None = CopyPlace()
    while place is not None:
        place = sqlite_snapshots.copy_names(space.rows, number, tree.directories, place, 2)
        sound()
    sqlite_snapshots.settle_links(space.rows, number, tree.linked)
    after: tuple[InodeNumber, int] | None = (InodeNumber(0), -1)
    while after is not None:
        after = sqlite_snapshots.copy_extents(space.rows, number, after, 2)
        sound()
    sqlite_snapshots.publish(space.rows, number, plan, tree)
    sound()
    sqlite_snapshots.drop(space.rows, number)
    sound()
    while space.let_snapshots_go(2):
        sound()
    assert steps > 20
    (rows,) = space.connection.execute(
        "SELECT (SELECT count(*) FROM inode WHERE ino > ?1)"
        " + (SELECT count(*) FROM dentry WHERE parent > ?1) + (SELECT count(*) FROM snapshot)"
        " + (SELECT count(*) FROM extent WHERE ino > ?1)",
        (2**61,),
    ).fetchone()
    assert rows == 0


def test_inline_bytes_live_as_long_as_a_snapshot_names_them(
    space: Space, bucket: InodeNumber
) -> None:
    file = space.lookup(bucket, b"linked")
    assert file is not None
    root = space.snapshot(bucket, b"monday")
    space.write_inline(file, 0, b"other")
    copy = space.lookup(root, b"linked")
    assert copy is not None
    assert space.node(copy).inline == (b"small",)
    assert space.node(file).inline == (b"other",)
    space.drop_snapshot(root)
    while space.let_snapshots_go():
        pass
    assert space.connection.execute("SELECT count(*) FROM inline").fetchone() == (1,)


def test_space_that_has_run_out_of_numbers_takes_no_snapshot(
    space: Space, bucket: InodeNumber
) -> None:
    plan = SnapshotPlan(bucket, bucket, b"monday", b"bucket")
    for counter, value in (
        ("next_snapshot", SNAPSHOT_NUMBER_MAX + 1),
        ("next_ino", SNAPSHOT_SPAN + 1),
    ):
        before = space.rows.counter(counter)
        space.rows.set_counter(counter, value)
        with pytest.raises(Exception, match="no numbers left") as caught:
            sqlite_snapshots.begin(space.rows, plan, 1)
        assert getattr(caught.value, "kind", None) is Kind.TOO_LARGE
        space.rows.set_counter(counter, before)
