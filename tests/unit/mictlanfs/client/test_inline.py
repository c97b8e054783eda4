"""Objects small enough to live in the metadata: put, got and copied without a peer."""

import io
from pathlib import Path

import pytest

from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.client.making import Events, content, pattern

INLINE = 1000


@pytest.mark.parametrize("size", [1, INLINE - 1, INLINE])
async def test_a_small_object_needs_no_peer(space: FakeSpace, size: int) -> None:
    async with space.client(inline_size_max=INLINE) as client:
        await client.put(io.BytesIO(pattern(size)), "b", "f")
        assert not any(peer.chunks for peer in space.peers)
        for peer in space.peers:
            space.stop(peer)
        assert await content(client, "f") == pattern(size)
    (batch,) = space.router.commits
    assert batch.sync


async def test_a_larger_object_goes_to_peers(space: FakeSpace) -> None:
    async with space.client(inline_size_max=INLINE) as client:
        await client.put(io.BytesIO(pattern(INLINE + 1)), "b", "f")
        assert await content(client, "f") == pattern(INLINE + 1)
    assert space.router.inline == {}


async def test_who_does_not_want_it_has_every_object_on_peers(space: FakeSpace) -> None:
    async with space.client(inline_size_max=0) as client:
        await client.put(io.BytesIO(b"x"), "b", "f")
    assert space.router.inline == {}


async def test_bytes_that_did_not_come_along_are_fetched(
    space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mictlanfs.client.tree.INLINE_WITH_NODE_SIZE_BYTES", 0)
    async with space.client(inline_size_max=INLINE) as client:
        await client.put(io.BytesIO(b"small"), "b", "f")
        assert await content(client, "f") == b"small"


async def test_a_tree_of_small_files_is_copied_both_ways(space: FakeSpace, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for index in range(20):
        (source / f"{index}").write_bytes(pattern(index))
    events = Events()
    async with space.client(inline_size_max=INLINE) as client:
        await client.put_tree(source, "b", "tree", events.callbacks)
        await client.get_tree("b", "tree", tmp_path / "copy", events.callbacks)
    assert not any(peer.chunks for peer in space.peers)
    for index in range(20):
        assert (tmp_path / "copy" / f"{index}").read_bytes() == pattern(index)
