from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import (
    CHUNK_SIZE_BYTES_MAX,
    FILE_SIZE_BYTES_MAX,
    BucketPolicy,
    Chunk,
    ChunkId,
    Extent,
    FileKind,
    InodeNumber,
    PeerNumber,
)
from mictlanfs_server.metadata.content import (
    GAP_SIZE_BYTES_MAX,
    NEIGHBOURS_MAX,
    join,
    neighbours,
    replace,
)
from tests.unit.server.metadata.space import (
    DIGEST,
    PEERS,
    Space,
    SpaceMaker,
    new_chunk,
    open_space,
)

A, B = ChunkId(b"a" * 16), ChunkId(b"b" * 16)


@pytest.fixture
def file(space: Space, bucket: InodeNumber) -> InodeNumber:
    return space.make(bucket, b"file")


# --- the arithmetic of extents ---


def bytes_of(extents: list[Extent]) -> dict[int, tuple[ChunkId, int]]:
    """What each offset shows: a chunk and the byte in it."""
    content = {}
    for extent in extents:
        for index in range(extent.length):
            assert extent.offset + index not in content, "extents overlap"
            content[extent.offset + index] = (extent.chunk_id, extent.chunk_offset + index)
    return content


@st.composite
def disjoint_extents(draw: st.DrawFn) -> list[Extent]:
    extents, offset = [], 0
    for _ in range(draw(st.integers(0, 5))):
        offset += draw(st.integers(0, 3))
        length = draw(st.integers(1, 4))
        chunk = draw(st.sampled_from([A, B]))
        extents.append(Extent(offset, length, chunk, draw(st.integers(0, 6))))
        offset += length
    return extents


@given(disjoint_extents(), disjoint_extents())
def test_replace_shows_the_new_extents_and_what_they_do_not_cover(
    rows: list[Extent], extents: list[Extent]
) -> None:
    replaced = replace(rows, extents)
    assert bytes_of(replaced) == {**bytes_of(rows), **bytes_of(extents)}
    assert replaced == sorted(replaced, key=lambda row: row.offset)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3))))
def test_neighbours_are_all_extents_and_in_order_where_they_are_together(
    places: list[tuple[int, int]],
) -> None:
    step = GAP_SIZE_BYTES_MAX // 2
    extents = [Extent(offset * step, length * step, A, 0) for offset, length in places]
    groups = list(neighbours(extents))
    assert [extent for group in groups for extent in group] == extents
    for group in groups:
        gaps = [right.offset - left.end for left, right in pairwise(group)]
        assert all(0 <= gap <= GAP_SIZE_BYTES_MAX for gap in gaps)


def test_no_more_neighbours_are_together_than_memory_is_meant_for() -> None:
    extents = [Extent(2 * n, 1, A, n) for n in range(2 * NEIGHBOURS_MAX + 1)]
    assert [len(group) for group in neighbours(extents)] == [NEIGHBOURS_MAX, NEIGHBOURS_MAX, 1]


@given(disjoint_extents())
def test_join_keeps_every_byte_and_leaves_nothing_to_join(rows: list[Extent]) -> None:
    joined = join(rows)
    assert bytes_of(joined) == bytes_of(rows)
    assert join(joined) == joined
    assert len(joined) <= len(rows)


def test_join_needs_the_same_chunk_and_no_gap() -> None:
    first = Extent(0, 2, A, 0)
    assert join([first, Extent(2, 3, A, 2)]) == [Extent(0, 5, A, 0)]
    for second in (Extent(2, 3, B, 2), Extent(3, 3, A, 2), Extent(2, 3, A, 3)):
        assert join([first, second]) == [first, second]


# --- write ---


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), min_size=1, max_size=12))
def test_extents_of_one_operation_end_like_one_operation_each(
    space_maker: SpaceMaker, places: list[tuple[int, int]]
) -> None:
    with open_space(space_maker.new_database()) as space:
        bucket = space.bucket()
        layouts = []
        for is_together in (True, False):
            file = space.make(bucket, b"together" if is_together else b"each")
            below, above = new_chunk(64 * 50), new_chunk(64 * 50)
            space.write(file, 0, below, length=64 * 20)
            extents = tuple(
                Extent(64 * offset, 64 * length, above.id, 64 * offset) for offset, length in places
            )
            if is_together:
                space.write_all(file, extents, (above,))
            else:
                for extent in extents:
                    space.write_all(file, (extent,), (above,))
            names = {below.id: "below", above.id: "above"}
            layouts.append([(*row[:2], names[row[2]], row[3]) for row in space.layout(file)])
            counts = Counter(row[2] for row in space.layout(file))
            assert space.references(below) == counts[below.id]
            assert space.references(above) == counts[above.id]
        assert layouts[0] == layouts[1]


def test_write_shows_the_chunk_and_grows_the_file(space: Space, file: InodeNumber) -> None:
    chunk = new_chunk(100)
    before = space.attributes(file)
    after = space.write(file, 50, chunk)
    assert (after.size, after.allocated) == (150, 100)
    assert after.mtime_ns == after.ctime_ns == space.clock_ns
    assert after.content_version > before.content_version
    node = space.node(file)
    assert node.chunks == (chunk,)
    assert node.has_all_extents
    assert space.layout(file) == [(50, 150, chunk.id, 0)]
    assert space.references(chunk) == 1


def test_write_never_shrinks_a_file_and_may_grow_it_further(
    space: Space, file: InodeNumber
) -> None:
    space.truncate(file, 1000)
    assert space.write(file, 0, new_chunk(10)).size == 1000
    (after,) = space.write_all(file, (), (), size=2000)
    assert (after.size, after.allocated) == (2000, 10)


def test_write_committed_after_a_link_leaves_the_time_of_the_link(
    space: Space, file: InodeNumber
) -> None:
    written_at_ns = space.tick()
    (linked, _) = space.link(file, space.bucket(b"other"), b"link")
    chunk = new_chunk(10)
    op = wire.WriteExtents(file, (Extent(0, 10, chunk.id, 0),), (chunk,), 10, written_at_ns)
    (written,) = space.do(op)
    assert (written.mtime_ns, written.ctime_ns) == (written_at_ns, linked.ctime_ns)


def test_write_into_the_middle_splits_an_extent(space: Space, file: InodeNumber) -> None:
    old, new = new_chunk(100), new_chunk(10)
    space.write(file, 0, old)
    space.write(file, 40, new)
    expected = [(0, 40, old.id, 0), (40, 50, new.id, 0), (50, 100, old.id, 50)]
    assert space.layout(file) == expected
    assert (space.references(old), space.references(new)) == (2, 1)
    assert space.attributes(file).allocated == 100


def test_write_trims_its_neighbours(space: Space, file: InodeNumber) -> None:
    left, right, new = new_chunk(10), new_chunk(10), new_chunk(10)
    space.write(file, 0, left)
    space.write(file, 10, right)
    space.write(file, 5, new)
    expected = [(0, 5, left.id, 0), (5, 15, new.id, 0), (15, 20, right.id, 5)]
    assert space.layout(file) == expected
    assert space.attributes(file).allocated == 20


def test_overwritten_chunk_is_a_tombstone(space: Space, file: InodeNumber) -> None:
    old = new_chunk(10)
    space.write(file, 0, old)
    space.write(file, 0, new_chunk(10))
    assert space.references(old) == 0
    dead = space.connection.execute("SELECT id FROM chunk WHERE dead_since_ns IS NOT NULL")
    assert dead.fetchall() == [(old.id,)]
    counts = space.reads.counts()
    assert (counts.chunks, counts.tombstones, counts.bytes_logical) == (1, 1, 10)


def test_tombstone_has_the_time_of_the_router_not_of_the_writer(
    space: Space, file: InodeNumber
) -> None:
    old, new = new_chunk(10), new_chunk(10)
    space.write(file, 0, old)
    space.do(wire.WriteExtents(file, (Extent(0, 10, new.id, 0),), (new,), 0, 123_456_789))
    (dead_since_ns,) = space.connection.execute(
        "SELECT dead_since_ns FROM chunk WHERE id = ?", (old.id,)
    ).fetchone()
    assert dead_since_ns == space.clock_ns


def test_pieces_of_a_chunk_written_one_by_one_become_one_extent(
    space: Space, file: InodeNumber
) -> None:
    chunk = new_chunk(30)
    for skip in (10, 0, 20):
        space.write(file, skip, chunk, length=10, skip=skip)
    assert space.layout(file) == [(0, 30, chunk.id, 0)]
    assert space.references(chunk) == 1


def test_writing_the_same_again_changes_no_reference(space: Space, file: InodeNumber) -> None:
    chunk = new_chunk(30)
    space.write(file, 0, chunk)
    space.write(file, 0, chunk)
    assert space.layout(file) == [(0, 30, chunk.id, 0)]
    assert space.references(chunk) == 1


def test_last_of_two_overlapping_extents_of_one_write_wins(space: Space, file: InodeNumber) -> None:
    one, two = new_chunk(10), new_chunk(10)
    space.write_all(file, (Extent(0, 10, one.id, 0), Extent(0, 10, two.id, 0)), (one, two))
    assert space.layout(file) == [(0, 10, two.id, 0)]
    assert (space.references(one), space.references(two)) == (0, 1)


def test_chunk_may_be_shared_by_files_and_places(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    chunk = new_chunk(10)
    other = space.make(bucket, b"other")
    space.write(file, 0, chunk)
    space.write(file, 20, chunk)
    space.write(other, 0, chunk)
    assert space.references(chunk) == 3
    assert space.node(file).chunks == (chunk,)
    space.unlink(bucket, b"file")
    assert space.references(chunk) == 1


def test_chunk_sent_and_not_named_is_dead_at_once(space: Space, file: InodeNumber) -> None:
    chunk = new_chunk()
    space.write_all(file, (), (chunk,))
    assert space.references(chunk) == 0


def test_chunk_known_before_need_not_be_described_again(space: Space, file: InodeNumber) -> None:
    chunk = new_chunk(10)
    space.write(file, 0, chunk)
    space.write_all(file, (Extent(50, 10, chunk.id, 0),), ())
    assert space.references(chunk) == 2


def test_chunk_described_again_adds_its_new_peers(space: Space, file: InodeNumber) -> None:
    chunk = new_chunk(10, PEERS[:1])
    space.write(file, 0, chunk)
    again = Chunk(chunk.id, 10, DIGEST, (PEERS[2], PEERS[0]))
    space.write_all(file, (), (again,))
    assert space.node(file).chunks[0].peers == (PEERS[0], PEERS[2])


def test_peers_stay_in_the_order_of_the_writer(space: Space, file: InodeNumber) -> None:
    peers = (PEERS[2], PEERS[0], PEERS[1])
    space.write(file, 0, new_chunk(10, peers))
    assert space.node(file).chunks[0].peers == peers


def test_dead_chunk_is_never_named_again(space: Space, file: InodeNumber) -> None:
    chunk = new_chunk(10)
    space.write(file, 0, chunk)
    space.truncate(file, 0)
    extents = (Extent(0, 10, chunk.id, 0),)
    for chunks in ((), (chunk,)):
        op = wire.WriteExtents(file, extents, chunks, 0, 1)
        assert space.error_of(op) is Kind.INVALID
    assert space.references(chunk) == 0


def test_chunk_with_other_content_is_refused(space: Space, file: InodeNumber) -> None:
    chunk = new_chunk(10)
    space.write(file, 0, chunk)
    impostors = [
        Chunk(chunk.id, 11, chunk.digest, chunk.peers),
        Chunk(chunk.id, 10, b"e" * 32, chunk.peers),
    ]
    for impostor in impostors:
        op = wire.WriteExtents(file, (), (impostor,), 0, 1)
        assert space.error_of(op) is Kind.INVALID
    fresh = new_chunk(10)
    twice = (fresh, Chunk(fresh.id, 12, DIGEST, fresh.peers))
    assert space.error_of(wire.WriteExtents(file, (), twice, 0, 1)) is Kind.INVALID
    assert space.references(fresh) is None


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(ChunkId(b"short"), 10, DIGEST, PEERS[:1]),
        Chunk(A, 10, b"short", PEERS[:1]),
        Chunk(A, 0, DIGEST, PEERS[:1]),
        Chunk(A, CHUNK_SIZE_BYTES_MAX + 1, DIGEST, PEERS[:1]),
        Chunk(A, 10, DIGEST, ()),
        Chunk(A, 10, DIGEST, (PEERS[0], PEERS[0])),
        Chunk(A, 10, DIGEST, (PeerNumber(99),)),
    ],
    ids=["id", "digest", "empty", "too long", "nowhere", "peer twice", "unknown peer"],
)
def test_impossible_chunk_is_refused(space: Space, file: InodeNumber, chunk: Chunk) -> None:
    assert space.error_of(wire.WriteExtents(file, (), (chunk,), 0, 1)) is Kind.INVALID


@pytest.mark.parametrize(
    ("offset", "length", "skip"),
    [
        (-1, 10, 0),
        (0, 0, 0),
        (0, -1, 0),
        (0, 10, -1),
        (0, 10, 1),
        (0, 11, 0),
        (FILE_SIZE_BYTES_MAX - 9, 10, 0),
        (2**64, 10, 0),
    ],
)
def test_extent_outside_its_chunk_or_any_file_is_refused(
    space: Space, file: InodeNumber, offset: int, length: int, skip: int
) -> None:
    chunk = new_chunk(10)
    op = wire.WriteExtents(file, (Extent(offset, length, chunk.id, skip),), (chunk,), 0, 1)
    assert space.error_of(op) is Kind.INVALID
    assert space.references(chunk) is None
    assert space.attributes(file).size == 0


def test_last_byte_a_file_can_have_may_be_written(space: Space, file: InodeNumber) -> None:
    after = space.write(file, FILE_SIZE_BYTES_MAX - 10, new_chunk(10))
    assert after.size == FILE_SIZE_BYTES_MAX
    assert len(space.layout(file)) == 1
    space.write(file, FILE_SIZE_BYTES_MAX - 5, new_chunk(5))
    assert len(space.layout(file)) == 2


@pytest.mark.parametrize("size", [-1, 2**63])
def test_write_refuses_an_impossible_size(space: Space, file: InodeNumber, size: int) -> None:
    assert space.error_of(wire.WriteExtents(file, (), (), size, 1)) is Kind.INVALID


def test_write_needs_a_file_and_known_chunks(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    fifo = space.make(bucket, b"fifo", FileKind.FIFO)
    refusals = [
        (wire.WriteExtents(bucket, (), (), 0, 1), Kind.INVALID),
        (wire.WriteExtents(fifo, (), (), 0, 1), Kind.INVALID),
        (wire.WriteExtents(InodeNumber(9_999), (), (), 0, 1), Kind.NOT_FOUND),
        (wire.WriteExtents(file, (Extent(0, 1, new_chunk_id(), 0),), (), 0, 1), Kind.INVALID),
    ]
    assert [space.error_of(op) for op, _ in refusals] == [kind for _, kind in refusals]


def test_chunk_remembers_the_copies_its_bucket_wanted(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    space.write(file, 0, new_chunk(10))
    space.do(wire.SetBucketPolicy(bucket, BucketPolicy(replicas=4), 1))
    space.write(file, 10, new_chunk(10))
    wanted = space.connection.execute("SELECT wanted FROM chunk ORDER BY wanted").fetchall()
    assert wanted == [(2,), (4,)]


def test_file_that_is_open_but_has_no_name_can_be_written(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    space.unlink(bucket, b"file", sustain=True)
    chunk = new_chunk(10)
    assert space.write(file, 0, chunk).size == 10
    space.do(wire.Release(file))
    assert space.references(chunk) == 0


# --- truncate ---


def test_truncate_cuts_extents(space: Space, file: InodeNumber) -> None:
    one, two = new_chunk(10), new_chunk(10)
    space.write(file, 0, one)
    space.write(file, 10, two)
    after = space.truncate(file, 4)
    assert (after.size, after.allocated) == (4, 4)
    assert space.layout(file) == [(0, 4, one.id, 0)]
    assert (space.references(one), space.references(two)) == (1, 0)


def test_truncate_at_the_edge_of_an_extent_keeps_it_whole(space: Space, file: InodeNumber) -> None:
    one, two = new_chunk(10), new_chunk(10)
    space.write(file, 0, one)
    space.write(file, 10, two)
    space.truncate(file, 10)
    assert space.layout(file) == [(0, 10, one.id, 0)]


def test_truncate_and_growing_again_leaves_zeros(space: Space, file: InodeNumber) -> None:
    chunk = new_chunk(10)
    space.write(file, 0, chunk)
    space.truncate(file, 4)
    after = space.truncate(file, 100)
    assert (after.size, after.allocated) == (100, 4)


def test_truncate_to_the_size_it_has_changes_times_and_no_content(
    space: Space, file: InodeNumber
) -> None:
    before = space.write(file, 0, new_chunk(10))
    after = space.truncate(file, 10)
    assert after.mtime_ns == after.ctime_ns == space.clock_ns > before.mtime_ns
    assert after.version > before.version
    assert after.content_version == before.content_version


def test_truncate_counts_a_chunk_named_twice(space: Space, file: InodeNumber) -> None:
    chunk = new_chunk(10)
    space.write(file, 0, chunk)
    space.write(file, 20, chunk)
    space.truncate(file, 25)
    assert space.references(chunk) == 2
    space.truncate(file, 20)
    assert space.references(chunk) == 1
    space.truncate(file, 0)
    assert space.references(chunk) == 0
