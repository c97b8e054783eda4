"""Small writes: carried by their commit, joined while they continue each other, never lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs_mount import content as content_module
from mictlanfs_mount.compaction import INLINE_CHUNKS_MAX, PAUSE_S, QUIET_S
from mictlanfs_mount.handles import FileHandle, HandleNumber
from tests.support.mount_fakes import FakeMount, open_mount
from tests.support.mount_space import CHUNK_SIZE_BYTES
from tests.support.writeback_rig import Rig, open_rig

INLINE = 1000


async def flushed(rig: Rig, offset: int, data: bytes) -> wire.WriteExtents:
    rig.write(offset, data)
    await rig.writer.flush(10)
    return rig.commits[-1]


async def test_a_small_window_needs_no_peer_and_is_kept_for_readers() -> None:
    async with open_rig(inline_size_max=INLINE) as rig:
        rig.write(0, b"a" * 10)
        rig.write(100, b"b" * 10)
        await rig.writer.flush(10)
        (op,) = rig.commits
        assert rig.script.asked("store") == 0
        assert op.inline == (b"a" * 10 + b"b" * 10,)
        assert [body for _, body in rig.stored] == list(op.inline)
        assert rig.content == b"a" * 10 + bytes(90) + b"b" * 10
        assert rig.writeback.budget.used_bytes == 0


async def test_a_window_beyond_the_threshold_goes_to_peers() -> None:
    async with open_rig(inline_size_max=INLINE) as rig:
        op = await flushed(rig, 0, bytes(INLINE + 1))
        assert rig.script.asked("store") == 1
        assert op.inline == ()


async def test_a_small_window_waits_for_the_large_one_before_it() -> None:
    async with open_rig(inline_size_max=INLINE) as rig:
        hold = rig.script.hold("store:asked")
        rig.write(0, b"a" * CHUNK_SIZE_BYTES)
        rig.write(10, b"b" * 5)
        rig.writer.seal_all()
        await hold.reached.wait()
        assert rig.commits == []
        hold.release()
        await rig.writer.flush(10)
        assert rig.content[8:17] == b"aabbbbbaa"


async def test_appended_records_become_one_extent_up_to_the_threshold() -> None:
    async with open_rig(inline_size_max=INLINE) as rig:
        records = [b"%03d " % index * 25 for index in range(25)]
        for index, record in enumerate(records):
            op = await flushed(rig, index * 100, record)
            assert len(op.inline[0]) <= INLINE
        assert rig.content == b"".join(records)
        extents = rig.space.node(rig.ino, 256).extents
        assert [extent.length for extent in extents] == [INLINE, INLINE, 500]


async def test_what_another_mount_wrote_meanwhile_is_not_undone_by_joining() -> None:
    async with open_rig(inline_size_max=INLINE) as rig:
        await flushed(rig, 0, b"ours ")
        rig.space.write(rig.ino, 0, b"their")
        op = await flushed(rig, 5, b"more")
        assert op.inline == (b"more",)
        assert rig.content == b"theirmore"
        assert rig.writer.error is None


async def test_joining_goes_on_behind_what_another_mount_wrote() -> None:
    async with open_rig(inline_size_max=INLINE) as rig:
        await flushed(rig, 0, b"ours ")
        rig.space.write(rig.ino, 0, b"their")
        await flushed(rig, 5, b"more")
        op = await flushed(rig, 9, b"!")
        assert op.inline == (b"more!",)
        assert rig.content == b"theirmore!"


async def test_a_conflict_of_a_commit_that_asks_for_no_version_is_an_error() -> None:
    async with open_rig(inline_size_max=INLINE) as rig:
        rig.script.fail("WriteExtents:asked", MictlanError(Kind.CONFLICT, "write"))
        rig.write(0, b"data")
        with pytest.raises(MictlanError) as caught:
            await rig.writer.flush(10)
        assert caught.value.kind is Kind.CONFLICT


async def test_a_small_file_is_read_by_another_mount_without_a_fetch() -> None:
    async with open_mount(inline_size_max=INLINE) as mount:
        ino = mount.space.add(mount.space.bucket, b"small")
        handle = (await mount.filesystem.open(ino, 2)).handle
        await mount.filesystem.write(handle, 0, b"content")
        await mount.filesystem.fsync(handle)
        async with open_mount(mount.space) as other:
            assert await other.read_all(ino) == b"content"
            assert other.cache.reads == []


# --- many of them --------------------------------------------------------------------------------


async def appended(mount: FakeMount, handle: HandleNumber, count: int) -> bytes:
    """Append records, each a chunk of its own, and flush each; returns what was written."""
    content = b""
    for index in range(count):
        record = b"%03d " % index * (INLINE // 4)
        await mount.filesystem.write(handle, len(content), record)
        await mount.filesystem.fsync(handle)
        content += record
    return content


async def test_many_inline_chunks_move_to_peers_together() -> None:
    async with open_mount(inline_size_max=INLINE) as mount:
        ino = mount.space.add(mount.space.bucket, b"log")
        handle = (await mount.filesystem.open(ino, 2)).handle
        content = await appended(mount, handle, INLINE_CHUNKS_MAX + 1)
        assert mount.script.asked("store") == 1
        first, last = mount.space.node(ino, 256).extents
        assert (first.length, last.length) == (INLINE_CHUNKS_MAX * INLINE, INLINE)
        assert mount.space.content(ino) == content
        assert await mount.read_all(ino) == content


async def test_moving_undoes_nothing_that_another_mount_wrote_meanwhile() -> None:
    async with open_mount(inline_size_max=INLINE) as mount:
        ino = mount.space.add(mount.space.bucket, b"log")
        handle = (await mount.filesystem.open(ino, 2)).handle
        hold = mount.script.hold("store:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(appended, mount, handle, INLINE_CHUNKS_MAX)
            await hold.reached.wait()
            mount.space.write(ino, 10, b"theirs")
            hold.release()
        assert mount.space.content(ino)[10:16] == b"theirs"
        assert len(mount.space.node(ino, 256).extents) > INLINE_CHUNKS_MAX


async def test_flush_succeeds_though_the_peers_take_nothing() -> None:
    async with open_mount(inline_size_max=INLINE) as mount:
        ino = mount.space.add(mount.space.bucket, b"log")
        handle = (await mount.filesystem.open(ino, 2)).handle
        mount.script.fail("store:asked", MictlanError(Kind.NO_SPACE, "store"))
        content = await appended(mount, handle, INLINE_CHUNKS_MAX)
        assert mount.space.content(ino) == content


# --- what is inline only because somebody waited -------------------------------------------------

SYNCED = 12 * 256
UNAVAILABLE = MictlanError(Kind.UNAVAILABLE, "store")


async def synced(mount: FakeMount, name: bytes, size: int = SYNCED) -> FileHandle:
    """A new file with bytes that are owed to the peers."""
    ino = mount.space.add(mount.space.bucket, name)
    opened = await mount.filesystem.open(ino, 2)
    await mount.filesystem.write(opened.handle, 0, bytes(range(256)) * (size // 256))
    await mount.filesystem.fsync(opened.handle)
    return mount.filesystem.handles.file(opened.handle)


@asynccontextmanager
async def open_leased() -> AsyncIterator[FakeMount]:
    """A mount of which every file is covered by a lease, with operations that are waited for."""
    async with open_mount(inline_size_max=INLINE) as mount:
        mount.content._is_covered = lambda ino: bool(ino)  # type: ignore[method-assign]
        mount.content.writeback.storage.post = lambda *_, **__: False  # type: ignore[method-assign]
        yield mount


async def test_bytes_that_an_fsync_waits_for_go_with_its_commit(
    autojump_clock: MockClock,
) -> None:
    async with open_leased() as mount:
        large = 3 * wire.INLINE_CHUNK_SIZE_BYTES_MAX
        ino = (await synced(mount, b"page", large)).inode.ino
        assert mount.script.asked("store") == 0
        assert mount.script.asked("WriteExtents") == 1, "one commit, one disk sync"
        node = mount.space.node(ino, 256)
        assert [chunk.length for chunk in node.chunks] == [wire.INLINE_CHUNK_SIZE_BYTES_MAX] * 3
        assert await mount.read_all(ino) == bytes(range(256)) * (large // 256)


@pytest.mark.parametrize("is_covered", [True, False])
async def test_what_nobody_waits_for_or_no_lease_covers_goes_to_peers(
    autojump_clock: MockClock, is_covered: bool
) -> None:
    async with open_leased() as mount:
        mount.content._is_covered = lambda ino: is_covered and bool(ino)  # type: ignore[method-assign]
        ino = mount.space.add(mount.space.bucket, b"file")
        handle = (await mount.filesystem.open(ino, 2)).handle
        await mount.filesystem.write(handle, 0, bytes(SYNCED))
        if is_covered:
            await mount.content.flush(ino)
        else:
            await mount.filesystem.fsync(handle)
        assert mount.script.asked("store") == 1


async def test_owed_bytes_move_when_their_file_is_quiet(autojump_clock: MockClock) -> None:
    async with open_leased() as mount:
        file = await synced(mount, b"file")
        mtime_ns = file.inode.attributes.mtime_ns
        await mount.content.move_owed(QUIET_S)
        assert mount.script.asked("store") == 0, "it was written to just now"
        await trio.sleep(QUIET_S)
        await mount.content.move_owed(QUIET_S)
        await mount.content.move_owed(QUIET_S)
        assert mount.script.asked("store") == 1
        (chunk,) = mount.space.node(file.inode.ino, 256).chunks
        assert chunk.peers
        assert file.inode.attributes.mtime_ns == mtime_ns
        assert await mount.read_all(file.inode.ino) == bytes(range(256)) * (SYNCED // 256)
        assert mount.content.owed_bytes == 0


async def test_nothing_is_owed_of_a_file_that_is_gone(autojump_clock: MockClock) -> None:
    async with open_leased() as mount:
        inode = (await synced(mount, b"journal")).inode
        inode.attributes = msgspec.structs.replace(inode.attributes, nlink=0)
        await mount.content.move_owed(QUIET_S)
        assert (mount.content.owed_bytes, mount.script.asked("store")) == (0, 0)


async def test_what_peers_do_not_take_stays_owed_and_bounds_what_may_be(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_leased() as mount:
        file = await synced(mount, b"file")
        mount.script.failure = lambda point: UNAVAILABLE if point == "store:asked" else None
        await mount.content.move_owed(0.0)
        await mount.content.move_owed(0.0)
        assert mount.script.asked("store") == 1, "peers that take nothing are left alone a while"
        assert mount.content.owed_bytes == SYNCED
        mount.script.failure = None
        monkeypatch.setattr(content_module, "OWED_SIZE_BYTES_MAX", SYNCED)
        await synced(mount, b"next")
        assert mount.script.asked("store") == 2, "it went to the peers at once"
        await trio.sleep(PAUSE_S)
        await mount.content.move_owed(0.0)
        assert mount.content.owed_bytes == 0
        assert await mount.read_all(file.inode.ino) == bytes(range(256)) * (SYNCED // 256)


async def test_moving_what_is_owed_undoes_nothing_that_was_written_meanwhile(
    autojump_clock: MockClock,
) -> None:
    async with open_leased() as mount:
        file = await synced(mount, b"file")
        hold = mount.script.hold("store:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.content.move_owed, 0.0)
            await hold.reached.wait()
            mount.space.write(file.inode.ino, 10, b"theirs")
            hold.release()
        assert mount.space.content(file.inode.ino)[10:16] == b"theirs"
        assert mount.content.owed_bytes == 0
