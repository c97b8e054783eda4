import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, FileKind, InodeNumber
from mictlanfs_server.router.gate import LeasedAnswer
from tests.contract.metadata.forms import Client, kind_of
from tests.unit.server.router.parts import Parts, run_parts

T = TypeVar("T")


class Mount:
    """A session with leases, and what it is told."""

    def __init__(self, parts: Parts, grant: wire.SessionGrant) -> None:
        self.parts = parts
        self.grant = grant
        self.number = 1
        self.seen = 0

    @property
    def header(self) -> bytes:
        return f"{self.grant.session}:{self.grant.epoch}".encode()

    async def read(self, request: wire.Lookup | wire.GetNode | wire.ListDirectory) -> LeasedAnswer:
        route = next(r for r in self.parts.handlers.reads() if r.request_type is type(request))
        answer = await route.handler(request, self.header)
        assert isinstance(answer, LeasedAnswer)
        return answer

    async def acquire(self, *inodes: int, places: tuple[wire.Place, ...] = ()) -> wire.Acquired:
        numbers = tuple(InodeNumber(ino) for ino in inodes)
        request = wire.Acquire(self.grant.session, self.grant.epoch, numbers, places)
        return await self.parts.handlers.acquire(request)

    async def events(self) -> wire.Events:
        request = wire.AwaitEvents(
            self.grant.session, self.grant.epoch, self.seen, self.grant.incarnation
        )
        events = await self.parts.handlers.await_events(request)
        self.seen = events.last
        return events

    async def release(self, recall: wire.Recall) -> None:
        await self.parts.handlers.release(
            wire.ReleaseLeases(
                self.grant.session, self.grant.epoch, recall.keys, recall.keep, recall.stamp
            )
        )

    async def obey(self) -> None:
        """Give up what the next events ask for."""
        for recall in (await self.events()).recalls:
            await self.release(recall)

    async def commit(self, *ops: wire.Operation, is_covered: bool = False) -> wire.CommitAnswer:
        batch = wire.Commit(
            self.grant.session,
            self.grant.epoch,
            self.number,
            ops,
            False,
            is_covered=is_covered,
        )
        answer = wire.decode(await self.parts.handlers.commit(batch), wire.CommitAnswer)
        self.number += len(ops)
        return answer


async def mount(parts: Parts, label: str = "mount") -> Mount:
    return Mount(parts, await parts.open_session(label, leases=True))


async def space(parts: Parts) -> tuple[Client, InodeNumber, InodeNumber]:
    """A client without leases, a bucket, a file in it."""
    grant = await parts.open_session()
    records = {record.session: record for record in await parts.store.sessions()}
    client = Client(parts.store, records[grant.session], grant.inodes.first)
    bucket = await client.make(ROOT_INODE, b"bucket", FileKind.DIRECTORY)
    return client, bucket, await client.make(bucket, b"file")


async def started(work: Awaitable[T]) -> "asyncio.Task[T]":
    """Begin something that has to wait."""
    task = asyncio.ensure_future(work)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    assert isinstance(task, asyncio.Task)
    return task


def chmod(ino: InodeNumber, mode: int) -> wire.SetAttributes:
    return wire.SetAttributes(ino, 9, mode=mode)


def test_lookup_comes_with_leases_on_the_directory(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, file = await space(parts)
        one = await mount(parts)
        found = await one.read(wire.Lookup(bucket, b"file"))
        assert set(found.grants.keys) == {bucket}
        missing = await one.read(wire.Lookup(bucket, b"none"))
        assert isinstance(missing.answer, MictlanError)
        assert missing.grants.keys == (bucket,)
        assert missing.grants.stamp > found.grants.stamp
        listed = await one.read(wire.ListDirectory(ROOT_INODE))
        assert set(listed.grants.keys) == {ROOT_INODE, bucket}
        assert (await one.read(wire.GetNode(file))).grants.keys == (bucket,)

    run_parts(tmp_path, scenario)


def test_commit_without_leases_waits_until_a_reader_gave_up(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, file = await space(parts)
        reader, writer = await mount(parts), Mount(parts, await parts.open_session())
        await reader.read(wire.Lookup(bucket, b"file"))
        commit = await started(writer.commit(chmod(file, 0o600)))
        again = await reader.read(wire.GetNode(file))
        assert again.grants.keys == ()
        await reader.obey()
        assert (await commit).results[0].error is None
        after = await reader.read(wire.GetNode(file))
        assert after.grants.keys == (bucket,)

    run_parts(tmp_path, scenario)


def test_read_waits_for_a_writer_and_leaves_it_a_lease_to_read(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, file = await space(parts)
        writer, reader = await mount(parts), await mount(parts)
        acquired = await writer.acquire(file)
        assert acquired.keys == (bucket,)
        assert acquired.nodes[0].attributes.ino == file
        parts.clock.advance(1)
        read = await started(reader.read(wire.GetNode(file)))
        await writer.commit(chmod(file, 0o611), is_covered=True)
        await writer.obey()
        leased = await read
        assert not isinstance(leased.answer, MictlanError)
        assert leased.answer == await parts.store.node(wire.GetNode(file))
        assert leased.grants.keys == (bucket,)
        assert parts.gate.table.mode(writer.grant.session, bucket) == wire.LeaseMode.READ

    run_parts(tmp_path, scenario)


def test_acquire_gives_what_the_names_stand_for(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, file = await space(parts)
        one = await mount(parts)
        places = (wire.Place(bucket, b"file"), wire.Place(bucket, b"new"))
        acquired = await one.acquire(ROOT_INODE, places=places)
        assert acquired.keys == (ROOT_INODE, bucket)
        assert [node.attributes.ino for node in acquired.nodes] == [ROOT_INODE, bucket, bucket]
        assert acquired.found[0] is not None
        assert acquired.found[0].attributes.ino == file
        assert acquired.found[1] is None
        assert await kind_of(one.acquire(999)) is Kind.NOT_FOUND
        wrong = (wire.Place(file, b"x"),)
        assert await kind_of(one.acquire(places=wrong)) is Kind.NOT_DIRECTORY

    run_parts(tmp_path, scenario)


def test_file_that_moves_while_somebody_waits_is_acquired_where_it_is(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        client, bucket, file = await space(parts)
        other = await client.make(bucket, b"other", FileKind.DIRECTORY)
        holder, waiter = await mount(parts), await mount(parts)
        await holder.acquire(file, other)
        parts.clock.advance(1)
        acquire = await started(waiter.acquire(file))
        await holder.commit(wire.Rename(bucket, b"file", other, b"file", 9), is_covered=True)
        await holder.obey()
        await holder.obey()
        assert (await acquire).keys == (other,)

    run_parts(tmp_path, scenario)


def test_silent_holder_is_fenced_when_somebody_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, file = await space(parts)
        holder, waiter = await mount(parts, "the holder"), await mount(parts)
        await holder.acquire(file)
        parts.clock.advance(9)
        acquire = await started(waiter.acquire(file))
        await parts.gate.tick(9)
        assert not acquire.done()
        parts.clock.advance(2.1)
        await parts.gate.tick(2.1)
        assert (await acquire).keys == (bucket,)
        assert await kind_of(holder.commit(chmod(file, 0o600), is_covered=True)) is Kind.FENCED
        assert await kind_of(holder.events()) is Kind.FENCED

    run_parts(tmp_path, scenario)
    assert "the holder" in caplog.text
    caplog.clear()


def test_second_request_for_events_ends_the_first(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, file = await space(parts)
        one, other = await mount(parts), await mount(parts)
        first = await started(one.events())
        second = await started(one.events())
        assert (await first).recalls == ()
        await one.read(wire.GetNode(file))
        acquire = await started(other.acquire(file))
        assert (await second).recalls[0].keys == (bucket,)
        # The answer was lost: it is sent again.
        one.seen = 0
        (recall,) = (await one.events()).recalls
        await one.release(recall)
        await acquire

    run_parts(tmp_path, scenario)
