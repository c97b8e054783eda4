"""What several mounts append to one file under leases: each behind the others."""

from __future__ import annotations

import os

import pytest
from trio.testing import MockClock

from mictlanfs.model import FileKind
from mictlanfs_mount.handles import HandleNumber
from mictlanfs_mount.inodes import Inode
from tests.support.leased_space import LeasedMount, LeasedSpace
from tests.support.mount_fakes import CALLER


async def made(mount: LeasedMount, name: bytes) -> Inode:
    """An empty file in the bucket, which the router knows."""
    inode = await mount.filesystem.make(mount.space.bucket, name, FileKind.FILE, 0o644, CALLER)
    await mount.flush()
    return inode


async def opened_for_appending(mount: LeasedMount, name: bytes) -> HandleNumber:
    """As the kernel opens a file: it is told where it ends."""
    inode = await mount.filesystem.lookup(mount.space.bucket, name)
    inode.lookup_count += 1
    opened = await mount.filesystem.open(inode.ino, os.O_WRONLY | os.O_APPEND)
    mount.filesystem.short_reads.on_told(inode, mount.filesystem.attributes_of(inode).size)
    return opened.handle


async def test_what_two_mounts_append_is_all_kept(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    inode = await made(mount, b"log")
    ours = await opened_for_appending(mount, b"log")
    theirs = await opened_for_appending(other, b"log")
    # Each kernel sends to where it believes that the file ends, and believes in what it wrote.
    for index in range(5):
        await mount.filesystem.write(ours, 2 * index, b"o%d" % index)
        await other.filesystem.write(theirs, 2 * index, b"t%d" % index)
    await mount.flush()
    await other.flush()
    assert space.content(inode.ino) == b"".join(b"o%dt%d" % (index, index) for index in range(5))
    assert inode.ino in mount.kernel.pages, "what is there in truth is asked for"


async def test_append_that_was_sent_before_the_kernel_was_told_finds_the_end(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    inode = await made(mount, b"log")
    ours = await opened_for_appending(mount, b"log")
    theirs = await opened_for_appending(other, b"log")
    await mount.filesystem.write(ours, 0, b"one ")
    await other.filesystem.write(theirs, 0, b"two ")
    # Another program asks for the size; the write that comes next was under way already.
    shown = mount.filesystem.attributes_of(await mount.filesystem.getattr(inode.ino))
    mount.filesystem.short_reads.on_told(await mount.filesystem.getattr(inode.ino), shown.size)
    assert shown.size == 8
    await mount.filesystem.write(ours, 4, b"three ")
    await mount.flush()
    assert space.content(inode.ino) == b"one two three "


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
async def test_what_is_not_sent_to_the_end_stays_where_it_was_sent(
    space: LeasedSpace,
    mount: LeasedMount,
    other: LeasedMount,
    autojump_clock: MockClock,
    flags: int,
) -> None:
    inode = await made(mount, b"file")
    opened = await mount.filesystem.open(inode.ino, flags)
    mount.filesystem.short_reads.on_told(inode, 0)
    await mount.filesystem.write(opened.handle, 0, b"0123456789")
    theirs = await opened_for_appending(other, b"file")
    await other.filesystem.write(theirs, 10, b"abc")
    # Mapped memory is written out through any descriptor.
    await mount.filesystem.write(opened.handle, 4, b"XX")
    await mount.flush()
    assert space.content(inode.ino) == b"0123XX6789abc"


async def test_a_cut_ends_what_the_kernel_may_believe_in(
    space: LeasedSpace, mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    inode = await made(mount, b"log")
    ours = await opened_for_appending(mount, b"log")
    theirs = await opened_for_appending(other, b"log")
    await mount.filesystem.write(ours, 0, b"one ")
    await other.filesystem.write(theirs, 0, b"two ")
    await mount.filesystem.write(ours, 4, b"three ")
    await mount.filesystem.setattr(inode.ino, size=12)
    # Behind the former ends of 0, 4 and 10 nothing is appended any more.
    for offset in (0, 4, 10):
        await mount.filesystem.write(ours, offset, b"#")
    await mount.flush()
    assert space.content(inode.ino) == b"#ne #wo th#e"
