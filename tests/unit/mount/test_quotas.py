"""Writing into a bucket with a quota: what fits is taken, what does not is refused by `write`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB, BucketPolicy, FileKind
from mictlanfs_mount.filesystem import Caller
from mictlanfs_mount.handles import HandleNumber
from mictlanfs_mount.quotas import VALIDITY_S
from tests.support.mount_fakes import FakeMount, open_mount
from tests.support.mount_space import FakeSpace

CHUNK = 64 * KIB
QUOTA = 10 * CHUNK
CALLER = Caller(1, 1)


@asynccontextmanager
async def limited(quota: int = QUOTA) -> AsyncIterator[FakeMount]:
    space = FakeSpace()
    space.policy = BucketPolicy(chunk_size=CHUNK, quota=quota)
    async with open_mount(space) as mount:
        yield mount


async def create(mount: FakeMount, name: bytes) -> HandleNumber:
    opened, _ = await mount.filesystem.create(
        mount.space.bucket, name, 0o644, os.O_WRONLY | os.O_CREAT, CALLER
    )
    return opened.handle


async def fails_by_quota(mount: FakeMount, handle: HandleNumber, offset: int, size: int) -> bool:
    try:
        await mount.filesystem.write(handle, offset, b"n" * size)
    except MictlanError as error:
        if error.kind is not Kind.QUOTA_EXCEEDED:
            raise
        return True
    return False


async def test_write_takes_what_fits_to_the_last_byte_and_refuses_the_next() -> None:
    async with limited() as mount:
        handle = await create(mount, b"file")
        for index in range(10):
            await mount.filesystem.write(handle, index * CHUNK, b"x" * CHUNK)
        assert await fails_by_quota(mount, handle, QUOTA, 1)
        # Nothing that was taken is lost, and nobody is told of an error that was told already.
        await mount.filesystem.flush(handle)
        assert mount.space.used == QUOTA
        assert not await fails_by_quota(mount, handle, 5, 2 * CHUNK)
        await mount.filesystem.flush(handle)


async def test_many_writes_cost_one_question_while_there_is_room() -> None:
    async with limited(1000 * CHUNK) as mount:
        handles = [await create(mount, b"%d" % index) for index in range(20)]
        for handle in handles:
            for index in range(10):
                await mount.filesystem.write(handle, index * 100, b"x" * 100)
        # One for the directory, one for what its bucket has left.
        assert mount.script.asked("bucket_use") == 2


async def test_bucket_without_a_quota_costs_no_question() -> None:
    async with limited(0) as mount:
        handle = await create(mount, b"file")
        await mount.filesystem.write(handle, 0, b"x" * QUOTA)
        assert mount.script.asked("bucket_use") == 0


async def test_what_overwrites_dirty_bytes_takes_no_room() -> None:
    async with limited() as mount:
        handle = await create(mount, b"file")
        for _ in range(3):
            await mount.filesystem.write(handle, 0, b"x" * QUOTA)
        assert await fails_by_quota(mount, handle, 1, QUOTA)
        await mount.filesystem.flush(handle)


async def test_holes_count_when_they_are_filled(autojump_clock: MockClock) -> None:
    async with limited() as mount:
        ino = mount.space.add(mount.space.bucket, b"file", content=b"x" * CHUNK)
        mount.space.write(ino, 3 * CHUNK, b"x" * CHUNK)
        mount.space.add(mount.space.bucket, b"other", content=b"x" * (7 * CHUNK))
        handle = (await mount.filesystem.open(ino, os.O_WRONLY)).handle
        assert await fails_by_quota(mount, handle, 0, 4 * CHUNK)
        assert not await fails_by_quota(mount, handle, 0, 2 * CHUNK)
        await mount.filesystem.flush(handle)
        assert mount.space.used == QUOTA


async def test_extents_that_are_not_known_are_asked_for_before_a_write_is_refused() -> None:
    async with limited() as mount:
        mount.space.extents_page = 2
        ino = mount.space.add(mount.space.bucket, b"file")
        for index in range(10):
            mount.space.write(ino, index * CHUNK, b"x" * CHUNK)
        handle = (await mount.filesystem.open(ino, os.O_WRONLY)).handle
        assert not await fails_by_quota(mount, handle, 8 * CHUNK, 2 * CHUNK)
        await mount.filesystem.flush(handle)


async def test_removing_makes_room_at_once() -> None:
    async with limited() as mount:
        old = await create(mount, b"old")
        await mount.filesystem.write(old, 0, b"x" * QUOTA)
        await mount.filesystem.flush(old)
        await mount.filesystem.release(old)
        handle = await create(mount, b"file")
        assert await fails_by_quota(mount, handle, 0, 1)
        await mount.filesystem.unlink(mount.space.bucket, b"old")
        assert not await fails_by_quota(mount, handle, 0, QUOTA)
        await mount.filesystem.flush(handle)


async def test_what_another_mount_took_is_kept_dirty_reported_and_stored_with_more_room(
    autojump_clock: MockClock,
) -> None:
    async with limited() as mount:
        handle = await create(mount, b"file")
        await mount.filesystem.write(handle, 0, b"x" * (6 * CHUNK))
        mount.space.add(mount.space.bucket, b"theirs", content=b"x" * (6 * CHUNK))
        with pytest.raises(MictlanError) as caught:
            await mount.filesystem.flush(handle)
        assert caught.value.kind is Kind.QUOTA_EXCEEDED
        # As much of it as there is room for is stored.
        assert mount.space.used == QUOTA
        assert mount.content.writeback.refused_bytes() == 2 * CHUNK
        mount.space.policy = BucketPolicy(chunk_size=CHUNK, quota=2 * QUOTA)
        await trio.sleep(20)
        await mount.filesystem.flush(handle)
        assert mount.space.used == 12 * CHUNK


async def test_file_that_the_quota_keeps_dirty_can_be_emptied(autojump_clock: MockClock) -> None:
    async with limited() as mount:
        handle = await create(mount, b"file")
        await mount.filesystem.write(handle, 0, b"x" * QUOTA)
        mount.space.add(mount.space.bucket, b"theirs", content=b"x" * QUOTA)
        with pytest.raises(MictlanError):
            await mount.filesystem.flush(handle)
        ino = mount.filesystem.handles.file(handle).inode.ino
        await mount.filesystem.setattr(ino, size=0)
        await mount.filesystem.flush(handle)
        assert mount.content.writeback.budget.used_bytes == 0
        assert mount.space.attributes(ino).size == 0


async def test_lowered_and_lifted_quotas_are_noticed(autojump_clock: MockClock) -> None:
    async with limited() as mount:
        handle = await create(mount, b"file")
        await mount.filesystem.write(handle, 0, b"x")
        mount.space.policy = BucketPolicy(chunk_size=CHUNK, quota=10)
        await trio.sleep(VALIDITY_S)
        assert await fails_by_quota(mount, handle, 1, 10)
        mount.space.policy = BucketPolicy(chunk_size=CHUNK)
        assert not await fails_by_quota(mount, handle, 1, 10)


async def test_writers_at_the_same_time_share_what_is_left() -> None:
    async with limited() as mount:
        handles = [await create(mount, b"%d" % index) for index in range(15)]
        refused = []

        async def write(handle: HandleNumber) -> None:
            refused.append(await fails_by_quota(mount, handle, 0, CHUNK))

        async with trio.open_nursery() as nursery:
            for handle in handles:
                nursery.start_soon(write, handle)
        assert sorted(refused) == [False] * 10 + [True] * 5
        for handle in handles:
            await mount.filesystem.flush(handle)
        assert mount.space.used == QUOTA


async def test_new_directories_cost_no_question() -> None:
    async with limited() as mount:
        await mount.filesystem.make(mount.space.bucket, b"d", FileKind.DIRECTORY, 0o755, CALLER)
        assert mount.script.asked("bucket_use") == 0
        assert isinstance(mount.space.applied[-1][1], wire.MakeNode)


async def test_file_that_the_router_does_not_know_yet_counts_where_it_was_made() -> None:
    async with limited() as mount:
        handle = await create(mount, b"file")
        mount.script.fail("bucket_use:asked", MictlanError(Kind.NOT_FOUND))
        assert await fails_by_quota(mount, handle, 0, QUOTA + 1)
        assert not await fails_by_quota(mount, handle, 0, QUOTA)


async def test_file_that_another_mount_removed_is_not_said_to_be_too_large() -> None:
    async with limited() as mount:
        ino = mount.space.add(mount.space.bucket, b"file")
        handle = (await mount.filesystem.open(ino, os.O_WRONLY)).handle
        mount.space.apply(0, wire.Unlink(mount.space.bucket, b"file", 0))
        assert not await fails_by_quota(mount, handle, 0, 1)
        with pytest.raises(MictlanError) as caught:
            await mount.filesystem.flush(handle)
        assert caught.value.kind is Kind.STALE
