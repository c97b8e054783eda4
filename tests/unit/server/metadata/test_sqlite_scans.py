from mictlanfs.model import InodeNumber
from mictlanfs_server.metadata.base import ReplicaCounts
from mictlanfs_server.metadata.sqlite_scans import SqliteScans
from tests.unit.server.metadata.space import PEERS, Space, new_chunk

ONE, TWO, THREE = PEERS


def fill(space: Space, bucket: InodeNumber, *peers_of_chunks: tuple[int, ...]) -> InodeNumber:
    file = space.make(bucket, b"file")
    for index, peers in enumerate(peers_of_chunks):
        numbers = tuple(PEERS[number - 1] for number in peers)
        space.write(file, index * 10, new_chunk(10, numbers))
    return file


def test_replicas_count_on_the_peers_in_question_only(space: Space, bucket: InodeNumber) -> None:
    # The bucket wants two copies.
    fill(space, bucket, (1, 2), (2, 3), (1,), (1, 2, 3))
    scans = SqliteScans(space.connection)
    assert scans.replica_counts(PEERS) == ReplicaCounts(under_replicated=1, lost=0)
    # What was stored three times is to be kept three times.
    assert scans.replica_counts([TWO, THREE]) == ReplicaCounts(under_replicated=3, lost=1)
    assert scans.replica_counts([]) == ReplicaCounts(under_replicated=4, lost=4)


def test_dead_chunks_are_not_missed(space: Space, bucket: InodeNumber) -> None:
    file = fill(space, bucket, (1,))
    space.truncate(file, 0)
    assert SqliteScans(space.connection).replica_counts([]) == ReplicaCounts(0, 0)


def test_inline_chunks_want_no_copies_and_are_counted(space: Space, bucket: InodeNumber) -> None:
    file = fill(space, bucket, (1,))
    space.write_inline(file, 10, b"here")
    assert SqliteScans(space.connection).replica_counts([]) == ReplicaCounts(1, 1, inline=1)


def test_chunk_cannot_want_more_copies_than_there_are_peers(
    space: Space, bucket: InodeNumber
) -> None:
    fill(space, bucket, (1,))
    space.connection.execute("DELETE FROM peer WHERE number > 1")
    counts = SqliteScans(space.connection).replica_counts([ONE])
    assert counts == ReplicaCounts(under_replicated=0, lost=0)


def test_dead_chunks_come_oldest_first_in_pages(space: Space, bucket: InodeNumber) -> None:
    file = fill(space, bucket, (1, 2), (3,), (2,))
    times = []
    for size in (20, 10, 0):
        space.truncate(file, size)
        times.append(space.clock_ns)
    scans = SqliteScans(space.connection)
    everything = scans.dead_chunks(2**62, None, 100)
    assert [chunk.dead_since_ns for chunk in everything] == times
    assert [set(chunk.peers) for chunk in everything] == [{TWO}, {THREE}, {ONE, TWO}]
    paged, last = [], None
    while page := scans.dead_chunks(2**62, last, 2):
        paged += page
        last = page[-1]
    assert paged == everything


def test_pages_of_chunks_that_died_together_repeat_and_miss_none(
    space: Space, bucket: InodeNumber
) -> None:
    file = fill(space, bucket, (1,), (1,), (1,), (1,))
    space.truncate(file, 0)
    scans, ids, last = SqliteScans(space.connection), [], None
    while page := scans.dead_chunks(2**62, last, 1):
        ids.append(page[0].id)
        last = page[-1]
    assert len(ids) == len(set(ids)) == 4


def test_chunks_that_died_since_are_left_alone(space: Space, bucket: InodeNumber) -> None:
    file = fill(space, bucket, (1,))
    space.truncate(file, 0)
    scans = SqliteScans(space.connection)
    assert scans.dead_chunks(space.clock_ns, None, 10) == []
    assert len(scans.dead_chunks(space.clock_ns + 1, None, 10)) == 1


def test_dead_chunk_that_nobody_holds_is_found_too(space: Space, bucket: InodeNumber) -> None:
    file = fill(space, bucket, (1,))
    space.truncate(file, 0)
    space.connection.execute("DELETE FROM replica")
    (chunk,) = SqliteScans(space.connection).dead_chunks(2**62, None, 10)
    assert chunk.peers == ()
