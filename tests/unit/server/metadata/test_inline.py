"""Chunks whose bytes are kept in the metadata: what is accepted, and when the bytes go."""

import msgspec
import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import Chunk, Extent, InodeNumber
from tests.unit.server.metadata.space import PEERS, Space, inline_chunk, new_chunk

BODY = b"in the metadata"


@pytest.fixture
def file(space: Space, bucket: InodeNumber) -> InodeNumber:
    return space.make(bucket, b"file")


def kept(space: Space) -> dict[bytes, bytes]:
    return dict(space.connection.execute("SELECT chunk, data FROM inline").fetchall())


def write_op(
    space: Space, file: InodeNumber, chunks: tuple[Chunk, ...], *bodies: bytes
) -> wire.WriteExtents:
    extents = tuple(
        Extent(index * 100, chunk.length, chunk.id, 0) for index, chunk in enumerate(chunks)
    )
    return wire.WriteExtents(file, extents, chunks, 0, space.tick(), bodies)


def test_bytes_are_kept_with_the_chunk_and_read_back(space: Space, file: InodeNumber) -> None:
    chunk = space.write_inline(file, 0, BODY)
    node = space.node(file)
    assert (node.chunks, node.inline) == ((chunk,), (BODY,))
    assert node.attributes.allocated == len(BODY)
    assert space.damage() == []


def test_bodies_belong_to_the_chunks_without_peers_in_order(
    space: Space, file: InodeNumber
) -> None:
    chunks = (inline_chunk(b"first"), new_chunk(10), inline_chunk(b"second"))
    space.do(write_op(space, file, chunks, b"first", b"second"))
    node = space.node(file)
    assert (node.chunks, node.inline) == (chunks, (b"first", b"second"))


@pytest.mark.parametrize("body", [b"other bytes....", b"short", b""])
def test_bytes_that_are_not_those_of_the_chunk_are_refused(
    space: Space, file: InodeNumber, body: bytes
) -> None:
    assert space.error_of(write_op(space, file, (inline_chunk(BODY),), body)) is Kind.INVALID
    assert kept(space) == {}


def test_chunk_without_peers_needs_a_body_of_its_own(space: Space, file: InodeNumber) -> None:
    assert space.error_of(write_op(space, file, (inline_chunk(BODY),))) is Kind.INVALID
    chunks = (new_chunk(len(BODY)),)
    assert space.error_of(write_op(space, file, chunks, BODY)) is Kind.INVALID


def test_chunk_beyond_the_limit_is_refused(space: Space, file: InodeNumber) -> None:
    largest = bytes(wire.INLINE_CHUNK_SIZE_BYTES_MAX)
    space.write_inline(file, 0, largest)
    body = largest + b"1"
    assert space.error_of(write_op(space, file, (inline_chunk(body),), body)) is Kind.INVALID


def test_known_chunk_needs_no_body_again(space: Space, file: InodeNumber) -> None:
    chunk = space.write_inline(file, 0, BODY)
    space.write_all(file, (Extent(50, chunk.length, chunk.id, 0),), (chunk,), 0, (b"",))
    assert space.references(chunk) == 2
    assert kept(space) == {chunk.id: BODY}


def test_bytes_stay_until_the_last_reference_goes_and_go_with_it(
    space: Space, file: InodeNumber
) -> None:
    chunk = space.write_inline(file, 0, BODY)
    space.write(file, 4, new_chunk(4))
    assert space.references(chunk) == 2
    space.truncate(file, 4)
    assert kept(space) == {chunk.id: BODY}
    space.truncate(file, 0)
    assert space.references(chunk) is None
    assert kept(space) == {}
    assert space.damage() == []


def test_bytes_of_a_removed_file_go(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"short lived")
    space.write_inline(file, 0, BODY)
    space.unlink(bucket, b"short lived")
    assert kept(space) == {}


def test_bytes_that_no_extent_names_are_not_kept(space: Space, file: InodeNumber) -> None:
    chunk = inline_chunk(BODY)
    space.write_all(file, (), (chunk,), 0, (BODY,))
    assert space.references(chunk) is None
    assert kept(space) == {}


def test_chunk_that_is_gone_comes_back_only_with_its_bytes(space: Space, file: InodeNumber) -> None:
    chunk = space.write_inline(file, 0, BODY)
    space.truncate(file, 0)
    assert space.error_of(write_op(space, file, (chunk,), b"")) is Kind.INVALID
    assert kept(space) == {}
    space.do(write_op(space, file, (chunk,), BODY))
    assert kept(space) == {chunk.id: BODY}
    assert space.damage() == []


def test_bytes_take_the_place_of_those_they_replace(space: Space, file: InodeNumber) -> None:
    space.write_inline(file, 0, b"first")
    other = space.write_inline(file, 100, b"stays")
    (row,) = space.connection.execute("SELECT min(rowid) FROM inline").fetchone()
    second = space.write_inline(file, 0, b"and second")
    assert kept(space) == {second.id: b"and second", other.id: b"stays"}
    chunk = space.connection.execute("SELECT chunk FROM inline WHERE rowid = ?", (row,)).fetchone()
    assert chunk == (second.id,)
    assert space.damage() == []


@pytest.mark.parametrize("count", [1, 3])
def test_bytes_replace_those_of_another_number_of_chunks(
    space: Space, file: InodeNumber, count: int
) -> None:
    for index in range(2):
        space.write_inline(file, 100 * index, b"%d" % index * 100)
    chunks = tuple(inline_chunk(b"%d" % index * (200 // count)) for index in range(count))
    extents = tuple(Extent(n * (200 // count), c.length, c.id, 0) for n, c in enumerate(chunks))
    bodies = tuple(b"%d" % index * (200 // count) for index in range(count))
    space.write_all(file, (*extents, Extent(190, 10, chunks[0].id, 0)), chunks, 0, bodies)
    assert kept(space) == dict(zip((c.id for c in chunks), bodies, strict=True))
    assert space.damage() == []


def test_chunk_that_moved_to_peers_and_goes_at_once_is_deleted_there(
    space: Space, file: InodeNumber
) -> None:
    chunk = space.write_inline(file, 0, BODY)
    moved = Chunk(chunk.id, chunk.length, chunk.digest, PEERS[:2])
    other = new_chunk(len(BODY))
    extent = Extent(0, other.length, other.id, 0)
    space.write_all(file, (extent,), (other, moved))
    assert space.references(chunk) == 0, "it waits for its peers"
    assert kept(space) == {}
    assert space.damage() == []


def test_chunk_described_with_bytes_and_with_peers_is_with_the_peers(
    space: Space, file: InodeNumber
) -> None:
    chunk = inline_chunk(BODY)
    moved = Chunk(chunk.id, chunk.length, chunk.digest, PEERS[:1])
    space.write_all(file, (Extent(0, chunk.length, chunk.id, 0),), (chunk, moved), 0, (BODY,))
    assert space.node(file).chunks == (moved,)
    assert kept(space) == {}
    assert space.damage() == []


def test_failed_operation_leaves_no_bytes(space: Space, file: InodeNumber) -> None:
    chunks = (inline_chunk(BODY), Chunk(new_chunk_id(), 5, b"short", PEERS[:1]))
    assert space.error_of(write_op(space, file, chunks, BODY)) is Kind.INVALID
    assert kept(space) == {}


def test_chunk_that_peers_hold_now_leaves_the_metadata(space: Space, file: InodeNumber) -> None:
    chunk = space.write_inline(file, 0, BODY)
    moved = Chunk(chunk.id, chunk.length, chunk.digest, PEERS[:2])
    space.write(file, 0, moved)
    assert (space.node(file).chunks, space.node(file).inline) == ((moved,), ())
    assert kept(space) == {}


def test_one_answer_carries_no_more_than_was_asked_for(space: Space, file: InodeNumber) -> None:
    chunks = [space.write_inline(file, index * 10, b"%d" % index * 10) for index in range(3)]
    page = space.reads.extents(wire.GetExtents(file, 0, inline_max=29))
    assert page.chunks == tuple(chunks)
    assert page.inline == (b"0" * 10, b"1" * 10)
    assert space.reads.extents(wire.GetExtents(file, 0)).inline == ()


def test_every_way_to_a_node_brings_the_bytes(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"small")
    space.write_inline(file, 0, BODY)
    listing = wire.ListDirectory(bucket, extents_max=4, inline_max=100)
    (entry,) = space.reads.list_directory(listing).entries
    resolved = space.reads.resolve(wire.Resolve((b"bucket", b"small"), 4, 100)).nodes[-1]
    found = space.reads.lookup(wire.Lookup(bucket, b"small", 4, 100))
    assert {entry.node.inline, resolved.inline, found.inline} == {(BODY,)}


def test_page_of_a_directory_carries_a_bounded_number_of_bytes(
    space: Space, bucket: InodeNumber
) -> None:
    body = bytes(wire.INLINE_CHUNK_SIZE_BYTES_MAX)
    fitting_count = wire.INLINE_ANSWER_SIZE_BYTES_MAX // len(body)
    for index in range(fitting_count + 3):
        space.write_inline(space.make(bucket, b"%04d" % index), 0, body)
    page = space.reads.list_directory(
        wire.ListDirectory(bucket, extents_max=4, inline_max=len(body))
    )
    assert [len(entry.node.inline) for entry in page.entries] == [1] * fitting_count + [0] * 3
    assert all(entry.node.has_all_extents for entry in page.entries)


def test_bytes_are_read_by_chunk_and_missing_ones_are_empty(
    space: Space, file: InodeNumber
) -> None:
    chunk, gone = space.write_inline(file, 0, BODY), inline_chunk(b"never sent")
    answer = space.reads.inline(wire.GetInline((gone.id, chunk.id)))
    assert answer.bodies == (b"", BODY)


def test_too_many_chunks_at_once_are_refused(space: Space) -> None:
    ids = tuple(new_chunk_id() for _ in range(wire.FRAME_CHUNKS_MAX + 1))
    with pytest.raises(MictlanError) as caught:
        space.reads.inline(wire.GetInline(ids))
    assert caught.value.kind is Kind.INVALID


def test_write_for_another_content_version_has_no_effect(space: Space, file: InodeNumber) -> None:
    version = space.write(file, 0, new_chunk(10)).content_version
    before = space.layout(file)
    op = write_op(space, file, (inline_chunk(BODY),), BODY)
    late = msgspec.structs.replace(op, if_content_version=version - 1)
    assert space.error_of(late) is Kind.CONFLICT
    assert (space.layout(file), kept(space)) == (before, {})
    space.do(msgspec.structs.replace(op, if_content_version=version))
    assert len(kept(space)) == 1
