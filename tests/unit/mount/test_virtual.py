"""The hidden directory and the computed attributes, over a fake space and without a kernel."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest

from mictlanfs import acl, wire
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, FileKind, InodeNumber
from mictlanfs.mounts.cachewords import CLEAR, HELD, Cleared, warm_from
from mictlanfs_mount import computed
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.virtual import DIRECTORY_INODE, Views, VirtualFileSystem, is_virtual
from mictlanfs_mount.warming import Warming
from tests.support.mount_fakes import CALLER, FakeClock, FakeMount, FakeRouter, open_mount


class PathRouter(FakeRouter):
    """A router that knows paths too."""

    async def path(self, ino: InodeNumber) -> tuple[bytes, ...]:
        await self._script.passing("path:asked")
        return (b"bucket", b"a", b"%d" % ino)


@asynccontextmanager
async def virtual_mount() -> AsyncIterator[tuple[FakeMount, VirtualFileSystem]]:
    async with open_mount() as mount:
        filesystem = VirtualFileSystem(
            cast("RouterClient", PathRouter(mount.space, mount.script)),
            cast("Session", mount.session),
            mount.content,
            mount.inodes,
            FakeClock(),
            attr_timeout_s=1.0,
        )
        mount.inodes.root = ROOT_INODE
        count = iter(range(1000))
        filesystem.views = Views(
            {
                b"stats": lambda: {"count": "x" * next(count)},
                b"config": lambda: {"uri": "mictlanx://r@h:1"},
            },
            lambda number: f"peer-{number}",
        )
        mount.filesystem = filesystem
        yield mount, filesystem


def new_file(mount: FakeMount) -> InodeNumber:
    return mount.space.add(mount.space.bucket, b"file")


async def kind_of(work: Awaitable[object]) -> Kind | None:
    try:
        await work
    except MictlanError as error:
        return error.kind
    return None


async def read(filesystem: VirtualFileSystem, ino: InodeNumber) -> bytes:
    opened = await filesystem.open(ino, os.O_RDONLY)
    assert (opened.keep_cache, opened.direct_io) == (False, True)
    content = bytes(await filesystem.read(opened.handle, 0, 1 << 20))
    await filesystem.flush(opened.handle)
    await filesystem.release(opened.handle)
    return content


# --- the directory -------------------------------------------------------------------------------


async def test_the_directory_is_found_and_holds_documents() -> None:
    async with virtual_mount() as (mount, filesystem):
        directory = await filesystem.lookup(ROOT_INODE, b".mictlanfs")
        assert directory.ino == DIRECTORY_INODE
        assert directory.attributes.st_mode == 0o040555
        assert directory.attributes.size == 2
        assert filesystem.validity_s(directory) == 0.0
        config = await filesystem.lookup(DIRECTORY_INODE, b"config")
        assert config.attributes.st_mode == 0o100444
        content = await read(filesystem, config.ino)
        assert json.loads(content) == {"uri": "mictlanx://r@h:1"}
        assert len(content) == config.attributes.size
        assert await kind_of(filesystem.lookup(DIRECTORY_INODE, b"none")) is Kind.NOT_FOUND
        assert await kind_of(filesystem.lookup(config.ino, b"none")) is Kind.NOT_FOUND
        assert mount.script.asked() == 0


async def test_numbers_are_far_from_those_of_the_router() -> None:
    async with virtual_mount() as (_, filesystem):
        numbers = {(await filesystem.lookup(DIRECTORY_INODE, n)).ino for n in (b"stats", b"config")}
        assert len(numbers) == 2
        assert all(is_virtual(ino) and ino > 2**62 for ino in numbers)
        assert not is_virtual(ROOT_INODE)


async def test_only_the_root_has_the_directory() -> None:
    async with virtual_mount() as (mount, filesystem):
        bucket = mount.space.bucket
        assert await kind_of(filesystem.lookup(bucket, b".mictlanfs")) is Kind.NOT_FOUND
        mount.inodes.root = bucket
        assert (await filesystem.lookup(bucket, b".mictlanfs")).ino == DIRECTORY_INODE
        assert await kind_of(filesystem.lookup(ROOT_INODE, b".mictlanfs")) is Kind.NOT_FOUND


async def test_the_directory_is_listed_when_it_is_named_and_not_in_the_root() -> None:
    async with virtual_mount() as (_, filesystem):
        root = await filesystem.opendir(ROOT_INODE)
        listed = (await filesystem.readdir(root, 0)).entries
        assert [entry.name for entry in listed] == [b"bucket"]
        number = await filesystem.opendir(DIRECTORY_INODE)
        for _ in range(2):
            handle = await filesystem.readdir(number, 0)
            assert [entry.name for entry in handle.entries] == [b"config", b"stats"]
            assert handle.is_complete
            assert handle.parent == ROOT_INODE
            filesystem.rewinddir(number)
        await filesystem.releasedir(number)
        await filesystem.releasedir(root)
        assert len(filesystem.handles) == 0


async def test_an_open_document_stays_as_it_was_and_stat_shows_its_size() -> None:
    async with virtual_mount() as (_, filesystem):
        stats = (await filesystem.lookup(DIRECTORY_INODE, b"stats")).ino
        opened = await filesystem.open(stats, os.O_RDONLY)
        first = bytes(await filesystem.read(opened.handle, 0, 1000))
        assert (await filesystem.getattr(stats)).attributes.size == len(first)
        assert bytes(await filesystem.read(opened.handle, 2, 3)) == first[2:5]
        assert bytes(await filesystem.read(opened.handle, len(first), 3)) == b""
        await filesystem.release(opened.handle)
        assert (await filesystem.getattr(stats)).attributes.size != len(first)


async def test_nothing_of_the_directory_can_be_changed() -> None:
    async with virtual_mount() as (mount, filesystem):
        bucket = mount.space.bucket
        file = mount.space.add(bucket, b"file")
        stats = (await filesystem.lookup(DIRECTORY_INODE, b"stats")).ino
        make, rename = filesystem.make, filesystem.rename
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: make(DIRECTORY_INODE, b"x", FileKind.FILE, 0o644, CALLER),
            lambda: make(ROOT_INODE, b".mictlanfs", FileKind.DIRECTORY, 0o755, CALLER),
            lambda: filesystem.create(DIRECTORY_INODE, b"x", 0o644, os.O_CREAT, CALLER),
            lambda: filesystem.link(stats, bucket, b"x"),
            lambda: filesystem.link(file, DIRECTORY_INODE, b"x"),
            lambda: filesystem.unlink(DIRECTORY_INODE, b"stats"),
            lambda: filesystem.rmdir(ROOT_INODE, b".mictlanfs"),
            lambda: rename(ROOT_INODE, b".mictlanfs", ROOT_INODE, b"x", 0),
            lambda: rename(bucket, b"file", DIRECTORY_INODE, b"x", 0),
            lambda: rename(DIRECTORY_INODE, b"stats", bucket, b"x", 0),
            lambda: filesystem.setattr(stats, mode=0o666),
            lambda: filesystem.setattr(DIRECTORY_INODE, uid=1),
            lambda: filesystem.open(stats, os.O_WRONLY),
            lambda: filesystem.open(stats, os.O_RDONLY | os.O_TRUNC),
            lambda: filesystem.setxattr(stats, b"user.a", b"1"),
            lambda: filesystem.removexattr(stats, b"user.a"),
        ]
        kinds = [await kind_of(attempt()) for attempt in attempts]
        assert kinds == [Kind.NOT_PERMITTED] * len(attempts)
        assert mount.script.asked() == 0
        assert len(filesystem.handles) == 0


async def test_documents_have_no_extended_attributes() -> None:
    async with virtual_mount() as (_, filesystem):
        stats = (await filesystem.lookup(DIRECTORY_INODE, b"stats")).ino
        assert await filesystem.listxattr(stats) == []
        for name in (b"user.a", acl.ACCESS_NAME, computed.SIZE):
            assert await kind_of(filesystem.getxattr(stats, name)) is Kind.NO_DATA


# --- computed attributes -------------------------------------------------------------------------


async def test_a_file_tells_where_it_lies_and_what_it_is_made_of() -> None:
    async with virtual_mount() as (mount, filesystem):
        file = new_file(mount)
        mount.space.write(file, 0, b"12345")
        values = {name: await filesystem.getxattr(file, name) for name in computed.NAMES}
        assert values[computed.BUCKET] == b"bucket"
        assert values[computed.BALL_ID] == b"a/%d" % file
        assert values[computed.SIZE] == b"5"
        assert json.loads(values[computed.CHUNKS])["count"] == 1
        (chunk,) = json.loads(values[computed.CHUNKS])["chunks"]
        assert values[computed.CHECKSUM].decode() == "blake3:" + chunk["blake3"]
        assert list(json.loads(values[computed.PEERS])) == [chunk["id"]]


async def test_what_is_computed_is_not_listed_and_cannot_be_set() -> None:
    async with virtual_mount() as (mount, filesystem):
        file = new_file(mount)
        await filesystem.setxattr(file, b"user.mictlanx.tag.colour", b"blue")
        assert await filesystem.listxattr(file) == [b"user.mictlanx.tag.colour"]
        for name in computed.NAMES:
            assert await kind_of(filesystem.setxattr(file, name, b"1")) is Kind.NOT_PERMITTED
            assert await kind_of(filesystem.removexattr(file, name)) is Kind.NOT_PERMITTED
        assert await filesystem.getxattr(file, b"user.mictlanx.tag.colour") == b"blue"


async def test_only_files_have_computed_attributes() -> None:
    async with virtual_mount() as (_, filesystem):
        for name in computed.NAMES:
            assert await kind_of(filesystem.getxattr(ROOT_INODE, name)) is Kind.NO_DATA


async def test_there_is_no_checksum_of_what_is_not_stored_yet() -> None:
    async with virtual_mount() as (mount, filesystem):
        file = new_file(mount)
        opened = await filesystem.open(file, os.O_RDWR, None)
        await filesystem.write(opened.handle, 0, b"abc")
        assert await kind_of(filesystem.getxattr(file, computed.CHECKSUM)) is Kind.NO_DATA
        assert await filesystem.getxattr(file, computed.SIZE) == b"3"
        await filesystem.flush(opened.handle)
        assert (await filesystem.getxattr(file, computed.CHECKSUM)).startswith(b"blake3:")
        await filesystem.release(opened.handle)


async def test_an_open_file_without_a_name_is_in_no_bucket() -> None:
    async with virtual_mount() as (mount, filesystem):
        bucket = mount.space.bucket
        file = mount.space.add(bucket, b"file")
        opened = await filesystem.open(file, os.O_RDONLY, None)
        await filesystem.unlink(bucket, b"file")
        assert await kind_of(filesystem.getxattr(file, computed.BUCKET)) is Kind.NO_DATA
        await filesystem.release(opened.handle)


# --- access control lists ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(acl.NAMES))
async def test_that_a_file_has_no_list_costs_no_request(name: bytes) -> None:
    async with virtual_mount() as (mount, filesystem):
        file = new_file(mount)
        await filesystem.getattr(file)
        before = mount.script.asked()
        for _ in range(5):
            assert await kind_of(filesystem.getxattr(file, name)) is Kind.NO_DATA
        assert mount.script.asked() == before


@pytest.mark.parametrize(
    ("mode", "groups", "clears"),
    [(0o2755, {7}, True), (0o2755, {0}, False), (0o755, {7}, False), (0o2755, None, False)],
)
async def test_who_is_not_in_the_group_loses_set_group_id_with_a_list(
    mode: int, groups: set[int] | None, clears: bool
) -> None:
    async with virtual_mount() as (mount, filesystem):
        file = mount.space.add(mount.space.bucket, b"file", mode=mode)
        is_member = None if groups is None else groups.__contains__
        await filesystem.setxattr(file, acl.ACCESS_NAME, b"list", is_member=is_member)
        (op,) = [op for _, op in mount.space.applied if isinstance(op, wire.SetXattr)]
        assert op.clear_set_gid is clears


async def test_where_lists_cannot_be_shown_they_are_unsupported_and_hidden() -> None:
    async with virtual_mount() as (mount, filesystem):
        file = new_file(mount)
        await filesystem.setxattr(file, acl.ACCESS_NAME, b"list")
        assert await filesystem.listxattr(file) == [acl.ACCESS_NAME]
        filesystem.has_acls = False
        assert await filesystem.listxattr(file) == []
        attempts = [
            filesystem.getxattr(file, acl.ACCESS_NAME),
            filesystem.setxattr(file, acl.ACCESS_NAME, b""),
            filesystem.removexattr(file, acl.ACCESS_NAME),
        ]
        assert [await kind_of(attempt) for attempt in attempts] == [Kind.UNSUPPORTED] * 3


# --- requests about the cache --------------------------------------------------------------------


class FakeWarming:
    """Answers with what it was asked."""

    async def answer(self, inode: Inode, name: bytes) -> bytes:
        return b"%d %s" % (inode.ino, name)

    async def clear_all(self) -> Cleared:
        return Cleared(42)


async def test_requests_about_the_cache_are_answered_for_files() -> None:
    async with virtual_mount() as (mount, filesystem):
        filesystem.views = replace(filesystem.views, warming=cast("Warming", FakeWarming()))
        ino = new_file(mount)
        request = filesystem.cache_request
        for name in (HELD, CLEAR, warm_from(7)):
            assert await request(ino, name, is_owner=False) == b"%d %s" % (ino, name)
        for other in (mount.space.bucket, ROOT_INODE, DIRECTORY_INODE):
            assert await kind_of(request(other, HELD, is_owner=True)) is Kind.NO_DATA


async def test_only_the_owner_of_the_mount_clears_all_of_its_cache() -> None:
    async with virtual_mount() as (_, filesystem):
        request = filesystem.cache_request
        assert await kind_of(request(ROOT_INODE, CLEAR, is_owner=True)) is Kind.NO_DATA
        filesystem.views = replace(filesystem.views, warming=cast("Warming", FakeWarming()))
        assert await kind_of(request(ROOT_INODE, CLEAR, is_owner=False)) is Kind.NOT_PERMITTED
        assert await request(ROOT_INODE, CLEAR, is_owner=True) == b"42"


async def test_requests_cannot_be_given_a_value() -> None:
    async with virtual_mount() as (mount, filesystem):
        ino = new_file(mount)
        for name in (HELD, CLEAR, warm_from(7)):
            assert await kind_of(filesystem.setxattr(ino, name, b"x")) is Kind.NOT_PERMITTED
            assert await kind_of(filesystem.removexattr(ino, name)) is Kind.NOT_PERMITTED
