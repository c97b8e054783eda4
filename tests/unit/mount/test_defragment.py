"""Slices in many pieces are put together when their file is quiet, and nothing else changes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB, InodeNumber
from mictlanfs_mount import defragment
from mictlanfs_mount.defragment import (
    ATTEMPTS_MAX,
    EXTENTS_SAVED_MIN,
    PAUSE_S,
    QUIET_S,
    SLICE_S_MAX,
    DefragmentStats,
)
from mictlanfs_mount.filesystem import DEFRAGMENT_S_MAX
from mictlanfs_mount.handles import FileHandle, HandleNumber
from mictlanfs_mount.inodes import Inode
from tests.support.mount_fakes import FakeMount, open_mount
from tests.support.mount_space import FakeSpace

SLICE = 64 * KIB
PIECE = 64
# Pieces of a slice that are written anew, so that it has twice as many extents.
PIECES = EXTENTS_SAVED_MIN + 8
UNAVAILABLE = MictlanError(Kind.UNAVAILABLE, "store")


@dataclass
class Fragmented:
    """An open file of two slices, the first in many pieces."""

    mount: FakeMount
    ino: InodeNumber
    number: HandleNumber
    content: bytes

    @property
    def handle(self) -> FileHandle:
        return self.mount.filesystem.handles.file(self.number)

    @property
    def inode(self) -> Inode:
        return self.handle.inode

    @property
    def extent_count(self) -> int:
        return len(self.mount.space.node(self.ino, 256).extents)

    @property
    def stats(self) -> DefragmentStats:
        return self.mount.content.defragmenter.stats()

    async def write(self, offset: int, data: bytes) -> None:
        await self.mount.filesystem.write(self.number, offset, data)
        end = offset + len(data)
        self.content = self.content[:offset] + data + self.content[end:]

    async def flush(self) -> None:
        await self.mount.content.flush(self.ino)

    async def rewrite(self, quiet_s: float = 0.0) -> bool:
        return await self.mount.content.defragmenter.rewrite_one(quiet_s)

    def check(self) -> None:
        """It has what was written, also for those who ask only now."""
        assert self.mount.space.content(self.ino) == self.content


@asynccontextmanager
async def open_fragmented(
    content: bytes | None = None, pieces: int = PIECES, *, is_covered: bool = True, **options: int
) -> AsyncIterator[Fragmented]:
    """A file that another mount made, and this one then wrote to here and there."""
    space = FakeSpace(chunk_size=SLICE)
    if content is None:
        content = random.Random(1).randbytes(2 * SLICE)
    ino = space.add(space.bucket, b"file", content=content)
    async with open_mount(space, **options) as mount:  # type: ignore[arg-type]  # Passed through.
        mount.content._is_covered = lambda ino: is_covered and bool(ino)  # type: ignore[method-assign]
        mount.content.writeback.storage.post = lambda *_, **__: False  # type: ignore[method-assign]
        number = (await mount.filesystem.open(ino, 2)).handle
        file = Fragmented(mount, ino, number, content)
        offsets = [index * 2 * PIECE for index in range(pieces)]
        random.Random(2).shuffle(offsets)
        for offset in offsets:
            await file.write(offset, random.Random(offset).randbytes(PIECE))
        await file.flush()
        yield file


async def test_a_slice_in_pieces_becomes_one_chunk_when_its_file_is_quiet(
    autojump_clock: MockClock,
) -> None:
    async with open_fragmented() as file:
        before = file.inode.attributes
        assert file.extent_count > 2 * EXTENTS_SAVED_MIN
        assert not await file.rewrite(QUIET_S), "it was written to just now"
        await trio.sleep(QUIET_S)
        assert await file.rewrite(QUIET_S)
        assert file.extent_count == 2
        assert file.stats == DefragmentStats(slices=1, bytes=SLICE)
        assert not await file.rewrite(QUIET_S), "there is no more to do"
        file.check()
        after = file.mount.space.attributes(file.ino)
        assert (after.mtime_ns, after.size, after.allocated) == (
            before.mtime_ns,
            before.size,
            before.allocated,
        )
        assert file.inode.attributes == after
        assert await file.mount.read_all(file.ino) == file.content


async def test_pages_in_the_kernel_stay_good() -> None:
    async with open_fragmented() as file:
        file.inode.kernel_content_version = file.inode.attributes.content_version
        await file.rewrite()
        assert file.stats.slices == 1
        opened = await file.mount.filesystem.open(file.ino, 0)
        assert opened.keep_cache


async def test_holes_stay_holes() -> None:
    async with open_fragmented(b"") as file:
        await file.write(SLICE - 1, b"!")
        for index in range(PIECES):
            # Behind the first piece of each pair, so that pieces touch and holes stay.
            await file.write(index * 2 * PIECE + PIECE // 2, b"x" * PIECE)
            await file.flush()
        space = file.mount.space
        allocated, count = space.attributes(file.ino).allocated, file.extent_count
        await file.rewrite()
        assert file.stats.bytes == allocated < SLICE
        assert file.extent_count < count - EXTENTS_SAVED_MIN
        assert space.attributes(file.ino).allocated == allocated
        assert space.content(ino := file.ino) == await file.mount.read_all(ino)


async def test_pieces_that_nothing_joins_are_left_alone() -> None:
    async with open_fragmented(b"") as file:
        # Written into a hole: together they would be as many as they are.
        assert file.stats.pending == 1
        stored = file.mount.script.asked("store")
        assert await file.rewrite()
        assert (file.stats.slices, file.stats.pending) == (0, 0)
        assert file.mount.script.asked("store") == stored


async def test_a_slice_in_few_pieces_is_not_even_noted() -> None:
    async with open_fragmented(pieces=EXTENTS_SAVED_MIN // 2 - 1) as file:
        assert file.stats == DefragmentStats()


async def test_nothing_is_done_without_a_lease() -> None:
    async with open_fragmented(is_covered=False) as file:
        assert not await file.rewrite()
        assert file.stats == DefragmentStats()
        assert file.extent_count > 2 * EXTENTS_SAVED_MIN


async def test_a_file_with_dirty_bytes_waits() -> None:
    async with open_fragmented() as file:
        await file.write(SLICE, b"dirty")
        assert not await file.rewrite()
        await file.flush()
        assert await file.rewrite()
        assert file.stats.slices == 1
        file.check()


async def test_each_write_starts_the_wait_anew(autojump_clock: MockClock) -> None:
    async with open_fragmented() as file:
        await trio.sleep(QUIET_S)
        await file.write(SLICE, b"more")
        await file.flush()
        assert not await file.rewrite(QUIET_S)
        await trio.sleep(QUIET_S)
        assert await file.rewrite(QUIET_S)
        file.check()


async def test_what_is_written_here_meanwhile_is_not_undone() -> None:
    async with open_fragmented() as file:
        hold = file.mount.script.hold("store:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.rewrite)
            await hold.reached.wait()
            await file.write(10, b"written meanwhile")
            await file.flush()
            hold.release()
        assert (file.stats.slices, file.stats.refused, file.stats.pending) == (0, 1, 1)
        file.check()
        await file.rewrite()
        assert file.stats.slices == 1
        assert file.extent_count == 2
        file.check()


async def test_what_another_mount_writes_meanwhile_is_not_undone() -> None:
    async with open_fragmented() as file:
        hold = file.mount.script.hold("store:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.rewrite)
            await hold.reached.wait()
            file.mount.space.write(file.ino, 10, b"theirs")
            hold.release()
        file.content = file.content[:10] + b"theirs" + file.content[16:]
        file.check()
        await file.rewrite()
        assert file.stats.slices == 1
        file.check()
        assert await file.mount.read_all(file.ino) == file.content


async def test_a_cut_meanwhile_is_not_undone() -> None:
    async with open_fragmented() as file:
        hold = file.mount.script.hold("store:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.rewrite)
            await hold.reached.wait()
            await file.mount.filesystem.setattr(file.ino, size=100)
            hold.release()
        file.content = file.content[:100]
        file.check()
        await file.rewrite()
        assert (file.stats.slices, file.stats.pending) == (0, 0)
        file.check()


async def test_a_slice_that_is_written_again_and_again_is_given_up() -> None:
    async with open_fragmented() as file:
        file.mount.script.fail("store:asked", MictlanError(Kind.CONFLICT, "write"), ATTEMPTS_MAX)
        for _ in range(ATTEMPTS_MAX):
            assert await file.rewrite()
        assert not await file.rewrite()
        assert file.stats == DefragmentStats(refused=ATTEMPTS_MAX)
        file.check()


async def test_peers_that_take_nothing_are_left_alone_for_a_while(
    autojump_clock: MockClock,
) -> None:
    async with open_fragmented() as file:
        file.mount.script.fail("store:asked", UNAVAILABLE)
        assert await file.rewrite()
        assert not await file.rewrite()
        assert (file.stats.failed, file.stats.pending) == (1, 1)
        file.check()
        await trio.sleep(PAUSE_S)
        assert await file.rewrite()
        assert file.stats.slices == 1
        file.check()


async def test_a_slice_that_cannot_be_read_is_given_up(autojump_clock: MockClock) -> None:
    async with open_fragmented() as file:
        space = file.mount.space
        lost = {chunk.id for chunk in space.node(file.ino, 256).chunks}
        for index in range(PIECES):
            await file.write(SLICE + index * 2 * PIECE, b"x" * PIECE)
        await file.flush()
        for chunk_id in lost - {space.node(file.ino, 256).extents[-1].chunk_id}:
            space.chunks[chunk_id] = b""
        file.mount.cache.held.clear()
        for _ in range(ATTEMPTS_MAX + 1):
            assert await file.rewrite()
            await trio.sleep(PAUSE_S)
        assert not await file.rewrite()
        assert file.stats == DefragmentStats(slices=1, bytes=SLICE, failed=ATTEMPTS_MAX)


async def test_peers_that_do_not_answer_do_not_hold_it_up_for_ever(
    autojump_clock: MockClock,
) -> None:
    async with open_fragmented() as file:
        hold = file.mount.script.hold("store:asked")
        started_s = trio.current_time()
        assert await file.rewrite()
        assert trio.current_time() - started_s == SLICE_S_MAX
        assert hold.reached.is_set()
        assert file.stats.failed == 1
        assert file.mount.content.writeback.budget.reserved_bytes == 0


async def test_a_commit_whose_answer_is_lost_does_no_harm(autojump_clock: MockClock) -> None:
    async with open_fragmented() as file:
        hold = file.mount.script.hold("WriteExtents:served")
        assert await file.rewrite()
        hold.release()
        file.check()
        await file.write(5, b"afterwards")
        await file.flush()
        file.check()
        assert await file.mount.read_all(file.ino) == file.content


async def test_a_removed_file_is_forgotten() -> None:
    async with open_fragmented() as file:
        file.inode.attributes = msgspec.structs.replace(file.inode.attributes, nlink=0)
        assert not await file.rewrite()
        assert file.stats == DefragmentStats()


async def test_a_file_that_is_gone_is_forgotten() -> None:
    async with open_fragmented() as file:
        file.mount.script.fail("WriteExtents:asked", MictlanError(Kind.NOT_FOUND, "write"))
        assert await file.rewrite()
        assert file.stats == DefragmentStats(failed=1)


async def test_nothing_is_done_while_memory_is_short() -> None:
    async with open_fragmented(dirty_size_bytes_max=4 * SLICE) as file:
        budget = file.mount.content.writeback.budget
        budget.charge(SLICE + 1)
        assert not await file.rewrite()
        budget.release(1)
        hold = file.mount.script.hold("store:asked")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.rewrite)
            await hold.reached.wait()
            assert budget.reserved_bytes == SLICE
            hold.release()
        assert budget.reserved_bytes == 0
        assert file.stats.slices == 1
        budget.release(SLICE)


async def test_another_mount_that_knew_the_pieces_reads_on() -> None:
    async with open_fragmented() as file:
        space = file.mount.space
        async with open_mount(space) as other:
            number = (await other.filesystem.open(file.ino, 0)).handle
            assert await other.filesystem.read(number, 0, 10) == file.content[:10]
            other.cache.held.clear()
            await file.rewrite()
            named = {chunk.id for chunk in space.node(file.ino, 256).chunks}
            for chunk_id in set(space.chunks) - named:
                space.chunks[chunk_id] = b""
            got = await other.filesystem.read(number, 0, 2 * SLICE)
            assert got == file.content


async def test_it_rests_for_as_long_as_it_works(autojump_clock: MockClock) -> None:
    async with open_fragmented() as file:
        for index in range(PIECES):
            await file.write(SLICE + index * 2 * PIECE, b"x" * PIECE)
        await file.flush()
        file.mount.script.delay_s = lambda point: 1.0 if point == "store:served" else 0.0
        started_s = trio.current_time()
        with trio.move_on_after(QUIET_S + 3.0 - 0.1):
            await file.mount.content.defragmenter.run()
        assert trio.current_time() - started_s > QUIET_S + 2
        assert file.stats.slices == 1, "the second one is under way after a rest"
        with trio.move_on_after(QUIET_S):
            await file.mount.content.defragmenter.run()
        assert file.stats.slices == 2
        file.check()


async def test_the_end_of_the_mount_does_it_if_that_is_quick(autojump_clock: MockClock) -> None:
    async with open_fragmented() as file:
        assert await file.mount.filesystem.flush_all(10) == 0
        assert file.stats.slices == 1
        file.check()


async def test_the_end_of_the_mount_does_not_wait_for_long(autojump_clock: MockClock) -> None:
    async with open_fragmented() as file:
        file.mount.script.delay_s = lambda point: 100.0 if point == "store:asked" else 0.0
        started_s = trio.current_time()
        assert await file.mount.filesystem.flush_all(10) == 0
        assert trio.current_time() - started_s <= DEFRAGMENT_S_MAX + 1
        file.check()


async def test_the_end_of_the_mount_waits_for_what_is_under_way(
    autojump_clock: MockClock,
) -> None:
    async with open_fragmented() as file:
        hold = file.mount.script.hold("store:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.rewrite)
            await hold.reached.wait()
            nursery.start_soon(file.mount.content.defragmenter.rewrite_all)
            await trio.lowlevel.checkpoint()
            hold.release()
        assert file.stats == DefragmentStats(slices=1, bytes=SLICE)
        file.check()


async def test_only_so_many_slices_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_fragmented() as file:
        monkeypatch.setattr(defragment, "SLICES_MAX", 1)
        for index in range(PIECES):
            await file.write(SLICE + index * 2 * PIECE, b"x" * PIECE)
        await file.flush()
        assert file.stats.pending == 1


async def test_extents_that_are_not_known_are_asked_for() -> None:
    async with open_fragmented() as file:
        file.inode.extents.reset(file.inode.extents.content_version)
        file.mount.script.counts.clear()
        await file.rewrite()
        assert file.mount.script.asked("extents") == 1
        assert file.stats.slices == 1
        file.check()
