"""Content of files: how reads are put together, and what happens while they go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FILE_SIZE_BYTES_MAX, KIB, MIB, Extent, InodeNumber
from mictlanfs_mount import content as content_module
from mictlanfs_mount.content import KEEP_WRITTEN_SIZE_BYTES_MAX, RENEWAL_S_MAX
from mictlanfs_mount.handles import FileHandle, HandleNumber
from mictlanfs_mount.inodes import Inode
from tests.support.mount_fakes import FakeMount, open_mount
from tests.support.mount_space import CHUNK_SIZE_BYTES, FakeSpace

WINDOW = CHUNK_SIZE_BYTES
UNAVAILABLE = MictlanError(Kind.UNAVAILABLE, "get chunk", "", "no peer answers")


@dataclass
class File:
    """An open file of a mount."""

    mount: FakeMount
    ino: InodeNumber
    number: HandleNumber

    @property
    def handle(self) -> FileHandle:
        return self.mount.filesystem.handles.file(self.number)

    @property
    def inode(self) -> Inode:
        return self.handle.inode

    @property
    def size(self) -> int:
        return self.mount.filesystem.attributes_of(self.inode).size

    async def read(self, offset: int, length: int) -> bytes:
        body = self.mount.content.read_now(self.handle, offset, length)
        if body is None:
            body = await self.mount.content.read(self.handle, offset, length)
        return bytes(body)

    async def write(self, offset: int, data: bytes) -> None:
        await self.mount.content.write(self.handle, offset, data)

    async def flush(self) -> None:
        await self.mount.content.flush(self.ino)


@asynccontextmanager
async def open_file(
    content: bytes = b"", *, space: FakeSpace | None = None, **options: int
) -> AsyncIterator[File]:
    """A file that another mount made, opened. Requests are counted from then on."""
    space = space or FakeSpace()
    ino = space.add(space.bucket, b"file", content=content)
    async with open_mount(space, **options) as mount:  # type: ignore[arg-type]  # Passed through.
        number = (await mount.filesystem.open(ino, 0)).handle
        mount.script.counts.clear()
        yield File(mount, ino, number)


@asynccontextmanager
async def large_file(
    *, pieces: int, extents_page: int = wire.EXTENTS_PAGE_MAX
) -> AsyncIterator[File]:
    """A file of chunks of 1 MiB, each full of its number, of which the mount knows no extents."""
    space = FakeSpace()
    space.extents_page = extents_page
    ino = space.add(space.bucket, b"large")
    for piece in range(pieces):
        space.write(ino, piece * MIB, bytes([piece]) * MIB)
    async with open_mount(space) as mount:
        file = File(mount, ino, (await mount.filesystem.open(ino, 0)).handle)
        file.inode.extents.reset(file.inode.extents.content_version)
        yield file


# --- reading what is committed -------------------------------------------------------------------


async def test_range_of_a_file_is_read() -> None:
    async with open_file(b"0123456789") as file:
        assert await file.read(2, 5) == b"23456"


@pytest.mark.parametrize(
    ("offset", "length", "expected"), [(8, 5, b"89"), (10, 5, b""), (99, 1, b"")]
)
async def test_read_ends_where_the_file_does(offset: int, length: int, expected: bytes) -> None:
    async with open_file(b"0123456789") as file:
        assert await file.read(offset, length) == expected


async def test_holes_read_as_zeros_without_a_request() -> None:
    async with open_file() as file:
        file.mount.space.apply(0, wire.SetAttributes(file.ino, 0, size=3 * WINDOW))
        await file.mount.filesystem.open(file.ino, 0)
        file.mount.script.counts.clear()
        assert await file.read(100, 2 * WINDOW) == bytes(2 * WINDOW)
        assert file.mount.script.asked() == 0


async def test_read_over_several_chunks_and_holes_is_one_piece() -> None:
    async with open_file(b"a" * 100) as file:
        space = file.mount.space
        space.write(file.ino, 150, b"b" * 100)
        space.write(file.ino, 250, b"c" * 100)
        await file.mount.filesystem.open(file.ino, 0)
        expected = b"a" * 100 + bytes(50) + b"b" * 100 + b"c" * 100
        assert await file.read(0, 1000) == expected
        assert await file.read(90, 170) == expected[90:260]


async def test_cached_read_makes_no_request() -> None:
    async with open_file(b"x" * 1000) as file:
        await file.read(0, 1000)
        file.mount.script.counts.clear()
        assert await file.read(10, 500) == b"x" * 500
        assert file.mount.script.asked() == 0


async def test_cached_read_of_several_chunks_does_not_suspend() -> None:
    async with open_file(b"x" * 1000) as file:
        file.mount.space.write(file.ino, 1000, b"y" * 1000)
        await file.mount.filesystem.open(file.ino, 0)
        await file.read(0, 2000)
        with trio.CancelScope() as scope:
            scope.cancel()
            assert await file.read(500, 1000) == b"x" * 500 + b"y" * 500
        assert not scope.cancelled_caught


async def test_extents_that_came_with_the_open_are_not_asked_for_again() -> None:
    async with open_file(b"x" * 1000) as file:
        await file.read(0, 1000)
        assert file.mount.script.asked("extents") == 0


async def test_extents_of_a_large_file_come_page_by_page() -> None:
    space = FakeSpace()
    space.extents_page = 4
    ino = space.add(space.bucket, b"large")
    for index in range(10):
        space.write(ino, index * 10, b"%d" % index * 10)
    async with open_mount(space) as mount:
        number = (await mount.filesystem.open(ino, 0)).handle
        for _ in range(2):
            assert await mount.filesystem.read(number, 0, 100) == space.content(ino)
            assert mount.script.asked("extents") == 2


async def test_sequential_reader_wants_whole_chunks_and_more_ahead() -> None:
    space = FakeSpace()
    ino = space.add(space.bucket, b"large")
    for index in range(8):
        space.write(ino, index * MIB, b"%d" % index * MIB)
    async with open_mount(space) as mount:
        number = (await mount.filesystem.open(ino, 0)).handle
        for offset in range(0, MIB, 128 * KIB):
            await mount.filesystem.read(number, offset, 128 * KIB)
        assert [(start, whole) for _, start, _, whole in mount.cache.reads] == [(0, True)]
        read_at_once = mount.cache.reads[0][0]
        ahead = dict.fromkeys(chunk.id for chunk in mount.cache.prefetched)
        assert len(ahead.keys() - {read_at_once.id}) >= 4


async def test_much_fragmented_file_costs_one_read_of_each_chunk() -> None:
    space = FakeSpace()
    ino = space.add(space.bucket, b"fragmented", content=b"a" * MIB)
    fresh = space.keep(b"b" * (MIB // 2))
    pages = range(0, MIB, 8 * KIB)
    extents = [Extent(page, 4 * KIB, fresh.id, page // 2) for page in pages]
    space.apply(0, wire.WriteExtents(ino, tuple(extents), (fresh,), MIB, 1))
    async with open_mount(space) as mount:
        number = (await mount.filesystem.open(ino, 0)).handle
        assert await mount.filesystem.read(number, 0, MIB) == space.content(ino)
        assert len(mount.cache.reads) == 2


async def test_sequential_reader_has_the_next_extents_asked_for_ahead_and_many_at_once() -> None:
    space = FakeSpace(chunk_size=KIB)
    space.extents_page = 4
    ino = space.add(space.bucket, b"fragmented")
    for index in range(64):
        space.write(ino, index * 100, b"%02d" % index * 50)
    async with open_mount(space) as mount:
        number = (await mount.filesystem.open(ino, 0)).handle
        space.extents_page = wire.EXTENTS_LONG_PAGE_MAX
        assert await mount.filesystem.read(number, 0, 200) == space.content(ino)[:200]
        # It goes on, so what it has not asked for yet is fetched.
        await mount.filesystem.read(number, 200, 100)
        await wait_all_tasks_blocked()
        assert mount.script.asked("extents") == 1
        assert len({chunk.id for chunk in mount.cache.prefetched}) == 64 - 3
        assert await mount.filesystem.read(number, 0, 6400) == space.content(ino)
        assert mount.script.asked("extents") == 1


async def test_extents_that_cannot_be_asked_for_ahead_are_asked_for_when_needed() -> None:
    space = FakeSpace(chunk_size=KIB)
    space.extents_page = 4
    ino = space.add(space.bucket, b"fragmented")
    for index in range(8):
        space.write(ino, index * 100, b"%d" % index * 100)
    async with open_mount(space) as mount:
        number = (await mount.filesystem.open(ino, 0)).handle
        mount.script.fail("extents:asked", UNAVAILABLE)
        await mount.filesystem.read(number, 0, 100)
        await mount.filesystem.read(number, 100, 100)
        await wait_all_tasks_blocked()
        assert mount.script.asked("extents") == 1
        assert await mount.filesystem.read(number, 200, 600) == space.content(ino)[200:]
        assert mount.script.asked("extents") == 2


async def test_reads_that_overtake_each_other_are_sequential_in_the_order_they_came() -> None:
    async with open_file(b"x" * MIB) as file:
        file.inode.extents.reset(file.inode.extents.content_version)
        first = file.mount.script.hold("extents:asked")
        results: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading, file, 0, 128 * KIB, results)
            await first.reached.wait()
            await reading(file, 128 * KIB, 128 * KIB, results)
            first.release()
        assert [whole for _, _, _, whole in file.mount.cache.reads] == [True]
        assert b"".join(results) == b"x" * 256 * KIB


async def test_random_reader_wants_only_its_range() -> None:
    async with open_file(b"x" * MIB) as file:
        await file.read(700_000, 4096)
        ((_, start, end, whole),) = file.mount.cache.reads
        assert (start, end, whole) == (700_000, 704_096, False)
        assert file.mount.cache.prefetched == []


async def test_random_reader_has_all_chunks_of_the_file_opened_once() -> None:
    async with large_file(pieces=8) as file:
        await file.read(5 * MIB, KIB)
        assert not file.mount.cache.opened_ahead
        for piece in (3, 1, 6):
            await file.read(piece * MIB, KIB)
        opened = [chunk.id for chunk in file.mount.cache.opened_ahead]
        assert len(opened) == len(set(opened)) == 8


async def test_random_reader_of_a_file_in_order_asks_for_its_extents_once() -> None:
    async with large_file(pieces=8) as file:
        for piece in (6, 3, 1, 7):
            assert await file.read(piece * MIB + 5, 3) == bytes([piece] * 3)
        assert file.mount.script.asked("extents") == 1


async def test_place_in_the_middle_of_a_much_fragmented_file_is_found_by_two_pages() -> None:
    async with large_file(pieces=20, extents_page=4) as file:
        assert await file.read(15 * MIB + 5, 3) == bytes([15] * 3)
        assert file.mount.script.asked("extents") == 2


async def test_small_chunks_are_fetched_whole_even_at_random() -> None:
    async with open_file(b"x" * 50_000) as file:
        await file.read(40_000, 10)
        ((_, _, _, whole),) = file.mount.cache.reads
        assert whole


# --- reading what is dirty -----------------------------------------------------------------------


async def test_dirty_bytes_lie_over_committed_ones() -> None:
    async with open_file(b"0123456789") as file:
        await file.write(3, b"abc")
        assert await file.read(0, 100) == b"012abc6789"
        await file.write(12, b"end")
        assert await file.read(0, 100) == b"012abc6789\0\0end"
        assert await file.read(4, 4) == b"bc67"


async def test_what_was_just_written_is_read_without_a_request() -> None:
    async with open_file() as file:
        await file.write(0, b"x" * 100)
        file.mount.script.counts.clear()
        assert await file.read(10, 20) == b"x" * 20
        assert file.mount.script.asked() == 0


async def test_what_was_just_written_is_read_while_the_router_is_away() -> None:
    async with open_file(b"old" * 100) as file:
        file.inode.extents.reset(file.inode.extents.content_version)
        file.mount.script.failure = lambda _: UNAVAILABLE
        await file.write(30, b"new")
        assert await file.read(30, 3) == b"new"
        with pytest.raises(MictlanError):
            await file.read(29, 4)


async def test_small_chunk_that_was_written_is_at_hand_afterwards() -> None:
    async with open_file() as file:
        await file.write(0, b"x" * 1000)
        await file.flush()
        file.mount.script.counts.clear()
        assert await file.read(0, 1000) == b"x" * 1000
        assert file.mount.script.asked("fetch") == 0


async def test_large_chunk_that_was_written_is_not_kept() -> None:
    size = KEEP_WRITTEN_SIZE_BYTES_MAX + 1
    async with open_file(space=FakeSpace(4 * MIB)) as file:
        await file.write(0, b"x" * size)
        await file.flush()
        assert file.mount.cache.held == {}


# --- what happens while a read goes on -----------------------------------------------------------


async def reading(file: File, offset: int, length: int, results: list[bytes]) -> None:
    results.append(await file.read(offset, length))


async def test_commit_that_lands_during_a_read_does_not_mix_states() -> None:
    async with open_file(b"old!" * 10) as file:
        await file.write(4, b"new!")
        fetch = file.mount.script.hold("fetch:asked")
        results: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading, file, 0, 40, results)
            await fetch.reached.wait()
            await file.flush()
            fetch.release()
        assert results == [b"old!" + b"new!" + b"old!" * 8]


async def test_write_and_commit_during_a_read_leave_the_state_it_began_with() -> None:
    async with open_file(b"old!" * 10) as file:
        fetch = file.mount.script.hold("fetch:asked")
        results: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading, file, 0, 40, results)
            await fetch.reached.wait()
            await file.write(4, b"new!")
            await file.flush()
            fetch.release()
        assert results == [b"old!" * 10]


async def test_commit_during_the_search_for_extents_gives_the_new_state() -> None:
    async with open_file(b"old!" * 10) as file:
        file.inode.extents.reset(file.inode.extents.content_version)
        page = file.mount.script.hold("extents:served")
        results: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading, file, 0, 40, results)
            await page.reached.wait()
            await file.write(4, b"new!")
            await file.flush()
            # The page that is on its way is of the content before.
            page.release()
        assert results == [b"old!" + b"new!" + b"old!" * 8]


async def test_truncation_during_the_search_for_extents_shortens_the_read() -> None:
    async with open_file(b"0123456789") as file:
        file.inode.extents.reset(file.inode.extents.content_version)
        page = file.mount.script.hold("extents:asked")
        results: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading, file, 0, 10, results)
            await page.reached.wait()
            await file.mount.filesystem.setattr(file.ino, size=4)
            page.release()
        assert results == [b"0123"]


async def test_extents_newer_than_the_commit_that_made_them_are_believed() -> None:
    async with open_file(b"old!" * 4) as file:
        await file.write(0, b"new!")
        answer = file.mount.script.hold("WriteExtents:served")
        results: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.flush)
            await answer.reached.wait()
            file.inode.extents.reset(file.inode.extents.content_version)
            await reading(file, 0, 100, results)
            answer.release()
        await reading(file, 0, 100, results)
        assert results == [b"new!" + b"old!" * 3] * 2


async def test_file_that_was_replaced_by_a_shorter_one_ends_where_that_does() -> None:
    async with open_file(b"a long old content") as file:
        space = file.mount.space
        file.inode.extents.reset(file.inode.extents.content_version)
        space.apply(0, wire.SetAttributes(file.ino, 0, size=0))
        space.write(file.ino, 0, b"short")
        assert await file.read(0, 100) == b"short"
        assert file.size == 5


async def test_inode_that_was_never_opened_is_read_and_kept_up_to_date() -> None:
    async with open_mount(attr_timeout_s=0.0) as mount:
        space = mount.space
        ino = space.add(space.bucket, b"file", content=b"old content")
        handle = FileHandle(await mount.filesystem.lookup(space.bucket, b"file"))
        assert await mount.content.read(handle, 0, 100) == b"old content"
        space.write(ino, 0, b"new content")
        await mount.filesystem.getattr(ino)
        assert await mount.content.read(handle, 0, 100) == b"new content"


async def test_file_that_changes_with_every_answer_is_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(content_module, "EXTENT_PAGES_MAX", 20)
    async with open_file(b"0123456789") as file:
        file.inode.extents.reset(file.inode.extents.content_version)

        def change(point: str) -> None:
            if point in {"extents:asked", "node:asked"}:
                file.mount.space.write(file.ino, 0, b"again")

        file.mount.script.failure = change
        with pytest.raises(MictlanError) as caught:
            await file.read(0, 10)
        assert caught.value.kind is Kind.BUSY


async def test_cancelled_read_leaves_the_file_readable() -> None:
    async with open_file(b"0123456789") as file:
        for point in ("fetch:asked", "fetch:served"):
            hold = file.mount.script.hold(point)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(file.read, 0, 10)
                await hold.reached.wait()
                nursery.cancel_scope.cancel()
        assert await file.read(0, 10) == b"0123456789"


# --- when the bytes cannot be had ----------------------------------------------------------------


async def test_chunk_deleted_after_another_mount_replaced_it_is_looked_for_anew() -> None:
    async with open_file(b"old content") as file:
        space = file.mount.space
        old_chunks = list(space.chunks)
        space.write(file.ino, 0, b"new content")
        for chunk_id in old_chunks:
            del space.chunks[chunk_id]
        assert await file.read(0, 100) == b"new content"


async def test_lost_chunk_is_an_error_and_costs_one_more_question() -> None:
    async with open_file(b"content") as file:
        file.mount.space.chunks.clear()
        with pytest.raises(MictlanError) as caught:
            await file.read(0, 100)
        assert caught.value.kind is Kind.CORRUPT
        assert file.mount.script.asked("extents") == 1
        assert file.mount.script.asked("fetch") == 1


async def test_peers_away_and_router_away_is_the_error_of_the_peers_soon(
    autojump_clock: MockClock,
) -> None:
    async with open_file(b"content") as file:
        file.mount.script.fail("fetch:asked", UNAVAILABLE)
        file.mount.script.hold("extents:asked")
        with pytest.raises(MictlanError, match="no peer answers"):
            await file.read(0, 100)
        assert trio.current_time() <= RENEWAL_S_MAX


async def test_file_is_readable_again_when_its_peers_are() -> None:
    async with open_file(b"content") as file:
        file.mount.script.fail("fetch:asked", UNAVAILABLE)
        with pytest.raises(MictlanError):
            await file.read(0, 100)
        assert await file.read(0, 100) == b"content"


async def test_failure_of_one_chunk_of_several_is_a_plain_error() -> None:
    async with open_file(b"a" * 100) as file:
        file.mount.space.write(file.ino, 100, b"b" * 100)
        await file.mount.filesystem.open(file.ino, 0)
        file.mount.script.fail("fetch:asked", UNAVAILABLE, count=2)
        with pytest.raises(MictlanError) as caught:
            await file.read(0, 200)
        assert caught.value.kind is Kind.UNAVAILABLE


async def test_one_of_several_chunks_replaced_and_deleted_is_looked_for_anew() -> None:
    async with open_file(b"a" * 100) as file:
        space = file.mount.space
        space.write(file.ino, 100, b"b" * 100)
        await file.mount.filesystem.open(file.ino, 0)
        old = list(space.chunks)[-1]
        space.write(file.ino, 100, b"c" * 100)
        del space.chunks[old]
        assert await file.read(0, 200) == b"a" * 100 + b"c" * 100


async def test_lost_chunk_of_a_file_that_is_empty_by_now_is_no_error() -> None:
    async with open_file(b"old content") as file:
        file.mount.space.chunks.clear()
        file.mount.space.apply(0, wire.SetAttributes(file.ino, 0, size=2))
        assert await file.read(5, 5) == b""


async def test_file_removed_elsewhere_is_stale_to_its_readers() -> None:
    async with open_file(b"old content") as file:
        space = file.mount.space
        space.apply(0, wire.Unlink(space.bucket, b"file", 0))
        assert await file.read(0, 100) == b"old content"
        file.inode.extents.reset(file.inode.extents.content_version)
        with pytest.raises(MictlanError) as caught:
            await file.read(0, 100)
        assert caught.value.kind is Kind.STALE


# --- writing -------------------------------------------------------------------------------------


async def test_file_grows_at_once_and_keeps_its_size_when_committed() -> None:
    async with open_file(b"12345") as file:
        await file.write(100, b"x")
        assert file.size == 101
        await file.flush()
        assert file.size == 101
        assert file.mount.space.attributes(file.ino).size == 101


async def test_write_shows_in_times_and_blocks_at_once() -> None:
    async with open_file(b"12345") as file:
        before = file.inode.attributes
        await file.write(0, b"x" * 10)
        shown = file.mount.content.effective(before)
        assert shown.mtime_ns > before.mtime_ns
        assert shown.ctime_ns >= shown.mtime_ns
        assert shown.allocated >= 10
        changed = {"size", "mtime_ns", "ctime_ns", "allocated"}
        same = [name for name in shown.__struct_fields__ if name not in changed]
        assert all(getattr(shown, name) == getattr(before, name) for name in same)
        await file.flush()
        assert file.mount.space.attributes(file.ino).mtime_ns == shown.mtime_ns


async def test_largest_offset_can_be_written_and_no_other() -> None:
    async with open_file() as file:
        await file.write(FILE_SIZE_BYTES_MAX - 1, b"x")
        await file.flush()
        assert file.mount.space.attributes(file.ino).size == FILE_SIZE_BYTES_MAX
        with pytest.raises(MictlanError) as caught:
            await file.write(FILE_SIZE_BYTES_MAX, b"x")
        assert caught.value.kind is Kind.TOO_LARGE


async def test_empty_write_makes_nothing_dirty() -> None:
    async with open_file(b"12345") as file:
        await file.write(1000, b"")
        assert file.size == 5
        assert file.mount.content.writeback.get(file.ino) is None


async def test_writer_that_uses_up_the_memory_waits_until_some_is_free() -> None:
    async with open_file(dirty_size_bytes_max=2 * WINDOW) as file:
        slow = file.mount.script.hold("store:asked")
        await file.write(0, b"x" * WINDOW)
        await slow.reached.wait()
        slow_too = file.mount.script.hold("store:asked")
        await file.write(WINDOW, b"x" * WINDOW)
        written = trio.Event()

        async def write_more() -> None:
            await file.write(2 * WINDOW, b"y")
            written.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_more)
            await wait_all_tasks_blocked()
            assert not written.is_set()
            slow.release()
            await written.wait()
            slow_too.release()
        await file.flush()
        assert file.mount.space.content(file.ino) == b"x" * (2 * WINDOW) + b"y"


async def test_memory_in_use_never_exceeds_the_limit_by_more_than_one_write() -> None:
    async with open_file(dirty_size_bytes_max=4 * WINDOW) as file:
        peak = 0

        async def write_on(start: int) -> None:
            nonlocal peak
            for index in range(20):
                await file.write((start + index) * WINDOW // 2, b"x" * (WINDOW // 2))
                peak = max(peak, file.mount.content.writeback.budget.used_bytes)

        async with trio.open_nursery() as nursery:
            for writer in range(6):
                nursery.start_soon(write_on, 20 * writer)
        await file.flush()
        assert 4 * WINDOW <= peak < 4 * WINDOW + WINDOW // 2
        assert file.mount.content.writeback.budget.used_bytes == 0


async def test_sequential_write_makes_one_store_for_each_chunk_and_few_commits() -> None:
    async with open_file(space=FakeSpace(4 * MIB), dirty_size_bytes_max=1024 * MIB) as file:
        commit = file.mount.script.hold("WriteExtents:asked")
        block = bytes(MIB)
        for index in range(64):
            await file.write(index * MIB, block)
        await commit.reached.wait()
        await wait_all_tasks_blocked()
        commit.release()
        await file.flush()
        assert file.mount.script.asked("store") == 16
        assert 1 <= file.mount.script.asked("WriteExtents") <= 2
        assert file.mount.script.asked() <= 18


# --- durability ----------------------------------------------------------------------------------


async def test_fsync_syncs_what_was_applied_before() -> None:
    async with open_file() as file:
        await file.write(0, b"x")
        await file.flush()
        await file.mount.content.fsync(file.ino)
        assert file.mount.script.asked("sync") == 1
        await file.mount.content.fsync(file.ino)
        assert file.mount.script.asked("sync") == 1


async def test_commit_that_fsync_waits_for_is_durable_without_a_barrier() -> None:
    async with open_file() as file:
        await file.write(0, b"x")
        await file.mount.content.fsync(file.ino)
        assert file.mount.script.asked("WriteExtents") == 1
        assert file.mount.script.asked("sync") == 0


async def test_fsync_of_data_that_cannot_be_stored_does_not_claim_durability() -> None:
    async with open_file() as file:
        await file.write(0, b"x")
        file.mount.script.fail("store:asked", UNAVAILABLE)
        with pytest.raises(MictlanError):
            await file.mount.content.fsync(file.ino)
        assert file.mount.script.asked("sync") == 0
