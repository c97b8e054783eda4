"""The verbs of the file system: names, attributes, directories, extended attributes, the whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import (
    MIB,
    ROOT_INODE,
    TIME_NS_MAX,
    TIME_NS_MIN,
    BucketPolicy,
    FileKind,
    InodeNumber,
)
from mictlanfs_mount.filesystem import (
    REOPEN_WITHIN_S,
    STATFS_PATIENCE_S,
    STATFS_VALIDITY_S,
    FileSystem,
)
from mictlanfs_mount.handles import HandleNumber
from tests.support.mount_fakes import CALLER, FakeMount, open_mount
from tests.support.mount_space import FakeSpace

UNAVAILABLE = MictlanError(Kind.UNAVAILABLE)


async def names_of(mount: FakeMount, ino: InodeNumber) -> list[bytes]:
    """A whole directory, as one program reads it."""
    number = await mount.filesystem.opendir(ino)
    mount.filesystem.rewinddir(number)
    names: list[bytes] = []
    while len((await mount.filesystem.readdir(number, len(names))).entries) > len(names):
        names.append(mount.filesystem.handles.directory(number).entries[len(names)].name)
    await mount.filesystem.releasedir(number)
    return names


# --- names ---------------------------------------------------------------------------------------


async def test_made_file_is_found_by_its_name() -> None:
    async with open_mount() as mount:
        fs, bucket = mount.filesystem, mount.space.bucket
        made = await fs.make(bucket, b"new", FileKind.FILE, stat.S_IFREG | 0o640, CALLER)
        assert made.attributes.mode == 0o640
        assert (made.attributes.uid, made.attributes.gid) == (CALLER.uid, CALLER.gid)
        assert (await fs.lookup(bucket, b"new")) is made


@pytest.mark.parametrize("kind", list(FileKind))
async def test_every_kind_of_node_can_be_made(kind: FileKind) -> None:
    async with open_mount() as mount:
        target = b"to/where" if kind is FileKind.SYMLINK else b""
        inode = await mount.filesystem.make(
            mount.space.bucket, b"new", kind, 0o600, CALLER, rdev=0x0102, target=target
        )
        assert mount.space.attributes(inode.ino).kind is kind
        assert inode.target == target


async def test_new_file_needs_no_question_about_its_extents() -> None:
    async with open_mount() as mount:
        opened, _ = await mount.filesystem.create(
            mount.space.bucket, b"new", 0o600, os.O_RDWR, CALLER
        )
        await mount.filesystem.write(opened.handle, 5, b"x")
        assert await mount.filesystem.read(opened.handle, 0, 10) == b"\0\0\0\0\0x"
        assert mount.script.asked("extents") == 0


async def test_create_asks_the_router_once() -> None:
    async with open_mount() as mount:
        await mount.filesystem.lookup(ROOT_INODE, b"bucket")
        mount.script.counts.clear()
        await mount.filesystem.create(mount.space.bucket, b"new", 0o600, os.O_WRONLY, CALLER)
        assert mount.script.asked() == 1


async def test_open_of_a_file_whose_size_the_kernel_does_not_know_is_refused_once() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        inode = await fs.make(mount.space.bucket, b"new", FileKind.FILE, 0o600, CALLER)
        # As the kernel has it: it holds a reference, and was told of other content.
        inode.lookup_count = 1
        inode.told_content_version = inode.attributes.content_version + 1
        for _ in range(2):
            with pytest.raises(MictlanError) as caught:
                await fs.open(inode.ino, os.O_WRONLY)
            assert caught.value.kind is Kind.STALE
            # The kernel's repetition, even if the file has changed once more meanwhile.
            opened = await fs.open(inode.ino, os.O_WRONLY)
            await fs.release(opened.handle)
        inode.told_content_version = inode.attributes.content_version
        await fs.open(inode.ino, os.O_WRONLY)
        assert len(fs.handles) == 1


async def test_each_of_several_threads_that_open_a_changing_file_is_refused_once() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        inode = await fs.make(mount.space.bucket, b"new", FileKind.FILE, 0o600, CALLER)
        inode.lookup_count = 1
        inode.told_content_version = inode.attributes.content_version + 1
        threads = range(1, 5)
        for thread in threads:
            with pytest.raises(MictlanError):
                await fs.open(inode.ino, os.O_RDONLY, thread)
        for thread in reversed(threads):
            await fs.open(inode.ino, os.O_RDONLY, thread)
        assert inode.reopening == {}


async def test_refused_open_that_is_not_repeated_soon_is_forgotten(
    autojump_clock: MockClock,
) -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        inode = await fs.make(mount.space.bucket, b"new", FileKind.FILE, 0o600, CALLER)
        inode.lookup_count = 1
        for thread in range(100):
            inode.told_content_version = inode.attributes.content_version + 1
            with pytest.raises(MictlanError):
                await fs.open(inode.ino, os.O_RDONLY, thread)
            await trio.sleep(REOPEN_WITHIN_S)
        assert len(inode.reopening) == 1


async def test_missing_name_is_not_found() -> None:
    async with open_mount() as mount:
        with pytest.raises(MictlanError) as caught:
            await mount.filesystem.lookup(mount.space.bucket, b"nothing")
        assert caught.value.kind is Kind.NOT_FOUND


@pytest.mark.parametrize("kind", [FileKind.FILE, FileKind.DIRECTORY])
async def test_set_group_id_directory_passes_its_group_on(kind: FileKind) -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        shared = mount.space.add(mount.space.bucket, b"shared", FileKind.DIRECTORY, mode=0o2775)
        mount.space.apply(0, wire.SetAttributes(shared, 0, gid=77))
        inode = await fs.make(shared, b"new", kind, 0o750, CALLER)
        assert inode.attributes.gid == 77
        expected = 0o2750 if kind is FileKind.DIRECTORY else 0o750
        assert inode.attributes.mode == expected


async def test_new_bucket_has_the_default_policy_and_its_files_too() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        bucket = await fs.make(ROOT_INODE, b"other", FileKind.DIRECTORY, 0o755, CALLER)
        assert bucket.policy == BucketPolicy()
        file = await fs.make(bucket.ino, b"file", FileKind.FILE, 0o644, CALLER)
        assert file.policy == BucketPolicy()


async def test_file_has_the_policy_of_its_bucket() -> None:
    async with open_mount() as mount:
        await mount.filesystem.lookup(ROOT_INODE, b"bucket")
        inode = await mount.filesystem.make(
            mount.space.bucket, b"new", FileKind.FILE, 0o644, CALLER
        )
        assert inode.policy == mount.space.policy


async def test_link_gives_the_inode_another_name() -> None:
    async with open_mount() as mount:
        fs, bucket = mount.filesystem, mount.space.bucket
        ino = mount.space.add(bucket, b"one")
        await fs.lookup(bucket, b"one")
        linked = await fs.link(ino, bucket, b"two")
        assert linked.attributes.nlink == 2
        assert (await fs.lookup(bucket, b"two")) is linked


async def test_unlinked_name_is_gone() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        await mount.filesystem.unlink(mount.space.bucket, b"file")
        assert not mount.space.exists(ino)


async def test_removed_directory_is_gone() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"dir", FileKind.DIRECTORY)
        await mount.filesystem.rmdir(mount.space.bucket, b"dir")
        assert not mount.space.exists(ino)


async def test_rename_over_a_file_lets_go_of_it() -> None:
    async with open_mount() as mount:
        bucket = mount.space.bucket
        new = mount.space.add(bucket, b"new", content=b"new")
        old = mount.space.add(bucket, b"old", content=b"old")
        await mount.filesystem.rename(bucket, b"new", bucket, b"old", wire.RenameMode.REPLACE)
        assert (await mount.filesystem.lookup(bucket, b"old")).ino == new
        assert not mount.space.exists(old)


async def test_exchanged_files_both_stay() -> None:
    async with open_mount() as mount:
        bucket = mount.space.bucket
        one, two = mount.space.add(bucket, b"one"), mount.space.add(bucket, b"two")
        await mount.filesystem.rename(bucket, b"one", bucket, b"two", wire.RenameMode.EXCHANGE)
        assert (await mount.filesystem.lookup(bucket, b"one")).ino == two
        assert (await mount.filesystem.lookup(bucket, b"two")).ino == one


@pytest.mark.parametrize("mode", [3, 4, 8, 2**31])
async def test_unknown_flags_of_rename_are_refused_before_anything_is_asked(mode: int) -> None:
    async with open_mount() as mount:
        bucket = mount.space.bucket
        with pytest.raises(MictlanError) as caught:
            await mount.filesystem.rename(bucket, b"a\xff", bucket, b"b", mode)
        assert caught.value.kind is Kind.INVALID
        assert mount.script.asked() == 0


async def test_target_of_a_symlink_is_read_without_a_request() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"link", FileKind.SYMLINK, target=b"a/b")
        await mount.filesystem.lookup(mount.space.bucket, b"link")
        mount.script.counts.clear()
        assert await mount.filesystem.readlink(ino) == b"a/b"
        assert mount.script.asked() == 0


async def test_only_symlinks_have_a_target() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        with pytest.raises(MictlanError) as caught:
            await mount.filesystem.readlink(ino)
        assert caught.value.kind is Kind.INVALID


# --- attributes ----------------------------------------------------------------------------------


async def test_attributes_are_asked_for_once_within_their_validity(
    autojump_clock: MockClock,
) -> None:
    async with open_mount(attr_timeout_s=1.0) as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        inode = await mount.filesystem.lookup(mount.space.bucket, b"file")
        assert mount.filesystem.validity_s(inode) == 1.0
        mount.script.counts.clear()
        await trio.sleep(0.9)
        assert (await mount.filesystem.getattr(ino)) is inode
        assert mount.script.asked() == 0
        await trio.sleep(0.2)
        assert mount.filesystem.validity_s(inode) == 0.0
        assert (await mount.filesystem.getattr(ino)) is inode
        assert mount.script.asked() == 1


async def test_without_a_timeout_attributes_are_always_asked_for() -> None:
    async with open_mount(attr_timeout_s=0.0) as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        for count in range(1, 4):
            await mount.filesystem.getattr(ino)
            assert mount.script.asked("node") == count


async def test_answer_overtaken_by_that_to_a_commit_changes_nothing() -> None:
    async with open_mount(attr_timeout_s=0.0) as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file", content=b"123")
        opened = await fs.open(ino, os.O_RDWR)
        slow = mount.script.hold("node:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.getattr, ino)
            await slow.reached.wait()
            await fs.write(opened.handle, 0, b"123456")
            await fs.flush(opened.handle)
            slow.release()
        inode = mount.inodes.get(ino)
        assert inode is not None
        assert fs.attributes_of(inode).size == 6
        assert await fs.read(opened.handle, 0, 100) == b"123456"


async def test_answer_that_overtakes_that_to_a_commit_counts_already() -> None:
    async with open_mount(attr_timeout_s=0.0) as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file", content=b"123")
        opened = await fs.open(ino, os.O_RDWR)
        await fs.write(opened.handle, 3, b"456")
        slow = mount.script.hold("WriteExtents:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.flush, opened.handle)
            await slow.reached.wait()
            inode = await fs.getattr(ino)
            assert fs.attributes_of(inode).size == 6
            assert await fs.read(opened.handle, 0, 100) == b"123456"
            slow.release()
        assert await fs.read(opened.handle, 0, 100) == b"123456"
        assert inode.attributes == mount.space.attributes(ino)


async def test_forget_during_a_question_leaves_a_usable_inode() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        inode = await mount.filesystem.lookup(mount.space.bucket, b"file")
        inode.lookup_count = 1
        slow = mount.script.hold("lookup:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.filesystem.lookup, mount.space.bucket, b"file")
            await slow.reached.wait()
            mount.inodes.forget(ino, 1)
            assert mount.inodes.get(ino) is None
            slow.release()
        assert mount.inodes.get(ino) is not None


async def test_attributes_are_changed_one_by_one() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file", mode=0o600)
        fs = mount.filesystem
        await fs.setattr(ino, mode=stat.S_IFREG | 0o4755)
        await fs.setattr(ino, uid=5)
        await fs.setattr(ino, gid=6)
        await fs.setattr(ino, atime_ns=7)
        inode = await fs.setattr(ino, mtime_ns=8)
        changed = inode.attributes
        assert (changed.mode, changed.uid, changed.gid) == (0o4755, 5, 6)
        assert (changed.atime_ns, changed.mtime_ns) == (7, 8)
        assert changed == mount.space.attributes(ino)


@pytest.mark.parametrize("time_ns", [2**63, -(2**63) - 1, 2**64, 10**30, -(10**30)])
async def test_time_that_does_not_fit_becomes_the_nearest(time_ns: int) -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        inode = await mount.filesystem.setattr(ino, atime_ns=time_ns, mtime_ns=time_ns)
        nearest = TIME_NS_MAX if time_ns > 0 else TIME_NS_MIN
        assert (inode.attributes.atime_ns, inode.attributes.mtime_ns) == (nearest, nearest)


async def test_time_set_after_a_write_stays() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        opened = await mount.filesystem.open(ino, os.O_WRONLY)
        await mount.filesystem.write(opened.handle, 0, b"x")
        await mount.filesystem.setattr(ino, mtime_ns=12345)
        await mount.filesystem.flush(opened.handle)
        await mount.filesystem.release(opened.handle)
        assert mount.space.attributes(ino).mtime_ns == 12345


@pytest.mark.parametrize("size", [0, 3, 10, 1000])
async def test_truncation_of_dirty_data(size: int) -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file", content=b"old!")
        opened = await fs.open(ino, os.O_RDWR)
        await fs.write(opened.handle, 2, b"12345678")
        inode = await fs.setattr(ino, size=size)
        expected = b"ol12345678"[:size].ljust(size, b"\0")
        assert fs.attributes_of(inode).size == size
        assert await fs.read(opened.handle, 0, 2000) == expected
        await fs.flush(opened.handle)
        assert mount.space.content(ino) == expected


async def test_own_changes_keep_what_is_known_of_the_extents() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file", content=b"0123456789")
        opened = await fs.open(ino, os.O_RDWR)
        await fs.write(opened.handle, 3, b"abc")
        await fs.flush(opened.handle)
        await fs.setattr(ino, size=8)
        await fs.setattr(ino, mode=0o600)
        assert await fs.read(opened.handle, 0, 100) == b"012abc67"
        assert mount.script.asked("extents") == 0


async def test_what_was_cut_off_does_not_come_back_when_the_file_grows() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file", content=b"0123456789")
        opened = await fs.open(ino, os.O_RDWR)
        await fs.setattr(ino, size=4)
        await fs.setattr(ino, size=8)
        await fs.write(opened.handle, 9, b"x")
        assert await fs.read(opened.handle, 0, 100) == b"0123\0\0\0\0\0x"


async def test_truncation_is_not_applied_while_what_was_written_before_is_not_stored() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file")
        opened = await fs.open(ino, os.O_RDWR)
        await fs.write(opened.handle, 0, b"12345")
        mount.script.fail("store:asked", UNAVAILABLE)
        with pytest.raises(MictlanError):
            await fs.setattr(ino, size=2)
        assert await fs.read(opened.handle, 0, 100) == b"12345"


async def test_truncation_answered_too_late_is_seen_when_it_is_asked_for(
    autojump_clock: MockClock,
) -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file", content=b"0123456789")
        opened = await fs.open(ino, os.O_RDWR)
        answer = mount.script.hold("SetAttributes:served")
        with pytest.raises(MictlanError) as caught:
            await fs.setattr(ino, size=4)
        assert caught.value.kind is Kind.TIMED_OUT
        answer.release()
        assert fs.attributes_of(await fs.getattr(ino)).size == 4
        assert await fs.read(opened.handle, 0, 100) == b"0123"
        await fs.write(opened.handle, 6, b"x")
        assert await fs.read(opened.handle, 0, 100) == b"0123\0\0x"


# --- an inode that went away elsewhere -----------------------------------------------------------


STALE_VERBS: dict[str, Callable[[FileSystem, InodeNumber], Awaitable[object]]] = {
    "getattr": lambda fs, ino: fs.getattr(ino),
    "open": lambda fs, ino: fs.open(ino, 0),
    "open to truncate": lambda fs, ino: fs.open(ino, os.O_TRUNC),
    "setattr": lambda fs, ino: fs.setattr(ino, mode=0),
    "setxattr": lambda fs, ino: fs.setxattr(ino, b"user.x", b""),
    "removexattr": lambda fs, ino: fs.removexattr(ino, b"user.x"),
    "getxattr": lambda fs, ino: fs.getxattr(ino, b"user.x"),
}


@pytest.mark.parametrize("verb", STALE_VERBS)
async def test_inode_removed_elsewhere_is_stale_so_that_the_kernel_looks_again(
    verb: str, autojump_clock: MockClock
) -> None:
    async with open_mount() as mount:
        fs, space = mount.filesystem, mount.space
        ino = space.add(space.bucket, b"file")
        await fs.lookup(space.bucket, b"file")
        await fs.setxattr(ino, b"user.x", b"1")
        space.apply(0, wire.Unlink(space.bucket, b"file", 0))
        if verb == "getattr":
            await trio.sleep(1)
        with pytest.raises(MictlanError) as caught:
            await STALE_VERBS[verb](fs, ino)
        assert caught.value.kind is Kind.STALE
        assert len(fs.handles) == 0


# --- directories ---------------------------------------------------------------------------------


async def test_directory_is_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_mount() as mount:
        expected = sorted(b"%d" % number for number in range(25))
        for name in expected:
            mount.space.add(mount.space.bucket, name)
        original = mount.space.page
        monkeypatch.setattr(
            mount.space,
            "page",
            lambda request: original(wire.ListDirectory(request.ino, request.after, 10)),
        )
        assert await names_of(mount, mount.space.bucket) == expected
        assert mount.script.asked("list") == 3


async def test_small_directory_is_read_by_one_request() -> None:
    async with open_mount() as mount:
        for number in range(10):
            mount.space.add(mount.space.bucket, b"%d" % number)
        await mount.filesystem.lookup(ROOT_INODE, b"bucket")
        mount.script.counts.clear()
        await names_of(mount, mount.space.bucket)
        assert mount.script.asked() == 1


async def test_empty_directory_has_no_entries() -> None:
    async with open_mount() as mount:
        assert await names_of(mount, mount.space.bucket) == []


async def test_names_that_stay_are_read_once_while_others_come_and_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_mount() as mount:
        space, fs = mount.space, mount.filesystem
        staying = [b"%02d" % number for number in range(0, 40, 2)]
        for name in staying:
            space.add(space.bucket, name)
        original = space.page
        monkeypatch.setattr(
            space,
            "page",
            lambda request: original(wire.ListDirectory(request.ino, request.after, 6)),
        )
        number = await fs.opendir(space.bucket)
        fs.rewinddir(number)
        seen: list[bytes] = []
        while len((await fs.readdir(number, len(seen))).entries) > len(seen):
            index = len(seen)
            seen.append(fs.handles.directory(number).entries[index].name)
            # One appears before where the reader is, one behind it, and an earlier one goes.
            space.add(space.bucket, b"%02d+" % (index % 40))
            space.add(space.bucket, b"%02d-" % (39 - index % 40))
            if b"%02d+" % (index - 1) in seen:
                space.apply(0, wire.Unlink(space.bucket, b"%02d+" % (index - 1), 0))
            if index > 200:
                break
        assert [name for name in seen if name in staying] == staying
        assert len(set(seen)) == len(seen)


async def test_entry_can_be_read_again_at_its_index() -> None:
    async with open_mount() as mount:
        for name in (b"a", b"b", b"c"):
            mount.space.add(mount.space.bucket, name)
        number = await mount.filesystem.opendir(mount.space.bucket)
        await mount.filesystem.readdir(number, 2)
        mount.space.apply(0, wire.Unlink(mount.space.bucket, b"a", 0))
        again = await mount.filesystem.readdir(number, 1)
        assert again.entries[1].name == b"b"
        again = await mount.filesystem.readdir(number, 0)
        assert again.entries[0].name == b"a"


async def test_rewound_directory_shows_what_changed() -> None:
    async with open_mount() as mount:
        mount.space.add(mount.space.bucket, b"a")
        number = await mount.filesystem.opendir(mount.space.bucket)
        await mount.filesystem.readdir(number, 5)
        mount.space.add(mount.space.bucket, b"b")
        mount.filesystem.rewinddir(number)
        handle = await mount.filesystem.readdir(number, 5)
        assert [entry.name for entry in handle.entries] == [b"a", b"b"]


async def test_name_changed_here_since_it_was_listed_is_not_to_be_trusted() -> None:
    async with open_mount(attr_timeout_s=60.0) as mount:
        fs, space = mount.filesystem, mount.space
        for name in (b"a", b"b"):
            space.add(space.bucket, name)
        number = await fs.opendir(space.bucket)
        handle = await fs.readdir(number, 1)
        assert handle.valid_until_s(1) > 0
        await fs.unlink(space.bucket, b"b")
        assert handle.valid_until_s(1) == 0


async def test_file_is_no_directory_to_open() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        with pytest.raises(MictlanError) as caught:
            await mount.filesystem.opendir(ino)
        assert caught.value.kind is Kind.NOT_DIRECTORY
        assert len(mount.filesystem.handles) == 0


async def test_fsync_of_a_directory_makes_changes_durable_once() -> None:
    async with open_mount() as mount:
        await mount.filesystem.make(mount.space.bucket, b"new", FileKind.FILE, 0o600, CALLER)
        number = await mount.filesystem.opendir(mount.space.bucket)
        await mount.filesystem.fsyncdir(number)
        await mount.filesystem.fsyncdir(number)
        assert mount.script.asked("sync") == 1


async def test_removed_directory_that_is_open_can_still_be_read() -> None:
    async with open_mount() as mount:
        fs, bucket = mount.filesystem, mount.space.bucket
        ino = mount.space.add(bucket, b"dir", FileKind.DIRECTORY)
        number = await fs.opendir(ino)
        await fs.rmdir(bucket, b"dir")
        assert (await fs.readdir(number, 0)).entries == []
        await fs.releasedir(number)
        assert not mount.space.exists(ino)


# --- extended attributes -------------------------------------------------------------------------


async def test_absent_attribute_costs_no_request_while_attributes_are_valid() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        await mount.filesystem.lookup(mount.space.bucket, b"file")
        mount.script.counts.clear()
        for _ in range(5):
            with pytest.raises(MictlanError) as caught:
                await mount.filesystem.getxattr(ino, b"security.capability")
            assert caught.value.kind is Kind.NO_DATA
        assert await mount.filesystem.listxattr(ino) == []
        assert mount.script.asked() == 0


async def test_attributes_are_fetched_once_and_again_when_the_file_changed() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file")
        await fs.setxattr(ino, b"user.b", b"2")
        await fs.setxattr(ino, b"user.a", b"1")
        assert await fs.listxattr(ino) == [b"user.a", b"user.b"]
        assert await fs.getxattr(ino, b"user.a") == b"1"
        assert mount.script.asked("xattrs") == 1
        await fs.removexattr(ino, b"user.a")
        with pytest.raises(MictlanError) as caught:
            await fs.getxattr(ino, b"user.a")
        assert caught.value.kind is Kind.NO_DATA
        assert mount.script.asked("xattrs") == 2


async def test_attribute_set_while_others_are_fetched_is_seen_next_time() -> None:
    async with open_mount() as mount:
        fs = mount.filesystem
        ino = mount.space.add(mount.space.bucket, b"file")
        await fs.setxattr(ino, b"user.a", b"old")
        slow = mount.script.hold("xattrs:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.getxattr, ino, b"user.a")
            await slow.reached.wait()
            await fs.setxattr(ino, b"user.a", b"new")
            slow.release()
        assert await fs.getxattr(ino, b"user.a") == b"new"


async def test_removal_of_an_absent_attribute_fails() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        with pytest.raises(MictlanError) as caught:
            await mount.filesystem.removexattr(ino, b"user.a")
        assert caught.value.kind is Kind.NO_DATA


XATTR_VERBS: dict[str, Callable[[FileSystem, InodeNumber, bytes], Awaitable[object]]] = {
    "get": lambda fs, ino, name: fs.getxattr(ino, name),
    "set": lambda fs, ino, name: fs.setxattr(ino, name, b"value"),
    "remove": lambda fs, ino, name: fs.removexattr(ino, name),
}


@pytest.mark.parametrize("verb", XATTR_VERBS)
async def test_attributes_of_the_system_that_mean_nothing_here_are_refused(verb: str) -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        with pytest.raises(MictlanError) as caught:
            await XATTR_VERBS[verb](mount.filesystem, ino, b"system.nothing_known")
        assert caught.value.kind is Kind.UNSUPPORTED
        assert mount.script.asked() == 0


@pytest.mark.parametrize("name", [b"colour", b"other.colour", b"User.a"])
@pytest.mark.parametrize("verb", XATTR_VERBS)
async def test_attributes_outside_of_every_namespace_are_refused(verb: str, name: bytes) -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        with pytest.raises(MictlanError) as caught:
            await XATTR_VERBS[verb](mount.filesystem, ino, name)
        assert caught.value.kind is Kind.UNSUPPORTED


@pytest.mark.parametrize("verb", XATTR_VERBS)
async def test_without_access_control_lists_they_are_refused_and_not_listed(verb: str) -> None:
    async with open_mount() as mount:
        fs, name = mount.filesystem, b"system.posix_acl_access"
        ino = mount.space.add(mount.space.bucket, b"file")
        for attribute in (name, b"user.x"):
            mount.space.apply(0, wire.SetXattr(ino, attribute, b"value", 0))
        assert await fs.listxattr(ino) == [name, b"user.x"]
        fs.has_acls = False
        assert await fs.listxattr(ino) == [b"user.x"]
        with pytest.raises(MictlanError) as caught:
            await XATTR_VERBS[verb](fs, ino, name)
        assert caught.value.kind is Kind.UNSUPPORTED


# --- the whole -----------------------------------------------------------------------------------


async def test_space_is_asked_for_once_a_while(autojump_clock: MockClock) -> None:
    async with open_mount() as mount:
        first = await mount.filesystem.statfs()
        assert await mount.filesystem.statfs() is first
        await trio.sleep(STATFS_VALIDITY_S)
        await mount.filesystem.statfs()
        assert mount.script.asked("statfs") == 2


async def test_what_is_known_of_space_is_told_while_no_router_answers(
    autojump_clock: MockClock,
) -> None:
    async with open_mount() as mount:
        first = await mount.filesystem.statfs()
        await trio.sleep(STATFS_VALIDITY_S)
        mount.script.hold("statfs:asked")
        with trio.fail_after(STATFS_PATIENCE_S + 1):
            assert await mount.filesystem.statfs() is first
        assert mount.script.asked("statfs") == 2
        await trio.sleep(STATFS_VALIDITY_S)
        assert await mount.filesystem.statfs() is not first


async def test_space_of_a_mounted_directory_is_that_of_the_quota_of_its_bucket() -> None:
    for quota, shown in ((0, (100 * MIB, 60 * MIB)), (8 * MIB, (8 * MIB, 5 * MIB))):
        async with open_mount() as mount:
            mount.space.policy = BucketPolicy(quota=quota)
            mount.space.add(mount.space.bucket, b"file", content=bytes(3 * MIB))
            mount.inodes.root = mount.space.bucket
            await mount.filesystem.getattr(mount.space.bucket)
            space = await mount.filesystem.statfs()
            assert (space.capacity, space.free) == shown


async def test_everything_is_durable_after_the_last_flush() -> None:
    async with open_mount() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        opened = await mount.filesystem.open(ino, os.O_WRONLY)
        await mount.filesystem.write(opened.handle, 0, b"x")
        assert await mount.filesystem.flush_all(10) == 0
        assert mount.space.content(ino) == b"x"
        assert mount.script.asked("sync") == 1


async def test_last_flush_does_not_fail_when_the_router_is_away(
    autojump_clock: MockClock,
) -> None:
    async with open_mount() as mount:
        await mount.filesystem.make(mount.space.bucket, b"new", FileKind.FILE, 0o600, CALLER)
        mount.script.fail("sync:asked", UNAVAILABLE)
        assert await mount.filesystem.flush_all(10) == 0
        mount.script.hold("sync:asked")
        assert await mount.filesystem.flush_all(10) == 0


@pytest.mark.parametrize("verb", ["read", "write", "flush", "fsync", "readdir", "fsyncdir"])
async def test_unknown_handle_is_an_error_of_the_system(verb: str) -> None:
    async with open_mount() as mount:
        fs, number = mount.filesystem, HandleNumber(99)
        verbs: dict[str, Callable[[], Awaitable[object]]] = {
            "read": lambda: fs.read(number, 0, 1),
            "write": lambda: fs.write(number, 0, b"x"),
            "flush": lambda: fs.flush(number),
            "fsync": lambda: fs.fsync(number),
            "readdir": lambda: fs.readdir(number, 0),
            "fsyncdir": lambda: fs.fsyncdir(number),
        }
        with pytest.raises(OSError, match="99"):
            await verbs[verb]()
        await fs.release(number)
        await fs.releasedir(number)


async def test_table_of_inodes_holds_nothing_that_nobody_uses() -> None:
    async with open_mount(FakeSpace()) as mount:
        fs, bucket = mount.filesystem, mount.space.bucket
        ino = mount.space.add(bucket, b"file")
        opened = await fs.open(ino, 0)
        await fs.release(opened.handle)
        number = await fs.opendir(bucket)
        await fs.releasedir(number)
        with pytest.raises(MictlanError):
            await fs.open(bucket, 0)
        await wait_all_tasks_blocked()
        assert len(mount.inodes) == 0
