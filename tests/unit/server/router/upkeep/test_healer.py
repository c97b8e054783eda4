"""The healer: what is short gets its copies, what is too much goes, nothing that counts is lost."""

from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ChunkId
from mictlanfs.wirecopies import ClonePeer, DrainPeer, Locate, RemovePeer, StartUpkeep
from mictlanfs_server.router.upkeep import healer as healer_module
from mictlanfs_server.router.upkeep import orders as orders_module
from mictlanfs_server.router.upkeep.desk import UpkeepDesk
from mictlanfs_server.router.upkeep.healer import Healer
from mictlanfs_server.router.upkeep.planning import sources_of
from tests.contract.metadata.forms import kind_of, new_chunk
from tests.unit.server.router.fakes import announce
from tests.unit.server.router.upkeep.copying import (
    FOUR,
    HEAL_DELAY_S,
    ONE,
    THREE,
    TWO,
    Space,
    run_space,
    url_of,
)

GRACE_S = 50.0


def desk_of(space: Space) -> UpkeepDesk:
    return UpkeepDesk(space.parts.store, space.parts.membership, space.parts.peer_map, space.healer)


async def step_until_idle(space: Space, steps_max: int = 50) -> None:
    for _ in range(steps_max):
        await space.healer.step()
        if not space.healer.orders.has_work and not space.healer.tally.short_count:
            return
    raise AssertionError("it does not end")


# --- healing ---


def test_chunk_that_was_written_short_is_healed_at_once(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunk = new_chunk(10, (ONE,))
        await space.store(chunk)
        await space.healer.step()
        assert len(await space.holders(chunk)) == 2
        status = space.healer.status()
        assert (status.healed_count, status.copied_bytes, status.short_count) == (1, 10, 0)

    run_space(tmp_path, scenario)


def test_chunk_that_is_short_waits_for_peers(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunk = new_chunk(10, (ONE,))
        await space.store(chunk)
        for number in (2, 3):
            await space.stop(number)
        await space.healer.step()
        assert await space.holders(chunk) == {ONE}
        await space.start(2)
        await space.healer.step()
        assert await space.holders(chunk) == {ONE, TWO}

    run_space(tmp_path, scenario)


def test_peer_that_is_down_is_missed_for_a_while_before_its_chunks_are_copied(
    tmp_path: Path,
) -> None:
    async def scenario(space: Space) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        await space.store(chunk)
        await space.healer.step()
        await space.stop(2)
        await space.healer.step()
        await space.wait(HEAL_DELAY_S - 1)
        await space.healer.step()
        assert space.peers.pulls == []
        assert space.healer.status().waiting_peers == {"peer-2": pytest.approx(1.0)}
        await space.wait(2)
        await space.healer.step()
        assert await space.holders(chunk) == {ONE, TWO, THREE}
        assert space.is_held(chunk, 3)

        # It comes back: one copy is too much, once it has stayed for a while.
        await space.start(2)
        await space.healer.step()
        assert len(await space.holders(chunk)) == 3
        await space.wait(HEAL_DELAY_S + 1)
        await space.healer.step()
        assert len(await space.holders(chunk)) == 2
        # Readers that know it from before are served for the grace period.
        assert space.peers.deleted == []
        await space.wait(GRACE_S + 1)
        await space.healer.step()
        assert len(space.peers.deleted) == 1

    run_space(tmp_path, scenario)


def test_peer_that_comes_and_goes_moves_nothing(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        await space.store(chunk)
        await space.healer.step()
        for _ in range(4):
            await space.stop(2)
            await space.healer.step()
            await space.wait(HEAL_DELAY_S - 1)
            await space.start(2)
            await space.healer.step()
            await space.wait(5)
        await space.stop(2)
        await space.healer.step()
        await space.wait(HEAL_DELAY_S * 3)
        await space.healer.step()
        assert space.peers.pulls == []

    run_space(tmp_path, scenario)


def test_fewest_copies_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healer_module, "BATCH_COUNT", 1)

    async def scenario(space: Space) -> None:
        await space.start(4)
        twice, once = new_chunk(10, (ONE, TWO)), new_chunk(10, (ONE,))
        await space.store(twice, once)
        await space.parts.store.add_replicas({twice.id: [THREE]}, raises_wanted=True)
        await space.parts.store.drop_replicas({twice.id: [THREE]})
        await space.healer.step()
        assert space.peers.copied[0][1] == once.id
        assert len(space.peers.copied) == 2

    run_space(tmp_path, scenario)


def test_store_that_is_empty_under_the_same_id_is_healed_without_a_wait(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        space_id = space.parts.store.space_id
        tell = space.parts.handlers.announce
        await tell(announce(2, space_id=space_id, store_id="before"))
        chunk = new_chunk(10, (ONE, TWO))
        client = await space.store(chunk)
        await space.healer.step()
        # Killed, its folder removed, started again.
        space.peers.held[url_of(2)].clear()
        space.up.discard(2)
        welcome = await tell(announce(2, space_id="", store_id="after"))
        assert welcome.number == FOUR
        await space.healer.step()
        assert await space.holders(chunk) in ({ONE, THREE}, {ONE, FOUR})
        assert space.healer.status().healed_count == 1
        # What a writer stored before, and commits only now, is healed as well.
        late = new_chunk(10, (ONE, TWO))
        space.peers.held[url_of(1)].add(late.id)
        [bucket] = (await space.parts.store.buckets()).buckets
        await client.write(await client.make(bucket.attributes.ino, b"late"), late)
        space.healer.wake()
        await space.healer.step()
        assert len(await space.holders(late)) == 2
        assert TWO not in await space.holders(late)
        space.peers.held[url_of(4)] = space.peers.held[url_of(2)]

    run_space(tmp_path, scenario)


def test_store_that_comes_back_gives_what_nobody_else_has(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        space_id = space.parts.store.space_id
        tell = space.parts.handlers.announce
        await tell(announce(2, space_id=space_id, store_id="before"))
        only, both = new_chunk(10, (TWO,)), new_chunk(10, (ONE, TWO))
        await space.store(only, both)
        # Its disk was not mounted: it starts with an empty directory.
        disk, space.peers.held[url_of(2)] = space.peers.held[url_of(2)], set()
        space.up.discard(2)
        await tell(announce(2, space_id="", store_id="after"))
        await space.healer.step()
        assert space.healer.status().unhealable_count == 1
        space.peers.held[url_of(2)] = disk
        welcome = await tell(announce(2, space_id=space_id, store_id="before"))
        assert welcome.number == TWO
        await space.healer.step()
        assert len(await space.holders(only)) == 2
        assert space.healer.status().unhealable_count == 0

    run_space(tmp_path, scenario)


@pytest.mark.parametrize("is_gone", [False, True], ids=["bad", "gone"])
def test_bad_copy_of_a_source_goes_once_the_chunk_was_copied_from_another(
    tmp_path: Path, *, is_gone: bool
) -> None:
    async def scenario(space: Space) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        await space.store(chunk)
        await space.parts.store.add_replicas({chunk.id: [THREE]}, raises_wanted=True)
        await space.parts.store.drop_replicas({chunk.id: [THREE]})
        await space.healer.delete_given_up()
        # Whichever is asked first.
        first = sources_of(await space.copies(chunk), space.healer.standing())[0]
        if is_gone:
            space.peers.held[url_of(first)].clear()
        else:
            space.peers.bad = {(url_of(first), chunk.id)}
        await space.healer.step()
        assert await space.holders(chunk) == {ONE, TWO, THREE} - {first}
        space.healer.wake()
        await space.healer.step()
        assert (url_of(first), chunk.id) in space.peers.deleted
        # And it has a good one again.
        assert await space.holders(chunk) == {ONE, TWO, THREE}
        assert space.healer.status().failed_count == 0

    run_space(tmp_path, scenario)


def test_copies_that_all_look_bad_stay(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        await space.store(chunk)
        await space.parts.store.add_replicas({chunk.id: [THREE]}, raises_wanted=True)
        await space.parts.store.drop_replicas({chunk.id: [THREE]})
        await space.healer.delete_given_up()
        space.peers.bad = {(url_of(1), chunk.id), (url_of(2), chunk.id)}
        await space.healer.step()
        assert await space.holders(chunk) == {ONE, TWO}
        assert space.healer.status().failed_count == 1

    run_space(tmp_path, scenario)


def test_last_copy_stays_in_the_books_however_bad(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunk = new_chunk(10, (ONE,))
        await space.store(chunk)
        space.peers.bad = {(url_of(1), chunk.id)}
        await space.healer.step()
        assert await space.holders(chunk) == {ONE}
        assert "corrupt" in space.healer.status().problem

    run_space(tmp_path, scenario)


def test_chunk_that_dies_while_it_is_copied_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunk = new_chunk(10, (ONE,))
        client = await space.store(chunk)
        [bucket] = (await space.parts.store.buckets()).buckets

        async def die() -> None:
            space.peers.on_pull = None
            await client.do(wire.Unlink(bucket.attributes.ino, b"file", 1))
            await space.parts.store.forget_replicas({chunk.id: [ONE]})

        space.peers.on_pull = die
        await space.healer.step()
        assert [chunk_id for _, chunk_id in space.peers.copied] == [chunk.id]
        assert [chunk_id for _, chunk_id in space.peers.deleted] == [chunk.id]

    run_space(tmp_path, scenario)


def test_full_and_silent_targets_are_left_out_and_tried_again(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunks = [new_chunk(10, (ONE,)) for _ in range(8)]
        await space.store(*chunks)
        space.peers.full = {url_of(2)}
        space.peers.silent = {url_of(3)}
        await space.healer.step()
        status = space.healer.status()
        assert (status.healed_count, status.short_count, status.failed_count) == (0, 8, 8)
        assert status.problem
        space.peers.full = set()
        space.peers.silent = set()
        await space.wait(healer_module.TRY_AGAIN_S)
        await space.healer.step()
        assert space.healer.status().short_count == 0

    run_space(tmp_path, scenario)


def test_many_chunks_travel_in_few_requests(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        await space.store(*(new_chunk(10, (ONE,)) for _ in range(200)))
        await space.healer.step()
        assert space.healer.status().healed_count == 200
        assert len(space.peers.pulls) == 2

    run_space(tmp_path, scenario)


# --- giving up ---


def test_copy_is_given_up_only_when_the_others_say_that_they_have_theirs(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        await space.store(chunk)
        await space.parts.store.add_replicas({chunk.id: [THREE]})
        # Each of them lacks it but one: who is asked fetches it.
        space.peers.held = {url_of(1): {chunk.id}, url_of(2): {chunk.id}, url_of(3): {chunk.id}}
        space.peers.silent = {url_of(1), url_of(2), url_of(3)}
        await space.healer.step()
        assert len(await space.holders(chunk)) == 3
        space.peers.silent = set()
        space.healer.wake()
        await space.healer.step()
        assert len(await space.holders(chunk)) == 2

    run_space(tmp_path, scenario)


def test_given_up_copy_is_no_target_before_it_is_deleted(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        await space.stop(3)
        chunk = new_chunk(10, (ONE, TWO))
        await space.store(chunk)
        due_ns = space.clock.wall_ns() + 10**9
        await space.parts.store.drop_replicas({chunk.id: [TWO]}, delete_at_ns=due_ns)
        await space.healer.step()
        assert await space.holders(chunk) == {ONE}
        await space.wait(2)
        await space.healer.step()
        assert space.peers.deleted == [(url_of(2), chunk.id)]
        # At once: nobody else may be there to take one.
        await space.healer.step()
        assert await space.holders(chunk) == {ONE, TWO}
        assert space.is_held(chunk, 2)

    run_space(tmp_path, scenario)


# --- drain, rm ---


def test_drained_peer_is_emptied_and_can_be_removed(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunks = [new_chunk(10, (ONE, TWO)) for _ in range(10)]
        chunks += [new_chunk(10, (THREE, TWO)) for _ in range(10)]
        await space.store(*chunks)
        desk = desk_of(space)
        assert (await desk.drain(DrainPeer("peer-2"))).chunk_count == 20
        assert space.healer.status().draining == {"peer-2": 20}
        assert await kind_of(desk.remove(RemovePeer("peer-2"))) is Kind.BUSY
        await space.healer.step()
        assert {frozenset(await space.holders(chunk)) for chunk in chunks} == {
            frozenset({ONE, THREE})
        }
        assert space.healer.status().draining == {"peer-2": 0}
        # Readable until the grace period is over.
        assert all(space.is_held(chunk, 2) for chunk in chunks)
        assert (await desk.remove(RemovePeer("peer-2"))).lost_count == 0
        assert [peer.id for peer in space.parts.peer_map.peer_map.peers] == ["peer-1", "peer-3"]

    run_space(tmp_path, scenario)


def test_a_router_that_starts_knows_at_once_what_the_last_one_was_at(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        await space.store(*(new_chunk(10, (ONE, TWO)) for _ in range(10)))
        await desk_of(space).drain(DrainPeer("peer-2"))
        await desk_of(space).start(StartUpkeep(rebalance=True))
        parts = space.parts
        healer = Healer(
            space.healer_settings, parts.store, parts.membership, space.peers, parts.clock
        )
        await healer.prepare()
        status = healer.status()
        assert (status.draining, status.orders) == ({"peer-2": 10}, {"rebalance": 0.0})

    run_space(tmp_path, scenario)


def test_peer_with_the_only_copy_can_be_drained_and_not_removed(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunk = new_chunk(10, (TWO,))
        await space.store(chunk)
        await space.stop(2)
        desk = desk_of(space)
        assert await kind_of(desk.remove(RemovePeer("peer-2"))) is Kind.CONFLICT
        await space.start(2)
        await desk.drain(DrainPeer("peer-2"))
        await space.healer.step()
        assert await space.holders(chunk) == {ONE, THREE}

    run_space(tmp_path, scenario)


def test_forced_removal_counts_what_is_lost_and_its_number_never_comes_back(
    tmp_path: Path,
) -> None:
    async def scenario(space: Space) -> None:
        only, other = new_chunk(10, (THREE,)), new_chunk(10, (ONE, THREE))
        await space.store(only, other)
        await space.stop(3)
        desk = desk_of(space)
        removed = await desk.remove(RemovePeer("peer-3", force_lost=True))
        assert removed.lost_count == 1
        await space.healer.step()
        assert await space.holders(other) == {ONE, TWO}
        assert space.healer.status().unhealable_count == 1
        await space.start(9)
        assert max(peer.number for peer in space.parts.peer_map.peer_map.peers) == FOUR

    run_space(tmp_path, scenario)


def test_peers_do_not_become_fewer_than_the_copies_wanted_unless_forced(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        await space.store(new_chunk(10, (TWO, THREE)))
        desk = desk_of(space)
        await space.stop(1)
        with pytest.raises(MictlanError, match="1 other peer answers, and bucket") as one:
            await desk.drain(DrainPeer("peer-2"))
        assert one.value.kind is Kind.CONFLICT
        await desk.drain(DrainPeer("peer-2", is_draining=False))
        await space.stop(3)
        with pytest.raises(MictlanError, match="--force") as other:
            await desk.remove(RemovePeer("peer-1"))
        assert other.value.kind is Kind.CONFLICT
        assert (await desk.remove(RemovePeer("peer-1", force=True))).lost_count == 0
        await space.start(3)
        await desk.drain(DrainPeer("peer-2", force=True))
        drained = [peer.id for peer in space.parts.peer_map.peer_map.peers if peer.is_draining]
        assert drained == ["peer-2"]

    run_space(tmp_path, scenario)


def test_nobody_drains_the_last_peer(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        desk = desk_of(space)
        await space.stop(1)
        await space.stop(3)
        assert await kind_of(desk.drain(DrainPeer("peer-2"))) is Kind.CONFLICT
        assert await kind_of(desk.drain(DrainPeer("peer-8"))) is Kind.NOT_FOUND

    run_space(tmp_path, scenario)


# --- ordered moves ---


def test_rebalance_brings_chunks_to_a_new_peer_and_moves_no_more_than_that(
    tmp_path: Path,
) -> None:
    async def scenario(space: Space) -> None:
        chunks = [new_chunk(10, (ONE, TWO)) for _ in range(40)]
        await space.store(*chunks)
        await space.healer.step()
        assert space.peers.copied == []
        desk = desk_of(space)
        await desk.start(StartUpkeep(rebalance=True))
        assert space.healer.status().orders == {"rebalance": 0.0}
        await step_until_idle(space)
        assert space.healer.status().orders == {}
        places = [await space.holders(chunk) for chunk in chunks]
        assert all(len(place) == 2 for place in places)
        moved = sum(THREE in place for place in places)
        assert 15 <= moved <= 38
        assert len(space.peers.copied) == moved
        # All is in its place now.
        await desk.start(StartUpkeep(rebalance=True))
        await step_until_idle(space)
        assert len(space.peers.copied) == moved

    run_space(tmp_path, scenario)


def test_rebalance_goes_on_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders_module, "PAGE_COUNT", 10)

    async def scenario(space: Space) -> None:
        await space.store(*(new_chunk(10, (ONE, TWO)) for _ in range(30)))
        await desk_of(space).start(StartUpkeep(rebalance=True))
        await space.healer.step()
        [position] = (await space.parts.store.move_orders()).values()
        assert position == sorted(await space.parts.store.live_chunks(None, 10))[-1]
        # The orders as another router would find them.
        space.healer.orders._orders = None
        await step_until_idle(space)
        assert await space.parts.store.move_orders() == {}

    run_space(tmp_path, scenario)


def test_page_of_a_move_that_failed_is_done_again(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunks = [new_chunk(10, (ONE, TWO)) for _ in range(20)]
        await space.store(*chunks)
        space.peers.silent = {url_of(3)}
        await desk_of(space).start(StartUpkeep(rebalance=True))
        await space.healer.step()
        assert await space.parts.store.move_orders() == {"rebalance": b""}
        space.peers.silent = set()
        await space.wait(6)
        await step_until_idle(space)
        assert await space.parts.store.move_orders() == {}
        assert space.healer.status().moved_count > 0

    run_space(tmp_path, scenario)


def test_rebalancing_waits_for_a_peer_that_is_missed(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        await space.store(*(new_chunk(10, (ONE, TWO)) for _ in range(20)))
        await space.stop(3)
        await desk_of(space).start(StartUpkeep(rebalance=True))
        await space.healer.step()
        assert await space.parts.store.move_orders() == {"rebalance": b""}
        await space.start(3)
        await space.wait(6)
        await step_until_idle(space)
        assert space.healer.status().moved_count > 0

    run_space(tmp_path, scenario)


def test_what_is_ordered_during_a_step_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders_module, "PAGE_COUNT", 10)

    async def scenario(space: Space) -> None:
        await space.store(*(new_chunk(10, (ONE, TWO)) for _ in range(30)))
        desk = desk_of(space)
        await desk.start(StartUpkeep(rebalance=True))
        look = space.parts.store.live_chunks

        async def slow_look(after: ChunkId | None, count_max: int) -> list[ChunkId]:
            if count_max == 1:
                await desk.clone(ClonePeer("peer-1", "peer-3"))
            return await look(after, count_max)

        with monkeypatch.context() as patch:
            patch.setattr(space.parts.store, "live_chunks", slow_look)
            await space.healer.step()
        assert space.healer.status().orders.keys() == {"rebalance", "clone peer-1 peer-3"}
        await step_until_idle(space)
        assert space.healer.status().orders == {}

    run_space(tmp_path, scenario)


def test_drain_that_begins_during_a_step_is_told_at_once(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunk = new_chunk(10, (THREE,))
        await space.store(chunk)
        desk = desk_of(space)

        async def drain() -> None:
            space.peers.on_pull = None
            await desk.drain(DrainPeer("peer-3"))

        space.peers.on_pull = drain
        await space.healer.step()
        assert space.healer.status().draining == {"peer-3": 1}
        await space.healer.step()
        assert space.healer.status().draining == {"peer-3": 0}
        assert await space.holders(chunk) == {ONE, TWO}

    run_space(tmp_path, scenario)


def test_move_can_be_cancelled(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        await space.store(new_chunk(10, (ONE, TWO)))
        desk = desk_of(space)
        await desk.start(StartUpkeep(rebalance=True))
        await desk.start(StartUpkeep(cancel=True))
        await space.healer.step()
        assert await space.parts.store.move_orders() == {}

    run_space(tmp_path, scenario)


def test_clone_has_all_chunks_and_keeps_them(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunks = [new_chunk(10, (ONE, TWO)) for _ in range(5)]
        other = new_chunk(10, (TWO, THREE))
        await space.store(*chunks, other)
        desk = desk_of(space)
        assert await kind_of(desk.clone(ClonePeer("peer-1", "peer-1"))) is Kind.INVALID
        assert await kind_of(desk.clone(ClonePeer("peer-1", "peer-8"))) is Kind.NOT_FOUND
        await desk.clone(ClonePeer("peer-1", "peer-3"))
        assert space.healer.status().orders == {"clone peer-1 peer-3": 0.0}
        await step_until_idle(space)
        assert space.healer.status().orders == {}
        await space.wait(HEAL_DELAY_S * 10)
        await space.healer.step()
        assert {frozenset(await space.holders(chunk)) for chunk in chunks} == {
            frozenset({ONE, TWO, THREE})
        }
        assert await space.holders(other) == {TWO, THREE}

    run_space(tmp_path, scenario)


# --- locate ---


def test_chunks_are_located_where_they_are_now(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        chunk, unknown = new_chunk(10, (ONE, TWO)), new_chunk()
        await space.store(chunk)
        desk = desk_of(space)
        await desk.drain(DrainPeer("peer-2"))
        await space.healer.step()
        located = await desk.locate(Locate((unknown.id, chunk.id)))
        assert located.chunks[0] is None
        assert located.chunks[1] is not None
        assert located.chunks[1].peers == (ONE, THREE)
        too_many = Locate((chunk.id,) * 257)
        assert await kind_of(desk.locate(too_many)) is Kind.INVALID

    run_space(tmp_path, scenario)
