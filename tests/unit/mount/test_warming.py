"""Requests about the cache, over a fake space and a real cache, without a kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB, MIB, Buffer, Chunk, InodeNumber
from mictlanfs.mounts import cachewords
from mictlanfs.mounts.cachewords import Cleared, Held, Warmed
from mictlanfs_mount.chunkcache.cache import ChunkCache, open_chunk_cache
from mictlanfs_mount.chunkcache.disk import DiskLimits
from mictlanfs_mount.warming import Warming
from tests.support.mount_fakes import FakeMount, open_mount
from tests.support.mount_space import CHUNK_SIZE_BYTES, FakeSpace

LIMITS = DiskLimits(64 * MIB, free_min=0, free_ratio_min=0.0)
SIZE = 3 * CHUNK_SIZE_BYTES


@dataclass
class Rig:
    """A mount, its cache and what is asked about it."""

    mount: FakeMount
    cache: ChunkCache
    warming: Warming
    fetched: list[Chunk]

    async def warm(self, ino: InodeNumber, offset: int = 0) -> Warmed:
        return await self.warming.warm(await self.mount.filesystem.getattr(ino), offset)

    async def held(self, ino: InodeNumber) -> Held:
        return await self.warming.held(await self.mount.filesystem.getattr(ino))

    async def clear(self, ino: InodeNumber) -> Cleared:
        return await self.warming.clear(await self.mount.filesystem.getattr(ino))


@asynccontextmanager
async def rig(
    directory: Path | None, space: FakeSpace | None = None, limits: DiskLimits = LIMITS
) -> AsyncIterator[Rig]:
    fetched: list[Chunk] = []

    async def fetch(chunk: Chunk, start: int, end: int) -> Buffer:
        fetched.append(chunk)
        await trio.lowlevel.checkpoint()
        return mount.space.chunks[chunk.id][start:end]

    async with (
        open_mount(space) as mount,
        open_chunk_cache(
            fetch, memory_budget=16 * MIB, directory=directory, limits=limits
        ) as cache,
    ):
        with trio.fail_after(30):
            await cache.settle()
            yield Rig(mount, cache, Warming(cache, mount.content.know_extents), fetched)


def file_of(mount: FakeMount, size: int = SIZE) -> InodeNumber:
    """A file of whole chunks."""
    ino = mount.space.add(mount.space.bucket, b"file")
    for offset in range(0, size, CHUNK_SIZE_BYTES):
        mount.space.write(ino, offset, bytes([1 + offset % 251]) * CHUNK_SIZE_BYTES)
    return ino


async def test_a_file_is_put_on_the_disk_and_nowhere_else(tmp_path: Path) -> None:
    async with rig(tmp_path / "cache") as here:
        ino = file_of(here.mount)
        assert await here.held(ino) == Held(SIZE)
        assert await here.warm(ino) == Warmed(SIZE, stored=SIZE)
        assert await here.held(ino) == Held(SIZE, disk=SIZE)
        assert len(here.fetched) == 3


async def test_what_is_there_is_not_fetched_again_after_a_remount_either(tmp_path: Path) -> None:
    space = FakeSpace()
    async with rig(tmp_path / "cache", space) as here:
        ino = file_of(here.mount)
        await here.warm(ino)
        assert await here.warm(ino) == Warmed(SIZE, kept=SIZE)
    async with rig(tmp_path / "cache", space) as here:
        assert await here.warm(ino) == Warmed(SIZE, kept=SIZE)
        assert here.fetched == []


async def test_a_damaged_file_is_put_there_anew(tmp_path: Path) -> None:
    space = FakeSpace()
    async with rig(tmp_path / "cache", space) as here:
        ino = file_of(here.mount)
        await here.warm(ino)
    damaged, cut, _ = [p for p in (tmp_path / "cache" / "chunks").rglob("*") if p.is_file()]
    damaged.write_bytes(bytes(CHUNK_SIZE_BYTES))
    cut.write_bytes(cut.read_bytes()[:-1])
    async with rig(tmp_path / "cache", space) as here:
        expected = Warmed(SIZE, stored=2 * CHUNK_SIZE_BYTES, kept=CHUNK_SIZE_BYTES)
        assert await here.warm(ino) == expected
        assert await here.warm(ino) == Warmed(SIZE, kept=SIZE)


async def test_a_large_file_is_warmed_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cachewords, "PART_SIZE_BYTES", 100 * KIB)
    async with rig(tmp_path / "cache") as here:
        ino, offset, parts = file_of(here.mount), 0, []
        while offset < SIZE:
            part = await here.warm(ino, offset)
            parts.append(part)
            offset = part.end
        assert [part.end for part in parts] == [100 * KIB, SIZE]
        # The chunk at the border is stored with the first part, and there for the second.
        assert sum(part.stored + part.kept for part in parts) == SIZE
        assert await here.warm(ino, SIZE) == Warmed(SIZE)
        assert await here.warm(ino, 10 * SIZE) == Warmed(SIZE)


async def test_holes_and_small_chunks_are_told_of(tmp_path: Path) -> None:
    async with rig(tmp_path / "cache") as here:
        ino = here.mount.space.add(here.mount.space.bucket, b"file")
        here.mount.space.write(ino, CHUNK_SIZE_BYTES, b"small")
        size = CHUNK_SIZE_BYTES + 5
        expected = Warmed(size, inline=CHUNK_SIZE_BYTES, small=5)
        assert await here.warm(ino) == expected
        assert await here.held(ino) == Held(size, holes=CHUNK_SIZE_BYTES)
        assert here.fetched == []


async def test_without_room_or_a_disk_it_is_refused(tmp_path: Path) -> None:
    tight = DiskLimits(CHUNK_SIZE_BYTES, free_min=0, free_ratio_min=0.0)
    async with rig(tmp_path / "cache", limits=tight) as here:
        ino = file_of(here.mount)
        warmed = await here.warm(ino)
        # Whichever comes last is there.
        assert (await here.held(ino)).disk == CHUNK_SIZE_BYTES
        assert warmed.stored + warmed.refused == SIZE
    async with rig(None) as here:
        ino = file_of(here.mount)
        assert await here.warm(ino) == Warmed(SIZE, refused=SIZE)
        assert here.fetched == []


async def test_a_file_is_forgotten_and_another_is_not(tmp_path: Path) -> None:
    async with rig(tmp_path / "cache") as here:
        ino = file_of(here.mount)
        other = here.mount.space.add(here.mount.space.bucket, b"other")
        here.mount.space.write(other, 0, bytes(CHUNK_SIZE_BYTES))
        await here.warm(ino)
        await here.warm(other)
        assert await here.clear(ino) == Cleared(SIZE)
        assert await here.held(ino) == Held(SIZE)
        assert (await here.held(other)).disk == CHUNK_SIZE_BYTES
        files = [p for p in (tmp_path / "cache" / "chunks").rglob("*") if p.is_file()]
        assert len(files) == 1


async def test_everything_is_forgotten(tmp_path: Path) -> None:
    async with rig(tmp_path / "cache") as here:
        ino = file_of(here.mount)
        await here.warm(ino)
        cleared = await here.warming.clear_all()
        assert cleared == Cleared(SIZE)
        assert await here.held(ino) == Held(SIZE)
        assert not [p for p in (tmp_path / "cache" / "chunks").rglob("*") if p.is_file()]
        # It goes on as if new.
        assert await here.warm(ino) == Warmed(SIZE, stored=SIZE)


async def test_bytes_that_cannot_be_had_are_an_error(tmp_path: Path) -> None:
    async with rig(tmp_path / "cache") as here:
        ino = file_of(here.mount)
        here.mount.space.chunks.update(dict.fromkeys(here.mount.space.chunks, b""))
        with pytest.raises(MictlanError) as caught:
            await here.warm(ino)
        assert caught.value.kind is Kind.CORRUPT


async def test_requests_are_answered_by_name(tmp_path: Path) -> None:
    async with rig(tmp_path / "cache") as here:
        inode = await here.mount.filesystem.getattr(file_of(here.mount))
        answer = await here.warming.answer(inode, cachewords.warm_from(CHUNK_SIZE_BYTES))
        expected = Warmed(SIZE, stored=SIZE - CHUNK_SIZE_BYTES)
        assert cachewords.decode(answer, Warmed) == expected
        answer = await here.warming.answer(inode, cachewords.HELD)
        assert cachewords.decode(answer, Held) == Held(SIZE, disk=SIZE - CHUNK_SIZE_BYTES)
        answer = await here.warming.answer(inode, cachewords.CLEAR)
        assert cachewords.decode(answer, Cleared) == Cleared(SIZE - CHUNK_SIZE_BYTES)
        for name in (b".other", b".warm.x"):
            with pytest.raises(MictlanError) as caught:
                await here.warming.answer(inode, cachewords.PREFIX + name)
            assert caught.value.kind is Kind.NO_DATA
