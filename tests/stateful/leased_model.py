"""A program on one or more mounts with leases, and what it must find: dictionaries.

Operations follow each other, each on any mount, so what one mount has done is what the next one
finds, at once. After `sync` every mount is compared with the database: what it foretold is there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable
from dataclasses import dataclass, field

import msgspec
import pytest
import trio

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, FileKind, InodeNumber
from mictlanfs_mount.filesystem import Caller
from mictlanfs_mount.handles import HandleNumber
from tests.support.kernelreads import read_again
from tests.support.leased_space import LeasedMount, LeasedSpace

ROOT = Caller(0, 0)
SIZE = 100
FILE_NAMES = (b"a", b"b", b"c")
FOLDER_NAMES = (b"d", b"e")
NAMES = FILE_NAMES + FOLDER_NAMES
VERB_S = 300.0


@dataclass(eq=False)
class File:
    """What a file must be."""

    ino: InodeNumber
    mode: int
    content: bytearray = field(default_factory=bytearray)
    nlink: int = 1
    mtime_ns: int | None = None


@dataclass(eq=False)
class Folder:
    """What a directory must be."""

    ino: InodeNumber
    mode: int
    entries: dict[bytes, File | Folder] = field(default_factory=dict)
    parent: Folder | None = None

    def folders(self) -> list[Folder]:
        """This one and all below."""
        found = [self]
        for entry in self.entries.values():
            if isinstance(entry, Folder):
                found += entry.folders()
        return found

    def is_below(self, other: Folder) -> bool:
        folder: Folder | None = self
        while folder is not None and folder is not other:
            folder = folder.parent
        return folder is other


class Complaints(logging.Handler):
    """What the mounts log that must not happen."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "foretold wrongly" in text or "refused by the router" in text:
            self.found.append(text)


@dataclass
class Program:
    """What one example does, on the mounts and in dictionaries."""

    space: LeasedSpace
    mounts: list[LeasedMount]
    mount: LeasedMount = field(init=False)
    top: Folder = field(init=False)
    handles: list[tuple[LeasedMount, HandleNumber, File]] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.mount = self.mounts[0]
        self.top = Folder(self.space.bucket, 0o777)

    async def do(self, step: tuple[str, int, int, int]) -> None:
        verb, which, first, second = step
        self.mount = self.mounts[which % len(self.mounts)]
        with trio.fail_after(VERB_S):
            await getattr(self, verb)(first, second)

    async def folder(self, number: int) -> Folder:
        folders = self.top.folders()
        return await self.reached(folders[number % len(folders)])

    async def reached(self, folder: Folder) -> Folder:
        """A folder that the mount has found by its path, as a kernel has to."""
        if folder.parent is not None:
            await self.reached(folder.parent)
            (name,) = (n for n, entry in folder.parent.entries.items() if entry is folder)
            found = await self.mount.filesystem.lookup(folder.parent.ino, name)
            assert found.ino == folder.ino
        return folder

    # --- names -----------------------------------------------------------------------------------

    async def create(self, first: int, second: int) -> None:
        folder = await self.folder(second)
        name = FILE_NAMES[first % 3]
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        verb = self.mount.filesystem.create(folder.ino, name, 0o644, flags, ROOT)
        if name in folder.entries:
            await fails_with(Kind.EXISTS, verb)
            return
        opened, inode = await verb
        file = folder.entries[name] = File(inode.ino, 0o644)
        self.handles.append((self.mount, opened.handle, file))

    async def mkdir(self, first: int, second: int) -> None:
        folder = await self.folder(second)
        name = FOLDER_NAMES[first % 2]
        verb = self.mount.filesystem.make(folder.ino, name, FileKind.DIRECTORY, 0o755, ROOT)
        if name in folder.entries:
            await fails_with(Kind.EXISTS, verb)
            return
        folder.entries[name] = Folder((await verb).ino, 0o755, parent=folder)

    async def link(self, first: int, second: int) -> None:
        source = await self.folder(second)
        old = FILE_NAMES[first % 3]
        target = await self.folder(second // 3)
        new = FILE_NAMES[first // 3 % 3]
        file = source.entries.get(old)
        if not isinstance(file, File):
            return
        await self.mount.filesystem.lookup(source.ino, old)
        verb = self.mount.filesystem.link(file.ino, target.ino, new)
        if new in target.entries:
            await fails_with(Kind.EXISTS, verb)
            return
        await verb
        file.nlink += 1
        target.entries[new] = file

    async def unlink(self, first: int, second: int) -> None:
        folder = await self.folder(second)
        name = NAMES[first % 5]
        verb = self.mount.filesystem.unlink(folder.ino, name)
        found = folder.entries.get(name)
        if found is None:
            await fails_with(Kind.NOT_FOUND, verb)
        elif isinstance(found, Folder):
            await fails_with(Kind.IS_DIRECTORY, verb)
        else:
            await verb
            del folder.entries[name]
            await self.lose_name(found)

    async def rmdir(self, first: int, second: int) -> None:
        folder = await self.folder(second)
        name = NAMES[first % 5]
        verb = self.mount.filesystem.rmdir(folder.ino, name)
        found = folder.entries.get(name)
        if found is None:
            await fails_with(Kind.NOT_FOUND, verb)
        elif isinstance(found, File):
            await fails_with(Kind.NOT_DIRECTORY, verb)
        elif found.entries:
            await fails_with(Kind.NOT_EMPTY, verb)
        else:
            await verb
            del folder.entries[name]

    async def rename(self, first: int, second: int) -> None:
        old, new = NAMES[first % 5], NAMES[first // 5 % 5]
        source = await self.folder(second)
        target = await self.folder(second // 5)
        mode = second % 3
        verb = self.mount.filesystem.rename(source.ino, old, target.ino, new, mode)
        error = self.error_of_rename(source, old, target, new, mode)
        if error is not None:
            await fails_with(error, verb)
            return
        await verb
        moved, replaced = source.entries[old], target.entries.get(new)
        if moved is replaced:
            return
        if mode == wire.RenameMode.EXCHANGE:
            assert replaced is not None
            source.entries[old] = replaced
            if isinstance(replaced, Folder):
                replaced.parent = source
        else:
            del source.entries[old]
        target.entries[new] = moved
        if isinstance(moved, Folder):
            moved.parent = target
        if mode != wire.RenameMode.EXCHANGE and isinstance(replaced, File):
            await self.lose_name(replaced)

    def error_of_rename(
        self, source: Folder, old: bytes, target: Folder, new: bytes, mode: int
    ) -> Kind | None:
        moved, replaced = source.entries.get(old), target.entries.get(new)
        is_exchange = mode == wire.RenameMode.EXCHANGE
        if moved is None:
            return Kind.NOT_FOUND
        if mode == wire.RenameMode.NO_REPLACE and replaced is not None:
            return Kind.EXISTS
        if is_exchange and replaced is None:
            return Kind.NOT_FOUND
        if isinstance(moved, Folder) and source is not target and target.is_below(moved):
            return Kind.INVALID
        if is_exchange and isinstance(replaced, Folder) and source is not target:
            return Kind.INVALID if source.is_below(replaced) else None
        if replaced is None or replaced is moved or is_exchange:
            return None
        if isinstance(replaced, Folder):
            if not isinstance(moved, Folder):
                return Kind.IS_DIRECTORY
            return Kind.NOT_EMPTY if replaced.entries else None
        return Kind.NOT_DIRECTORY if isinstance(moved, Folder) else None

    async def lose_name(self, file: File) -> None:
        """The mount that removed the last name keeps the file, for its own handles only."""
        file.nlink -= 1
        if file.nlink:
            return
        for mount, handle, opened in list(self.handles):
            if opened is file and mount is not self.mount:
                self.handles.remove((mount, handle, opened))
                await mount.filesystem.release(handle)

    # --- files -----------------------------------------------------------------------------------

    async def open(self, first: int, second: int) -> None:
        folder = await self.folder(second)
        name = FILE_NAMES[first % 3]
        found = folder.entries.get(name)
        if not isinstance(found, File):
            return
        inode = await self.mount.filesystem.lookup(folder.ino, name)
        assert inode.ino == found.ino
        flags = os.O_RDWR | (os.O_TRUNC if second % 4 == 0 else 0)
        opened = await self.opened(found, flags)
        if flags & os.O_TRUNC:
            found.content.clear()
            found.mtime_ns = None
        self.handles.append((self.mount, opened, found))

    async def opened(self, file: File, flags: int) -> HandleNumber:
        """As the kernel does it: an open that is refused as stale is repeated once."""
        try:
            return (await self.mount.filesystem.open(file.ino, flags)).handle
        except MictlanError as error:
            if error.kind is not Kind.STALE:
                raise
        return (await self.mount.filesystem.open(file.ino, flags)).handle

    async def close(self, first: int, second: int) -> None:
        if not self.handles:
            return
        mount, handle, _ = self.handles.pop(first % len(self.handles))
        await mount.filesystem.flush(handle)
        await mount.filesystem.release(handle)

    async def write(self, first: int, second: int) -> None:
        if not self.handles:
            return
        mount, handle, file = self.handles[first % len(self.handles)]
        self.count += 1
        data = bytes([self.count % 256]) * (1 + second % 40)
        file.content += bytes(max(0, first - len(file.content)))
        file.content[first : first + len(data)] = data
        file.mtime_ns = None
        await mount.filesystem.write(handle, first, data)

    async def read(self, first: int, second: int) -> None:
        if not self.handles:
            return
        mount, handle, file = self.handles[first % len(self.handles)]
        found = await read_again(mount.filesystem, handle, second, SIZE)
        assert bytes(found) == bytes(file.content[second : second + SIZE])

    async def truncate(self, first: int, second: int) -> None:
        file = await self.some_file(first)
        if file is None:
            return
        await self.mount.filesystem.setattr(file.ino, size=second)
        del file.content[second:]
        file.content += bytes(second - len(file.content))
        file.mtime_ns = None

    async def chmod(self, first: int, second: int) -> None:
        file = await self.some_file(first) if second % 3 else await self.folder(first)
        if file is None:
            return
        await self.mount.filesystem.setattr(file.ino, mode=0o400 + second)
        file.mode = 0o400 + second

    async def utimens(self, first: int, second: int) -> None:
        file = await self.some_file(first)
        if file is None:
            return
        await self.mount.filesystem.setattr(file.ino, mtime_ns=second, atime_ns=first)
        file.mtime_ns = second

    async def some_file(self, number: int) -> File | None:
        """A file that this mount has found by its name, or has open."""
        found: dict[File, tuple[Folder, bytes] | None] = {}
        for folder in self.top.folders():
            for name, entry in folder.entries.items():
                if isinstance(entry, File):
                    found.setdefault(entry, (folder, name))
        for mount, _, file in self.handles:
            if mount is self.mount:
                found[file] = None
        if not found:
            return None
        file, place = list(found.items())[number % len(found)]
        if place is not None:
            folder = await self.reached(place[0])
            inode = await self.mount.filesystem.lookup(folder.ino, place[1])
            assert inode.ino == file.ino
        return file

    async def fsync(self, first: int, second: int) -> None:
        if self.handles:
            mount, handle, _ = self.handles[first % len(self.handles)]
            await mount.filesystem.fsync(handle)

    async def sleep(self, first: int, second: int) -> None:
        await trio.sleep(second / 10)

    async def forget(self, first: int, second: int) -> None:
        """The kernel's memory is short."""
        for inode in self.mount.inodes:
            self.mount.inodes.forget(inode.ino, inode.lookup_count)

    async def evict(self, first: int, second: int) -> None:
        """Names are given up to save memory."""
        await self.mount.keeper.give_up(
            [lease for lease in self.mount.table.least_used() if (lease.key + first) % 2]
        )

    # --- what must be true -----------------------------------------------------------------------

    async def look(self, first: int, second: int) -> None:
        file = await self.some_file(first)
        if file is not None:
            await self.check_file(file)

    async def check_file(self, file: File) -> None:
        inode = await self.mount.filesystem.getattr(file.ino)
        shown = self.mount.filesystem.attributes_of(inode)
        found = (shown.size, shown.nlink, shown.mode)
        assert found == (len(file.content), file.nlink, file.mode)
        if file.mtime_ns is not None:
            assert shown.mtime_ns == file.mtime_ns

    async def list(self, first: int, second: int) -> None:
        await self.check_folder(await self.folder(first))

    async def check_folder(self, folder: Folder) -> None:
        assert await self.mount.list(folder.ino) == sorted(folder.entries)
        inode = await self.mount.filesystem.getattr(folder.ino)
        shown = self.mount.filesystem.attributes_of(inode)
        folders = sum(isinstance(entry, Folder) for entry in folder.entries.values())
        found = (shown.size, shown.nlink, shown.mode)
        assert found == (len(folder.entries), 2 + folders, folder.mode)

    async def names(self, first: int, second: int) -> None:
        await self.check_names(await self.folder(first))

    async def check_names(self, folder: Folder) -> None:
        for name in NAMES:
            found = folder.entries.get(name)
            verb = self.mount.filesystem.lookup(folder.ino, name)
            if found is None:
                await fails_with(Kind.NOT_FOUND, verb)
            else:
                assert (await verb).ino == found.ino

    async def sync(self, first: int, second: int) -> None:
        """What every mount foretold is what the router then says."""
        foretold = [
            {
                inode.ino: mount.filesystem.attributes_of(inode)
                for inode in mount.inodes
                if mount.table.covers(inode) and inode.ino != 1
            }
            for mount in self.mounts
        ]
        for mount in self.mounts:
            await mount.flush()
        for mount, known in zip(self.mounts, foretold, strict=True):
            for ino, attributes in known.items():
                if self.space.exists(ino):
                    there = self.space.node(ino).attributes
                    assert seen(attributes) == seen(there)
            self.check_leases(mount)

    def check_leases(self, mount: LeasedMount) -> None:
        """Whatever a mount keeps under a lease is in the database."""
        for lease in mount.table:
            if not self.space.exists(lease.key):
                continue
            held = self.space.mode(mount.session, lease.key)
            assert held >= lease.mode
            if not lease.names:
                continue
            there = self.space.names(lease.key)
            known = {name: None if i is None else i.ino for name, i in lease.names.items()}
            assert known == {name: there.get(name) for name in known}
            if lease.is_complete:
                assert there == {name: ino for name, ino in known.items() if ino is not None}
        count = sum(len(lease.names) for lease in mount.table)
        assert count == mount.table.name_count
        for inode in mount.inodes:
            standing = sum(inode is i for lease in mount.table for i in lease.names.values())
            assert inode.name_count == standing
            assert inode.pending_count == 0

    async def finish(self) -> None:
        while self.handles:
            await self.close(0, 0)
        await self.sync(0, 0)
        for mount in self.mounts:
            self.mount = mount
            assert self.mount.content.writeback.budget.used_bytes == 0
            for folder in self.top.folders():
                await self.reached(folder)
                await self.check_folder(folder)
                await self.check_names(folder)
                for name, entry in folder.entries.items():
                    if isinstance(entry, File):
                        await self.mount.filesystem.lookup(folder.ino, name)
                        await self.check_file(entry)
                        assert await self.mount.read_all(entry.ino) == entry.content
                        assert self.space.content(entry.ino) == entry.content
        await self.sync(0, 0)


def seen(attributes: Attributes) -> Attributes:
    """What programs see."""
    return msgspec.structs.replace(attributes, version=0, content_version=0, allocated=0)


async def fails_with(kind: Kind, verb: Awaitable[object]) -> None:
    with pytest.raises(MictlanError) as raised:
        await verb
    assert raised.value.kind is kind
