import msgspec

from mictlanfs.model import InodeNumber, PeerMap, PeerState, SessionId
from mictlanfs_server.metadata.sqlite_upkeep import (
    forget_replicas,
    read_peers,
    read_sessions,
    save_peers,
    touch_sessions,
)
from tests.unit.server.metadata.space import PEERS, Space, new_chunk, peer_info


def test_peers_are_read_as_saved(space: Space) -> None:
    peers = (
        msgspec.structs.replace(peer_info(1, PeerState.DOWN), is_full=True, boot_id="b", zone="z"),
        peer_info(2, PeerState.SUSPECT),
        peer_info(3),
        peer_info(7),
    )
    save_peers(space.rows, 12, peers)
    peer_map = read_peers(space.connection)
    assert peer_map == PeerMap(12, peers)
    assert peer_map.peers[0].state is PeerState.DOWN
    assert peer_map.peers[0].is_full is True


def test_map_without_peers_has_a_version(space: Space) -> None:
    space.connection.execute("DELETE FROM peer")
    assert read_peers(space.connection) == PeerMap(2, ())


def test_sessions_are_read_with_the_time_they_were_seen(space: Space) -> None:
    second = space.open_session("second")
    touch_sessions(space.rows, {second: 77, SessionId("unknown"): 5})
    seen = {record.session: record.seen_ns for record in read_sessions(space.connection)}
    assert seen == {space.session: 1_000, second: 77}


def test_ended_session_is_not_read(space: Space) -> None:
    space.rows.end_session(space.session)
    assert read_sessions(space.connection) == []


def test_chunk_is_forgotten_when_the_last_peer_has_deleted_it(
    space: Space, bucket: InodeNumber
) -> None:
    file = space.make(bucket, b"file")
    chunk = new_chunk(10, PEERS[:2])
    space.write(file, 0, chunk)
    space.truncate(file, 0)
    forget_replicas(space.rows, {chunk.id: [PEERS[0]]})
    assert space.rows.replicas(chunk.id) == (PEERS[1],)
    assert space.reads.counts().tombstones == 1
    forget_replicas(space.rows, {chunk.id: [PEERS[1]]})
    assert space.references(chunk) is None
    assert space.reads.counts().tombstones == 0
    # The answer to the first request was lost: repeated, it does nothing.
    forget_replicas(space.rows, {chunk.id: [PEERS[1]]})


def test_live_chunk_keeps_its_replicas_whatever_is_said(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    chunk = new_chunk(10)
    space.write(file, 0, chunk)
    forget_replicas(space.rows, {chunk.id: chunk.peers})
    assert space.rows.replicas(chunk.id) == chunk.peers
    assert space.references(chunk) == 1
