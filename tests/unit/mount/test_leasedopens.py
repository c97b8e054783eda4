"""Open files that another mount removes: they stay until they are closed, and are gone then."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs_mount import leasedopens
from mictlanfs_mount.filesystem import REOPEN_WITHIN_S
from mictlanfs_mount.handles import HandleNumber
from mictlanfs_mount.inodes import Inode
from tests.support.leased_space import LeasedMount, LeasedSpace
from tests.support.mount_fakes import CALLER

REPLACE = wire.RenameMode.REPLACE
BODY = b"what was there"


async def plant(mount: LeasedMount, name: bytes, body: bytes = BODY) -> InodeNumber:
    """A file in the bucket, written and closed."""
    fs = mount.filesystem
    opened, inode = await fs.create(mount.space.bucket, name, 0o644, os.O_WRONLY, CALLER)
    await fs.write(opened.handle, 0, body)
    await fs.release(opened.handle)
    await mount.flush()
    return inode.ino


async def opened_by(mount: LeasedMount, name: bytes, flags: int = os.O_RDWR) -> HandleNumber:
    """A handle on what a name stands for, which the kernel refers to."""
    inode = await mount.filesystem.lookup(mount.space.bucket, name)
    inode.lookup_count += 1
    return (await mount.filesystem.open(inode.ino, flags)).handle


def inode_of(mount: LeasedMount, number: HandleNumber) -> Inode:
    return mount.filesystem.handles.file(number).inode


def is_sustained(space: LeasedSpace, ino: InodeNumber) -> bool:
    return space.store.rows.is_sustained(ino)


async def replace(mount: LeasedMount, name: bytes, body: bytes = b"new") -> InodeNumber:
    ino = await plant(mount, b"temporary", body)
    await mount.filesystem.rename(
        mount.space.bucket, b"temporary", mount.space.bucket, name, REPLACE
    )
    return ino


async def remove(mount: LeasedMount, name: bytes) -> None:
    await mount.filesystem.unlink(mount.space.bucket, name)


REMOVALS: dict[str, Callable[[LeasedMount, bytes], Awaitable[object]]] = {
    "unlink": remove,
    "rename": replace,
}
removals = pytest.mark.parametrize("removal", REMOVALS)


@removals
async def test_open_file_is_read_after_it_lost_its_name_elsewhere(
    space: LeasedSpace,
    mount: LeasedMount,
    other: LeasedMount,
    autojump_clock: MockClock,
    removal: str,
) -> None:
    ino = await plant(mount, b"file")
    number = await opened_by(other, b"file")
    await REMOVALS[removal](mount, b"file")
    await mount.flush()
    fs = other.filesystem
    assert bytes(await fs.read(number, 0, 100)) == BODY
    assert (await fs.getattr(ino)).attributes.nlink == 0
    assert space.exists(ino)
    await fs.release(number)
    await other.flush()
    assert not space.exists(ino)


@removals
async def test_open_file_without_a_name_is_written(
    space: LeasedSpace,
    mount: LeasedMount,
    other: LeasedMount,
    autojump_clock: MockClock,
    removal: str,
) -> None:
    ino = await plant(mount, b"file")
    number = await opened_by(other, b"file")
    await REMOVALS[removal](mount, b"file")
    fs = other.filesystem
    await fs.write(number, 5, b"XXX")
    await fs.fsync(number)
    assert bytes(await fs.read(number, 0, 100)) == BODY[:5] + b"XXX" + BODY[8:]
    await fs.setattr(ino, size=6)
    assert bytes(await fs.read(number, 0, 100)) == BODY[:5] + b"X"
    await fs.release(number)
    await other.flush()
    assert not space.exists(ino)


async def test_each_of_two_mounts_keeps_the_file_until_it_closes_it(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    ino = await plant(mount, b"file")
    theirs = await opened_by(other, b"file")
    ours = await opened_by(mount, b"file")
    await remove(mount, b"file")
    for holder, number in ((mount, ours), (other, theirs)):
        await mount.flush()
        assert space.exists(ino)
        assert bytes(await other.filesystem.read(theirs, 0, 100)) == BODY
        await holder.filesystem.release(number)
    await other.flush()
    assert not space.exists(ino)


async def test_file_that_kept_its_name_is_sustained_no_more_when_it_is_closed(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    ino = await plant(mount, b"file")
    first, second = await opened_by(other, b"file"), await opened_by(other, b"file")
    assert not is_sustained(space, ino), "a lease covers it"
    await plant(mount, b"beside")
    assert is_sustained(space, ino)
    for number in (first, second):
        await other.flush()
        assert is_sustained(space, ino)
        await other.filesystem.release(number)
    await other.flush()
    assert not is_sustained(space, ino)
    assert space.content(ino) == BODY


async def test_file_that_is_closed_while_the_router_is_told_is_let_go(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    ino = await plant(mount, b"file")
    number = await opened_by(other, b"file")
    hold = other.script.hold("release:asked")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(plant, mount, b"beside")
        await hold.reached.wait()
        await other.filesystem.release(number)
        await other.flush()
        hold.release()
    await wait_all_tasks_blocked()
    await other.flush()
    assert not is_sustained(space, ino)


async def test_nothing_is_told_of_files_that_are_not_open(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    ino = await plant(mount, b"file")
    await other.read_all(ino)
    await other.list(space.bucket)
    await plant(mount, b"beside")
    assert not is_sustained(space, ino)
    assert not any(isinstance(op, wire.Release) for op in space.applied)


async def test_file_opened_while_its_lease_is_given_up_is_sustained(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    ino = await plant(mount, b"file")
    await other.list(space.bucket)
    hold = other.script.hold("release:asked")
    numbers = []

    async def open_it() -> None:
        numbers.append(await opened_by(other, b"file"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(remove, mount, b"file")
        await hold.reached.wait()
        await open_it()
        hold.release()
    await mount.flush()
    assert space.exists(ino)
    assert bytes(await other.filesystem.read(numbers[0], 0, 100)) == BODY


async def test_file_that_is_gone_before_it_is_opened_is_stale(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    ino = await plant(mount, b"file")
    inode = await other.filesystem.lookup(space.bucket, b"file")
    inode.lookup_count += 1
    await remove(mount, b"file")
    with pytest.raises(MictlanError) as raised:
        await other.filesystem.open(ino, os.O_RDONLY)
    assert raised.value.kind is Kind.STALE
    assert len(other.filesystem.handles) == 0
    assert not space.exists(ino)


async def test_what_is_looked_up_after_a_refused_open_can_be_opened(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    first = await plant(mount, b"file")
    fs = other.filesystem
    (await fs.lookup(space.bucket, b"file")).lookup_count += 1
    second = await replace(mount, b"file", b"second")
    with pytest.raises(MictlanError) as raised:
        await fs.open(first, os.O_RDONLY)
    assert raised.value.kind is Kind.STALE
    # The kernel looks the path up anew, and the name goes to another file before it opens.
    (await fs.lookup(space.bucket, b"file")).lookup_count += 1
    third = await replace(mount, b"file", b"third")
    number = (await fs.open(second, os.O_RDONLY)).handle
    assert bytes(await fs.read(number, 0, 100)) == b"second"
    await fs.release(number)
    assert await other.read_all(third) == b"third"
    await trio.sleep(2 * REOPEN_WITHIN_S)
    await other.flush()
    assert len(fs.handles) == 0
    assert not space.exists(second)
    await fs.lookup(space.bucket, b"file")
    assert len(fs.handles) == 0, "long after the refusal nothing is kept"


async def test_an_open_that_is_repeated_late_is_not_refused_again(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    ino = await plant(mount, b"file")
    fs = other.filesystem
    inode = await fs.lookup(space.bucket, b"file")
    inode.lookup_count += 1
    # As the kernel has it: it was told the size of other content.
    inode.told_content_version = 77
    await plant(mount, b"beside")
    with pytest.raises(MictlanError) as raised:
        await fs.open(ino, os.O_RDONLY, 5)
    assert raised.value.kind is Kind.STALE
    # The look-up before the second attempt had to wait for leases, and the file was changed again.
    await trio.sleep(5 * REOPEN_WITHIN_S)
    await plant(mount, b"third")
    assert fs.handles.file((await fs.open(ino, os.O_RDONLY, 5)).handle).inode is inode


async def test_few_files_are_kept_open_for_opens_that_may_come(
    space: LeasedSpace,
    mount: LeasedMount,
    other: LeasedMount,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leasedopens, "EXPECTED_COUNT_MAX", 2)
    fs = other.filesystem
    gone = await plant(mount, b"gone")
    for name in (b"a", b"b", b"c"):
        await plant(mount, name)
    await mount.filesystem.make(space.bucket, b"directory", FileKind.DIRECTORY, 0o755, CALLER)
    (await fs.lookup(space.bucket, b"gone")).lookup_count += 1
    await remove(mount, b"gone")
    with pytest.raises(MictlanError):
        await fs.open(gone, os.O_RDONLY)
    for name in (b"directory", b"a", b"b", b"c"):
        await fs.lookup(space.bucket, name)
    assert len(fs.handles) == 2


async def test_open_file_of_a_fenced_session_is_not_promised(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    ino = await plant(mount, b"file")
    number = await opened_by(other, b"file")
    await plant(mount, b"beside")
    await space.fence(other.session)
    await trio.sleep(20)
    await remove(mount, b"file")
    await mount.flush()
    with pytest.raises(MictlanError) as raised:
        await other.filesystem.read(number, 0, 100)
    assert raised.value.kind is Kind.STALE
    await other.filesystem.release(number)
    assert not space.exists(ino)
