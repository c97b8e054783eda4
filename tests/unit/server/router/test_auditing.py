from pathlib import Path

from mictlanfs.errors import Kind
from mictlanfs.model import Chunk, ChunkId, PeerNumber
from mictlanfs.wireverify import CheckSpace
from mictlanfs_server.metadata.base import DeadChunk
from mictlanfs_server.router.auditing import RESTORED_KEPT_S
from tests.contract.metadata.forms import kind_of, new_chunk
from tests.unit.server.router.verified import HOUR_S, Verified, run_verified

ONE, TWO, THREE = PeerNumber(1), PeerNumber(2), PeerNumber(3)


def made(verified: Verified, hours_ago: float, *peers: PeerNumber) -> Chunk:
    """A chunk whose id was made so long ago by the router's clock."""
    made_ms = verified.parts.clock.wall_ns() // 1_000_000 - int(hours_ago * 3_600_000)
    chunk = new_chunk(10, peers or (ONE,))
    chunk_id = ChunkId(made_ms.to_bytes(6, "big") + chunk.id[6:])
    return Chunk(chunk_id, chunk.length, chunk.digest, chunk.peers)


async def dead(verified: Verified) -> list[DeadChunk]:
    verified.parts.clock.advance(10)
    return await verified.parts.store.dead_chunks(verified.parts.clock.wall_ns(), None, 99)


def test_a_space_whose_peers_have_all_copies_is_sound(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        chunks = [new_chunk(10, (ONE, TWO)) for _ in range(8)]
        await verified.parts.file_of(*chunks)
        for number in (1, 2):
            verified.peers.hold(number, *chunks)
        state = await verified.check(metadata=True, deep=True, peers=True)
        assert (state.copies_count, state.missing_count, state.orphan_count) == (16, 0, 0)
        assert state.peers_checked == ("peer-1", "peer-2", "peer-3")
        assert (state.broken, state.damaged, state.error) == ((), (), "")
        assert verified.peers.asked == []

    run_verified(tmp_path, scenario)


def test_missing_and_other_copies_are_counted_and_repaired_when_asked(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        chunks = [new_chunk(10, (ONE, TWO)) for _ in range(9)]
        await verified.parts.file_of(*chunks)
        verified.peers.hold(1, *chunks)
        verified.peers.hold(2, *chunks[:2], *chunks[4:7])
        other = Chunk(chunks[8].id, 10, b"x" * 32, ())
        verified.peers.hold(2, other)
        state = await verified.check(peers=True)
        assert (state.missing_count, state.repaired_count) == (4, 0)
        assert await verified.peers_of(chunks[2]) == (ONE, TWO)
        # What the peer was asked about is gone from it by now: it is missing.
        state = await verified.check(peers=True, repair=True)
        assert (state.missing_count, state.repaired_count) == (4, 4)
        assert [await verified.peers_of(chunk) for chunk in chunks] == [
            (ONE,) if index in {2, 3, 7, 8} else (ONE, TWO) for index in range(9)
        ]
        assert (await verified.check(peers=True)).missing_count == 0
        assert verified.woken

    run_verified(tmp_path, scenario)


def test_a_copy_that_comes_between_two_looks_is_not_missing(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        client, bucket, _ = await verified.parts.file_of(new_chunk(10, (TWO,)))
        late = new_chunk(10, (ONE,))
        file = await client.make(bucket, b"late")

        async def commit_late() -> None:
            verified.peers.on_list = None
            verified.peers.hold(1, late)
            await client.write(file, late)

        verified.peers.on_list = commit_late
        verified.peers.hold(2, *[])
        state = await verified.check(peers=True, repair=True)
        assert (1, late.id) in verified.peers.asked
        # The other one is missing, and the last.
        assert (state.missing_count, len(state.damaged)) == (1, 1)
        assert await verified.peers_of(late) == (ONE,)

    run_verified(tmp_path, scenario)


def test_peers_that_do_not_answer_are_named(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        verified.peers.broken.add(2)
        state = await verified.check(peers=True)
        assert (state.peers_checked, state.peers_skipped) == (("peer-1", "peer-3"), ("peer-2",))

    run_verified(tmp_path, scenario)


def test_orphans_are_removed_when_they_are_old_by_both_clocks(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        old = made(verified, 25)
        young_by_id = made(verified, 23)
        young_by_arrival = made(verified, 1000)
        verified.peers.hold(1, old, young_by_id, age_s=25 * HOUR_S)
        verified.peers.hold(1, young_by_arrival, age_s=23 * HOUR_S)
        state = await verified.check(peers=True)
        assert (state.orphan_count, state.young_count, state.collected_count) == (3, 2, 0)
        assert await dead(verified) == []
        state = await verified.check(peers=True, collect=True)
        assert (state.orphan_count, state.young_count, state.collected_count) == (3, 2, 1)
        assert [(one.id, one.peers) for one in await dead(verified)] == [(old.id, (ONE,))]
        # It is the collector's now.
        assert (await verified.check(peers=True, collect=True)).collected_count == 0

    run_verified(tmp_path, scenario)


def test_a_chunk_committed_behind_the_inventory_is_no_orphan(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        client, bucket, _ = await verified.parts.file_of()
        file = await client.make(bucket, b"late")
        chunk = made(verified, 1000)
        verified.peers.hold(1, chunk)

        async def commit() -> None:
            verified.peers.on_list = None
            await client.write(file, chunk)

        verified.peers.on_list = commit
        state = await verified.check(peers=True, collect=True)
        assert state.orphan_count == 0
        assert await verified.peers_of(chunk) == (ONE,)

    run_verified(tmp_path, scenario)


def test_a_commit_behind_the_removal_is_refused(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        client, bucket, _ = await verified.parts.file_of()
        file = await client.make(bucket, b"late")
        chunk = made(verified, 1000)
        verified.peers.hold(1, chunk)
        assert (await verified.check(collect=True)).collected_count == 1
        assert await kind_of(client.write(file, chunk)) is Kind.NO_DATA

    run_verified(tmp_path, scenario)


def test_copies_without_a_row_get_one_when_that_is_asked_for(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        chunk, gone = new_chunk(10, (ONE,)), new_chunk(10, (ONE,))
        client, _, file = await verified.parts.file_of(chunk, gone)
        other = new_chunk(10, (THREE,))
        await client.write(file, chunk, other)
        verified.peers.hold(3, other)
        verified.peers.hold(1, chunk, gone)
        verified.peers.hold(2, chunk, gone)
        verified.peers.hold(3, chunk, age_s=60)
        state = await verified.check(peers=True)
        assert state.surplus_count == 2
        assert await verified.peers_of(chunk) == (ONE,)
        await verified.check(peers=True, repair=True, collect=True)
        # The young one may be on its way to a row.
        assert await verified.peers_of(chunk) == (ONE, TWO)
        assert [one.peers for one in await dead(verified)] == [(ONE, TWO)]

    run_verified(tmp_path, scenario)


def test_a_check_that_runs_is_not_begun_again(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        auditor = verified.auditor
        first = await auditor.check(CheckSpace(begin=True, metadata=True))
        other = await auditor.check(CheckSpace(begin=True, peers=True))
        assert (first.is_running, first.is_begun) == (True, True)
        assert (other.number, other.is_running, other.is_begun) == (first.number, True, False)
        second = await verified.check_after(first, peers=True)
        assert second.number > first.number
        assert second.peers_checked
        # What the first one found is still known, and says nothing of peers.
        found = await auditor.check(CheckSpace(number=first.number))
        assert (found.number, found.peers_checked) == (first.number, ())
        assert (await auditor.check(CheckSpace(number=1))).number == 0

    run_verified(tmp_path, scenario)


def test_what_was_there_before_a_restore_is_kept_for_a_while(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        clock = verified.parts.clock
        before, between, later = made(verified, 60), made(verified, 50), made(verified, 25)
        verified.peers.hold(1, before, age_s=60 * HOUR_S)
        # Its writer's clock, or that of the peer, is wrong.
        verified.peers.hold(1, between, age_s=30 * HOUR_S)
        verified.peers.hold(1, later, age_s=25 * HOUR_S)
        verified.parts.store.restored_at_ns = clock.wall_ns() - int(40 * HOUR_S * 1e9)
        state = await verified.check(peers=True, collect=True)
        assert (state.orphan_count, state.restored_count, state.collected_count) == (3, 2, 1)
        assert [one.id for one in await dead(verified)] == [later.id]
        state = await verified.check(peers=True, collect=True, force=True)
        assert (state.restored_count, state.collected_count) == (0, 2)
        assert {one.id for one in await dead(verified)} == {before.id, between.id, later.id}

    run_verified(tmp_path, scenario)


def test_what_was_there_before_a_restore_is_not_kept_for_ever(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        verified.peers.hold(1, made(verified, 1000), age_s=1000 * HOUR_S)
        now_ns = verified.parts.clock.wall_ns()
        verified.parts.store.restored_at_ns = now_ns - int(RESTORED_KEPT_S * 1e9)
        assert (await verified.check(peers=True, collect=True)).collected_count == 1

    run_verified(tmp_path, scenario)
