"""Extra copies of what is read often: made within bounds, ended, never at the expense of others."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Chunk, PeerInfo, PeerNumber, PeerState
from mictlanfs_server.metadata.copies import ChunkCopies
from mictlanfs_server.router.upkeep.healer import Healer
from mictlanfs_server.router.upkeep.planning import best_holders
from mictlanfs_server.router.upkeep.popularity import (
    EXTRA_COUNT_MAX,
    FREE_SHARE_MIN,
    SETTLED_AFTER_S,
    ExtraLimits,
    Popularity,
)
from mictlanfs_server.router.upkeep.standing import Standing, StandingTable
from tests.contract.metadata.forms import new_chunk
from tests.unit.server.router.fakes import announce
from tests.unit.server.router.upkeep.copying import (
    HEAL_DELAY_S,
    ONE,
    THREE,
    TWO,
    Space,
    run_space,
    url_of,
)

LIMITS = ExtraLimits(reads_per_min=100, count=5, size=1000)
LENGTH = 10
GRACE_S = 50.0


def standing_of(count: int = 6, *, full: int = 0, used: int = 0) -> Standing:
    peers = [
        PeerInfo(PeerNumber(n), f"peer-{n}", url_of(n), "", 1000, used, PeerState.UP, n == full)
        for n in range(1, count + 1)
    ]
    return StandingTable(HEAL_DELAY_S).observe(peers, 0.0)


def copies_of(*peers: int, wanted: int = 2, length: int = LENGTH) -> ChunkCopies:
    chunk = new_chunk(length, ())
    return ChunkCopies(chunk.id, length, chunk.digest, wanted, tuple(map(PeerNumber, peers)))


class Rig:
    """A table that decides about one chunk, whose copies are made as it says."""

    def __init__(
        self, chunk: ChunkCopies, standing: Standing, limits: ExtraLimits = LIMITS
    ) -> None:
        self.table = Popularity(limits, 0.0)
        self.chunk, self.standing = chunk, standing

    def read(self, rate: float, *, may_grow: bool = True) -> int:
        """The copies that it has when it is read so often."""
        rates = {self.chunk.id: rate}
        copies, _ = self.table.decide(
            self.table.interesting(rates), [self.chunk], rates, self.standing, may_grow=may_grow
        )
        peers = self.chunk.peers + tuple([copy.target for copy in copies])
        most = self.chunk.wanted + self.table.extra_copies(self.chunk.id)
        self.chunk = held_by(self.chunk, peers[:most])
        return len(self.chunk.peers)


def held_by(chunk: ChunkCopies, peers: tuple[PeerNumber, ...]) -> ChunkCopies:
    return ChunkCopies(chunk.id, chunk.length, chunk.digest, chunk.wanted, peers)


def test_copies_follow_the_rate_and_do_not_flutter() -> None:
    rig = Rig(copies_of(1, 2), standing_of())
    rates = (100, 200, 201, 300, 301, 260, 210, 150, 101, 100, 0, 250, 0)
    #        what one copy may be read is 100 a minute
    assert [rig.read(rate) for rate in rates] == [2, 2, 3, 3, 4, 4, 4, 3, 3, 2, 2, 3, 2]
    assert rig.table.copy_count == 0


def test_a_chunk_has_no_more_copies_than_there_are_peers_and_than_it_may() -> None:
    assert Rig(copies_of(1, 2), standing_of(4)).read(9_000) == 4
    limits = ExtraLimits(100, 100, 1000)
    assert Rig(copies_of(1, 2), standing_of(20), limits).read(9_000) == 2 + EXTRA_COUNT_MAX


@pytest.mark.parametrize(
    ("limits", "expected"),
    [(ExtraLimits(100, 2, 1000), 4), (ExtraLimits(100, 5, 3 * LENGTH + 9), 5)],
)
def test_the_budget_is_kept(limits: ExtraLimits, expected: int) -> None:
    assert Rig(copies_of(1, 2), standing_of(9), limits).read(9_000) == expected


def test_the_budget_is_for_what_is_read_most() -> None:
    table = Popularity(ExtraLimits(100, 2, 1000), 0.0)
    chunks = [copies_of(1, 2) for _ in range(3)]
    rates = {chunk.id: rate for chunk, rate in zip(chunks, (250, 290, 270), strict=True)}
    ids = table.interesting(rates)
    table.decide(ids, chunks, rates, standing_of(), may_grow=True)
    assert [table.extra_copies(chunk.id) for chunk in chunks] == [0, 1, 1]
    # The first one is read more than the last now.
    rates[chunks[0].id] = 280
    chunks[1:] = [held_by(chunk, (ONE, TWO, THREE)) for chunk in chunks[1:]]
    _, shrunk = table.decide(table.interesting(rates), chunks, rates, standing_of(), may_grow=True)
    assert shrunk == [chunks[2].id]
    assert (table.copy_count, table.copy_bytes) == (2, 2 * LENGTH)


def test_peers_without_much_room_get_none() -> None:
    room = int(1000 * (1 - FREE_SHARE_MIN)) - LENGTH
    assert Rig(copies_of(1, 2), standing_of(used=room)).read(9_000) > 2
    assert Rig(copies_of(1, 2), standing_of(used=room + 1)).read(9_000) == 2


def test_a_chunk_on_a_full_peer_loses_its_extra_copies() -> None:
    rig = Rig(copies_of(1, 2), standing_of())
    assert rig.read(250) == 3
    rig.standing = standing_of(full=2)
    assert rig.read(250) == 2


def test_nothing_is_made_while_there_is_other_work_and_what_is_there_stays() -> None:
    rig = Rig(copies_of(1, 2), standing_of())
    assert rig.read(250, may_grow=False) == 2
    assert rig.table.copy_count == 0
    assert rig.read(250) == 3
    assert rig.read(450, may_grow=False) == 3
    assert rig.read(0, may_grow=False) == 2


def test_a_chunk_that_is_short_gets_what_it_lacks_from_the_healer_first() -> None:
    assert Rig(copies_of(1), standing_of()).read(9_000) == 1


def test_a_chunk_that_died_is_forgotten() -> None:
    rig = Rig(copies_of(1, 2), standing_of())
    assert rig.read(250) == 3
    rates = {rig.chunk.id: 250.0}
    ids = rig.table.interesting(rates)
    assert rig.table.decide(ids, [], rates, rig.standing, may_grow=True) == ([], [])
    assert rig.table.chunk_count == 0


def test_no_more_chunks_are_looked_at_than_there_may_be_copies() -> None:
    rates = {copies_of(1).id: float(rate) for rate in range(101, 121)}
    found = Popularity(LIMITS, 0.0).interesting(rates)
    assert [rates[chunk_id] for chunk_id in found] == [120, 119, 118, 117, 116]


def test_extra_copies_from_before_a_restart_stay_as_long_as_any() -> None:
    """They would not be made for so few reads, and are not given up yet either."""
    assert Rig(copies_of(1, 2), standing_of()).read(160) == 2
    rig = Rig(copies_of(1, 2, 3), standing_of())
    assert not Popularity(LIMITS, 0.0).has_decided
    assert rig.read(160) == 3
    assert rig.table.has_decided
    assert rig.table.copy_count == 1


def test_without_a_budget_nothing_is_looked_at() -> None:
    table = Popularity(ExtraLimits(100, 0, 1000), 0.0)
    assert table.interesting({copies_of(1).id: 9_000.0}) == []
    assert table.is_settled({ONE: None}, 0.0)


def test_all_peers_that_are_up_have_to_have_told_or_had_the_time_to() -> None:
    table = Popularity(LIMITS, 0.0)
    assert not table.is_settled({ONE: (), TWO: None}, 1.0)
    assert table.is_settled({ONE: (), TWO: ()}, 1.0)
    # A peer that comes later has had its time.
    assert table.is_settled({ONE: None}, 2.0)
    assert Popularity(LIMITS, 0.0).is_settled({ONE: None}, SETTLED_AFTER_S)


# --- with a healer ---


async def tell(space: Space, chunk: Chunk, rates: dict[int, float]) -> None:
    """Peers say how often the chunk is read."""
    for number in sorted(space.up):
        heard = announce(number, space_id=space.parts.store.space_id)
        hot = (wire.HotChunk(chunk.id, rates[number]),) if number in rates else ()
        await space.parts.handlers.announce(msgspec.structs.replace(heard, hot=hot))
    space.parts.membership.tick()


async def read_for(space: Space, chunk: Chunk, rates: dict[int, float], seconds: int) -> None:
    """Time passes, with heartbeats and steps of the healer."""
    for _ in range(seconds):
        space.clock.advance(1.0)
        await tell(space, chunk, rates)
        await space.healer.step()


def run_popular(
    folder: Path,
    scenario: Callable[[Space, Chunk], Awaitable[None]],
    peers: tuple[int, ...] = (1, 2),
) -> None:
    async def main(space: Space) -> None:
        chunk = new_chunk(LENGTH, tuple(map(PeerNumber, peers)))
        await space.store(chunk)
        await space.healer.step()
        await scenario(space, chunk)

    run_space(folder, main)


def test_popular_chunk_gets_an_extra_copy_and_loses_it(tmp_path: Path) -> None:
    async def scenario(space: Space, chunk: Chunk) -> None:
        await read_for(space, chunk, {1: 130.0, 2: 130.0}, 3)
        assert await space.holders(chunk) == {ONE, TWO, THREE}
        told = space.healer.status()
        assert (told.popular_count, told.extra_count, told.extra_bytes) == (1, 1, LENGTH)
        assert (told.extra_made_count, told.healed_count, told.moved_count) == (1, 0, 0)
        # No look at all chunks takes it for one too many.
        space.healer.wake()
        await read_for(space, chunk, {1: 90.0, 2: 90.0, 3: 90.0}, 3)
        assert len(await space.holders(chunk)) == 3
        await read_for(space, chunk, {1: 30.0}, 3)
        assert len(await space.holders(chunk)) == 2
        told = space.healer.status()
        assert (told.popular_count, told.extra_count, told.trimmed_count) == (0, 0, 1)
        # Readers that know it are served for the grace period.
        assert space.peers.deleted == []
        space.clock.advance(GRACE_S)
        await read_for(space, chunk, {}, 3)
        assert len(space.peers.deleted) == 1
        assert sum(space.is_held(chunk, number) for number in (1, 2, 3)) == 2

    run_popular(tmp_path, scenario)


def test_extra_copy_stands_in_when_a_peer_is_lost_and_none_goes_below_what_is_wanted(
    tmp_path: Path,
) -> None:
    async def scenario(space: Space, chunk: Chunk) -> None:
        await read_for(space, chunk, {1: 130.0, 2: 130.0}, 3)
        # One of those to be kept dies, unnoticed, at the moment at which the chunk is read no more.
        kept = best_holders(chunk.id, (ONE, TWO, THREE), space.healer.standing())
        space.peers.silent.add(url_of(kept[0]))
        await read_for(space, chunk, {}, 3)
        assert await space.holders(chunk) == {ONE, TWO, THREE}
        await space.stop(kept[0])
        await read_for(space, chunk, {}, 3)
        assert await space.holders(chunk) == {ONE, TWO, THREE}
        await space.wait(HEAL_DELAY_S + 1)
        await read_for(space, chunk, {}, 3)
        # What there was for readers is a copy as good as any.
        assert set(kept[1:]) <= await space.holders(chunk)
        assert space.healer.status().healed_count == 0

    run_popular(tmp_path, scenario)


def test_healing_comes_first(tmp_path: Path) -> None:
    async def scenario(space: Space) -> None:
        space.peers.full = {url_of(2), url_of(3)}
        chunk, short = new_chunk(LENGTH, (ONE, TWO)), new_chunk(LENGTH, (ONE,))
        await space.store(chunk, short)
        await read_for(space, chunk, {1: 500.0, 2: 500.0}, 3)
        assert space.healer.tally.short_count == 1
        space.peers.full = set()
        await read_for(space, chunk, {1: 500.0, 2: 500.0}, 8)
        copied = [chunk_id for _, chunk_id in space.peers.copied]
        assert copied == [short.id, chunk.id]

    run_space(tmp_path, scenario)


def test_router_that_is_started_again_gives_nothing_up_before_peers_have_told(
    tmp_path: Path,
) -> None:
    async def scenario(space: Space, chunk: Chunk) -> None:
        await read_for(space, chunk, {1: 130.0, 2: 130.0}, 3)
        assert len(await space.holders(chunk)) == 3
        restarted = await restart(space)
        await restarted.step()
        await restarted.step()
        assert len(await space.holders(chunk)) == 3
        space.healer = restarted
        await read_for(space, chunk, {1: 90.0, 2: 90.0, 3: 90.0}, 10)
        assert len(await space.holders(chunk)) == 3
        assert restarted.status().trimmed_count == 0
        await read_for(space, chunk, {}, 10)
        assert len(await space.holders(chunk)) == 2

    run_popular(tmp_path, scenario)


async def restart(space: Space) -> Healer:
    """Another healer, over a membership that has heard of nobody yet."""
    parts = space.parts
    for peer in parts.membership._peers.values():
        peer.hot = None
    await asyncio.sleep(0)
    return Healer(space.healer_settings, parts.store, parts.membership, space.peers, space.clock)


def test_what_a_peer_tells_is_looked_at(tmp_path: Path) -> None:
    async def scenario(space: Space, chunk: Chunk) -> None:
        heard = announce(1, space_id=space.parts.store.space_id)
        for hot in (
            (wire.HotChunk(chunk.id, -1.0),),
            (wire.HotChunk(chunk.id, float("inf")),),
            (wire.HotChunk(chunk.id, float("nan")),),
            (wire.HotChunk(chunk.id[:3], 1.0),),  # type: ignore[arg-type]  # As a peer might.
            (wire.HotChunk(chunk.id, 1.0),) * (wire.HOT_COUNT_MAX + 1),
        ):
            with pytest.raises(MictlanError) as caught:
                await space.parts.handlers.announce(msgspec.structs.replace(heard, hot=hot))
            assert caught.value.kind is Kind.INVALID

    run_popular(tmp_path, scenario)
