import asyncio
from collections.abc import Sequence
from pathlib import Path

from mictlanfs.model import PeerInfo
from mictlanfs_server.metadata.copies import PeerBook
from tests.unit.server.router.fakes import announce
from tests.unit.server.router.parts import Parts, run_parts


def test_version_becomes_public_only_when_it_is_saved(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        saving, go_on = asyncio.Event(), asyncio.Event()
        original = parts.store.save_peers

        async def slow_save(
            version: int, peers: Sequence[PeerInfo], book: PeerBook | None = None
        ) -> None:
            saving.set()
            await go_on.wait()
            await original(version, peers, book)

        parts.store.save_peers = slow_save  # type: ignore[method-assign] # one slow save
        parts.membership.announce(announce(1, space_id=""))
        publishing = asyncio.create_task(parts.peer_map.publish())
        await saving.wait()
        assert (parts.peer_map.header, parts.peer_map.peer_map.peers) == (b"1", ())
        go_on.set()
        await publishing
        assert parts.peer_map.header == b"2"
        assert [peer.id for peer in parts.peer_map.peer_map.peers] == ["peer-1"]
        assert await parts.store.peer_map() == parts.peer_map.peer_map

    run_parts(tmp_path, scenario)


def test_change_during_a_save_is_saved_next(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        async def register(number: int) -> None:
            parts.membership.announce(announce(number, space_id=""))
            await parts.peer_map.publish()
            # Whoever was told of its number can rely on it.
            assert number in {peer.number for peer in (await parts.store.peer_map()).peers}

        await asyncio.gather(*(register(number) for number in range(1, 20)))
        assert parts.peer_map.header == b"20"
        assert len((await parts.store.peer_map()).peers) == 19

    run_parts(tmp_path, scenario)


def test_space_used_goes_along_without_being_saved(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1)
        await parts.announce(1, used=7)
        assert parts.peer_map.peer_map.peers[0].used == 7
        assert (await parts.store.peer_map()).peers[0].used == 0

    run_parts(tmp_path, scenario)


def test_version_never_goes_back(tmp_path: Path) -> None:
    async def live(parts: Parts) -> int:
        await parts.peer_map.publish()
        start = int(parts.peer_map.header)
        await parts.announce(1, 2)
        parts.clock.advance(20)
        parts.membership.tick()
        await parts.peer_map.publish()
        assert int(parts.peer_map.header) > start
        return int(parts.peer_map.header)

    ends = [run_parts(tmp_path, live) for _ in range(3)]
    assert ends == sorted(set(ends))
