"""The chunk cache with files of peers on this machine; the level by itself is in `test_local`."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from trio.testing import assert_no_checkpoints

from mictlanfs.blocksums import BlockSummer
from mictlanfs.client.localpeers import LocalPeers, OpenChunk
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB, MIB, Chunk
from mictlanfs_mount.chunkcache.cache import ChunkCache, open_chunk_cache
from mictlanfs_mount.chunkcache.disk import DiskLimits
from tests.support.waiting import until
from tests.unit.mount.chunkcache.making import (
    FakeSpace,
    content,
    skip_unless_read_without_waiting,
)

SIZE = MIB
LIMITS = DiskLimits(64 * MIB, free_min=0, free_ratio_min=0.0)


class NearPeers:
    """Opens files of the chunks it was told of, in the place of `LocalPeers`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sums: dict[bytes, bytes] = {}

    def add(self, chunk: Chunk, body: bytes) -> None:
        summer = BlockSummer()
        summer.update(body)
        self._sums[chunk.id] = summer.sums()
        self.path(chunk).write_bytes(body)

    def path(self, chunk: Chunk) -> Path:
        return self._folder / chunk.id.hex()

    def may_open(self, _: Chunk) -> bool:
        return True

    async def open(self, chunk: Chunk) -> OpenChunk | None:
        sums = self._sums.get(chunk.id)
        return None if sums is None else OpenChunk(os.open(self.path(chunk), os.O_RDONLY), sums)

    async def open_many(self, chunks: Sequence[Chunk]) -> list[OpenChunk | None]:
        return [await self.open(chunk) for chunk in chunks]


@pytest.fixture
def space() -> FakeSpace:
    return FakeSpace()


@pytest.fixture
def near(tmp_path: Path) -> NearPeers:
    skip_unless_read_without_waiting(tmp_path)
    return NearPeers(tmp_path)


@asynccontextmanager
async def opened(
    space: FakeSpace, near: NearPeers, directory: Path | None = None
) -> AsyncIterator[ChunkCache]:
    """A cache with a local level, after which no descriptor of it is open."""
    before = len(os.listdir("/proc/self/fd"))
    async with open_chunk_cache(
        space.fetch,
        memory_budget=16 * MIB,
        directory=directory,
        limits=LIMITS,
        # It has the methods that the cache calls.
        local_peers=cast("LocalPeers", near),
    ) as cache:
        await cache.settle()
        yield cache
    assert len(os.listdir("/proc/self/fd")) == before


def added(space: FakeSpace, near: NearPeers, length: int = SIZE) -> tuple[Chunk, bytes]:
    chunk, body = space.add(length)
    near.add(chunk, body)
    return chunk, body


@pytest.mark.parametrize("whole", [False, True])
async def test_what_a_near_peer_has_is_not_fetched(
    space: FakeSpace, near: NearPeers, *, whole: bool
) -> None:
    chunk, body = added(space, near)
    async with opened(space, near) as cache:
        assert content(await cache.read(chunk, 5, 4101, whole=whole)) == body[5:4101]
        with assert_no_checkpoints():
            assert content(cache.get_now(chunk, 7, 99)) == body[7:99]
        stats = cache.stats()
        assert stats.local is not None
        assert (stats.local.opened, stats.local.descriptors, stats.misses) == (1, 1, 0)
    assert space.fetched == []


async def test_what_no_near_peer_has_is_fetched(space: FakeSpace, near: NearPeers) -> None:
    chunk, body = space.add(SIZE)
    small, small_body = added(space, near, 60 * KIB)
    async with opened(space, near) as cache:
        assert content(await cache.read(chunk, 0, 10, whole=False)) == body[:10]
        assert content(await cache.read(small, 0, 10, whole=False)) == small_body[:10]
        stats = cache.stats()
        assert stats.local is not None
        assert stats.local.hits == 0
    assert space.ranges == [(0, 128 * KIB), (0, 60 * KIB)]


async def test_a_damaged_file_has_the_chunk_fetched_whole(
    space: FakeSpace, near: NearPeers, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, body = added(space, near)
    wrong = bytearray(body)
    wrong[10] ^= 1
    near.path(chunk).write_bytes(wrong)
    async with opened(space, near) as cache:
        assert content(await cache.read(chunk, 0, 100, whole=False)) == body[:100]
        assert content(await cache.read(chunk, 500_000, SIZE, whole=False)) == body[500_000:]
        stats = cache.stats()
        assert stats.local is not None
        assert stats.local.corrupt == 1
    # Nothing less can be compared with the digest.
    assert space.ranges == [(0, SIZE)]
    caplog.clear()


async def test_a_damaged_file_and_no_other_copy_is_an_error(
    space: FakeSpace, near: NearPeers, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, body = added(space, near)
    near.path(chunk).write_bytes(body[:-1])
    space.error = MictlanError(Kind.CORRUPT, "get chunk", chunk.id.hex())
    async with opened(space, near) as cache:
        for _ in range(2):
            with pytest.raises(MictlanError) as caught:
                await cache.read(chunk, SIZE - 10, SIZE, whole=False)
            assert caught.value.kind is Kind.CORRUPT
    caplog.clear()


async def test_what_is_ahead_is_warmed_and_not_fetched(space: FakeSpace, near: NearPeers) -> None:
    chunk, body = added(space, near)
    async with opened(space, near) as cache:
        assert cache.prefetch(chunk)
        await until(lambda: cache.get_now(chunk, 0, SIZE) is not None)
        assert content(cache.get_now(chunk, 0, SIZE)) == body
        assert cache.prefetch(chunk)
    assert space.fetched == []


async def test_what_is_ahead_and_not_near_is_fetched(space: FakeSpace, near: NearPeers) -> None:
    chunk, body = space.add(SIZE)
    async with opened(space, near) as cache:
        assert cache.prefetch(chunk)
        await until(lambda: cache.get_now(chunk, 0, SIZE) is not None)
        assert content(cache.get_now(chunk, 0, SIZE)) == body
    assert space.ranges == [(0, SIZE)]


async def test_a_chunk_that_is_discarded_is_closed(space: FakeSpace, near: NearPeers) -> None:
    chunk, _ = added(space, near)
    async with opened(space, near) as cache:
        await cache.read(chunk, 0, 10, whole=False)
        cache.discard(chunk.id)
        stats = cache.stats()
        assert stats.local is not None
        assert stats.local.descriptors == 0
        assert cache.get_now(chunk, 0, 10) is None


async def test_what_is_near_is_not_copied_to_disk(
    space: FakeSpace, near: NearPeers, tmp_path: Path
) -> None:
    chunk, body = added(space, near)
    async with opened(space, near, tmp_path / "cache") as cache:
        assert content(await cache.read(chunk, 0, SIZE, whole=True)) == body
        await cache.settle()
        stats = cache.stats()
        assert stats.disk is not None
        assert stats.disk_hits == 0
        assert stats.memory_hits == 0
    assert not [path for path in (tmp_path / "cache" / "chunks").rglob("*") if path.is_file()]
