"""A healer makes fragments of coded chunks: over a real store, and peers that only remember."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import KIB, Buffer, Chunk, ChunkId, Coding, PeerNumber
from mictlanfs.wirefragments import FragmentMade, MakeFragment
from mictlanfs_server.router.settings import RouterSettings
from mictlanfs_server.router.upkeep.healer import Healer
from tests.unit.server.router.fakes import FakeClock, FakePeers, FakeResponse
from tests.unit.server.router.parts import build
from tests.unit.server.router.upkeep.copying import HEAL_DELAY_S, CopyingPeers, Space, url_of

GRACE_S = 50.0


@dataclass
class MakingPeers(CopyingPeers):
    """Peers that make fragments.

    Attributes:
        made: address and index of every fragment that was made.
        missing: fragments, by address and chunk, that their peers have not.
        refusing: addresses that have no room.
    """

    made: list[tuple[str, int]] = field(default_factory=list)
    missing: set[tuple[str, ChunkId]] = field(default_factory=set)
    refusing: set[str] = field(default_factory=set)

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: Buffer | Sequence[Buffer] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> FakeResponse:
        address, _, path = url.partition("/mictlanfs")
        if "/mictlanfs" + path != wire.Path.FRAGMENT_MAKE or address in self.silent:
            return await super().request(
                method, url, body=body, headers=headers, timeout_s=timeout_s
            )
        assert isinstance(body, list)
        request = wire.unframe(b"".join(body), MakeFragment)[0]
        return FakeResponse(200, b"".join(wire.frame(self._make(address, request))))

    def _make(self, address: str, request: MakeFragment) -> FragmentMade:
        if address in self.refusing:
            return FragmentMade(wire.WireError.of(MictlanError(Kind.NO_SPACE)))
        held = self.held.setdefault(address, set())
        if request.id not in held:
            sources = zip(request.coding.indices, request.sources, strict=True)
            bad = [i for i, source in sources if (source, request.id) in self.missing]
            if len(request.sources) - len(bad) < request.coding.data:
                error = wire.WireError.of(MictlanError(Kind.UNAVAILABLE))
                return FragmentMade(error, tuple(bad))
            held.add(request.id)
            self.made.append((address, request.index))
            return FragmentMade(None, tuple(bad))
        return FragmentMade()


def run_space(
    folder: Path, count: int, scenario: Callable[[Space, MakingPeers], Awaitable[None]]
) -> None:
    """A healer over `count` peers."""

    async def main() -> None:
        clock, peers = FakeClock(), MakingPeers()
        parts = await build(folder, clock, cast("FakePeers", peers))
        settings = RouterSettings(folder, gc_grace_s=GRACE_S, heal_delay_s=HEAL_DELAY_S)
        healer = Healer(settings, parts.store, parts.membership, peers, clock)
        space = Space(parts, peers, healer, settings)
        try:
            await space.start(*range(1, count + 1))
            await scenario(space, peers)
            await space.check()
        finally:
            await parts.store.close()

    asyncio.run(main())


def coded(*held: int) -> Chunk:
    """A chunk of 3+2; fragment i on the i-th peer, on none where that is 0."""
    places = [(index, PeerNumber(number)) for index, number in enumerate(held) if number]
    coding = Coding(3, b"".join(bytes([n]) * 32 for n in range(5)), tuple(i for i, _ in places))
    peers = tuple(number for _, number in places)
    return Chunk(new_chunk_id(), 300 * KIB, b"d" * 32, peers, coding)


async def places(space: Space, chunk: Chunk) -> dict[int, int]:
    found = await space.copies(chunk)
    assert found.coding is not None
    return dict(zip(found.coding.indices, found.peers, strict=True))


def test_missing_fragments_are_made_on_other_peers(tmp_path: Path) -> None:
    async def scenario(space: Space, peers: MakingPeers) -> None:
        chunk = coded(1, 0, 3, 4, 0)
        await space.store(chunk)
        await space.healer.step()
        found = await places(space, chunk)
        assert sorted(found) == [0, 1, 2, 3, 4]
        assert {index: found[index] for index in (0, 2, 3)} == {0: 1, 2: 3, 3: 4}
        assert sorted(peers.made) == sorted((url_of(found[i]), i) for i in (1, 4))
        assert space.healer.status().short_count == 0
        assert space.healer.status().healed_count == 2
        await space.healer.step()
        assert len(peers.made) == 2

    run_space(tmp_path, 7, scenario)


def test_fragments_of_two_peers_that_stay_away_are_replaced_and_deleted_there(
    tmp_path: Path,
) -> None:
    async def scenario(space: Space, peers: MakingPeers) -> None:
        chunk = coded(1, 2, 3, 4, 5)
        await space.store(chunk)
        await space.stop(1)
        await space.stop(2)
        await space.healer.step()
        assert peers.made == []
        await space.wait(HEAL_DELAY_S + 1)
        await space.healer.step()
        found = await places(space, chunk)
        assert {found[0], found[1]} == {6, 7}
        # They come back with what is not wanted any more.
        await space.start(1, 2)
        await space.wait(GRACE_S + 1)
        await space.healer.step()
        assert sorted(peers.deleted) == [(url_of(1), chunk.id), (url_of(2), chunk.id)]
        assert await places(space, chunk) == found

    run_space(tmp_path, 7, scenario)


def test_a_drained_peer_gives_its_fragment_to_another(tmp_path: Path) -> None:
    async def scenario(space: Space, peers: MakingPeers) -> None:
        chunk = coded(1, 2, 3, 4, 5)
        await space.store(chunk)
        space.parts.membership.set_draining("peer-3", is_draining=True)
        await space.parts.peer_map.publish()
        await space.healer.step()
        assert await places(space, chunk) == {0: 1, 1: 2, 2: 6, 3: 4, 4: 5}
        assert peers.made == [(url_of(6), 2)]

    run_space(tmp_path, 6, scenario)


def test_a_source_without_its_fragment_loses_its_row_and_gets_another(tmp_path: Path) -> None:
    async def scenario(space: Space, peers: MakingPeers) -> None:
        chunk = coded(1, 2, 3, 4, 0)
        await space.store(chunk)
        peers.missing.add((url_of(2), chunk.id))
        peers.held[url_of(2)].clear()
        await space.healer.step()
        assert sorted(await places(space, chunk)) == [0, 2, 3, 4]
        space.healer.wake()
        await space.healer.step()
        found = await places(space, chunk)
        assert sorted(found) == [0, 1, 2, 3, 4]
        # Not where the old one might still be: what there is was deleted first.
        assert found[1] != 2 or (url_of(2), chunk.id) in peers.deleted

    run_space(tmp_path, 8, scenario)


def test_a_chunk_of_which_too_little_is_left_keeps_its_rows(tmp_path: Path) -> None:
    async def scenario(space: Space, peers: MakingPeers) -> None:
        chunk = coded(1, 2, 3, 4, 5)
        await space.store(chunk)
        for number in (1, 2, 3):
            await space.stop(number)
        await space.wait(HEAL_DELAY_S + 1)
        await space.healer.step()
        assert await places(space, chunk) == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}
        status = space.healer.status()
        assert (status.unhealable_count, peers.made) == (1, [])

    run_space(tmp_path, 8, scenario)


def test_a_peer_without_room_is_not_asked_again_and_it_is_said(tmp_path: Path) -> None:
    async def scenario(space: Space, peers: MakingPeers) -> None:
        chunks = [coded(1, 2, 3, 4, 0) for _ in range(3)]
        await space.store(*chunks)
        peers.refusing = {url_of(5)}
        await space.healer.step()
        assert space.healer.status().short_count == 3
        assert "peer-5" in space.healer.status().problem

    run_space(tmp_path, 5, scenario)
