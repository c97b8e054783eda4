import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB, MIB, Buffer, Chunk
from mictlanfs_mount.chunkcache import cache as cache_module
from mictlanfs_mount.chunkcache.base import BLOCK_SIZE_BYTES
from mictlanfs_mount.chunkcache.cache import ChunkCache, open_chunk_cache
from mictlanfs_mount.chunkcache.disk import DiskLimits
from tests.unit.mount.chunkcache.making import (
    FakeSpace,
    content,
    make_chunk,
    skip_unless_read_without_waiting,
)

BLOCK = BLOCK_SIZE_BYTES
LIMITS = DiskLimits(64 * MIB, free_min=0, free_ratio_min=0.0)


@pytest.fixture
def space() -> FakeSpace:
    return FakeSpace()


@pytest.fixture
async def cache(space: FakeSpace) -> AsyncIterator[ChunkCache]:
    async with open_chunk_cache(space.fetch, memory_budget=64 * MIB) as cache:
        yield cache


@asynccontextmanager
async def on_disk(
    space: FakeSpace, directory: Path, memory_budget: int = 0, limits: DiskLimits = LIMITS
) -> AsyncIterator[ChunkCache]:
    """A cache of which only the disk level keeps anything, unless told otherwise."""
    skip_unless_read_without_waiting(directory.parent)
    async with open_chunk_cache(
        space.fetch, memory_budget=memory_budget, directory=directory, limits=limits
    ) as cache:
        with trio.fail_after(10):
            await cache.settle()
        yield cache


class Reader:
    """A task that reads; what came of it."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.found: bytes | None = None
        self.error: MictlanError | None = None

    async def read(
        self, cache: ChunkCache, chunk: Chunk, start: int, end: int, *, whole: bool
    ) -> None:
        with self.scope:
            try:
                self.found = content(await cache.read(chunk, start, end, whole=whole))
            except MictlanError as error:
                self.error = error


async def readers_of(
    nursery: trio.Nursery,
    cache: ChunkCache,
    chunk: Chunk,
    ranges: list[tuple[int, int]],
    *,
    whole: bool,
) -> list[Reader]:
    """Readers of one chunk, all waiting."""
    readers = []
    for start, end in ranges:
        reader = Reader()
        readers.append(reader)

        async def run(reader: Reader = reader, start: int = start, end: int = end) -> None:
            await reader.read(cache, chunk, start, end, whole=whole)

        nursery.start_soon(run)
    await wait_all_tasks_blocked()
    return readers


# --- hits ----------------------------------------------------------------------------------------


async def test_a_hit_in_memory_never_suspends(space: FakeSpace, cache: ChunkCache) -> None:
    chunk, body = space.add(MIB)
    await cache.read(chunk, 0, 10, whole=True)
    with assert_no_checkpoints():
        found = await cache.read(chunk, 5, 15, whole=True)
    assert content(found) == body[5:15]
    assert content(cache.get_now(chunk, 7, 9)) == body[7:9]
    assert len(space.fetched) == 1


async def test_a_hit_on_disk_in_the_page_cache_never_suspends(
    space: FakeSpace, tmp_path: Path
) -> None:
    chunk, body = space.add(MIB)
    async with on_disk(space, tmp_path) as cache:
        await cache.read(chunk, 0, MIB, whole=True)
        await cache.settle()
        threads = threading.active_count()
        with assert_no_checkpoints():
            found = await cache.read(chunk, 5, 15, whole=True)
        assert content(found) == body[5:15]
        assert threading.active_count() <= threads
        assert cache.stats().disk_hits == 1


async def test_a_miss_is_not_at_hand(space: FakeSpace, cache: ChunkCache) -> None:
    chunk, _ = space.add(MIB)
    assert cache.get_now(chunk, 0, 1) is None
    assert space.fetched == []


# --- what is fetched -----------------------------------------------------------------------------


async def test_a_sequential_miss_fetches_the_whole_chunk(
    space: FakeSpace, cache: ChunkCache
) -> None:
    chunk, body = space.add(4 * MIB)
    assert content(await cache.read(chunk, 10, 20, whole=True)) == body[10:20]
    assert space.ranges == [(0, 4 * MIB)]
    assert content(cache.get_now(chunk, 3 * MIB, 4 * MIB)) == body[3 * MIB :]


async def test_a_random_miss_fetches_only_its_blocks(space: FakeSpace, cache: ChunkCache) -> None:
    chunk, body = space.add(4 * MIB)
    found = await cache.read(chunk, BLOCK + 10, BLOCK + 20, whole=False)
    assert content(found) == body[BLOCK + 10 : BLOCK + 20]
    assert space.ranges == [(BLOCK, 2 * BLOCK)]
    assert content(cache.get_now(chunk, BLOCK, 2 * BLOCK)) == body[BLOCK : 2 * BLOCK]
    assert cache.get_now(chunk, 0, 1) is None


async def test_neighbouring_missing_blocks_travel_in_one_request(
    space: FakeSpace, cache: ChunkCache
) -> None:
    chunk, body = space.add(4 * MIB)
    await cache.read(chunk, 3 * BLOCK, 3 * BLOCK + 1, whole=False)
    found = await cache.read(chunk, BLOCK - 1, 5 * BLOCK + 1, whole=False)
    assert content(found) == body[BLOCK - 1 : 5 * BLOCK + 1]
    assert space.ranges[0] == (3 * BLOCK, 4 * BLOCK)
    assert sorted(space.ranges[1:]) == [(0, 3 * BLOCK), (4 * BLOCK, 6 * BLOCK)]
    assert cache.stats().memory.size_bytes < 7 * BLOCK


async def test_the_last_block_is_shorter(space: FakeSpace, cache: ChunkCache) -> None:
    chunk, body = space.add(4 * MIB - 1000)
    found = await cache.read(chunk, 4 * MIB - 2000, 4 * MIB - 1000, whole=False)
    assert content(found) == body[-1000:]
    assert space.ranges == [(4 * MIB - BLOCK, 4 * MIB - 1000)]


@pytest.mark.parametrize(
    ("length", "end"),
    [(BLOCK, 1), (100, 1), (MIB, MIB // 4 + 1)],
    ids=["one block", "tiny", "more than a quarter"],
)
async def test_a_random_read_fetches_the_whole_where_a_part_saves_little(
    space: FakeSpace, cache: ChunkCache, length: int, end: int
) -> None:
    chunk, _ = space.add(length)
    await cache.read(chunk, 0, end, whole=False)
    assert space.ranges == [(0, length)]


async def test_a_quarter_of_a_chunk_is_fetched_as_a_part(
    space: FakeSpace, cache: ChunkCache
) -> None:
    chunk, _ = space.add(MIB)
    await cache.read(chunk, 0, MIB // 4, whole=False)
    assert space.ranges == [(0, MIB // 4)]


async def test_the_fourth_missed_block_brings_the_whole_chunk(
    space: FakeSpace, cache: ChunkCache
) -> None:
    chunk, body = space.add(4 * MIB)
    for index in range(0, 6, 2):
        await cache.read(chunk, index * BLOCK, index * BLOCK + 1, whole=False)
        # A hit does not count.
        await cache.read(chunk, index * BLOCK, index * BLOCK + 1, whole=False)
    await wait_all_tasks_blocked()
    assert len(space.fetched) == 3
    await cache.read(chunk, 8 * BLOCK, 8 * BLOCK + 1, whole=False)
    await wait_all_tasks_blocked()
    assert space.ranges[-1] == (0, 4 * MIB)
    assert content(cache.get_now(chunk, 0, 4 * MIB)) == body


async def test_missed_blocks_long_ago_are_forgotten(
    space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_HISTORY_COUNT_MIN", 2)
    async with open_chunk_cache(space.fetch, memory_budget=3 * MIB) as cache:
        chunks = [space.add(2 * MIB, seed)[0] for seed in range(3)]
        for index in range(5):
            for chunk in chunks:
                await cache.read(chunk, index * BLOCK, index * BLOCK + 1, whole=False)
        await wait_all_tasks_blocked()
        assert all(end - start == BLOCK for start, end in space.ranges)


async def test_a_chunk_that_nothing_could_keep_is_read_in_parts(space: FakeSpace) -> None:
    chunk, body = space.add(4 * MIB)
    async with open_chunk_cache(space.fetch, memory_budget=MIB) as cache:
        assert content(await cache.read(chunk, 0, 10, whole=True)) == body[:10]
        assert space.ranges == [(0, BLOCK)]


async def test_a_cache_of_nothing_still_reads(space: FakeSpace) -> None:
    chunk, body = space.add(MIB)
    async with open_chunk_cache(space.fetch, memory_budget=0) as cache:
        found = await cache.read(chunk, 100_000, 300_000, whole=False)
        assert content(found) == body[100_000:300_000]
        assert not cache.prefetch(chunk)


async def test_random_reads_are_always_right(space: FakeSpace, tmp_path: Path) -> None:
    draw = random.Random(1)
    made = [space.add(length, length) for length in (1, 5000, 20 * KIB, BLOCK, 700 * KIB, 3 * MIB)]
    async with on_disk(space, tmp_path, memory_budget=MIB, limits=LIMITS) as cache:

        async def read(steps: int) -> None:
            for _ in range(steps):
                chunk, body = draw.choice(made)
                start = draw.randrange(chunk.length)
                end = min(chunk.length, start + draw.randint(1, 300_000))
                found = await cache.read(chunk, start, end, whole=draw.random() < 0.3)
                assert content(found) == body[start:end]
                if draw.random() < 0.1:
                    cache.discard(chunk.id)
                elif draw.random() < 0.1:
                    cache.prefetch(chunk)
                elif draw.random() < 0.1:
                    cache.resize(draw.choice([0, 200_000, MIB, 8 * MIB]))

        for _ in range(5):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(read, 20)
            await cache.settle()
        stats = cache.stats()
        assert stats.memory_hits
        assert stats.disk_hits
        assert stats.memory_hits + stats.disk_hits + stats.misses == 500


# --- single-flight -------------------------------------------------------------------------------


async def test_many_readers_of_a_missing_chunk_cause_one_fetch(
    space: FakeSpace, cache: ChunkCache
) -> None:
    chunk, body = space.add(4 * MIB)
    space.close_gate()
    async with trio.open_nursery() as nursery:
        ranges = [(n * KIB, n * KIB + 100) for n in range(20)]
        readers = await readers_of(nursery, cache, chunk, ranges, whole=True)
        space.gate.set()
    assert space.ranges == [(0, 4 * MIB)]
    assert [reader.found for reader in readers] == [body[start:end] for start, end in ranges]
    stats = cache.stats()
    assert (stats.misses, stats.joined, stats.fetches) == (20, 19, 1)
    assert stats.fetched_bytes == 4 * MIB


async def test_many_readers_of_a_missing_block_cause_one_fetch(
    space: FakeSpace, cache: ChunkCache
) -> None:
    chunk, body = space.add(4 * MIB)
    space.close_gate()
    async with trio.open_nursery() as nursery:
        ranges = [(5, 15), (100, 200), (BLOCK - 3, BLOCK)]
        readers = await readers_of(nursery, cache, chunk, ranges, whole=False)
        space.gate.set()
    assert space.ranges == [(0, BLOCK)]
    assert [reader.found for reader in readers] == [body[start:end] for start, end in ranges]
    assert cache.stats().joined == 2


async def test_a_range_shares_the_blocks_that_are_under_way(
    space: FakeSpace, cache: ChunkCache
) -> None:
    chunk, body = space.add(4 * MIB)
    space.close_gate()
    async with trio.open_nursery() as nursery:
        small, large = (2 * BLOCK, 3 * BLOCK), (BLOCK, 5 * BLOCK)
        (first,) = await readers_of(nursery, cache, chunk, [small], whole=False)
        (second,) = await readers_of(nursery, cache, chunk, [large], whole=False)
        space.gate.set()
    assert space.ranges[0] == small
    assert sorted(space.ranges[1:]) == [(BLOCK, 2 * BLOCK), (3 * BLOCK, 5 * BLOCK)]
    assert first.found == body[small[0] : small[1]]
    assert second.found == body[large[0] : large[1]]


async def test_a_small_range_waits_for_the_whole_chunk_under_way(
    space: FakeSpace, cache: ChunkCache
) -> None:
    chunk, body = space.add(4 * MIB)
    space.close_gate()
    assert cache.prefetch(chunk)
    async with trio.open_nursery() as nursery:
        (reader,) = await readers_of(nursery, cache, chunk, [(5, 9)], whole=False)
        space.gate.set()
    assert reader.found == body[5:9]
    assert space.ranges == [(0, 4 * MIB)]


@pytest.mark.parametrize("whole", [True, False])
async def test_cancelling_the_first_reader_fails_nobody(
    space: FakeSpace, cache: ChunkCache, whole: bool
) -> None:
    chunk, body = space.add(4 * MIB)
    space.close_gate()
    async with trio.open_nursery() as nursery:
        readers = await readers_of(nursery, cache, chunk, [(0, 9)] * 3, whole=whole)
        readers[0].scope.cancel()
        await wait_all_tasks_blocked()
        space.gate.set()
    assert [reader.found for reader in readers] == [None, body[:9], body[:9]]
    assert len(space.fetched) == 1
    assert content(cache.get_now(chunk, 0, 9)) == body[:9]


@pytest.mark.parametrize("whole", [True, False])
async def test_an_error_goes_to_every_reader_and_is_not_remembered(
    space: FakeSpace, cache: ChunkCache, whole: bool
) -> None:
    chunk, body = space.add(4 * MIB)
    space.close_gate()
    space.error = MictlanError(Kind.UNAVAILABLE, "get chunk", "x", "no peer answers")
    async with trio.open_nursery() as nursery:
        readers = await readers_of(nursery, cache, chunk, [(0, 9)] * 3, whole=whole)
        space.gate.set()
    errors = [reader.error for reader in readers]
    assert [str(error) for error in errors] == [str(space.error)] * 3
    assert len({id(error) for error in errors}) == 3, "tracebacks would grow into each other"
    space.error = None
    assert content(await cache.read(chunk, 0, 9, whole=whole)) == body[:9]
    assert cache.stats().fetch_errors == 1


async def test_a_defect_in_the_fetch_reaches_the_reader_and_not_the_cache(
    space: FakeSpace, cache: ChunkCache
) -> None:
    chunk, body = space.add(4 * MIB)
    space.error = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        await cache.read(chunk, 0, 9, whole=True)
    space.error = None
    assert content(await cache.read(chunk, 0, 9, whole=True)) == body[:9]


async def test_a_body_of_the_wrong_length_is_not_served() -> None:
    async def fetch(chunk: Chunk, start: int, end: int) -> Buffer:
        return bytes(end - start - 1)

    async with open_chunk_cache(fetch, memory_budget=MIB) as cache:
        with pytest.raises(MictlanError) as caught:
            await cache.read(make_chunk(1000)[0], 0, 9, whole=True)
        assert caught.value.kind is Kind.CORRUPT


async def test_closing_the_cache_ends_the_wait_of_readers(space: FakeSpace) -> None:
    chunk, _ = space.add(MIB)
    space.close_gate()
    async with trio.open_nursery() as nursery:
        opening = open_chunk_cache(space.fetch, memory_budget=MIB)
        cache = await opening.__aenter__()
        (reader,) = await readers_of(nursery, cache, chunk, [(0, 9)], whole=False)
        await opening.__aexit__(None, None, None)
    assert reader.error is not None
    assert reader.error.kind is Kind.UNAVAILABLE


# --- prefetching ---------------------------------------------------------------------------------


async def test_prefetch_brings_a_chunk_once(space: FakeSpace, cache: ChunkCache) -> None:
    chunk, body = space.add(MIB)
    space.close_gate()
    with assert_no_checkpoints():
        assert cache.prefetch(chunk)
        assert cache.prefetch(chunk)
    space.gate.set()
    await wait_all_tasks_blocked()
    assert content(cache.get_now(chunk, 0, MIB)) == body
    assert cache.prefetch(chunk)
    await wait_all_tasks_blocked()
    assert len(space.fetched) == 1


async def test_prefetches_under_way_are_bounded_by_size(
    space: FakeSpace, cache: ChunkCache
) -> None:
    space.close_gate()
    chunks = [space.add(4 * MIB, seed)[0] for seed in range(10)]
    # Half of the memory budget of 64 MiB.
    assert [cache.prefetch(chunk) for chunk in chunks] == [True] * 8 + [False] * 2
    assert cache.stats().prefetches_refused == 2
    space.gate.set()
    await wait_all_tasks_blocked()
    assert cache.prefetch(chunks[9])


async def test_prefetches_under_way_are_bounded_by_number(
    space: FakeSpace, cache: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_PREFETCHES_MAX", 3)
    space.close_gate()
    chunks = [space.add(100, seed)[0] for seed in range(4)]
    assert [cache.prefetch(chunk) for chunk in chunks] == [True] * 3 + [False]


async def test_a_prefetch_that_fails_harms_nobody(space: FakeSpace, cache: ChunkCache) -> None:
    chunk, body = space.add(MIB)
    space.error = MictlanError(Kind.UNAVAILABLE)
    assert cache.prefetch(chunk)
    await wait_all_tasks_blocked()
    space.error = None
    assert content(await cache.read(chunk, 0, 5, whole=True)) == body[:5]


async def test_a_prefetch_of_what_the_disk_has_verifies_it(
    space: FakeSpace, tmp_path: Path
) -> None:
    chunk, body = space.add(MIB)
    async with on_disk(space, tmp_path) as cache:
        await cache.read(chunk, 0, 1, whole=True)
    async with on_disk(space, tmp_path) as cache:
        assert cache.prefetch(chunk)
        assert cache.prefetch(chunk)
        with trio.fail_after(10):
            while cache.get_now(chunk, 0, 10) is None:
                await trio.lowlevel.checkpoint()
        assert content(cache.get_now(chunk, 0, 10)) == body[:10]
    assert len(space.fetched) == 1


async def test_a_prefetch_of_a_damaged_copy_fetches_it_again(
    space: FakeSpace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, body = space.add(MIB)
    async with on_disk(space, tmp_path) as cache:
        await cache.read(chunk, 0, 1, whole=True)
    damage(tmp_path)
    async with on_disk(space, tmp_path, memory_budget=4 * MIB) as cache:
        assert cache.prefetch(chunk)
        with trio.fail_after(10):
            while cache.get_now(chunk, 0, 10) is None:
                await trio.lowlevel.checkpoint()
        assert content(cache.get_now(chunk, 0, MIB)) == body
    assert len(space.fetched) == 2
    assert "damaged" in caplog.text


def damage(directory: Path) -> None:
    """Flip a bit in the middle of every cached file."""
    for path in (directory / "chunks").rglob("*"):
        if path.is_file():
            body = bytearray(path.read_bytes())
            body[len(body) // 2] ^= 1
            path.write_bytes(body)


# --- both levels ---------------------------------------------------------------------------------


async def test_what_memory_evicted_the_disk_still_has(space: FakeSpace, tmp_path: Path) -> None:
    made = [space.add(MIB, seed) for seed in range(4)]
    async with on_disk(space, tmp_path, memory_budget=2 * MIB) as cache:
        for chunk, _ in made:
            await cache.read(chunk, 0, 1, whole=True)
        await cache.settle()
        for chunk, body in made:
            assert content(await cache.read(chunk, 77, 99, whole=True)) == body[77:99]
        assert len(space.fetched) == 4


async def test_a_remount_finds_what_was_fetched_before(space: FakeSpace, tmp_path: Path) -> None:
    made = [space.add(MIB, seed) for seed in range(3)]
    async with on_disk(space, tmp_path, memory_budget=16 * MIB) as cache:
        for chunk, _ in made:
            await cache.read(chunk, 0, 1, whole=True)
    async with on_disk(space, tmp_path, memory_budget=16 * MIB) as cache:
        for chunk, body in made:
            assert content(await cache.read(chunk, 0, MIB, whole=True)) == body
        assert cache.stats().disk_hits == 3
    assert len(space.fetched) == 3


async def test_a_damaged_copy_is_fetched_again_and_counted(
    space: FakeSpace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, body = space.add(MIB)
    async with on_disk(space, tmp_path) as cache:
        await cache.read(chunk, 0, 1, whole=True)
    damage(tmp_path)
    async with on_disk(space, tmp_path) as cache:
        assert content(await cache.read(chunk, 0, MIB, whole=True)) == body
        await cache.settle()
        disk = cache.stats().disk
        assert disk is not None
        assert disk.corrupt == 1
        assert content(cache.get_now(chunk, 0, MIB)) == body
    assert len(space.fetched) == 2
    assert "damaged" in caplog.text


async def test_a_disk_that_fails_never_fails_a_read(
    space: FakeSpace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = [space.add(MIB, seed) for seed in range(3)]
    async with on_disk(space, tmp_path / "cache") as cache:
        for number, (chunk, body) in enumerate(made):
            if number == 1:
                (tmp_path / "cache").rename(tmp_path / "away")
                await trio.run_process(["rm", "-r", str(tmp_path / "away")])
            assert content(await cache.read(chunk, 0, 9, whole=True)) == body[:9]
            await cache.settle()
        disk = cache.stats().disk
        assert disk is not None
        assert not disk.is_enabled
    assert len(caplog.records) == 1


async def test_a_directory_in_use_is_refused(space: FakeSpace, tmp_path: Path) -> None:
    async with on_disk(space, tmp_path):
        with pytest.raises(MictlanError) as caught:
            async with open_chunk_cache(space.fetch, memory_budget=0, directory=tmp_path):
                raise AssertionError("two mounts own one directory")
        assert caught.value.kind is Kind.BUSY
    async with on_disk(space, tmp_path):
        pass


async def test_an_error_inside_the_block_leaves_the_directory_free(
    space: FakeSpace, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with on_disk(space, tmp_path):
            raise ZeroDivisionError
    async with on_disk(space, tmp_path):
        pass


async def test_leaving_writes_what_is_pending(space: FakeSpace, tmp_path: Path) -> None:
    made = [space.add(MIB, seed) for seed in range(5)]
    async with on_disk(space, tmp_path) as cache:
        for chunk, _ in made:
            await cache.read(chunk, 0, 1, whole=True)
    assert len([p for p in (tmp_path / "chunks").rglob("*") if p.is_file()]) == 5


# --- what this mount wrote -----------------------------------------------------------------------


async def test_what_was_just_written_is_at_hand(space: FakeSpace, cache: ChunkCache) -> None:
    chunk, body = space.add(1000)
    buffer = bytearray(body)
    cache.insert(chunk, [memoryview(buffer)[:300], memoryview(buffer)[300:]])
    buffer[:] = bytes(1000)
    assert content(cache.get_now(chunk, 0, 1000)) == body
    assert space.fetched == []


async def test_what_was_written_goes_to_disk_only_when_asked(
    space: FakeSpace, tmp_path: Path
) -> None:
    first, second = space.add(MIB, 1), space.add(MIB, 2)
    async with on_disk(space, tmp_path) as cache:
        cache.insert(first[0], [first[1]])
        cache.insert(second[0], [second[1]], keep_on_disk=True)
        await cache.settle()
        assert cache.get_now(first[0], 0, 9) is None
        assert content(cache.get_now(second[0], 0, 9)) == second[1][:9]


async def test_insert_ignores_what_nothing_could_keep(space: FakeSpace) -> None:
    chunk, body = space.add(MIB)
    async with open_chunk_cache(space.fetch, memory_budget=1000) as cache:
        cache.insert(chunk, [body])
        assert cache.get_now(chunk, 0, 1) is None


async def test_a_discarded_chunk_is_fetched_again(space: FakeSpace, cache: ChunkCache) -> None:
    chunk, _ = space.add(MIB)
    await cache.read(chunk, 0, 1, whole=True)
    cache.discard(chunk.id)
    await cache.read(chunk, 0, 1, whole=True)
    assert len(space.fetched) == 2


async def test_shrinking_the_budget_gives_memory_back(space: FakeSpace, cache: ChunkCache) -> None:
    chunk, _ = space.add(MIB)
    await cache.read(chunk, 0, 1, whole=True)
    cache.resize(0)
    assert cache.stats().memory.size_bytes == 0


async def test_readers_keep_right_bytes_while_everything_is_evicted(space: FakeSpace) -> None:
    made = [space.add(MIB, seed) for seed in range(6)]
    async with open_chunk_cache(space.fetch, memory_budget=2 * MIB) as cache:

        async def read(number: int) -> None:
            views = []
            for step in range(30):
                chunk, body = made[(number + step) % len(made)]
                views.append((await cache.read(chunk, step, 500_000, whole=True), body, step))
                await trio.lowlevel.checkpoint()
            for view, body, start in views:
                assert content(view) == body[start:500_000]

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(read, number)
        assert cache.stats().memory.evictions > 0
        assert cache.stats().memory.size_bytes <= 2 * MIB


# --- small chunks together -----------------------------------------------------------------------


class Together:
    """Gives many chunks in one call, but for those in `missing`."""

    def __init__(self, space: FakeSpace) -> None:
        self._space = space
        self.calls: list[int] = []
        self.missing: set[Chunk] = set()
        self.may_answer = trio.Event()
        self.may_answer.set()

    async def __call__(self, chunks: Sequence[Chunk]) -> list[Buffer | None]:
        self.calls.append(len(chunks))
        await self.may_answer.wait()
        return [None if chunk in self.missing else self._space.bodies[chunk.id] for chunk in chunks]


async def test_small_chunks_are_fetched_by_one_call_and_served_to_who_waits(
    space: FakeSpace,
) -> None:
    together = Together(space)
    together.may_answer = trio.Event()
    made = [space.add(9000 + index) for index in range(20)]
    async with (
        open_chunk_cache(space.fetch, memory_budget=MIB, fetch_many=together) as cache,
        trio.open_nursery() as nursery,
    ):
        cache.prefetch_together([chunk for chunk, _ in made])
        chunk, body = made[7]
        [reader] = await readers_of(nursery, cache, chunk, [(5, 50)], whole=True)
        together.may_answer.set()
        await wait_all_tasks_blocked()
        assert reader.found == body[5:50]
        assert together.calls == [20]
        for chunk, body in made:
            assert content(cache.get_now(chunk, 0, chunk.length)) == body
        cache.prefetch_together([chunk for chunk, _ in made])
        await wait_all_tasks_blocked()
        assert together.calls == [20], "they are there"
        assert space.fetched == []


async def test_a_chunk_that_does_not_come_with_the_others_is_fetched_alone(
    space: FakeSpace,
) -> None:
    together = Together(space)
    made = [space.add(9000 + index) for index in range(3)]
    together.missing = {made[1][0]}
    async with open_chunk_cache(space.fetch, memory_budget=MIB, fetch_many=together) as cache:
        cache.prefetch_together([chunk for chunk, _ in made])
        await wait_all_tasks_blocked()
        assert [chunk for chunk, _, _ in space.fetched] == [made[1][0]]
        for chunk, body in made:
            assert content(cache.get_now(chunk, 0, chunk.length)) == body


async def test_what_fails_together_is_fetched_alone(space: FakeSpace) -> None:
    async def fail(chunks: Sequence[Chunk]) -> list[Buffer | None]:
        raise ValueError(f"{len(chunks)} are too many")

    chunk, body = space.add(9000)
    async with open_chunk_cache(space.fetch, memory_budget=MIB, fetch_many=fail) as cache:
        cache.prefetch_together([chunk])
        await wait_all_tasks_blocked()
        assert content(cache.get_now(chunk, 0, 9000)) == body


async def test_closing_the_cache_ends_the_wait_for_chunks_that_come_together(
    space: FakeSpace,
) -> None:
    together = Together(space)
    together.may_answer = trio.Event()
    chunk, _ = space.add(9000)
    async with trio.open_nursery() as nursery:
        async with open_chunk_cache(space.fetch, memory_budget=MIB, fetch_many=together) as cache:
            cache.prefetch_together([chunk])
            [reader] = await readers_of(nursery, cache, chunk, [(0, 9)], whole=True)
        await wait_all_tasks_blocked()
        assert reader.error is not None
        assert reader.error.kind is Kind.UNAVAILABLE
