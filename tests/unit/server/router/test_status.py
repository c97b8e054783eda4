from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import PeerNumber
from mictlanfs_server.metadata.base import ReplicaCounts
from mictlanfs_server.router.status import (
    COUNTS_AGE_MAX_S,
    metadata_problems,
    peer_problems,
    replica_problems,
)
from tests.contract.metadata.forms import PEERS, new_chunk
from tests.unit.server.router.parts import Parts, run_parts


def status_of(name: str, state: str, *, is_full: bool = False) -> wire.PeerStatus:
    return wire.PeerStatus(name, "http://h:1", "", state, 10, 0, 0, is_full, 12.4)


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        ([], ["no peer is up"]),
        ([status_of("p", "up")], []),
        ([status_of("p", "down")], ["no peer is up", "peer p is down since 12 s"]),
        ([status_of("p", "up"), status_of("q", "down")], ["peer q is down since 12 s"]),
        ([status_of("p", "suspect")], ["peer p is silent since 12 s"]),
        ([status_of("p", "up", is_full=True)], ["peer p is full"]),
    ],
)
def test_problems_of_peers_are_sentences(peers: list[wire.PeerStatus], expected: list[str]) -> None:
    assert peer_problems(peers) == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (ReplicaCounts(0, 0), []),
        (ReplicaCounts(1, 0), ["1 chunk has fewer copies than wanted"]),
        (ReplicaCounts(3, 0), ["3 chunks have fewer copies than wanted"]),
        (ReplicaCounts(1, 1), ["1 chunk has no copy on any peer that answers"]),
        (
            ReplicaCounts(5, 2),
            [
                "2 chunks have no copy on any peer that answers",
                "3 chunks have fewer copies than wanted",
            ],
        ),
    ],
)
def test_problems_of_copies_are_sentences(counts: ReplicaCounts, expected: list[str]) -> None:
    assert replica_problems(counts) == expected


@pytest.mark.parametrize(
    ("status", "tombstones", "expected"),
    [
        (wire.MetadataStatus(is_late=False, error="x"), 5, []),
        (wire.MetadataStatus(is_late=True), 0, ["the metadata was never copied to peers"]),
        (
            wire.MetadataStatus(is_late=True, age_s=3000, error="no peer is up"),
            5,
            [
                "the metadata was last copied to peers 50 min ago; "
                "5 chunks of removed files wait for the next copy: no peer is up"
            ],
        ),
    ],
)
def test_problems_of_snapshots_are_sentences(
    status: wire.MetadataStatus, tombstones: int, expected: list[str]
) -> None:
    assert metadata_problems(status, tombstones) == expected


def test_status_of_a_sound_space(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2, chunk_count=1)
        await parts.file_of(new_chunk(10))
        parts.clock.advance(1)
        status = await parts.report.status()
        assert status.is_healthy
        assert status.problems == []
        assert (status.space_id, status.router_id) == (parts.store.space_id, "mictlanx-router-0")
        assert status.uptime_s == pytest.approx(1)
        assert [peer.state for peer in status.peers] == ["up", "up"]
        assert [session.label for session in status.sessions] == ["test"]
        counts = (status.bucket_count, status.inode_count, status.chunk_count)
        assert counts == (1, 3, 1)
        assert (status.bytes_logical, status.tombstone_count) == (10, 0)
        assert (status.under_replicated_count, status.lost_count) == (0, 0)

    run_parts(tmp_path, scenario)


def test_status_tells_of_chunks_whose_peers_are_down(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2, 3)
        await parts.file_of(new_chunk(10, PEERS[:2]), new_chunk(10, PEERS[1:]))
        parts.clock.advance(11)
        await parts.announce(3)
        parts.membership.tick()
        status = await parts.report.status()
        assert not status.is_healthy
        assert (status.under_replicated_count, status.lost_count) == (2, 1)
        assert status.problems == [
            "peer peer-1 is down since 11 s",
            "peer peer-2 is down since 11 s",
            "1 chunk has no copy on any peer that answers",
            "1 chunk has fewer copies than wanted",
        ]

    run_parts(tmp_path, scenario)


def test_what_a_leave_would_cost_is_told_before(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2, 3)
        one, two = (PeerNumber(1),), (PeerNumber(2), PeerNumber(3))
        await parts.file_of(new_chunk(10, PEERS[:2]), new_chunk(10, one), new_chunk(10, two))

        async def cost(name: str) -> wire.LeaveCost:
            return await parts.handlers.leave_cost(wire.GetLeaveCost(name))

        # The second chunk is short of copies as it is.
        assert await cost("peer-1") == wire.LeaveCost(lost_count=1, short_count=1)
        assert await cost("peer-2") == wire.LeaveCost(lost_count=0, short_count=2)
        await parts.handlers.leave(wire.PeerLeave("peer-3", "http://127.0.0.1:24003"))
        assert await cost("peer-3") == wire.LeaveCost(lost_count=0, short_count=0)
        assert await cost("peer-2") == wire.LeaveCost(lost_count=1, short_count=1)
        with pytest.raises(MictlanError) as caught:
            await cost("peer-9")
        assert caught.value.kind is Kind.NOT_FOUND

    run_parts(tmp_path, scenario)


def test_replica_counts_are_kept_for_seconds_and_renewed(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2, 3)
        assert (await parts.report.status()).under_replicated_count == 0
        await parts.file_of(new_chunk(10, (PeerNumber(1),)))
        assert (await parts.report.status()).under_replicated_count == 0
        parts.clock.advance(COUNTS_AGE_MAX_S)
        assert (await parts.report.status()).under_replicated_count == 1

    run_parts(tmp_path, scenario)


def test_replica_counts_are_renewed_when_a_peer_changes_state(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        await parts.file_of(new_chunk(10))
        assert (await parts.report.status()).under_replicated_count == 0
        await parts.handlers.leave(wire.PeerLeave("peer-1", "http://127.0.0.1:24001"))
        assert (await parts.report.status()).under_replicated_count == 1

    run_parts(tmp_path, scenario)
