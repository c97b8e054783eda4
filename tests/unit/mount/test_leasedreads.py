"""What is fetched ahead, and what the kernel is given, under leases."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs import acl, wire
from mictlanfs.model import InodeNumber
from mictlanfs_mount.leasedreads import PUSHED_SIZE_BYTES_MAX
from tests.support.leased_space import (
    FakeKernel,
    LeasedMount,
    LeasedSpace,
    open_leased_mount,
)
from tests.support.mount_fakes import CALLER

BODY = b"small content"


class KeepingKernel(FakeKernel):
    """A kernel that takes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[tuple[InodeNumber, bytes]] = []

    def store(self, ino: InodeNumber, body: bytes | bytearray | memoryview) -> bool:
        self.stored.append((ino, bytes(body)))
        return True


async def plant(mount: LeasedMount, *names: bytes, body: bytes = BODY) -> list[InodeNumber]:
    """Files in the bucket, written by this mount and stored."""
    inos = []
    for name in names:
        opened, inode = await mount.filesystem.create(
            mount.space.bucket, name, 0o644, os.O_WRONLY, CALLER
        )
        if body:
            await mount.filesystem.write(opened.handle, 0, body)
        await mount.filesystem.release(opened.handle)
        inos.append(inode.ino)
    await mount.flush()
    return inos


def with_kernel(mount: LeasedMount) -> KeepingKernel:
    kernel = KeepingKernel()
    mount.filesystem.kernel = kernel
    return kernel


async def test_a_small_file_at_hand_is_pushed_when_it_is_opened_first(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    (ino,) = await plant(mount, b"file")
    kernel = with_kernel(other)
    await other.filesystem.lookup(mount.space.bucket, b"file")
    opened = await other.filesystem.open(ino, os.O_RDONLY)
    assert opened.keep_cache
    assert kernel.stored == [(ino, BODY)]
    again = await other.filesystem.open(ino, os.O_RDONLY)
    assert again.keep_cache
    assert len(kernel.stored) == 1, "the kernel has it"


@pytest.mark.parametrize("body", [b"", bytes(PUSHED_SIZE_BYTES_MAX + 1)])
async def test_an_empty_or_a_large_file_is_not_pushed(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock, body: bytes
) -> None:
    (ino,) = await plant(mount, b"file", body=body)
    kernel = with_kernel(other)
    await other.filesystem.lookup(mount.space.bucket, b"file")
    await other.filesystem.open(ino, os.O_RDONLY)
    assert kernel.stored == []


async def test_a_file_that_is_open_for_writing_already_is_not_pushed(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    (ino,) = await plant(mount, b"file")
    kernel = with_kernel(other)
    await other.filesystem.lookup(mount.space.bucket, b"file")
    await other.filesystem.open(ino, os.O_WRONLY)
    await other.filesystem.open(ino, os.O_RDONLY)
    assert kernel.stored == []


async def test_what_the_kernel_forgot_is_pushed_again(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    (ino,) = await plant(mount, b"file")
    kernel = with_kernel(other)
    inode = await other.filesystem.lookup(mount.space.bucket, b"file")
    inode.lookup_count += 1
    opened = await other.filesystem.open(ino, os.O_RDONLY)
    await other.filesystem.release(opened.handle)
    other.inodes.forget(ino, 1)
    await other.filesystem.open(ino, os.O_RDONLY)
    assert len(kernel.stored) == 2


async def test_that_there_is_no_xattr_is_known_under_a_lease(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    (ino,) = await plant(mount, b"file")
    selinux = b"security.selinux"
    assert not other.filesystem.lacks_xattr(ino, selinux)
    await other.filesystem.lookup(mount.space.bucket, b"file")
    assert other.filesystem.lacks_xattr(ino, selinux)
    assert other.filesystem.lacks_xattr(ino, acl.ACCESS_NAME)
    assert not other.filesystem.lacks_xattr(ino, b"user.any")
    other.filesystem.has_acls = False
    assert not other.filesystem.lacks_xattr(ino, acl.ACCESS_NAME)
    await mount.filesystem.setxattr(ino, selinux, b"label")
    await mount.flush()
    assert not other.filesystem.lacks_xattr(ino, selinux)
    await other.filesystem.getattr(ino)
    assert not other.filesystem.lacks_xattr(ino, selinux)
    assert await other.filesystem.getxattr(ino, selinux) == b"label"


async def test_an_access_list_that_is_only_a_mode_is_a_change_of_mode(
    mount: LeasedMount, autojump_clock: MockClock
) -> None:
    (ino,) = await plant(mount, b"file")
    entries = ((0x01, 6), (0x04, 4), (0x20, 0))
    value = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, permissions, 0xFFFFFFFF) for tag, permissions in entries
    )
    before = mount.script.asked("acquire")
    await mount.filesystem.setxattr(ino, acl.ACCESS_NAME, value)
    assert mount.script.asked("acquire") == before
    assert (await mount.filesystem.getattr(ino)).attributes.mode == 0o640
    await mount.flush()
    node = await mount.router.node(wire.GetNode(ino))
    assert (node.attributes.mode, node.attributes.has_xattrs) == (0o640, False)


async def test_a_file_is_stored_before_it_takes_the_place_of_another(
    mount: LeasedMount, autojump_clock: MockClock
) -> None:
    await plant(mount, b"kept")
    opened, inode = await mount.filesystem.create(
        mount.space.bucket, b"new", 0o644, os.O_WRONLY, CALLER
    )
    await mount.filesystem.write(opened.handle, 0, b"newer")
    await mount.filesystem.release(opened.handle)
    assert not mount.content.is_clean(inode.ino)
    bucket = mount.space.bucket
    await mount.filesystem.rename(bucket, b"new", bucket, b"kept", wire.RenameMode.REPLACE)
    assert mount.content.is_clean(inode.ino)


async def test_closing_means_something_only_when_it_is_asked_to(
    space: LeasedSpace, mount: LeasedMount, autojump_clock: MockClock
) -> None:
    assert not mount.filesystem.wants_flush
    async with open_leased_mount(space, writes_through=True) as through:
        assert through.filesystem.wants_flush


@dataclass
class SlowKernel(FakeKernel):
    """A kernel that takes its time to forget."""

    may_forget: trio.Event = field(default_factory=trio.Event)

    async def forget(
        self,
        names: Sequence[tuple[InodeNumber, bytes]],
        inodes: Sequence[InodeNumber],
        *,
        is_awaited: bool = True,
        is_locked: bool = False,
    ) -> None:
        await self.may_forget.wait()


async def test_attributes_are_told_after_a_fence_only_when_the_kernel_has_forgotten(
    mount: LeasedMount, other: LeasedMount
) -> None:
    (ino,) = await plant(mount, b"a")
    kernel = SlowKernel()
    other.filesystem.kernel = kernel
    await other.filesystem.lookup(mount.space.bucket, b"a")
    await other.session.replace(other.session.ref)
    is_told = False

    async def tell() -> None:
        nonlocal is_told
        await other.filesystem.getattr(ino)
        is_told = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        await wait_all_tasks_blocked()
        assert not is_told
        kernel.may_forget.set()
    assert is_told


def names_of(count: int) -> list[bytes]:
    return [b"f%04d" % index for index in range(count)]


async def open_and_read(mount: LeasedMount, ino: InodeNumber) -> bytes:
    opened = await mount.filesystem.open(ino, os.O_RDONLY)
    body = await mount.filesystem.read(opened.handle, 0, 100)
    await mount.filesystem.release(opened.handle)
    return bytes(body)


async def test_the_files_of_a_listed_directory_are_told_by_pages(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    inos = await plant(mount, *names_of(200))
    kernel = with_kernel(other)
    assert len(await other.list(mount.space.bucket)) == 200
    assert other.script.asked("list") == 1
    bodies = [await open_and_read(other, ino) for ino in inos]
    assert bodies == [BODY] * 200
    assert [ino for ino, _ in kernel.stored] == inos, "no read followed"
    assert other.script.asked("list") <= 1 + 5
    assert other.script.asked("extents") == other.script.asked("inline") == 0


async def test_readers_of_several_files_wait_for_one_page(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    inos = await plant(mount, *names_of(40))
    with_kernel(other)
    await other.list(mount.space.bucket)
    assert await open_and_read(other, inos[0]) == BODY
    before = other.script.asked("list")
    hold = other.script.hold("list:asked")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_and_read, other, inos[1])
        await hold.reached.wait()
        for ino in inos[2:9]:
            nursery.start_soon(open_and_read, other, ino)
        await wait_all_tasks_blocked()
        hold.release()
    assert other.script.asked("list") == before + 1


async def test_a_page_tells_nothing_of_a_file_that_has_changed_since_it_was_listed(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    inos = await plant(mount, *names_of(3))
    with_kernel(other)
    await other.list(mount.space.bucket)
    opened = await other.filesystem.open(inos[1], os.O_WRONLY)
    await other.filesystem.write(opened.handle, 0, b"newer")
    assert await open_and_read(other, inos[0]) == BODY
    assert await open_and_read(other, inos[1]) == b"newer" + BODY[5:]
    await other.filesystem.release(opened.handle)
    await other.flush()
    assert await open_and_read(mount, inos[1]) == b"newer" + BODY[5:]
