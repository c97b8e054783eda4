"""Open files: what open revalidates, what closing waits for, and files removed while open."""

from __future__ import annotations

import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs_mount.filesystem import Opened
from tests.support.mount_fakes import CALLER, FakeMount, open_mount
from tests.support.mount_space import FakeSpace

UNAVAILABLE = MictlanError(Kind.UNAVAILABLE)


def releases(mount: FakeMount) -> list[InodeNumber]:
    """The inodes that the mount told the router to let go of."""
    return [op.ino for _, op in mount.space.applied if isinstance(op, wire.Release)]


# --- open and create -----------------------------------------------------------------------------


async def test_open_sees_what_another_mount_closed_before() -> None:
    async with open_mount(attr_timeout_s=1e6) as mount:
        ino = mount.space.add(mount.space.bucket, b"file", content=b"old")
        assert await mount.read_all(ino) == b"old"
        mount.space.write(ino, 0, b"newer")
        assert await mount.read_all(ino) == b"newer"


async def test_open_brings_extents_and_attributes_by_one_request() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file", content=b"content")
        await mount.filesystem.lookup(mount.space.bucket, b"file")
        mount.script.counts.clear()
        opened = await mount.filesystem.open(ino, 0)
        await mount.filesystem.read(opened.handle, 0, 100)
        assert mount.script.asked() == 2
        assert mount.script.asked("node", "fetch") == 2


async def test_second_open_brings_the_extents_of_changed_content() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file", content=b"old")
        await mount.filesystem.open(ino, 0)
        mount.space.write(ino, 0, b"newer")
        opened = await mount.filesystem.open(ino, 0)
        assert await mount.filesystem.read(opened.handle, 0, 100) == b"newer"
        assert mount.script.asked("extents") == 0


async def test_answer_to_an_open_that_was_overtaken_brings_no_extents() -> None:
    async with open_mount(attr_timeout_s=0.0) as mount:
        fs, space = mount.filesystem, mount.space
        ino = space.add(space.bucket, b"file", content=b"old content")
        await fs.lookup(space.bucket, b"file")
        slow = mount.script.hold("node:served")
        opened: list[Opened] = []

        async def open_file() -> None:
            opened.append(await fs.open(ino, os.O_RDONLY))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_file)
            await slow.reached.wait()
            space.write(ino, 0, b"new and longer")
            await fs.getattr(ino)
            slow.release()
        assert await fs.read(opened[0].handle, 0, 100) == b"new and longer"


async def test_directory_cannot_be_opened_as_a_file() -> None:
    async with open_mount() as mount:
        with pytest.raises(MictlanError) as caught:
            await mount.filesystem.open(mount.space.bucket, 0)
        assert caught.value.kind is Kind.IS_DIRECTORY
        assert len(mount.filesystem.handles) == 0


async def test_file_made_elsewhere_is_opened_unless_it_must_be_new() -> None:
    async with open_mount() as mount:
        fs, bucket = mount.filesystem, mount.space.bucket
        ino = mount.space.add(bucket, b"file", content=b"theirs")
        with pytest.raises(MictlanError) as caught:
            await fs.create(bucket, b"file", 0o600, os.O_RDWR | os.O_EXCL, CALLER)
        assert caught.value.kind is Kind.EXISTS
        opened, inode = await fs.create(bucket, b"file", 0o600, os.O_RDWR, CALLER)
        assert inode.ino == ino
        assert inode is fs.handles.file(opened.handle).inode is mount.inodes.get(ino)
        assert await fs.read(opened.handle, 0, 100) == b"theirs"


async def test_file_made_elsewhere_and_known_with_another_size_is_opened_at_once() -> None:
    async with open_mount() as mount:
        fs, bucket = mount.filesystem, mount.space.bucket
        mount.space.add(bucket, b"file", content=b"theirs")
        inode = await fs.lookup(bucket, b"file")
        inode.lookup_count = 1
        inode.told_content_version = inode.attributes.content_version - 1
        _, opened = await fs.create(bucket, b"file", 0o600, os.O_RDWR, CALLER)
        assert opened is inode


async def test_file_made_elsewhere_is_truncated_when_asked_for() -> None:
    async with open_mount() as mount:
        fs, bucket = mount.filesystem, mount.space.bucket
        ino = mount.space.add(bucket, b"file", content=b"theirs")
        opened, inode = await fs.create(bucket, b"file", 0o600, os.O_RDWR | os.O_TRUNC, CALLER)
        assert fs.attributes_of(inode).size == 0
        assert await fs.read(opened.handle, 0, 100) == b""
        assert mount.space.content(ino) == b""


async def test_file_made_elsewhere_and_removed_again_is_not_found_or_stale() -> None:
    async with open_mount() as mount:
        fs, bucket = mount.filesystem, mount.space.bucket
        mount.space.add(bucket, b"file")
        between = mount.script.hold("lookup:served")
        failed: list[Kind] = []

        async def create() -> None:
            with pytest.raises(MictlanError) as caught:
                await fs.create(bucket, b"file", 0o600, os.O_RDWR, CALLER)
            failed.append(caught.value.kind)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            await between.reached.wait()
            mount.space.apply(0, wire.Unlink(bucket, b"file", 0))
            between.release()
        assert failed == [Kind.STALE]
        assert len(fs.handles) == 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(FileKind.DIRECTORY, Kind.IS_DIRECTORY), (FileKind.SYMLINK, Kind.STALE)],
)
async def test_what_was_made_elsewhere_and_is_no_file_is_not_opened(
    kind: FileKind, expected: Kind
) -> None:
    async with open_mount() as mount:
        fs, bucket = mount.filesystem, mount.space.bucket
        mount.space.add(bucket, b"name", kind, target=b"x" if kind is FileKind.SYMLINK else b"")
        with pytest.raises(MictlanError) as caught:
            await fs.create(bucket, b"name", 0o600, os.O_RDWR, CALLER)
        assert caught.value.kind is expected
        assert len(fs.handles) == 0
        assert [inode for inode in range(100) if mount.inodes.get(InodeNumber(inode))] == [bucket]


# --- truncation at open --------------------------------------------------------------------------


async def test_open_to_truncate_drops_committed_and_dirty_bytes() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file", content=b"committed")
        first = await fs.open(ino, os.O_RDWR)
        await fs.write(first.handle, 5, b"dirty and longer")
        second = await fs.open(ino, os.O_WRONLY | os.O_TRUNC)
        assert await fs.read(first.handle, 0, 100) == b""
        await fs.write(second.handle, 2, b"x")
        await fs.flush(second.handle)
        assert mount.space.content(ino) == b"\0\0x"


async def test_open_to_truncate_an_empty_file_changes_its_time() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"stamp")
        before = mount.space.attributes(ino)
        await mount.filesystem.open(ino, os.O_WRONLY | os.O_TRUNC)
        assert mount.space.attributes(ino).mtime_ns > before.mtime_ns


@pytest.mark.parametrize(
    ("mode", "left"),
    [(0o6755, 0o755), (0o2745, 0o2745), (0o4644, 0o644), (0o1777, 0o1777), (0o640, 0o640)],
)
async def test_open_to_truncate_ends_set_ids_unless_root_does_it(mode: int, left: int) -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"program", mode=mode, content=b"x")
        await mount.filesystem.open(ino, os.O_WRONLY | os.O_TRUNC, is_root=True)
        assert mount.space.attributes(ino).mode == mode
        await mount.filesystem.open(ino, os.O_WRONLY)
        assert mount.space.attributes(ino).mode == mode
        await mount.filesystem.open(ino, os.O_WRONLY | os.O_TRUNC)
        assert mount.space.attributes(ino).mode == left


async def test_failed_truncation_leaves_no_handle() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file", content=b"x")
        mount.script.fail("SetAttributes:asked", UNAVAILABLE)
        with pytest.raises(MictlanError):
            await mount.filesystem.open(ino, os.O_WRONLY | os.O_TRUNC)
        assert len(mount.filesystem.handles) == 0
        assert mount.inodes.get(ino) is None


async def test_open_without_truncation_changes_nothing() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file", content=b"x")
        await mount.filesystem.open(ino, os.O_WRONLY | os.O_APPEND)
        assert mount.script.asked() == mount.script.asked("node")


# --- closing -------------------------------------------------------------------------------------


async def test_closed_file_is_seen_by_other_mounts() -> None:
    space = FakeSpace()
    async with open_mount(space) as here, open_mount(space) as there:
        opened, inode = await here.filesystem.create(
            space.bucket, b"file", 0o600, os.O_WRONLY, CALLER
        )
        await here.filesystem.write(opened.handle, 0, b"hello")
        await here.filesystem.flush(opened.handle)
        assert await there.read_all(inode.ino) == b"hello"


async def test_close_of_a_reader_does_not_wait_for_writers() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file")
        writer, reader = await fs.open(ino, os.O_WRONLY), await fs.open(ino, os.O_RDONLY)
        await fs.write(writer.handle, 0, b"x")
        mount.script.counts.clear()
        await fs.flush(reader.handle)
        assert mount.script.asked() == 0


async def test_close_of_a_handle_that_can_write_waits_for_what_came_through_another() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"mapped")
        first, second = await fs.open(ino, os.O_RDWR), await fs.open(ino, os.O_RDWR)
        await fs.write(first.handle, 0, b"x")
        await fs.flush(second.handle)
        assert mount.space.content(ino) == b"x"


async def test_close_without_anything_written_costs_nothing() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        opened = await mount.filesystem.open(ino, os.O_RDWR)
        mount.script.counts.clear()
        await mount.filesystem.flush(opened.handle)
        await mount.filesystem.release(opened.handle)
        assert mount.script.asked() == 0


@pytest.mark.parametrize("sync_on_close", [False, True])
async def test_close_is_durable_when_asked_for(sync_on_close: bool) -> None:
    async with open_mount(sync_on_close=sync_on_close) as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        opened = await mount.filesystem.open(ino, os.O_WRONLY)
        await mount.filesystem.write(opened.handle, 0, b"x")
        await mount.filesystem.flush(opened.handle)
        assert mount.session.is_durable == sync_on_close


async def test_failed_upload_is_reported_by_one_close_and_stored_later(
    autojump_clock: MockClock,
) -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file")
        opened = await fs.open(ino, os.O_WRONLY)
        await fs.write(opened.handle, 0, b"precious")
        mount.script.fail("store:asked", UNAVAILABLE)
        with pytest.raises(MictlanError) as caught:
            await fs.flush(opened.handle)
        assert caught.value.kind is Kind.UNAVAILABLE
        await fs.release(opened.handle)
        await trio.sleep(5)
        assert mount.space.content(ino) == b"precious"


async def test_dirty_data_outlives_its_handles_and_keeps_its_inode_in_memory(
    autojump_clock: MockClock,
) -> None:
    async with open_mount(attr_timeout_s=0.0) as mount:
        fs, space = mount.filesystem, mount.space
        ino = space.add(space.bucket, b"file", content=b"old")
        opened = await fs.open(ino, os.O_WRONLY)
        await fs.write(opened.handle, 0, b"newer")
        mount.script.failure = lambda point: UNAVAILABLE if point == "store:asked" else None
        with pytest.raises(MictlanError):
            await fs.flush(opened.handle)
        await fs.release(opened.handle)
        assert mount.inodes.get(ino) is not None
        assert fs.attributes_of(await fs.getattr(ino)).size == 5
        assert await mount.read_all(ino) == b"newer"
        mount.script.recover()
        await trio.sleep(20)
        assert space.content(ino) == b"newer"
        assert await mount.read_all(ino) == b"newer"
        assert mount.inodes.get(ino) is None


async def test_file_removed_elsewhere_fails_the_close_and_drops_the_data() -> None:
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        ino = space.add(space.bucket, b"file")
        opened = await fs.open(ino, os.O_WRONLY)
        await fs.write(opened.handle, 0, b"x")
        space.apply(0, wire.Unlink(space.bucket, b"file", 0))
        with pytest.raises(MictlanError) as caught:
            await fs.flush(opened.handle)
        assert caught.value.kind is Kind.STALE
        assert mount.content.writeback.budget.used_bytes == 0
        await fs.release(opened.handle)
        assert mount.content.writeback.get(ino) is None


async def test_deadline_of_a_close_leaves_the_data_for_the_next(autojump_clock: MockClock) -> None:
    async with open_mount(deadline_s=5.0) as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file")
        opened = await fs.open(ino, os.O_WRONLY)
        await fs.write(opened.handle, 0, b"precious")
        slow = mount.script.hold("store:asked")
        with pytest.raises(MictlanError) as caught:
            await fs.flush(opened.handle)
        assert caught.value.kind is Kind.TIMED_OUT
        slow.release()
        await fs.flush(opened.handle)
        assert mount.space.content(ino) == b"precious"


# --- removed while open --------------------------------------------------------------------------


async def test_unlinked_file_stays_usable_until_it_is_closed() -> None:
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        ino = space.add(space.bucket, b"file", content=b"old")
        opened = await fs.open(ino, os.O_RDWR)
        await fs.unlink(space.bucket, b"file")
        await fs.write(opened.handle, 3, b" and new")
        await fs.fsync(opened.handle)
        assert await fs.read(opened.handle, 0, 100) == b"old and new"
        assert (await fs.getattr(ino)).attributes.nlink == 0
        await fs.release(opened.handle)
        assert releases(mount) == [ino]
        assert not space.exists(ino)


async def test_dirty_data_of_an_unlinked_file_is_dropped_at_its_last_close() -> None:
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        ino = space.add(space.bucket, b"file")
        first, second = await fs.open(ino, os.O_RDWR), await fs.open(ino, os.O_RDWR)
        await fs.unlink(space.bucket, b"file")
        await fs.write(first.handle, 0, b"x" * 100)
        await fs.release(first.handle)
        assert await fs.read(second.handle, 0, 100) == b"x" * 100
        await fs.release(second.handle)
        assert mount.content.writeback.budget.used_bytes == 0
        assert mount.script.asked("store") == 0
        assert releases(mount) == [ino]


async def test_file_replaced_by_rename_stays_usable_until_it_is_closed() -> None:
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        old = space.add(space.bucket, b"name", content=b"old")
        space.add(space.bucket, b"new", content=b"new")
        opened = await fs.open(old, os.O_RDONLY)
        await fs.rename(space.bucket, b"new", space.bucket, b"name", wire.RenameMode.REPLACE)
        assert await fs.read(opened.handle, 0, 100) == b"old"
        await fs.release(opened.handle)
        assert releases(mount) == [old]
        assert not space.exists(old)


async def test_file_with_another_name_is_not_let_go_of() -> None:
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        ino = space.add(space.bucket, b"one")
        space.apply(0, wire.Link(ino, space.bucket, b"two", 0))
        opened = await fs.open(ino, os.O_RDWR)
        await fs.unlink(space.bucket, b"one")
        await fs.write(opened.handle, 0, b"x")
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        assert releases(mount) == []
        assert space.content(ino) == b"x"


async def test_unlink_of_a_closed_file_while_others_are_open_leaves_nothing_behind() -> None:
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        other = space.add(space.bucket, b"other")
        await fs.open(other, os.O_RDONLY)
        ino = space.add(space.bucket, b"file")
        await fs.unlink(space.bucket, b"file")
        assert not space.exists(ino)


async def test_unlink_of_a_closed_file_whose_data_cannot_be_stored_drops_it(
    autojump_clock: MockClock,
) -> None:
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        ino = space.add(space.bucket, b"file")
        opened = await fs.open(ino, os.O_WRONLY)
        await fs.write(opened.handle, 0, b"x" * 100)
        mount.script.failure = lambda point: UNAVAILABLE if point == "store:asked" else None
        with pytest.raises(MictlanError):
            await fs.flush(opened.handle)
        await fs.release(opened.handle)
        await fs.unlink(space.bucket, b"file")
        assert mount.content.writeback.budget.used_bytes == 0
        tries = mount.script.asked("store")
        await trio.sleep(100)
        assert mount.script.asked("store") == tries


async def test_unlink_while_nothing_is_open_costs_one_request() -> None:
    async with open_mount() as mount:
        mount.space.add(mount.space.bucket, b"file")
        await mount.filesystem.unlink(mount.space.bucket, b"file")
        assert mount.script.asked() == 1


@pytest.mark.parametrize("point", ["Unlink:asked", "Unlink:served"])
async def test_file_closed_while_it_is_unlinked_is_let_go_of_once(point: str) -> None:
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        ino = space.add(space.bucket, b"file")
        opened = await fs.open(ino, os.O_RDWR)
        hold = mount.script.hold(point)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.unlink, space.bucket, b"file")
            await hold.reached.wait()
            await fs.release(opened.handle)
            hold.release()
        assert releases(mount) == [ino]
        assert not space.exists(ino)


@pytest.mark.parametrize("point", ["node:asked", "node:served"])
async def test_file_unlinked_while_it_is_opened_stays_usable(point: str) -> None:
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        ino = space.add(space.bucket, b"file", content=b"content")
        await fs.lookup(space.bucket, b"file")
        hold = mount.script.hold(point)
        opened: list[Opened] = []

        async def open_file() -> None:
            opened.append(await fs.open(ino, os.O_RDONLY))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_file)
            await hold.reached.wait()
            await fs.unlink(space.bucket, b"file")
            hold.release()
        assert space.exists(ino)
        assert await fs.read(opened[0].handle, 0, 100) == b"content"
        await fs.release(opened[0].handle)
        assert releases(mount) == [ino]
        assert not space.exists(ino)


@pytest.mark.parametrize("verb", ["unlink", "rename"])
async def test_file_opened_while_it_is_removed_is_stale(verb: str) -> None:
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        ino = space.add(space.bucket, b"file", content=b"content")
        space.add(space.bucket, b"other")
        await fs.lookup(space.bucket, b"file")
        hold = mount.script.hold("Unlink:asked" if verb == "unlink" else "Rename:asked")
        failed: list[Kind] = []

        async def remove() -> None:
            if verb == "unlink":
                await fs.unlink(space.bucket, b"file")
            else:
                await fs.rename(space.bucket, b"other", space.bucket, b"file", 0)

        async def open_file() -> None:
            with pytest.raises(MictlanError) as caught:
                await fs.open(ino, os.O_RDONLY)
            failed.append(caught.value.kind)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            await hold.reached.wait()
            # The removal said that nobody has the file open, so nobody may get to.
            nursery.start_soon(open_file)
            await wait_all_tasks_blocked()
            hold.release()
        assert failed == [Kind.STALE]
        assert not space.exists(ino)
        assert len(fs.handles) == 0


async def test_router_that_cannot_be_told_of_the_last_close_fails_neither_close_nor_unlink() -> (
    None
):
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        inos = [space.add(space.bucket, name) for name in (b"one", b"two")]
        opened = await fs.open(inos[0], os.O_RDONLY)
        mount.script.fail("Release:asked", UNAVAILABLE, count=2)
        await fs.unlink(space.bucket, b"two")
        await fs.unlink(space.bucket, b"one")
        await fs.release(opened.handle)
        assert mount.script.asked("Release") == 2


async def test_cancelled_open_leaves_no_handle() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        hold = mount.script.hold("node:served")
        await mount.filesystem.lookup(mount.space.bucket, b"file")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.filesystem.open, ino, 0)
            await hold.reached.wait()
            nursery.cancel_scope.cancel()
        assert len(mount.filesystem.handles) == 0


# --- pages in the kernel -------------------------------------------------------------------------


async def test_pages_are_kept_while_nobody_changes_the_file() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file", content=b"x")
        (await fs.lookup(mount.space.bucket, b"file")).lookup_count = 1
        assert not (await fs.open(ino, 0)).keep_cache
        assert (await fs.open(ino, 0)).keep_cache


async def test_pages_are_kept_over_changes_made_here() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        opened, inode = await fs.create(mount.space.bucket, b"file", 0o600, os.O_RDWR, CALLER)
        assert opened.keep_cache
        await fs.write(opened.handle, 0, b"x" * 1000)
        await fs.flush(opened.handle)
        assert (await fs.open(inode.ino, 0)).keep_cache
        await fs.setattr(inode.ino, size=10)
        await fs.setattr(inode.ino, mode=0o640)
        assert (await fs.open(inode.ino, 0)).keep_cache
        assert (await fs.open(inode.ino, os.O_TRUNC)).keep_cache


async def test_pages_are_dropped_once_after_a_change_elsewhere() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        _, inode = await fs.create(mount.space.bucket, b"file", 0o600, os.O_RDWR, CALLER)
        mount.space.write(inode.ino, 0, b"theirs")
        assert not (await fs.open(inode.ino, 0)).keep_cache
        assert (await fs.open(inode.ino, 0)).keep_cache


@pytest.mark.parametrize("is_told_before", [False, True])
async def test_pages_are_dropped_when_changes_here_and_elsewhere_alternate(
    is_told_before: bool,
) -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        opened, inode = await fs.create(mount.space.bucket, b"file", 0o600, os.O_RDWR, CALLER)
        await fs.write(opened.handle, 0, b"ours")
        await fs.flush(opened.handle)
        mount.space.write(inode.ino, 10, b"theirs")
        if is_told_before:
            inode.valid_until_s = 0.0
            await fs.getattr(inode.ino)
        await fs.write(opened.handle, 0, b"ours")
        await fs.flush(opened.handle)
        assert not (await fs.open(inode.ino, 0)).keep_cache


async def test_change_elsewhere_during_a_commit_drops_the_pages() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        opened, inode = await fs.create(mount.space.bucket, b"file", 0o600, os.O_RDWR, CALLER)
        await fs.write(opened.handle, 0, b"ours")
        hold = mount.script.hold("WriteExtents:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.flush, opened.handle)
            await hold.reached.wait()
            mount.space.write(inode.ino, 10, b"theirs")
            hold.release()
        assert not (await fs.open(inode.ino, 0)).keep_cache
