import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Chunk, PeerState
from mictlanfs_server.router import collector
from tests.contract.metadata.forms import PEERS, Client, kind_of, new_chunk
from tests.unit.server.router.parts import GRACE_S, Parts, run_parts

URL_1, URL_2, URL_3 = (f"http://127.0.0.1:{24000 + number}" for number in PEERS)


async def dead_file(parts: Parts, *chunks: Chunk) -> Client:
    """A file that was removed, so that its chunks are tombstones."""
    client, bucket, _ = await parts.file_of(*chunks)
    await client.do(wire.Unlink(bucket, b"file", 1))
    return client


async def tombstones(parts: Parts) -> int:
    return (await parts.store.counts()).tombstones


async def wait(parts: Parts, seconds: float) -> None:
    """Let time pass while every peer goes on sending heartbeats."""
    parts.clock.advance(seconds)
    await parts.announce(*(peer.number for peer in parts.membership.peer_map().peers))


# --- dead chunks ---


def test_dead_chunk_is_deleted_on_its_peers_and_forgotten(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2, 3)
        chunk = new_chunk(10, PEERS[:2])
        await dead_file(parts, chunk)
        await wait(parts, GRACE_S + 1)
        assert await parts.collector.collect() == 2
        assert sorted(parts.peers.deleted) == [(URL_1, chunk.id), (URL_2, chunk.id)]
        assert await tombstones(parts) == 0

    run_parts(tmp_path, scenario)


def test_chunk_is_kept_for_the_grace_period(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        await dead_file(parts, new_chunk())
        await wait(parts, GRACE_S - 1)
        assert await parts.collector.collect() == 0
        await wait(parts, 2)
        assert await parts.collector.collect() == 2

    run_parts(tmp_path, scenario)


@dataclass
class FakeSnapshots:
    """The newest snapshot is of `horizon_ns`."""

    horizon_ns: int | None = None
    hastened: int = 0

    def hasten(self) -> None:
        self.hastened += 1


def test_chunk_that_the_newest_snapshot_may_name_is_kept_until_there_is_a_newer_one(
    tmp_path: Path,
) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        snapshots = parts.collector._snapshots = FakeSnapshots(parts.clock.wall_ns())
        # In this very nanosecond it may still be in the snapshot.
        await dead_file(parts, new_chunk())
        await wait(parts, 100 * GRACE_S)
        assert await parts.collector.collect() == 0
        assert snapshots.hastened == 1
        snapshots.horizon_ns = parts.clock.wall_ns()
        assert await parts.collector.collect() == 2
        assert await tombstones(parts) == 0

    run_parts(tmp_path, scenario)


def test_snapshot_newer_than_the_grace_period_is_not_hastened(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        await dead_file(parts, new_chunk())
        await wait(parts, GRACE_S / 2)
        snapshots = parts.collector._snapshots = FakeSnapshots(parts.clock.wall_ns())
        assert await parts.collector.collect() == 0
        await wait(parts, GRACE_S)
        assert await parts.collector.collect() == 2
        assert snapshots.hastened == 0

    run_parts(tmp_path, scenario)


def test_without_snapshots_the_grace_period_alone_counts(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        parts.collector._snapshots = FakeSnapshots(None)
        await dead_file(parts, new_chunk())
        await wait(parts, GRACE_S + 1)
        assert await parts.collector.collect() == 2

    run_parts(tmp_path, scenario)


def test_live_chunk_is_never_deleted(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        await parts.file_of(new_chunk())
        await wait(parts, 10 * GRACE_S)
        await parts.collector.collect()
        assert parts.peers.request_count == 0

    run_parts(tmp_path, scenario)


def test_peer_that_is_down_keeps_its_copy_until_it_is_back(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        chunk = new_chunk()
        await dead_file(parts, chunk)
        await wait(parts, GRACE_S + 1)
        await parts.handlers.leave(wire.PeerLeave("peer-2", URL_2))
        assert await parts.collector.collect() == 1
        assert parts.peers.deleted == [(URL_1, chunk.id)]
        assert await tombstones(parts) == 1
        assert await parts.collector.collect() == 0
        await parts.announce(2)
        assert await parts.collector.collect() == 1
        assert parts.peers.deleted[1:] == [(URL_2, chunk.id)]
        assert await tombstones(parts) == 0

    run_parts(tmp_path, scenario)


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.INTERNAL])
def test_peer_that_fails_is_asked_once_a_round_and_again_the_next(
    tmp_path: Path, kind: Kind
) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        await dead_file(parts, *(new_chunk(1) for _ in range(3 * wire.FRAME_CHUNKS_MAX)))
        await parts.collector.reclaim()
        await wait(parts, GRACE_S + 1)
        parts.peers.broken[URL_1] = MictlanError(kind)
        assert await parts.collector.collect() == 3 * wire.FRAME_CHUNKS_MAX
        assert parts.peers.request_count == 4
        assert await tombstones(parts) == 3 * wire.FRAME_CHUNKS_MAX
        del parts.peers.broken[URL_1]
        assert await parts.collector.collect() == 3 * wire.FRAME_CHUNKS_MAX
        assert await tombstones(parts) == 0

    run_parts(tmp_path, scenario)


def test_chunk_that_a_peer_cannot_delete_stays_recorded(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        stuck, other = new_chunk(), new_chunk()
        parts.peers.refused.add(stuck.id)
        await dead_file(parts, stuck, other)
        await wait(parts, GRACE_S + 1)
        assert await parts.collector.collect() == 2
        (left,) = await parts.store.dead_chunks(10**19 // 2, None, 9)
        assert (left.id, left.peers) == (stuck.id, PEERS[:2])

    run_parts(tmp_path, scenario)


def test_answer_of_the_wrong_length_confirms_nothing(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        await dead_file(parts, new_chunk())
        await wait(parts, GRACE_S + 1)
        parts.peers.answers_too_few = True
        assert await parts.collector.collect() == 0
        assert await tombstones(parts) == 1

    run_parts(tmp_path, scenario)


def test_dead_chunk_that_nobody_holds_is_forgotten(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        chunk = new_chunk()
        await dead_file(parts, chunk)
        await parts.store._change(
            lambda rows: rows.connection.execute("DELETE FROM replica") and None
        )
        await wait(parts, GRACE_S + 1)
        await parts.collector.collect()
        assert await tombstones(parts) == 0
        assert parts.peers.request_count == 0

    run_parts(tmp_path, scenario)


def test_deletion_that_was_done_but_not_recorded_is_done_again(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        chunk = new_chunk()
        await dead_file(parts, chunk)
        await wait(parts, GRACE_S + 1)

        async def crash(_: object) -> None:
            raise MictlanError(Kind.UNAVAILABLE)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts.store, "forget_replicas", crash)
            assert await kind_of(parts.collector.collect()) is Kind.UNAVAILABLE
        assert await tombstones(parts) == 1
        assert await parts.collector.collect() == 2
        assert await tombstones(parts) == 0
        assert len(parts.peers.deleted) == 4

    run_parts(tmp_path, scenario)


# --- the tick ---


def test_silent_session_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(parts: Parts) -> None:
        client, bucket, file = await parts.file_of(new_chunk())
        await client.do(wire.Unlink(bucket, b"file", 1, sustain=True))
        for _ in range(31):
            parts.clock.advance(1)
            await parts.collector.tick(1)
        assert parts.sessions.statuses() == []
        assert await kind_of(client.make(bucket, b"late")) is Kind.FENCED
        assert not await client.exists(file)

    async def with_peers(parts: Parts) -> None:
        await parts.announce(1, 2)
        await scenario(parts)

    run_parts(tmp_path, with_peers)
    assert "expired" in caplog.text


def test_silent_peer_is_noticed_and_made_public(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1)
        states = []
        for _ in range(12):
            parts.clock.advance(1)
            await parts.collector.tick(1)
            states.append(parts.peer_map.peer_map.peers[0].state)
        assert states[1] is PeerState.UP
        assert states[3] is PeerState.SUSPECT
        assert states[-1] is PeerState.DOWN
        assert (await parts.store.peer_map()).peers[0].state is PeerState.DOWN

    run_parts(tmp_path, scenario)


def test_pause_of_the_router_costs_nobody_anything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1)
        await parts.open_session()
        # Stopped and continued: the first tick comes an hour late.
        parts.clock.advance(3600)
        await parts.collector.tick(1)
        assert parts.peer_map.peer_map.peers[0].state is PeerState.UP
        assert len(parts.sessions.statuses()) == 1
        assert "did not run for 3599.0 s" in caplog.text

    run_parts(tmp_path, scenario)


def test_time_a_session_was_seen_is_saved_every_few_seconds(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        grant = await parts.open_session()
        saved = []
        for _ in range(12):
            parts.clock.advance(1)
            await parts.handlers.heartbeat(wire.SessionRef(grant.session, grant.epoch))
            await parts.collector.tick(1)
            saved.append((await parts.store.sessions())[0].seen_ns)
        assert len(set(saved)) == 3

    run_parts(tmp_path, scenario)


def test_tick_lets_go_of_everything_there_is(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        count = 3 * collector.RECLAIM_COUNT
        await dead_file(parts, *(new_chunk(1) for _ in range(count)))
        await parts.collector.tick(1)
        assert await tombstones(parts) == count

    run_parts(tmp_path, scenario)


def test_background_work_goes_on_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(collector, "TICK_S", 0.001)
    monkeypatch.setattr(collector, "COLLECT_MAX_S", 0.001)
    monkeypatch.setattr(collector, "COLLECT_MIN_S", 0.001)
    calls = {"tick": 0, "collect": 0}

    async def scenario(parts: Parts) -> None:
        enough = asyncio.Event()

        async def fail(name: str) -> None:
            calls[name] += 1
            if min(calls.values()) >= 3:
                enough.set()
            raise ZeroDivisionError

        monkeypatch.setattr(parts.collector, "tick", lambda _: fail("tick"))
        monkeypatch.setattr(parts.collector, "collect", lambda: fail("collect"))
        task = asyncio.create_task(parts.collector.run())
        async with asyncio.timeout(10):
            await enough.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_parts(tmp_path, scenario)
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
