import asyncio
import logging
from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import PeerState
from mictlanfs_server.metadata import sqlite_copy
from mictlanfs_server.metadata.sqlite import SqliteStore
from mictlanfs_server.metasnapshots import keeper as keeping
from mictlanfs_server.metasnapshots import sending
from mictlanfs_server.metasnapshots.form import (
    DAY_NS,
    MANIFEST_PREFIX,
    PIECE_PREFIX,
    decode_manifest,
    parse_manifest_name,
    piece_name,
)
from mictlanfs_server.metasnapshots.keeper import FIRST_DELAY_S, HASTE_S, RETRY_S_FIRST
from tests.support.objectpeers import ObjectPeers
from tests.unit.server.metasnapshots.rig import INTERVAL_S, Rig, with_rig


async def until_due(rig: Rig, seconds_max: float = 10_000) -> float:
    """Let time pass until a snapshot is due; how long it took."""
    for second in range(int(seconds_max)):
        if rig.keeper.is_due():
            return second
        rig.clock.advance(1)
    raise AssertionError("no snapshot is due")


def test_a_snapshot_is_on_every_peer_whole(tmp_path: Path, peers: ObjectPeers) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.write(b"file")
        made = await rig.keeper.snapshot()
        assert sorted(made.peers) == ["peer-1", "peer-2", "peer-3"]
        for peer in peers.peers:
            assert len(peer.names(MANIFEST_PREFIX)) == 1
            assert peer.names(PIECE_PREFIX)
            # They are no chunks: what a peer is asked for by the collector never meets them.
            assert all(name[0] in "mp" for name in peer.names())
        assert rig.store.snapshot_ns == made.moment_ns
        assert not (rig.folder / keeping.COPY_NAME).exists()

    with_rig(tmp_path / "router", peers, scenario)


def test_only_pieces_that_changed_are_sent_again(tmp_path: Path, peers: ObjectPeers) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.grow()
        first = await rig.keeper.snapshot()
        pieces = len(peers.peers[0].names(PIECE_PREFIX))
        assert pieces >= 4
        await rig.client.make(rig.bucket, b"zzz")
        second = await rig.keeper.snapshot()
        assert second.sent < first.sent
        assert len(peers.peers[0].names(PIECE_PREFIX)) < 2 * pieces

    with_rig(tmp_path / "router", peers, scenario)


def test_the_schedule(tmp_path: Path, peers: ObjectPeers) -> None:
    async def scenario(rig: Rig) -> None:
        assert await until_due(rig) == FIRST_DELAY_S
        await rig.keeper.snapshot()
        rig.clock.advance(10 * INTERVAL_S)
        assert not rig.keeper.is_due(), "nothing has changed"
        await rig.client.make(rig.bucket, b"a")
        assert rig.keeper.is_due()
        await rig.keeper.snapshot()
        await rig.client.make(rig.bucket, b"b")
        assert await until_due(rig) == pytest.approx(INTERVAL_S, abs=1)

    with_rig(tmp_path / "router", peers, scenario)


def test_what_only_the_running_router_needs_is_no_change(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.keeper.snapshot()
        rig.clock.advance(2 * INTERVAL_S)
        await rig.store.touch_sessions({rig.client.session.session: rig.clock.wall_ns()})
        await rig.store.take_inodes(10)
        await rig.client.send(rig.client.batch(sync=True))
        assert not rig.keeper.is_due()
        assert rig.keeper.status().is_current

    with_rig(tmp_path / "router", peers, scenario)


def test_who_waits_for_a_newer_one_hastens_it(tmp_path: Path, peers: ObjectPeers) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.keeper.snapshot()
        await rig.client.make(rig.bucket, b"a")
        assert not rig.keeper.is_due()
        rig.keeper.hasten()
        assert await until_due(rig) <= HASTE_S

    with_rig(tmp_path / "router", peers, scenario)


def test_no_snapshots_by_themselves_with_an_interval_of_0(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    async def scenario(rig: Rig) -> None:
        await asyncio.wait_for(rig.keeper.run(), 5)
        assert rig.keeper.horizon_ns is None
        assert not rig.keeper.status().is_late
        assert len((await rig.keeper.snapshot()).peers) == 3

    with_rig(tmp_path / "router", peers, scenario, interval_s=0)


# --- what died when ---


def test_a_chunk_that_dies_after_the_moment_is_not_older_than_it(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.write(b"before")
        await rig.write(b"after")
        await rig.client.do(wire.Unlink(rig.bucket, b"before", 1))
        rig.clock.advance(1)
        await rig.keeper.snapshot()
        # The system's clock is set back.
        rig.clock.advance(-3600)
        await rig.client.do(wire.Unlink(rig.bucket, b"after", 1))
        await rig.store.reclaim(10)
        horizon_ns = rig.keeper.horizon_ns
        assert horizon_ns is not None
        dead = await rig.store.dead_chunks(horizon_ns, None, 10)
        assert [chunk.id for chunk in dead] == [rig.stored[b"before"].id]

    with_rig(tmp_path / "router", peers, scenario)


def test_the_moment_is_remembered_over_a_restart(tmp_path: Path, peers: ObjectPeers) -> None:
    async def first(rig: Rig) -> int:
        return (await rig.keeper.snapshot()).moment_ns

    moment_ns = with_rig(tmp_path / "router", peers, first)

    async def reopened() -> None:
        store = SqliteStore(tmp_path / "router" / "metadata.db", lambda: 5)
        assert store.snapshot_ns == moment_ns
        await store.close()

    asyncio.run(reopened())


# --- peers that fail ---


def test_a_snapshot_that_one_peer_lacks_counts_and_the_peer_gets_it_later(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    async def scenario(rig: Rig) -> None:
        peers.broken.add(peers.peers[1].url)
        made = await rig.keeper.snapshot()
        assert "peer-2" not in made.peers
        peers.broken.clear()
        assert await until_due(rig) <= HASTE_S + 1, "though nothing has changed"
        assert "peer-2" in (await rig.keeper.snapshot()).peers
        rig.clock.advance(10 * INTERVAL_S)
        assert not rig.keeper.is_due()

    with_rig(tmp_path / "router", peers, scenario)


def test_a_peer_that_joins_gets_the_last_one_soon(tmp_path: Path, peers: ObjectPeers) -> None:
    async def scenario(rig: Rig) -> None:
        rig.set_state(3, PeerState.DOWN)
        assert "peer-3" not in (await rig.keeper.snapshot()).peers
        rig.clock.advance(1)
        assert not rig.keeper.is_due()
        rig.set_state(3, PeerState.UP)
        assert await until_due(rig) <= HASTE_S
        assert "peer-3" in (await rig.keeper.snapshot()).peers

    with_rig(tmp_path / "router", peers, scenario)


def test_a_peer_that_never_takes_one_is_asked_less_and_less_often(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    async def scenario(rig: Rig) -> None:
        peers.broken.add(peers.peers[1].url)
        waits = []
        for _ in range(12):
            await rig.keeper.snapshot()
            waits.append(await until_due(rig))
        assert waits[:4] == [2, 4, 8, 16]
        assert waits[-1] == INTERVAL_S

    with_rig(tmp_path / "router", peers, scenario)


def test_a_snapshot_on_one_of_three_peers_does_not_count(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    async def scenario(rig: Rig) -> None:
        peers.broken.update(peer.url for peer in peers.peers[1:])
        with pytest.raises(MictlanError) as raised:
            await rig.keeper.snapshot()
        assert raised.value.kind is Kind.UNAVAILABLE
        assert rig.store.snapshot_ns == 0
        assert "1 of 3" in rig.keeper.status().error
        assert await until_due(rig) == RETRY_S_FIRST
        # With the other two known to be down it is the best there is.
        for number in (2, 3):
            rig.set_state(number, PeerState.DOWN)
        assert (await rig.keeper.snapshot()).peers == ("peer-1",)

    with_rig(tmp_path / "router", peers, scenario)


def test_without_peers_nothing_is_due_and_being_late_is_a_problem(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    async def scenario(rig: Rig) -> None:
        for number in (1, 2, 3):
            rig.set_state(number, PeerState.DOWN)
        for _ in range(1000):
            assert not rig.keeper.is_due()
            rig.clock.advance(1)
        assert rig.keeper.status().is_late
        with pytest.raises(MictlanError, match="no peer is up"):
            await rig.keeper.snapshot()
        for number in (1, 2, 3):
            rig.set_state(number, PeerState.UP)
        await rig.keeper.snapshot()
        assert not rig.keeper.status().is_late

    with_rig(tmp_path / "router", peers, scenario)


def test_a_disk_without_room_for_a_copy_refuses(
    tmp_path: Path, peers: ObjectPeers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(rig: Rig) -> None:
        monkeypatch.setattr(sqlite_copy, "ROOM_LEFT_BYTES", 2**62)
        with pytest.raises(MictlanError) as raised:
            await rig.keeper.snapshot()
        assert raised.value.kind is Kind.NO_SPACE
        assert peers.requests == []

    with_rig(tmp_path / "router", peers, scenario)


def test_cut_at_any_request_no_peer_has_a_manifest_without_its_pieces(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    """The order of durability: after every request that could be the last one."""

    async def scenario(rig: Rig) -> None:
        await rig.write(b"one")
        await rig.keeper.snapshot()
        await rig.write(b"two")
        before = len(peers.requests)
        await rig.keeper.snapshot()
        count = len(peers.requests) - before
        assert count > 10
        for cut in range(count):
            await rig.write(b"n%d" % cut)
            left = cut

            def watch(method: str, path: str) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise MictlanError(Kind.UNAVAILABLE, method, path)

            peers.watch = watch
            try:
                await rig.keeper.snapshot()
            except MictlanError:
                assert left < 0
            peers.watch = lambda _method, _path: None
            check_peers(peers)
        await rig.keeper.snapshot()
        check_peers(peers)

    with_rig(tmp_path / "router", peers, scenario)


def check_peers(peers: ObjectPeers) -> None:
    """Every manifest that is there names pieces that are there."""
    for peer in peers.peers:
        names = set(peer.names())
        for found in filter(None, map(parse_manifest_name, names)):
            body = (peer.object_folder / found.name).read_bytes()
            assert {piece_name(d) for d in decode_manifest(found, body).pieces} <= names


def test_cancelled_in_the_middle_it_leaves_no_copy_and_the_next_one_succeeds(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    async def scenario(rig: Rig) -> None:
        reached = asyncio.Event()

        def watch(method: str, path: str) -> None:
            if method == "PUT":
                reached.set()

        peers.watch = watch
        task = asyncio.create_task(rig.keeper.snapshot())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not (rig.folder / keeping.COPY_NAME).exists()
        assert rig.store.snapshot_ns == 0
        assert len((await rig.keeper.snapshot()).peers) == 3

    with_rig(tmp_path / "router", peers, scenario)


# --- what is on the peers ---


def test_a_damaged_piece_is_found_and_sent_again(
    tmp_path: Path, peers: ObjectPeers, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.grow()
        await rig.keeper.snapshot()
        folder = peers.peers[0].object_folder
        whole = {path.name: path.read_bytes() for path in folder.glob(f"{PIECE_PREFIX}*")}
        for name, body in whole.items():
            (folder / name).write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
        with caplog.at_level(logging.ERROR):
            # A few are looked at each time; every one that is needed is among them in the end.
            for _ in range(4):
                await rig.keeper.snapshot()
        assert "damaged piece" in caplog.text
        last = {path.name: path.read_bytes() for path in folder.glob(f"{PIECE_PREFIX}*")}
        assert any(last[name] == body for name, body in whole.items())
        caplog.clear()

    with_rig(tmp_path / "router", peers, scenario)


def test_old_snapshots_go_and_pieces_that_others_need_stay(
    tmp_path: Path, peers: ObjectPeers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(rig: Rig) -> None:
        monkeypatch.setattr(sending, "LEFT_OVER_AGE_S", 0.0)
        for number in range(18):
            await rig.client.make(rig.bucket, b"%05d" % number)
            await rig.keeper.snapshot()
            rig.clock.advance(DAY_NS / 2e9)
        for peer in peers.peers:
            assert 7 <= len(peer.names(MANIFEST_PREFIX)) <= 12
            assert len(peer.names(PIECE_PREFIX)) < 18
        check_peers(peers)

    with_rig(tmp_path / "router", peers, scenario)


def test_what_an_interrupted_one_left_is_removed_when_it_is_old(
    tmp_path: Path, peers: ObjectPeers, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = PIECE_PREFIX + "0" * 64
    for peer in peers.peers:
        (peer.object_folder / stray).write_bytes(b"left over")

    async def young(rig: Rig) -> None:
        await rig.keeper.snapshot()
        assert all(stray in peer.names() for peer in peers.peers)

    async def old(rig: Rig) -> None:
        monkeypatch.setattr(sending, "LEFT_OVER_AGE_S", 0.0)
        await rig.keeper.snapshot()
        assert not any(stray in peer.names() for peer in peers.peers)

    with_rig(tmp_path / "one", peers, young)
    with_rig(tmp_path / "two", peers, old)


def test_pieces_that_vanish_meanwhile_are_not_promised(tmp_path: Path, peers: ObjectPeers) -> None:
    """As when a router that was believed dead tidies up the same peer."""

    async def scenario(rig: Rig) -> None:
        victim = peers.peers[0]

        def watch(method: str, path: str) -> None:
            if method == "PUT" and "/piece-" in path:
                for name in victim.names(PIECE_PREFIX):
                    (victim.object_folder / name).unlink()

        await rig.grow()
        peers.watch = watch
        made = await rig.keeper.snapshot()
        assert "peer-1" not in made.peers
        assert victim.names(MANIFEST_PREFIX) == []

    with_rig(tmp_path / "router", peers, scenario)
