"""Walks over a tree under leases: how many requests they need, and that they see what is true."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs_mount.frontier import unlisted_behind
from tests.support.leased_space import (
    LeasedMount,
    LeasedSpace,
    open_leased_mount,
)
from tests.support.mount_fakes import CALLER

WIDTH, DEPTH, FILES = 10, 9, 3


async def make(
    mount: LeasedMount, parent: InodeNumber, name: bytes, kind: FileKind = FileKind.DIRECTORY
) -> InodeNumber:
    return (await mount.filesystem.make(parent, name, kind, 0o755, CALLER)).ino


async def plant(space: LeasedSpace, width: int = WIDTH, depth: int = DEPTH) -> InodeNumber:
    """A directory with `width` others in it, each with `depth` others, those with some files.

    Whoever made them is gone, and holds nothing.
    """
    async with open_leased_mount(space) as maker:
        top = await make(maker, space.bucket, b"top")
        for index in range(width):
            upper = await make(maker, top, b"d%02d" % index)
            for below in range(depth):
                lower = await make(maker, upper, b"d%02d" % below)
                for file in range(FILES):
                    await make(maker, lower, b"f%d" % file, FileKind.FILE)
        await maker.flush()
    return top


async def walk(mount: LeasedMount, ino: InodeNumber) -> list[bytes]:
    """All names of a tree, depth first, as find(1) comes to them."""
    found = []
    for name in await mount.list(ino):
        found.append(name)
        inode = await mount.filesystem.lookup(ino, name)
        if inode.attributes.kind is FileKind.DIRECTORY:
            found += [name + b"/" + below for below in await walk(mount, inode.ino)]
    return found


def listings(mount: LeasedMount) -> int:
    return mount.script.asked("list", "list-tree")


async def test_a_walk_needs_few_requests_and_finds_everything(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    top = await plant(mount.space)
    expected = await walk(mount, top)
    await other.filesystem.lookup(mount.space.bucket, b"top")
    other.script.counts.clear()
    assert await walk(other, top) == expected
    assert len(expected) == WIDTH * (1 + DEPTH * (1 + FILES))
    assert other.script.asked("list", "list-tree", "lookup", "node") <= 6
    other.script.counts.clear()
    assert await walk(other, top) == expected
    assert listings(other) == 0


async def test_looking_names_up_in_order_is_a_walk_too(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    top = await plant(mount.space)
    await other.list(top)
    for index in range(WIDTH):
        upper = (await other.filesystem.lookup(top, b"d%02d" % index)).ino
        for below in range(DEPTH):
            lower = (await other.filesystem.lookup(upper, b"d%02d" % below)).ino
            for file in range(FILES):
                await other.filesystem.lookup(lower, b"f%d" % file)
    assert other.script.asked("list", "list-tree", "lookup", "node") <= 12


async def test_who_reads_one_directory_lists_no_tree(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    top = await plant(mount.space)
    await other.list(top)
    await other.list((await other.filesystem.lookup(top, b"d05")).ino)
    await trio.sleep(1)
    assert other.script.asked("list-tree") == 0
    assert other.script.asked("list") == 2


async def test_a_walk_sees_what_changes_elsewhere_while_it_goes_on(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    top = await plant(mount.space)
    await other.list(top)
    inos = [(await other.filesystem.lookup(top, b"d%02d" % index)).ino for index in range(WIDTH)]
    await walk(other, inos[0])
    ahead = other.table.get(inos[1])
    assert ahead is not None
    assert ahead.is_complete
    assert ahead.is_ahead
    await make(mount, inos[1], b"new", FileKind.FILE)
    await mount.filesystem.unlink((await lower(mount, inos[1])), b"f0")
    found = await walk(other, inos[1])
    assert b"new" in found
    assert b"d00/f0" not in found
    assert b"d00/f1" in found


async def lower(mount: LeasedMount, ino: InodeNumber) -> InodeNumber:
    return (await mount.filesystem.lookup(ino, b"d00")).ino


@asynccontextmanager
async def tree_under_way(mount: LeasedMount, listing: LeasedMount) -> AsyncIterator[InodeNumber]:
    """Inside, a walk of `listing` waits for a tree that was read; gives the second directory."""
    top = await plant(mount.space, width=3, depth=1)
    await listing.list(top)
    first = (await listing.filesystem.lookup(top, b"d00")).ino
    second = (await listing.filesystem.lookup(top, b"d01")).ino
    hold = listing.script.hold("list-tree:served")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listing.list, first)
        await hold.reached.wait()
        yield second
        hold.release()


async def test_an_answer_that_is_overtaken_is_not_believed(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    async with tree_under_way(mount, other) as second:
        await make(mount, second, b"new", FileKind.FILE)
    assert b"new" in await other.list(second)


async def test_what_is_removed_here_while_a_tree_is_fetched_does_not_come_back(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    async with tree_under_way(mount, other) as second:
        below = (await other.filesystem.lookup(second, b"d00")).ino
        for index in range(FILES):
            await other.filesystem.unlink(below, b"f%d" % index)
        await other.filesystem.rmdir(second, b"d00")
    assert await other.list(second) == []
    with pytest.raises(MictlanError) as raised:
        await other.filesystem.lookup(second, b"d00")
    assert raised.value.kind is Kind.NOT_FOUND


async def test_a_walk_takes_no_leases_from_who_writes(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    top = await plant(mount.space, width=3, depth=1)
    await other.list(top)
    inos = [(await other.filesystem.lookup(top, b"d%02d" % index)).ino for index in range(3)]
    await make(mount, inos[2], b"new", FileKind.FILE)
    await walk(other, inos[0])
    await trio.sleep(1)
    assert mount.space.mode(mount.session, inos[2]) == wire.LeaseMode.WRITE
    assert b"new" in await other.list(inos[2])


async def test_a_walk_with_an_older_router_lists_each_directory(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    top = await plant(mount.space, width=3, depth=1)
    expected = await walk(mount, top)
    other.script.fail("list-tree:asked", MictlanError(Kind.PROTOCOL, "list-tree"), 2)
    assert await walk(other, top) == expected
    assert other.script.asked("list-tree") == 1


async def test_a_mount_that_keeps_few_names_walks_too(
    mount: LeasedMount, space: LeasedSpace, autojump_clock: MockClock
) -> None:
    top = await plant(mount.space)
    expected = await walk(mount, top)
    async with open_leased_mount(space, names_max=100) as small:
        assert await walk(small, top) == expected
        assert small.table.name_count <= 110


async def test_nothing_is_listed_ahead_that_is_known(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    top = await plant(mount.space, width=3, depth=2)
    await walk(other, top)
    for lease in list(other.table):
        assert unlisted_behind(other.table, lease, 10) == []


async def test_looking_into_one_directory_after_the_other_is_a_walk_too(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    top = await plant(mount.space)
    await other.list(top)
    uppers = [(await other.filesystem.lookup(top, b"d%02d" % index)).ino for index in range(WIDTH)]
    other.script.counts.clear()
    # One name of each, then the next of each.
    for below in range(DEPTH):
        for upper in uppers:
            await other.filesystem.lookup(upper, b"d%02d" % below)
    # The first by itself, the second as a directory, those behind as a tree.
    assert other.script.asked("list", "list-tree", "lookup", "node") <= 5


async def test_a_large_directory_is_not_listed_for_one_name(
    mount: LeasedMount, other: LeasedMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mictlanfs_mount.frontier.LISTED_AT_ONCE_MAX", DEPTH - 1)
    top = await plant(mount.space)
    await other.list(top)
    uppers = [(await other.filesystem.lookup(top, b"d%02d" % index)).ino for index in range(WIDTH)]
    other.script.counts.clear()
    for upper in uppers:
        await other.filesystem.lookup(upper, b"d00")
    assert (other.script.asked("lookup"), listings(other)) == (WIDTH, 0)
