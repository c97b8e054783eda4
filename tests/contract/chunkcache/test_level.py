"""What `ChunkLevel` promises, run on every form of it."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import assert_no_checkpoints

from mictlanfs.model import KIB, MIB
from mictlanfs_mount.chunkcache.base import ChunkLevel
from mictlanfs_mount.chunkcache.disk import DiskLevel, DiskLimits
from mictlanfs_mount.chunkcache.files import ChunkFiles
from mictlanfs_mount.chunkcache.memory import MemoryLevel
from tests.unit.mount.chunkcache.making import (
    content,
    make_chunk,
    skip_unless_read_without_waiting,
)

SIZE = 100 * KIB
# Room for four chunks of that size, counted in any way, and not for five.
BUDGET = 4 * SIZE + 40 * KIB


async def nothing_to_wait_for() -> None:
    """Memory holds at once what it is given."""


class Holder:
    """A level, and the wait until it holds what it was given."""

    def __init__(self, level: ChunkLevel, settle: Callable[[], object]) -> None:
        self.level = level
        self._settle = settle

    async def settle(self) -> None:
        with trio.fail_after(10):
            await self._settle()  # type: ignore[misc]  # an async function

    async def put(self, *numbers: int) -> None:
        for number in numbers:
            chunk, body = CHUNKS[number]
            self.level.put_whole(chunk, memoryview(body))
            await self.settle()

    def get(self, number: int, start: int, end: int) -> bytes | None:
        return content(self.level.get(CHUNKS[number][0], start, end))

    def held(self) -> list[int]:
        return [n for n, (chunk, _) in enumerate(CHUNKS) if self.level.has_whole(chunk.id)]


CHUNKS = [make_chunk(SIZE, seed) for seed in range(10)]


@asynccontextmanager
async def open_memory(_: Path) -> AsyncIterator[Holder]:
    yield Holder(MemoryLevel(BUDGET), nothing_to_wait_for)


@asynccontextmanager
async def open_disk(directory: Path) -> AsyncIterator[Holder]:
    skip_unless_read_without_waiting(directory.parent)
    files = ChunkFiles(directory)
    async with trio.open_nursery() as nursery:
        level = DiskLevel(files, DiskLimits(BUDGET, free_min=0, free_ratio_min=0.0))
        nursery.start_soon(level.run)
        holder = Holder(level, level.settle)
        await holder.settle()
        yield holder
        nursery.cancel_scope.cancel()
    level.forget_all()
    files.close()


@pytest.fixture(params=[open_memory, open_disk], ids=["memory", "disk"])
async def holder(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Holder]:
    opening: Callable[[Path], AbstractAsyncContextManager[Holder]] = request.param
    async with opening(tmp_path / "cache") as holder:
        yield holder


async def test_a_chunk_never_put_is_not_at_hand(holder: Holder) -> None:
    assert holder.get(0, 0, 1) is None
    assert not holder.level.has_whole(CHUNKS[0][0].id)


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, SIZE), (SIZE - 1, SIZE), (4095, 4097), (1, SIZE - 1)]
)
async def test_every_range_of_a_chunk_is_served(holder: Holder, start: int, end: int) -> None:
    await holder.put(0)
    assert holder.get(0, start, end) == CHUNKS[0][1][start:end]


async def test_each_chunk_has_its_own_bytes(holder: Holder) -> None:
    await holder.put(0, 1, 2, 3)
    for number in range(4):
        assert holder.get(number, 10, 20) == CHUNKS[number][1][10:20]


async def test_lookups_never_suspend(holder: Holder) -> None:
    await holder.put(0)
    with assert_no_checkpoints():
        holder.get(0, 0, SIZE)
        holder.get(1, 0, SIZE)


async def test_what_is_given_out_is_read_only(holder: Holder) -> None:
    await holder.put(0)
    view = holder.level.get(CHUNKS[0][0], 0, 10)
    assert view is not None
    assert view.readonly


async def test_what_was_given_out_stays_right_after_the_chunk_is_gone(holder: Holder) -> None:
    await holder.put(0)
    view = holder.level.get(CHUNKS[0][0], 100, 200)
    holder.level.discard(CHUNKS[0][0].id)
    await holder.put(1, 2, 3, 4, 5)
    assert content(view) == CHUNKS[0][1][100:200]


async def test_the_budget_is_never_exceeded(holder: Holder) -> None:
    for number in range(10):
        await holder.put(number)
        stats = holder.level.stats()
        assert stats.size_bytes <= stats.budget_bytes == BUDGET
    assert holder.held() == [6, 7, 8, 9]
    assert holder.level.stats().evictions == 6
    assert holder.level.stats().entries == 4


async def test_the_least_recently_used_goes_first(holder: Holder) -> None:
    await holder.put(0, 1, 2, 3)
    assert holder.get(0, 0, 1) is not None
    assert holder.get(2, 0, 1) is not None
    await holder.put(4, 5)
    assert holder.held() == [0, 2, 4, 5]


async def test_asking_whether_it_is_held_is_no_use_of_it(holder: Holder) -> None:
    await holder.put(0, 1, 2, 3)
    assert holder.held() == [0, 1, 2, 3]
    assert holder.level.has_whole(CHUNKS[0][0].id)
    await holder.put(4)
    assert holder.held() == [1, 2, 3, 4]


async def test_a_chunk_larger_than_the_budget_is_ignored(holder: Holder) -> None:
    await holder.put(0)
    large, body = make_chunk(MIB)
    holder.level.put_whole(large, memoryview(body))
    await holder.settle()
    assert not holder.level.has_whole(large.id)
    assert holder.held() == [0]


async def test_discard_forgets(holder: Holder) -> None:
    await holder.put(0, 1)
    holder.level.discard(CHUNKS[0][0].id)
    holder.level.discard(CHUNKS[5][0].id)
    assert holder.get(0, 0, 1) is None
    await holder.settle()
    assert holder.held() == [1]


async def test_a_discarded_chunk_can_be_put_again(holder: Holder) -> None:
    await holder.put(0)
    holder.level.discard(CHUNKS[0][0].id)
    await holder.put(0)
    assert holder.get(0, 0, 9) == CHUNKS[0][1][:9]


async def test_putting_it_again_changes_nothing(holder: Holder) -> None:
    await holder.put(0)
    before = holder.level.stats()
    await holder.put(0)
    assert holder.level.stats() == before


async def test_lookups_are_counted(holder: Holder) -> None:
    holder.get(0, 0, 1)
    await holder.put(0)
    holder.get(0, 0, 1)
    holder.get(0, 5, 9)
    stats = holder.level.stats()
    assert (stats.hits, stats.misses) == (2, 1)


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    async with open_disk(tmp_path / "cache") as holder:
        await holder.put(0)
        assert holder.get(0, 0, 1) is not None
    assert os.listdir("/proc/self/fd") == before
