import msgspec
import pytest

from mictlanfs import wire
from mictlanfs.checksums import DIGEST_SIZE_BYTES
from mictlanfs.errors import Kind
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import (
    KIB,
    BucketPolicy,
    Chunk,
    Coding,
    Extent,
    InodeNumber,
    PeerNumber,
)
from mictlanfs.protection import coded
from mictlanfs_server.metadata.check import find_damage
from mictlanfs_server.metadata.copies import CopiesAsked
from mictlanfs_server.metadata.sqlite_copies import (
    SqliteCopies,
    add_replicas,
    drop_replicas,
    locate,
    move_fragments,
)
from mictlanfs_server.metadata.sqlite_scans import SqliteScans
from mictlanfs_server.metadata.sqlite_upkeep import save_peers
from tests.unit.server.metadata.space import DIGEST, Space, peer_info

P1, P2, P3, P4, P5 = (PeerNumber(number) for number in range(1, 6))
LENGTH = 128 * KIB
POLICY = coded(3, 2).applied(BucketPolicy())


def digests_of(count: int) -> bytes:
    return b"".join(bytes([index]) * DIGEST_SIZE_BYTES for index in range(count))


def coded_chunk(
    peers: tuple[PeerNumber, ...] = (P5, P4, P3, P2, P1),
    indices: tuple[int, ...] = (0, 1, 2, 3, 4),
    *,
    data: int = 3,
    count: int = 5,
) -> Chunk:
    coding = Coding(data, digests_of(count), indices)
    return Chunk(new_chunk_id(), LENGTH, DIGEST, peers, coding)


@pytest.fixture
def file(space: Space, bucket: InodeNumber) -> InodeNumber:
    save_peers(space.rows, 3, [peer_info(number) for number in (P1, P2, P3, P4, P5)])
    return space.make(bucket, b"file")


def write(file: InodeNumber, *chunks: Chunk) -> wire.WriteExtents:
    extents = tuple(
        Extent(place * LENGTH, LENGTH, chunk.id, 0) for place, chunk in enumerate(chunks)
    )
    return wire.WriteExtents(file, extents, chunks, 0, 5)


def counts(space: Space, *live: PeerNumber) -> tuple[int, int]:
    found = SqliteScans(space.connection).replica_counts(live)
    return found.under_replicated, found.lost


def test_a_coded_chunk_is_read_as_it_was_written(space: Space, file: InodeNumber) -> None:
    whole, short = coded_chunk(), coded_chunk((P1, P3, P4), (4, 0, 2))
    copies = Chunk(new_chunk_id(), LENGTH, DIGEST, (P2, P1))
    space.do(write(file, whole, short, copies))
    expected = Chunk(short.id, LENGTH, DIGEST, (P3, P4, P1), Coding(3, digests_of(5), (0, 2, 4)))
    assert space.node(file).chunks == (whole, expected, copies)
    assert find_damage(space.connection) == []


def test_what_is_short_and_what_is_lost_is_counted_in_fragments(
    space: Space, file: InodeNumber
) -> None:
    space.do(write(file, coded_chunk(), coded_chunk((P1, P2, P3), (0, 1, 2))))
    assert counts(space, P1, P2, P3, P4, P5) == (1, 0)
    assert counts(space, P1, P2, P3, P4) == (2, 0)
    assert counts(space, P1, P2, P3) == (2, 0)
    assert counts(space, P1, P2, P5) == (2, 1)
    assert counts(space, P1, P2) == (2, 2)


def test_replicas_told_later_are_fragments_too(space: Space, file: InodeNumber) -> None:
    chunk = coded_chunk((P1, P2, P3), (0, 1, 2))
    space.do(write(file, chunk))
    # Fragment 2 is one that another peer has, and P1 has one already.
    assert chunk.coding is not None
    later = msgspec.structs.replace(
        chunk, peers=(P5, P4, P1), coding=msgspec.structs.replace(chunk.coding, indices=(4, 2, 3))
    )
    space.do(wire.WriteExtents(file, (), (later,), 0, 6))
    [found] = space.node(file).chunks
    assert found.peers == (P1, P2, P3, P5)
    assert found.coding is not None
    assert found.coding.indices == (0, 1, 2, 4)


def test_a_chunk_described_twice_has_the_fragments_of_both(space: Space, file: InodeNumber) -> None:
    chunk = coded_chunk((P1, P2, P3), (0, 1, 2))
    assert chunk.coding is not None
    other = msgspec.structs.replace(
        chunk, peers=(P4, P5, P2), coding=msgspec.structs.replace(chunk.coding, indices=(1, 4, 3))
    )
    extent = Extent(0, LENGTH, chunk.id, 0)
    space.do(wire.WriteExtents(file, (extent,), (chunk, other), 0, 5))
    [found] = space.node(file).chunks
    assert found.coding is not None
    assert dict(zip(found.coding.indices, found.peers, strict=True)) == {0: P1, 1: P2, 2: P3, 4: P5}


@pytest.mark.parametrize(
    "chunk",
    [
        coded_chunk((P1, P2), (0, 1)),
        coded_chunk((P1, P2, P3), (0, 1, 1)),
        coded_chunk((P1, P2, P3), (0, 1)),
        coded_chunk((P1, P2, P3), (0, 1, 5)),
        coded_chunk((P1, P2, P3), (0, 1, -1)),
        coded_chunk((), ()),
        coded_chunk((P1, P2, P3), (0, 1, 2), count=3),
        coded_chunk((P1, P2, P3), (0, 1, 2), count=8),
        coded_chunk((P1, P2, P3), (0, 1, 2), data=1, count=3),
        coded_chunk((P1, P2, P3), (0, 1, 2), data=17, count=18),
        msgspec.structs.replace(coded_chunk(), length=64 * KIB - 1),
        msgspec.structs.replace(
            coded_chunk(), coding=Coding(3, digests_of(5)[:-1], (0, 1, 2, 3, 4))
        ),
    ],
    ids=lambda chunk: f"{chunk.peers}-{chunk.coding.indices}",
)
def test_what_cannot_be_read_back_is_refused(space: Space, file: InodeNumber, chunk: Chunk) -> None:
    assert space.error_of(write(file, chunk)) is Kind.INVALID
    assert space.node(file).chunks == ()


def test_a_chunk_never_changes_its_code(space: Space, file: InodeNumber) -> None:
    chunk = coded_chunk()
    space.do(write(file, chunk))
    assert chunk.coding is not None
    for other in (
        msgspec.structs.replace(chunk, coding=None),
        msgspec.structs.replace(
            chunk, coding=msgspec.structs.replace(chunk.coding, digests=bytes(5 * 32))
        ),
    ):
        assert space.error_of(write(file, other)) is Kind.INVALID
    copies = Chunk(new_chunk_id(), LENGTH, DIGEST, (P1,))
    space.do(write(file, copies))
    assert space.error_of(write(file, msgspec.structs.replace(chunk, id=copies.id))) is Kind.INVALID


@pytest.mark.parametrize(
    "policy",
    [
        BucketPolicy(3, 2, data=1),
        BucketPolicy(3, 2, data=17),
        BucketPolicy(3, 2, data=-1),
        BucketPolicy(1, 1, data=3),
        BucketPolicy(3, 4, data=3),
        BucketPolicy(3, 0, data=3),
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_kept_is_refused(
    space: Space, bucket: InodeNumber, policy: BucketPolicy
) -> None:
    assert space.error_of(wire.SetBucketPolicy(bucket, policy, 5)) is Kind.INVALID
    space.do(wire.SetBucketPolicy(bucket, POLICY, 5))
    assert space.node(bucket).policy == POLICY


def test_the_same_bytes_in_other_chunks_leave_a_record_true(
    space: Space, file: InodeNumber
) -> None:
    space.do(write(file, Chunk(new_chunk_id(), LENGTH, DIGEST, (P1, P2))))
    record = wire.SetRecord(file, 0, (wire.RecordPiece(LENGTH, b"body"),))
    space.do(record)
    chunk = coded_chunk()
    extent = Extent(0, LENGTH, chunk.id, 0)
    [before] = [space.attributes(file)]
    space.do(wire.WriteExtents(file, (extent,), (chunk,), 0, 7, is_same_content=True))
    after = space.attributes(file)
    assert after.content_version > before.content_version
    [found] = space.reads.records(wire.GetRecords((file,))).records
    assert found == wire.FileRecord(after.content_version, record.pieces)
    # One that was stale stays stale, and any other change makes it so.
    space.do(write(file, coded_chunk()))
    for is_same in (False, True):
        other = coded_chunk()
        extent = Extent(0, LENGTH, other.id, 0)
        op = wire.WriteExtents(file, (extent,), (other,), 0, 7, is_same_content=is_same)
        space.do(op)
        [found] = space.reads.records(wire.GetRecords((file,))).records
        assert found.pieces == ()


# --- copies ---


def move(space: Space, *moved: tuple[Chunk, int, PeerNumber]) -> list[PeerNumber]:
    """Record fragments; the peers for which no row stands."""
    rows = [(chunk.id, index, peer) for chunk, index, peer in moved]
    return [peer for _, peer in move_fragments(space.rows, rows, 77)]


def held(space: Space, chunk: Chunk) -> dict[int, PeerNumber]:
    return dict(zip(space.rows.ranks(chunk.id), space.rows.replicas(chunk.id), strict=True))


def test_a_fragment_moves_from_one_peer_to_another(space: Space, file: InodeNumber) -> None:
    chunk = coded_chunk((P1, P2, P3), (0, 1, 4))
    space.do(write(file, chunk))
    assert move(space, (chunk, 1, P4), (chunk, 3, P5)) == []
    assert held(space, chunk) == {0: P1, 1: P4, 3: P5, 4: P3}
    assert space.rows.given_up(chunk.id) == (P2,)
    # Once more it changes nothing, and a peer that has a fragment gets no other one.
    assert move(space, (chunk, 1, P4), (chunk, 2, P4)) == []
    assert held(space, chunk) == {0: P1, 1: P4, 3: P5, 4: P3}
    # What was given up there is not deleted yet.
    assert move(space, (chunk, 2, P2)) == [P2]
    assert find_damage(space.connection) == []


def test_fragments_of_what_is_not_there_or_not_coded_have_no_row(
    space: Space, file: InodeNumber
) -> None:
    copies = Chunk(new_chunk_id(), LENGTH, DIGEST, (P2, P1))
    space.do(write(file, copies))
    assert move(space, (coded_chunk(), 0, P1), (copies, 1, P3)) == [P1, P3]
    chunk = coded_chunk((P1, P2, P3), (0, 1, 4))
    space.do(write(file, chunk))
    assert move(space, (chunk, 2, PeerNumber(99))) == [99]
    assert add_replicas(space.rows, {chunk.id: [P4]}, raises_wanted=False) == [(chunk.id, P4)]


def test_rows_stay_that_are_needed_to_read_a_chunk(space: Space, file: InodeNumber) -> None:
    chunk = coded_chunk((P1, P2, P3, P4), (0, 1, 2, 3))
    space.do(write(file, chunk))
    assert drop_replicas(space.rows, {chunk.id: [P2, P3]}, None, 0) == [chunk.id]
    assert held(space, chunk) == {0: P1, 2: P3, 3: P4}


def test_a_survey_knows_what_a_code_needs(space: Space, file: InodeNumber) -> None:
    whole, short = coded_chunk(), coded_chunk((P1, P2, P3, P4), (0, 1, 2, 3))
    space.do(write(file, whole, short))
    copies = SqliteCopies(space.connection)

    def survey(*live: PeerNumber) -> tuple[dict[Chunk, int], int]:
        page = copies.survey(CopiesAsked(live, live, live), None, 100)
        assert page.surplus == ()
        found = {one.id: one.copies for one in page.short}
        return {c: found[c.id] for c in (whole, short) if c.id in found}, page.unreadable_count

    # As many copies as survive the same losses.
    assert survey(P1, P2, P3, P4, P5) == ({short: 2}, 0)
    assert survey(P1, P2, P3) == ({}, 0)
    assert survey(P1, P2, P5) == ({}, 1)
    assert [chunk.coding for chunk in copies.copies([whole.id])] == [
        Coding(3, digests_of(5), (0, 1, 2, 3, 4))
    ]
    assert copies.only_copies_count(P1, (P2, P3, P4)) == 0
    assert copies.only_copies_count(P1, (P2, P3)) == 2
    located = locate(space.connection, [short.id])
    assert located == {short.id: short}


def test_a_policy_of_before_has_no_code() -> None:
    before = msgspec.msgpack.encode((2, 1, 2**22, 0))
    assert msgspec.msgpack.decode(before, type=BucketPolicy) == BucketPolicy()
    chunk = Chunk(new_chunk_id(), 5, DIGEST, (P1,))
    packed = msgspec.msgpack.encode((chunk.id, 5, DIGEST, (1,)))
    assert msgspec.msgpack.decode(packed, type=Chunk) == chunk
