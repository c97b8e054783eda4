"""What is answered about inodes that the kernel knows and another mount has removed."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs_mount.gone import removed, stale_when_gone
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.leased import LeasedFileSystem
from tests.support.leased_space import LeasedMount, LeasedSpace
from tests.support.mount_fakes import CALLER

FILE, DIRECTORY = FileKind.FILE, FileKind.DIRECTORY
REPLACE = wire.RenameMode.REPLACE

Verb = Callable[[LeasedFileSystem, LeasedSpace, InodeNumber], Awaitable[object]]

# Calls on names in a directory that is gone.
IN_A_DIRECTORY: dict[str, Verb] = {
    "look-up": lambda fs, space, ino: fs.lookup(ino, b"file"),
    "make": lambda fs, space, ino: fs.make(ino, b"new", FILE, 0o644, CALLER),
    "mkdir": lambda fs, space, ino: fs.make(ino, b"new", DIRECTORY, 0o755, CALLER),
    "unlink": lambda fs, space, ino: fs.unlink(ino, b"file"),
    "rmdir": lambda fs, space, ino: fs.rmdir(ino, b"file"),
    "rename within": lambda fs, space, ino: fs.rename(ino, b"file", ino, b"new", REPLACE),
    "rename into": lambda fs, space, ino: fs.rename(space.bucket, b"here", ino, b"new", REPLACE),
    "rename out of": lambda fs, space, ino: fs.rename(ino, b"file", space.bucket, b"new", REPLACE),
    "link into": lambda fs, space, ino: fs.link(
        space.find(space.bucket, b"here").attributes.ino, ino, b"new"
    ),
}


async def kind_of(verb: Awaitable[object]) -> Kind:
    with pytest.raises(MictlanError) as raised:
        await verb
    return raised.value.kind


async def known(mount: LeasedMount, name: bytes) -> Inode:
    """What a name in the bucket stands for, and that the kernel refers to from now on."""
    inode = await mount.filesystem.lookup(mount.space.bucket, name)
    inode.lookup_count += 1
    return inode


async def plant_tree(mount: LeasedMount) -> None:
    """A directory with a file in it, and a file beside it."""
    fs, bucket = mount.filesystem, mount.space.bucket
    tree = await fs.make(bucket, b"tree", DIRECTORY, 0o755, CALLER)
    await fs.make(tree.ino, b"file", FILE, 0o644, CALLER)
    await fs.make(bucket, b"here", FILE, 0o644, CALLER)


async def remove_tree(mount: LeasedMount) -> None:
    fs, bucket = mount.filesystem, mount.space.bucket
    tree = await fs.lookup(bucket, b"tree")
    await fs.unlink(tree.ino, b"file")
    await fs.rmdir(bucket, b"tree")


@pytest.mark.parametrize("is_listed", [False, True], ids=["unlisted", "listed"])
@pytest.mark.parametrize("verb", IN_A_DIRECTORY)
async def test_nothing_is_in_a_directory_that_was_removed_elsewhere(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock, verb: str, is_listed: bool
) -> None:
    await plant_tree(mount)
    tree = await known(other, b"tree")
    if is_listed:
        await other.list(tree.ino)
    await remove_tree(mount)
    for _ in range(3):
        # The first look-ups ask for names, those that follow for all of the directory.
        asked = IN_A_DIRECTORY[verb](other.filesystem, other.space, tree.ino)
        assert await kind_of(asked) is Kind.NOT_FOUND


async def test_directory_that_was_removed_elsewhere_is_there_without_a_name(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    await plant_tree(mount)
    tree, fs = await known(other, b"tree"), other.filesystem
    opened = await fs.opendir(tree.ino)
    await remove_tree(mount)
    shown = (await fs.getattr(tree.ino)).attributes
    assert (shown.kind, shown.mode, shown.nlink, shown.size) == (DIRECTORY, 0o755, 0, 0)
    assert fs.validity_s(tree) == 0, "the kernel keeps nothing of it"
    again = await fs.opendir(tree.ino)
    for number in (opened, again):
        # As getdents(2) has it; readdir(3) says that it ends.
        assert await kind_of(fs.readdir(number, 0)) is Kind.NOT_FOUND
        await fs.releasedir(number)
    assert (await fs.setattr(tree.ino, mode=0o700, mtime_ns=5)).attributes.mode == 0o700
    assert await fs.listxattr(tree.ino) == []
    assert await kind_of(fs.lookup(other.space.bucket, b"tree")) is Kind.NOT_FOUND


async def test_file_that_was_removed_elsewhere_is_looked_up_anew_for_its_bytes_only(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock
) -> None:
    await plant_tree(mount)
    file, fs = await known(other, b"here"), other.filesystem
    await mount.filesystem.unlink(mount.space.bucket, b"here")
    assert (await fs.getattr(file.ino)).attributes.nlink == 0
    assert (await fs.setattr(file.ino, mode=0o600)).attributes.mode == 0o600
    assert await kind_of(fs.open(file.ino, os.O_RDONLY)) is Kind.STALE
    assert await kind_of(fs.link(file.ino, other.space.bucket, b"new")) is Kind.STALE
    assert len(fs.handles) == 0


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.TIMED_OUT, Kind.FENCED])
async def test_other_failures_do_not_make_a_directory_gone(
    mount: LeasedMount, other: LeasedMount, autojump_clock: MockClock, kind: Kind
) -> None:
    await plant_tree(mount)
    tree = await known(other, b"tree")
    failure = MictlanError(kind, "ask", "")
    with pytest.raises(MictlanError) as raised:
        removed(tree, failure)
    assert raised.value is failure
    assert tree.attributes.nlink == 2


def test_what_nobody_knows_of_is_not_made_up() -> None:
    with pytest.raises(MictlanError) as raised, stale_when_gone("ask for", InodeNumber(7)):
        raise MictlanError(Kind.NOT_FOUND, "node", "inode 7")
    assert raised.value.kind is Kind.STALE
    with pytest.raises(MictlanError) as again:
        removed(None, raised.value)
    assert again.value is raised.value
