"""Changes under leases: made here at once, at the router later, and given up in order."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, FileKind, InodeNumber
from mictlanfs_mount.contested import CONTESTED_S
from mictlanfs_mount.durable import DurableFileSystem
from mictlanfs_mount.inodes import Inode
from tests.support.leased_space import (
    LeasedMount,
    LeasedSpace,
    open_leased_mount,
)
from tests.support.mount_fakes import CALLER

FILE, DIRECTORY = FileKind.FILE, FileKind.DIRECTORY
REPLACE, EXCHANGE = wire.RenameMode.REPLACE, wire.RenameMode.EXCHANGE


async def make(mount: LeasedMount, name: bytes, kind: FileKind = FILE) -> Inode:
    """A node in the bucket."""
    return await mount.filesystem.make(mount.space.bucket, name, kind, 0o644, CALLER)


async def made(mount: LeasedMount, *names: bytes) -> list[Inode]:
    """Files in the bucket, which the router knows."""
    inodes = [await make(mount, name) for name in names]
    await mount.flush()
    return inodes


async def kind_of(verb: Awaitable[object]) -> Kind:
    with pytest.raises(MictlanError) as raised:
        await verb
    return raised.value.kind


def asked(mount: LeasedMount) -> int:
    """How many requests were made for the sake of a program."""
    return mount.script.asked("lookup", "node", "list", "extents", "acquire", "commit")


# --- here at once --------------------------------------------------------------------------------


async def test_a_change_under_a_lease_asks_for_nothing(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    await made(mount, b"first")
    await mount.list(space.bucket)
    before = asked(mount)
    inode = await make(mount, b"a")
    await mount.filesystem.setattr(inode.ino, mode=0o600)
    await mount.filesystem.rename(space.bucket, b"a", space.bucket, b"b", REPLACE)
    await mount.filesystem.unlink(space.bucket, b"b")
    assert asked(mount) == before
    assert space.names(space.bucket).keys() == {b"first"}


async def test_the_log_has_the_order_of_the_program(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    opened, inode = await mount.filesystem.create(space.bucket, b"a", 0o644, os.O_RDWR, CALLER)
    await mount.filesystem.write(opened.handle, 0, b"x")
    await mount.filesystem.setattr(inode.ino, mtime_ns=5)
    await mount.filesystem.write(opened.handle, 1, b"y")
    await mount.filesystem.rename(space.bucket, b"a", space.bucket, b"b", REPLACE)
    await mount.flush()
    kinds = [
        type(op) for op in space.applied if isinstance(op, wire.WriteExtents | wire.SetAttributes)
    ]
    assert kinds == [wire.WriteExtents, wire.SetAttributes, wire.WriteExtents]
    there = space.find(space.bucket, b"b").attributes
    assert there.mtime_ns == mount.filesystem.attributes_of(inode).mtime_ns > 5
    assert space.content(inode.ino) == b"xy"


async def test_times_set_on_a_dirty_file_are_not_undone_by_its_bytes(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    opened, inode = await mount.filesystem.create(space.bucket, b"a", 0o644, os.O_RDWR, CALLER)
    await mount.filesystem.write(opened.handle, 0, b"x")
    await mount.filesystem.setattr(inode.ino, mtime_ns=5)
    assert mount.filesystem.attributes_of(inode).mtime_ns == 5
    await mount.flush()
    assert space.node(inode.ino).attributes.mtime_ns == 5


async def test_what_waits_for_bytes_goes_with_the_file(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    opened, inode = await mount.filesystem.create(space.bucket, b"a", 0o644, os.O_RDWR, CALLER)
    await mount.filesystem.write(opened.handle, 0, b"x" * 100_000)
    await mount.filesystem.setattr(inode.ino, mode=0o600)
    await mount.filesystem.unlink(space.bucket, b"a")
    await mount.filesystem.release(opened.handle)
    await mount.flush()
    assert inode.pending_count == 0
    assert not space.exists(inode.ino)
    assert mount.content.writeback.budget.used_bytes == 0


async def test_a_new_file_can_be_cut_at_once(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    inode = await make(mount, b"a")
    await mount.filesystem.setattr(inode.ino, size=7)
    assert space.node(inode.ino).attributes.size == 7


async def test_two_files_are_exchanged(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    one, two = await made(mount, b"a", b"b")
    await mount.filesystem.rename(space.bucket, b"a", space.bucket, b"b", EXCHANGE)
    await mount.flush()
    assert space.names(space.bucket) == {b"a": two.ino, b"b": one.ino}
    assert (await mount.filesystem.lookup(space.bucket, b"a")).ino == two.ino
    verb = mount.filesystem.rename(space.bucket, b"a", space.bucket, b"c", EXCHANGE)
    assert await kind_of(verb) is Kind.NOT_FOUND


async def test_errors_are_those_of_the_router(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    await make(mount, b"f")
    folder = await make(mount, b"d", DIRECTORY)
    await mount.filesystem.make(folder.ino, b"x", FILE, 0o644, CALLER)
    fs, bucket = mount.filesystem, space.bucket
    assert await kind_of(make(mount, b"f")) is Kind.EXISTS
    assert await kind_of(fs.unlink(bucket, b"none")) is Kind.NOT_FOUND
    assert await kind_of(fs.unlink(bucket, b"d")) is Kind.IS_DIRECTORY
    assert await kind_of(fs.rmdir(bucket, b"f")) is Kind.NOT_DIRECTORY
    assert await kind_of(fs.rmdir(bucket, b"d")) is Kind.NOT_EMPTY
    assert await kind_of(fs.rename(bucket, b"f", bucket, b"d", REPLACE)) is Kind.IS_DIRECTORY
    assert await kind_of(fs.rename(bucket, b"d", folder.ino, b"y", REPLACE)) is Kind.INVALID
    assert await kind_of(fs.make(ROOT_INODE, b"f", FILE, 0o644, CALLER)) is Kind.NOT_PERMITTED


# --- leases given up -----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["rename", "unlink"])
async def test_a_name_of_what_others_wait_for_is_changed_in_its_turn(
    space: LeasedSpace,
    mount: LeasedMount,
    other: LeasedMount,
    autojump_clock: MockClock,
    verb: str,
) -> None:
    fs = mount.filesystem
    ours, theirs = await make(mount, b"ours", DIRECTORY), await make(mount, b"theirs", DIRECTORY)
    file = await fs.make(ours.ino, b"file", FILE, 0o644, CALLER)
    await fs.link(file.ino, theirs.ino, b"file")
    for directory in (ours, theirs):
        await mount.list(directory.ino)
    await fs.make(ours.ino, b"beside", FILE, 0o644, CALLER)
    hold = mount.script.hold("release:asked")

    async def change() -> None:
        if verb == "unlink":
            await fs.unlink(ours.ino, b"file")
        else:
            await fs.rename(ours.ino, b"file", ours.ino, b"moved", REPLACE)

    async with trio.open_nursery() as nursery:
        # The other one waits for the file, and gets it first.
        nursery.start_soon(other.filesystem.unlink, theirs.ino, b"file")
        await hold.reached.wait()
        nursery.start_soon(change)
        await wait_all_tasks_blocked()
        hold.release()
    await mount.flush()
    names = {b"beside"} if verb == "unlink" else {b"beside", b"moved"}
    assert space.names(ours.ino).keys() == names
    assert space.names(theirs.ino).keys() == set()


async def test_another_mount_sees_what_was_done_before_it_asked(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    opened, inode = await mount.filesystem.create(space.bucket, b"a", 0o644, os.O_RDWR, CALLER)
    await mount.filesystem.write(opened.handle, 0, b"dirty")
    await mount.filesystem.setattr(inode.ino, mode=0o600)
    async with open_leased_mount(space) as other:
        found = await other.filesystem.lookup(space.bucket, b"a")
        assert stat.S_IMODE(found.attributes.mode) == 0o600
        assert await other.read_all(found.ino) == b"dirty"
        await other.filesystem.setattr(found.ino, mode=0o640)
        mine = await mount.filesystem.getattr(inode.ino)
        assert stat.S_IMODE(mine.attributes.mode) == 0o640
        assert other.filesystem.validity_s(found) == 0 or other.table.covers(found)


async def test_the_kernel_forgets_before_a_lease_is_released(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    inode = await make(mount, b"a")
    assert mount.filesystem.validity_s(inode) > 0
    assert mount.filesystem.name_validity_s(space.bucket, b"a", inode) > 0
    hold = mount.script.hold("release:asked")
    async with open_leased_mount(space) as other, trio.open_nursery() as nursery:
        nursery.start_soon(other.filesystem.unlink, space.bucket, b"a")
        await hold.reached.wait()
        assert mount.kernel.names == [(space.bucket, b"a")]
        assert inode.ino in mount.kernel.inodes
        assert mount.filesystem.validity_s(inode) == 0
        assert space.names(space.bucket).keys() == {b"a"}
        hold.release()


@pytest.mark.parametrize("is_locked", [False, True])
async def test_lock_that_a_waiting_request_holds_is_not_waited_for(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock, is_locked: bool
) -> None:
    inode = await make(mount, b"a")
    assert mount.filesystem.name_validity_s(space.bucket, b"a", inode) > 0
    hold = mount.script.hold("commit:asked")
    async with open_leased_mount(space) as other, trio.open_nursery() as nursery:
        nursery.start_soon(other.filesystem.unlink, space.bucket, b"a")
        await hold.reached.wait()
        if is_locked:
            # The kernel holds the directory's lock for it, and it waits for the lease.
            nursery.start_soon(make, mount, b"b")
            await wait_all_tasks_blocked()
        hold.release()
    assert mount.kernel.names == [(space.bucket, b"a")]
    assert mount.kernel.locked[0] == is_locked


async def test_names_of_a_directory_that_two_mounts_change_in_turn_are_not_kept_for_a_while(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    async def change_in_turn(other: LeasedMount, number: int) -> None:
        await make(mount, b"to commit first %d" % number)
        hold = mount.script.hold("commit:asked")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make, other, b"theirs%d" % number)
            await hold.reached.wait()
            nursery.start_soon(make, mount, b"ours%d" % number)
            await wait_all_tasks_blocked()
            hold.release()

    async def is_told() -> bool:
        inode = await mount.filesystem.lookup(space.bucket, b"a")
        return mount.filesystem.name_validity_s(space.bucket, b"a", inode) > 0

    await make(mount, b"a")
    assert await is_told()
    async with open_leased_mount(space) as other:
        await change_in_turn(other, 0)
        assert mount.kernel.locked == [True]
        # Each time it starts anew, and nothing has to be forgotten in a hurry.
        for number in (1, 2):
            assert not await is_told()
            await trio.sleep(CONTESTED_S / 2)
            await change_in_turn(other, number)
        assert mount.kernel.locked == [True, False, False]
    await trio.sleep(CONTESTED_S / 2)
    assert not await is_told()
    await trio.sleep(CONTESTED_S / 2 + 0.1)
    assert await is_told()


@pytest.mark.parametrize("is_set", [False, True])
async def test_time_of_what_was_written_is_known_while_other_changes_are_on_their_way(
    space: LeasedSpace,
    mount: LeasedMount,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    is_set: bool,
) -> None:
    (inode,) = await made(mount, b"a")
    opened = await mount.filesystem.open(inode.ino, os.O_WRONLY)
    await trio.sleep(3)
    await mount.filesystem.write(opened.handle, 0, b"x" * 100_000)
    writer = mount.content.writeback.get(inode.ino)
    assert writer is not None
    writer.seal_all()
    written_ns = writer.mtime_ns
    assert written_ns > inode.attributes.mtime_ns
    await wait_all_tasks_blocked()
    # They are answered in one batch, the bytes first.
    if is_set:
        await mount.filesystem.setattr(inode.ino, mtime_ns=7)
    await mount.filesystem.rename(space.bucket, b"a", space.bucket, b"c", REPLACE)
    await mount.flush()
    known = (await mount.filesystem.lookup(space.bucket, b"c")).attributes
    assert (known.size, known.mtime_ns) == (100_000, 7 if is_set else written_ns)
    assert "foretold" not in caplog.text


async def owe(mount: LeasedMount, folder: InodeNumber) -> None:
    """A file in a directory, of which bytes are owed to the peers."""
    opened, _ = await mount.filesystem.create(folder, b"owed", 0o644, os.O_RDWR, CALLER)
    await mount.filesystem.write(opened.handle, 0, b"x" * 20_000)
    await mount.filesystem.fsync(opened.handle)
    await mount.filesystem.release(opened.handle)
    assert mount.content.owed_bytes == 20_000


async def test_a_lease_for_owed_bytes_that_others_want_all_the_time_is_asked_for_again(
    space: LeasedSpace,
    mount: LeasedMount,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await owe(mount, space.bucket)
    async with open_leased_mount(space) as other:
        await other.filesystem.lookup(space.bucket, b"owed")
        own, asked = mount.content.own, 0
        assert own is not None

        async def busy_at_first(ino: InodeNumber) -> None:
            nonlocal asked
            asked += 1
            if asked < 3:
                raise MictlanError(Kind.BUSY, "lease", str(ino))
            await own(ino)

        monkeypatch.setattr(mount.content, "own", busy_at_first)
        await mount.content.move_owed(0.0)
        assert (asked, mount.content.owed_bytes) == (3, 0)


async def test_mounts_that_owe_bytes_of_files_that_the_other_has_leased_do_not_stop_each_other(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    async with open_leased_mount(space) as other:
        ours = (await make(mount, b"ours", DIRECTORY)).ino
        theirs = (await make(other, b"theirs", DIRECTORY)).ino
        await owe(mount, ours)
        await owe(other, theirs)
        started_s, sessions = trio.current_time(), (mount.session.ref, other.session.ref)
        # Each has the other's directory now, and something in it that it has to commit first.
        await mount.filesystem.make(theirs, b"new", FILE, 0o644, CALLER)
        await other.filesystem.make(ours, b"new", FILE, 0o644, CALLER)
        async with trio.open_nursery() as nursery:
            for one in (mount, other):
                nursery.start_soon(one.content.move_owed, 0.0)
        assert (mount.content.owed_bytes, other.content.owed_bytes) == (0, 0)
        assert trio.current_time() - started_s < 1.0
        assert (mount.session.ref, other.session.ref) == sessions


async def test_bytes_owed_of_a_file_do_not_hold_up_what_a_reader_of_its_directory_waits_for(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    folder = (await make(mount, b"d", DIRECTORY)).ino
    await owe(mount, space.bucket)
    opened, _ = await mount.filesystem.create(folder, b"f", 0o644, os.O_RDWR, CALLER)
    await mount.filesystem.write(opened.handle, 0, b"x" * 100_000)
    slow = mount.script.hold("store:asked")
    async with open_leased_mount(space) as other:
        # From now on the bucket is leased to nobody for writing.
        await other.filesystem.lookup(space.bucket, b"owed")
        session = mount.session.ref
        async with trio.open_nursery() as nursery:
            # Needs the bucket and the directory; this one has to store the file in it first.
            nursery.start_soon(other.filesystem.lookup, space.bucket, b"d")
            await slow.reached.wait()
            nursery.start_soon(mount.content.move_owed, 0.0)
            await wait_all_tasks_blocked()
            started_s = trio.current_time()
            slow.release()
        assert trio.current_time() - started_s < 1.0
        assert (mount.session.ref, mount.content.owed_bytes) == (session, 0)


@pytest.mark.parametrize("is_failing", [False, True])
async def test_a_mount_is_waited_for_while_peers_take_their_time_unless_they_fail(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock, is_failing: bool
) -> None:
    inode = await make(mount, b"a")
    opened = await mount.filesystem.open(inode.ino, os.O_WRONLY)
    await mount.filesystem.write(opened.handle, 0, b"x" * 100_000)
    slow = mount.script.hold("store:served")
    if is_failing:
        mount.script.fail("store:asked", MictlanError(Kind.UNAVAILABLE, "store"), 1000)
    async with open_leased_mount(space) as other, trio.open_nursery() as nursery:
        sizes = []

        async def look() -> None:
            found = await other.filesystem.lookup(space.bucket, b"a")
            sizes.append(found.attributes.size)

        nursery.start_soon(look)
        # Twice as long as somebody has who does not say so.
        await trio.sleep(25)
        # What was not stored when it was given up for lost is not there for others.
        assert sizes == ([0] if is_failing else [])
        mount.script.recover()
        slow.release()
    assert sizes == ([0] if is_failing else [100_000])


async def test_read_of_a_file_cut_short_elsewhere_is_refused_once(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    opened, inode = await mount.filesystem.create(space.bucket, b"a", 0o644, os.O_RDWR, CALLER)
    direct = await mount.filesystem.open(inode.ino, os.O_RDONLY | os.O_DIRECT)
    await mount.filesystem.write(opened.handle, 0, b"12345678")
    async with open_leased_mount(space) as other:
        found = await other.filesystem.lookup(space.bucket, b"a")
        await other.filesystem.setattr(found.ino, size=3)
        with pytest.raises(InterruptedError):
            await mount.filesystem.read(opened.handle, 0, 4096)
        # The kernel fills nothing up here, and repeats nothing.
        assert await mount.filesystem.read(direct.handle, 0, 4096) == b"123"
        assert await mount.filesystem.read(opened.handle, 0, 4096) == b"123"
        assert await mount.filesystem.read(opened.handle, 0, 2) == b"12"


async def test_another_size_is_told_when_the_reads_under_way_are_answered(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    opened, inode = await mount.filesystem.create(space.bucket, b"a", 0o644, os.O_RDWR, CALLER)
    await mount.filesystem.write(opened.handle, 0, b"12345678")
    order: list[str] = []

    async def read() -> None:
        with pytest.raises(InterruptedError):
            await mount.filesystem.read(opened.handle, 0, 4096)
        order.append("read")

    async def look() -> None:
        await mount.filesystem.getattr(inode.ino)
        order.append("told")

    async with open_leased_mount(space) as other:
        found = await other.filesystem.lookup(space.bucket, b"a")
        await other.filesystem.setattr(found.ino, size=3)
        hold = mount.script.hold("node:served")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await hold.reached.wait()
            nursery.start_soon(look)
            await wait_all_tasks_blocked()
            assert order == []
            hold.release()
    assert order == ["read", "told"]


async def test_attributes_told_under_a_lease_that_covers_them_no_more_are_forgotten(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    inode = await make(mount, b"a")
    mount.filesystem.validity_s(inode)
    await mount.filesystem.link(inode.ino, space.bucket, b"b")
    assert mount.kernel.changed == [inode.ino]
    await mount.filesystem.unlink(space.bucket, b"a")
    assert mount.kernel.changed == [inode.ino, inode.ino]


async def test_the_lease_that_a_file_of_several_names_has_ends_with_the_file(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    inode = await make(mount, b"a")
    await mount.filesystem.link(inode.ino, space.bucket, b"b")
    assert (await mount.filesystem.getattr(inode.ino)).lease is mount.table.held(inode.ino)
    for name in (b"a", b"b"):
        await mount.filesystem.unlink(space.bucket, name)
    await mount.flush()
    assert mount.table.held(inode.ino) is None


async def test_leases_without_names_are_given_up_too_when_there_are_too_many(
    space: LeasedSpace, autojump_clock: MockClock
) -> None:
    async with open_leased_mount(space, names_max=10) as mount:
        for number in range(12):
            await make(mount, b"d%d" % number, DIRECTORY)
            await mount.filesystem.rmdir(space.bucket, b"d%d" % number)
        for number in range(12):
            await make(mount, b"d%d" % number, DIRECTORY)
        await mount.flush()
        assert len(mount.table) + mount.table.name_count <= 11


async def test_what_the_kernel_knows_of_a_file_moves_with_it(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    inode, folder = await make(mount, b"a"), await make(mount, b"d", DIRECTORY)
    mount.filesystem.validity_s(inode)
    await mount.filesystem.rename(space.bucket, b"a", folder.ino, b"a", REPLACE)
    former, lease = mount.table.held(space.bucket), mount.table.held(folder.ino)
    assert former is not None
    assert lease is not None
    assert inode.ino in lease.told_inodes
    assert inode.ino not in former.told_inodes


async def test_nothing_is_kept_of_files_that_come_and_go_while_a_lease_lasts(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    fs, bucket = mount.filesystem, space.bucket
    opened, inode = await fs.create(bucket, b"a", 0o644, os.O_RDWR, CALLER)
    lease = mount.table.held(bucket)
    assert lease is not None
    inode.lookup_count = 1
    fs.validity_s(inode)
    fs.name_validity_s(bucket, b"a", inode)
    # As temporary files are removed; and one with a second name.
    await fs.unlink(bucket, b"a")
    await fs.release(opened.handle)
    linked = await make(mount, b"b")
    linked.lookup_count = 1
    fs.validity_s(linked)
    await fs.link(linked.ino, bucket, b"c")
    for name in (b"b", b"c"):
        fs.name_validity_s(bucket, name, linked)
        await fs.unlink(bucket, name)
    for gone in (inode, linked):
        mount.inodes.forget(gone.ino, 1)
    await mount.flush()
    assert mount.table.held(bucket) is lease
    assert (lease.told_inodes, lease.told_names) == (set(), set())
    assert [mount.inodes.get(gone.ino) for gone in (inode, linked)] == [None, None]


async def test_directories_that_nobody_uses_are_forgotten_with_their_leases(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    top = await make(mount, b"top", DIRECTORY)
    below = await mount.filesystem.make(top.ino, b"below", DIRECTORY, 0o755, CALLER)
    await mount.flush()
    for key in (top.ino, below.ino):
        lease = mount.table.held(key)
        assert lease is not None
        await mount.keeper.give_up([lease])
    assert mount.inodes.get(below.ino) is None


async def test_a_write_that_had_to_wait_is_made_under_a_lease(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    opened, inode = await mount.filesystem.create(space.bucket, b"a", 0o644, os.O_RDWR, CALLER)
    await mount.flush()
    budget = mount.content.writeback.budget
    budget.charge(budget.limit_bytes)
    async with open_leased_mount(space) as other, trio.open_nursery() as nursery:
        nursery.start_soon(mount.filesystem.write, opened.handle, 0, b"late")
        await wait_all_tasks_blocked()
        await other.filesystem.lookup(space.bucket, b"a")
        await other.filesystem.setattr(inode.ino, mode=0o600)
        budget.release(budget.limit_bytes)
        await trio.sleep(1)
        assert mount.filesystem.is_owned(inode.ino)


async def test_leases_given_up_for_memory_are_waited_for(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    await make(mount, b"a")
    lease = mount.table.held(space.bucket)
    assert lease is not None
    hold = mount.script.hold("commit:asked")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.keeper.give_up, [lease])
        await hold.reached.wait()
        nursery.start_soon(make, mount, b"b")
        await trio.sleep(1)
        asked = mount.script.asked("acquire")
        hold.release()
    assert asked <= 1
    assert (await mount.list(space.bucket)) == [b"a", b"b"]


async def test_the_lease_of_a_removed_directory_is_not_kept(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    async with open_leased_mount(space) as other:
        folder = await make(other, b"d", DIRECTORY)
        await other.flush()
        await mount.list(folder.ino)
        await mount.filesystem.rmdir(space.bucket, b"d")
    await mount.flush()
    assert mount.table.held(folder.ino) is None
    await trio.sleep(10)
    assert space.mode(mount.session, folder.ino) == wire.LeaseMode.NONE


async def test_leases_without_names_are_given_up_for_memory_as_well(
    space: LeasedSpace, autojump_clock: MockClock
) -> None:
    async with open_leased_mount(space, names_max=40) as mount:
        for number in range(50):
            # Each has a lease of its own: a directory, and a file with two names.
            folder = await make(mount, b"d%d" % number, DIRECTORY)
            inode = await make(mount, b"f%d" % number)
            await mount.filesystem.link(inode.ino, folder.ino, b"f")
            await mount.filesystem.unlink(folder.ino, b"f")
            await mount.flush()
        assert mount.table.name_count + len(mount.table) <= 41
        assert len(mount.inodes) <= 45
    assert len(space.names(space.bucket)) == 100


# --- what goes wrong -----------------------------------------------------------------------------


async def lose_batch(mount: LeasedMount) -> None:
    """The router fails to apply what was posted."""
    mount.script.fail("commit:asked", MictlanError(Kind.NO_SPACE, "commit"))
    await mount.session.flush()


async def test_a_refusal_is_reported_once_and_not_believed(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    opened = (await mount.filesystem.create(space.bucket, b"kept", 0o644, os.O_RDWR, CALLER))[0]
    await mount.flush()
    await make(mount, b"lost")
    await lose_batch(mount)
    assert await kind_of(mount.filesystem.lookup(space.bucket, b"lost")) is Kind.NOT_FOUND
    assert await mount.list(space.bucket) == [b"kept"]
    assert await kind_of(mount.filesystem.fsync(opened.handle)) is Kind.NO_SPACE
    await mount.filesystem.fsync(opened.handle)
    inode = await make(mount, b"lost")
    await mount.flush()
    assert space.names(space.bucket)[b"lost"] == inode.ino


async def test_the_kernel_forgets_what_was_refused(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    inode = await make(mount, b"lost")
    mount.filesystem.name_validity_s(space.bucket, b"lost", inode)
    await lose_batch(mount)
    await trio.sleep(1)
    assert mount.kernel.names == [(space.bucket, b"lost")]


async def test_a_change_that_may_be_applied_later_is_not_taken_for_failed(
    space: LeasedSpace, autojump_clock: MockClock
) -> None:
    async with open_leased_mount(space, deadline_s=5) as mount:
        (inode,) = await made(mount, b"a")
        hold = mount.script.hold("commit:asked")
        assert await kind_of(mount.filesystem.link(inode.ino, space.bucket, b"b")) is Kind.TIMED_OUT
        hold.release()
        assert (await mount.filesystem.lookup(space.bucket, b"b")).ino == inode.ino
        assert await mount.list(space.bucket) == [b"a", b"b"]


async def test_changes_of_a_fenced_session_are_lost_and_reported(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    opened, inode = await mount.filesystem.create(space.bucket, b"a", 0o644, os.O_RDWR, CALLER)
    await mount.flush()
    await mount.filesystem.setattr(inode.ino, mode=0o600)
    await space.fence(mount.session)
    await trio.sleep(30)
    assert stat.S_IMODE((await mount.filesystem.getattr(inode.ino)).attributes.mode) == 0o644
    assert inode.pending_count == 0
    assert await kind_of(mount.filesystem.fsync(opened.handle)) is Kind.FENCED
    await mount.filesystem.setattr(inode.ino, mode=0o640)
    await mount.flush()
    assert stat.S_IMODE(space.node(inode.ino).attributes.mode) == 0o640


# --- modes ---------------------------------------------------------------------------------------


async def test_writing_through_has_every_change_at_the_router(
    space: LeasedSpace, autojump_clock: MockClock
) -> None:
    async with open_leased_mount(space, writes_through=True, deadline_s=5) as mount:
        inode = await make(mount, b"a")
        assert space.names(space.bucket) == {b"a": inode.ino}
        mount.script.fail("commit:asked", MictlanError(Kind.NO_SPACE, "commit"))
        assert await kind_of(make(mount, b"b")) is Kind.NO_SPACE
        hold = mount.script.hold("commit:asked")
        assert await kind_of(make(mount, b"c")) is Kind.TIMED_OUT
        hold.release()


async def test_a_durable_mount_reports_what_was_refused(
    space: LeasedSpace, autojump_clock: MockClock
) -> None:
    async with open_leased_mount(space, kind=DurableFileSystem) as mount:
        inode = await make(mount, b"a")
        assert space.names(space.bucket) == {b"a": inode.ino}
        await mount.filesystem.setattr(inode.ino, mode=0o600)
        assert stat.S_IMODE(space.node(inode.ino).attributes.mode) == 0o600
        mount.script.fail("commit:asked", MictlanError(Kind.NO_SPACE, "commit"))
        assert await kind_of(make(mount, b"b")) is Kind.NO_SPACE


async def test_bytes_that_go_to_peers_are_flushed_without_waiting_for_a_timer(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    opened, inode = await mount.filesystem.create(space.bucket, b"a", 0o644, os.O_WRONLY, CALLER)
    await mount.filesystem.write(opened.handle, 0, b"x" * 20_000)
    started_s = trio.current_time()
    await mount.content.flush(inode.ino)
    assert mount.content.is_clean(inode.ino)
    assert trio.current_time() == started_s


# --- reads ---------------------------------------------------------------------------------------


async def test_a_directory_too_large_to_keep_is_listed_with_what_was_just_made(
    space: LeasedSpace, autojump_clock: MockClock
) -> None:
    async with open_leased_mount(space, names_max=4) as mount:
        names = [b"%d" % number for number in range(6)]
        await made(mount, *names)
        await mount.keeper.give_up(list(mount.table))
        assert await mount.list(space.bucket) == names
        await make(mount, b"new")
        assert await mount.list(space.bucket) == [*names, b"new"]
        before = mount.script.asked("list")
        for name in (b"x", b"y", b"z"):
            assert await kind_of(mount.filesystem.lookup(space.bucket, name)) is Kind.NOT_FOUND
        assert mount.script.asked("list") == before
        assert mount.table.name_count <= 5


async def test_a_known_directory_is_read_without_asking(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    async with open_leased_mount(space) as other:
        (inode,) = await made(other, b"a")
    await mount.filesystem.opendir(space.bucket)
    assert await mount.list(space.bucket) == [b"a"]
    before = asked(mount)
    assert (await mount.filesystem.lookup(space.bucket, b"a")).ino == inode.ino
    assert await kind_of(mount.filesystem.lookup(space.bucket, b"none")) is Kind.NOT_FOUND
    await mount.filesystem.getattr(inode.ino)
    assert await mount.list(space.bucket) == [b"a"]
    assert asked(mount) == before


async def test_an_answer_older_than_a_change_is_not_taken_for_true(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    folder = await make(mount, b"d", DIRECTORY)
    await mount.flush()
    hold = mount.script.hold("node:served")
    lease, folder.lease = folder.lease, None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.filesystem.getattr, folder.ino)
        await hold.reached.wait()
        folder.lease = lease
        await mount.filesystem.setattr(folder.ino, mode=0o700)
        await mount.flush()
        mount.inodes.forget(folder.ino, folder.lookup_count)
        hold.release()
    now = await mount.filesystem.getattr(folder.ino)
    assert stat.S_IMODE(now.attributes.mode) == 0o700
