import pytest

from mictlanfs import wire
from mictlanfs.model import Chunk, Extent, InodeNumber
from mictlanfs_server.metadata.removal import EXTENTS_AT_ONCE_MAX
from tests.unit.server.metadata.space import Space, new_chunk


def write_many(space: Space, ino: InodeNumber, count: int) -> list[Chunk]:
    """Give a file `count` extents, each of a chunk of its own."""
    chunks = [new_chunk(1) for _ in range(count)]
    extents = tuple(Extent(2 * index, 1, chunk.id, 0) for index, chunk in enumerate(chunks))
    space.write_all(ino, extents, tuple(chunks))
    return chunks


def test_sustained_inode_lives_until_it_is_released(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    chunk = new_chunk()
    space.write(file, 0, chunk)
    space.unlink(bucket, b"file", sustain=True)
    assert space.attributes(file).nlink == 0
    assert space.references(chunk) == 1
    space.do(wire.Release(file))
    assert not space.exists(file)
    assert space.references(chunk) == 0


def test_release_never_fails(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    for ino in (file, bucket, InodeNumber(9_999), InodeNumber(0), InodeNumber(2**64 - 1)):
        assert space.do(wire.Release(ino)) == ()
    assert space.exists(file)


def test_inode_sustained_by_two_sessions_lives_until_both_let_go(
    space: Space, bucket: InodeNumber
) -> None:
    file = space.make(bucket, b"file")
    space.link(file, bucket, b"other")
    second = space.open_session("second")
    space.unlink(bucket, b"file", sustain=True)
    space.do(wire.Unlink(bucket, b"other", 1, sustain=True), session=second)
    # The first session sustained nothing: its unlink left a name.
    space.do(wire.Release(file))
    assert space.exists(file)
    space.do(wire.Release(file), session=second)
    assert not space.exists(file)


def test_unlink_leaves_what_another_session_sustains(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    space.rows.add_sustained(space.open_session("second"), file)
    space.unlink(bucket, b"file")
    assert space.attributes(file).nlink == 0


def test_removed_directory_is_sustained_like_a_file(space: Space, bucket: InodeNumber) -> None:
    directory = space.mkdir(bucket, b"directory")
    space.rmdir(bucket, b"directory", sustain=True)
    assert space.names(directory) == {}
    assert space.lookup(directory, b"..") == bucket
    space.do(wire.Release(directory))
    assert not space.exists(directory)


def test_xattrs_go_with_their_inode(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    space.do(wire.SetXattr(file, b"user.a", b"1", 1))
    space.unlink(bucket, b"file")
    assert space.connection.execute("SELECT count(*) FROM xattr").fetchone() == (0,)


def test_closed_session_lets_go_of_what_it_sustained(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    second = space.open_session("second")
    space.do(wire.Unlink(bucket, b"file", 1, sustain=True), session=second)
    space.close_session(second)
    assert not space.exists(file)
    assert space.rows.ended_session() is None


def test_session_that_sustained_much_is_let_go_in_slices(space: Space, bucket: InodeNumber) -> None:
    second = space.open_session("second")
    count = 300
    files = [space.make(bucket, b"%d" % index) for index in range(count)]
    for index in range(count):
        space.do(wire.Unlink(bucket, b"%d" % index, 1, sustain=True), session=second)
    space.close_session(second)
    left = sum(map(space.exists, files))
    assert 0 < left < count
    slices = 0
    while space.reclaim(20):
        slices += 1
    assert slices >= left // 20
    assert not any(map(space.exists, files))
    assert space.connection.execute("SELECT count(*) FROM session").fetchone() == (1,)


def test_file_with_few_extents_is_let_go_at_once(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    chunks = write_many(space, file, EXTENTS_AT_ONCE_MAX)
    space.unlink(bucket, b"file")
    assert {space.references(chunk) for chunk in chunks} == {0}
    assert space.reclaim() is False


def test_file_with_many_extents_is_let_go_in_slices(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    chunks = write_many(space, file, EXTENTS_AT_ONCE_MAX + 1)
    space.unlink(bucket, b"file")
    assert not space.exists(file)
    assert {space.references(chunk) for chunk in chunks} == {1}
    assert space.damage() == []
    assert space.reclaim(40) is True
    assert sum(space.references(chunk) == 0 for chunk in chunks) == 40
    assert space.damage() == []
    assert space.reclaim(40) is True
    assert space.reclaim(40) is False
    assert {space.references(chunk) for chunk in chunks} == {0}
    assert space.reads.counts().bytes_logical == 0


def test_number_of_a_doomed_inode_is_gone_for_operations(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    write_many(space, file, EXTENTS_AT_ONCE_MAX + 1)
    space.unlink(bucket, b"file", sustain=True)
    space.do(wire.Release(file))
    assert not space.exists(file)
    assert space.error_of(wire.SetAttributes(file, 1, mode=0)) is not None


@pytest.mark.parametrize("count", [1, 7, 100])
def test_reclaim_ends_whatever_the_size_of_its_slices(
    space: Space, bucket: InodeNumber, count: int
) -> None:
    for name in (b"one", b"two"):
        write_many(space, space.make(bucket, name), EXTENTS_AT_ONCE_MAX + 5)
        space.unlink(bucket, name)
    while space.reclaim(count):
        pass
    assert space.reads.counts().chunks == 0
    assert space.connection.execute("SELECT count(*) FROM extent").fetchone() == (0,)
