import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, FileKind, InodeNumber
from mictlanfs_server.router.gate import LeasedAnswer, LeaseGate, agree_on_lease_time
from tests.contract.metadata.forms import Client, kind_of
from tests.unit.server.router.fakes import FakeClock
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

    async def read(
        self,
        request: wire.Lookup | wire.GetNode | wire.ListDirectory | wire.ListTree | wire.GetRecords,
    ) -> LeasedAnswer:
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

    async def release(self, recall: wire.Recall, *opened: InodeNumber) -> None:
        session, epoch = self.grant.session, self.grant.epoch
        await self.parts.handlers.release(
            wire.ReleaseLeases(session, epoch, recall.keys, recall.keep, recall.stamp, opened)
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


async def three_directories(parts: Parts) -> tuple[InodeNumber, ...]:
    client, bucket, _ = await space(parts)
    names = (b"a", b"b", b"c")
    return tuple([await client.make(bucket, name, FileKind.DIRECTORY) for name in names])


def told(leased: LeasedAnswer) -> list[InodeNumber]:
    assert isinstance(leased.answer, wire.TreePage)
    return [listing.ino for listing in leased.answer.listings]


def test_tree_comes_with_leases_on_all_that_is_in_it(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        roots = await three_directories(parts)
        one = await mount(parts)
        found = await one.read(wire.ListTree(roots))
        assert told(found) == list(roots)
        assert set(found.grants.keys) == set(roots)
        plain = next(r for r in parts.handlers.reads() if r.request_type is wire.ListTree)
        assert await plain.handler(wire.ListTree(roots), None) == found.answer

    run_parts(tmp_path, scenario)


def test_tree_is_without_what_others_write(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        roots = await three_directories(parts)
        writer, reader = await mount(parts), await mount(parts)
        await writer.acquire(roots[1])
        parts.clock.advance(1)
        found = await reader.read(wire.ListTree(roots))
        assert told(found) == [roots[0], roots[2]]
        assert set(found.grants.keys) == {roots[0], roots[2]}
        assert told(await writer.read(wire.ListTree(roots))) == list(roots)
        # Nobody asked the writer for anything.
        assert parts.gate.table.mode(writer.grant.session, roots[1]) == wire.LeaseMode.WRITE
        assert parts.gate.table.events(writer.grant.session, 0).recalls == ()

    run_parts(tmp_path, scenario)


def test_tree_is_without_what_others_wait_to_write(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        roots = await three_directories(parts)
        writer, reader, holder = [await mount(parts) for _ in range(3)]
        await holder.read(wire.ListDirectory(roots[1]))
        acquire = await started(writer.acquire(roots[1]))
        assert told(await reader.read(wire.ListTree(roots))) == [roots[0], roots[2]]
        assert told(await holder.read(wire.ListTree(roots))) == [roots[0], roots[2]]
        await holder.obey()
        assert (await acquire).keys == (roots[1],)

    run_parts(tmp_path, scenario)


def test_tree_waits_for_its_first_root_alone(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        roots = await three_directories(parts)
        writer, reader = await mount(parts), await mount(parts)
        await writer.acquire(roots[0], roots[1])
        parts.clock.advance(1)
        ahead = await reader.read(wire.ListTree(roots, is_ahead=True))
        assert told(ahead) == [roots[2]]
        read = await started(reader.read(wire.ListTree(roots)))
        (recall,) = (await writer.events()).recalls
        assert recall.keys == (roots[0],)
        await writer.release(recall)
        assert told(await read) == [roots[0], roots[2]]

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


def test_records_are_read_when_nobody_changes_their_files(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        client, bucket, file = await space(parts)
        other = await client.make(ROOT_INODE, b"other", FileKind.DIRECTORY)
        free = await client.make(other, b"free")
        for ino in (file, free):
            await client.do(wire.SetRecord(ino, 0, (wire.RecordPiece(0, b"empty"),)))
        writer, reader = await mount(parts), await mount(parts)
        await writer.acquire(file)
        parts.clock.advance(1)
        leased = await reader.read(wire.GetRecords((free,)))
        assert leased.grants.keys == (other,)
        read = await started(reader.read(wire.GetRecords((free, file))))
        await writer.commit(wire.SetAttributes(file, 9, size=5), is_covered=True)
        await writer.obey()
        leased = await read
        assert isinstance(leased.answer, wire.Records)
        empty = wire.FileRecord(1, (wire.RecordPiece(0, b"empty"),))
        assert leased.answer.records == (empty, wire.FileRecord(0, ()))
        assert set(leased.grants.keys) == {bucket, other}

    run_parts(tmp_path, scenario)


def test_record_of_a_known_content_disturbs_nobody(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        client, bucket, file = await space(parts)
        holder, door = await mount(parts), Mount(parts, await parts.open_session())
        await holder.acquire(file)
        (attributes,) = await client.do(wire.SetAttributes(file, 9, size=3))
        pieces = (wire.RecordPiece(3, b"body"),)
        known = wire.SetRecord(file, attributes.content_version, pieces)
        assert (await door.commit(known)).results[0].error is None
        assert parts.gate.table.mode(holder.grant.session, bucket) == wire.LeaseMode.WRITE
        # Of whatever content there is, it waits until nobody changes it.
        parts.clock.advance(1)
        commit = await started(door.commit(wire.SetRecord(file, 0, pieces)))
        await holder.obey()
        assert (await commit).results[0].error is None

    run_parts(tmp_path, scenario)


def test_last_part_recalls_the_directory_from_those_who_read_it(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        client, bucket, file = await space(parts)
        second = await client.make(bucket, b"second")
        ball = client.new_inode()
        await client.do(wire.PutPart(file, bucket, b"file", b"ball", ball, 0, 2, b"", 9))
        reader, door = await mount(parts), Mount(parts, await parts.open_session())
        await reader.read(wire.GetNode(file))
        last = wire.PutPart(second, bucket, b"second", b"ball", ball, 1, 2, b"", 9)
        commit = await started(door.commit(last))
        await reader.obey()
        assert (await commit).results[0].error is None
        listed = await reader.read(wire.ListDirectory(bucket))
        assert isinstance(listed.answer, wire.ListPage)
        assert [entry.name for entry in listed.answer.entries] == [b"ball"]

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


def test_holder_that_releases_nothing_is_at_work_and_keeps_its_lease(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, file = await space(parts)
        holder, waiter = await mount(parts), await mount(parts)
        await holder.acquire(file)
        acquire = await started(waiter.acquire(file))
        for _ in range(4):
            parts.clock.advance(9)
            await parts.handlers.release(
                wire.ReleaseLeases(holder.grant.session, holder.grant.epoch, (), 0, 0)
            )
            await parts.gate.tick(9)
        assert not acquire.done()
        await holder.obey()
        assert (await acquire).keys == (bucket,)

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


def test_session_without_leases_is_granted_none_and_cannot_ask(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, file = await space(parts)
        plain = Mount(parts, await parts.open_session())
        assert plain.grant.lease_ttl_s == 0
        assert (await plain.read(wire.GetNode(file))).grants.keys == ()
        await mount(parts)
        assert (await plain.read(wire.GetNode(file))).grants.keys == ()
        recall = wire.Recall((bucket,), 0, 2**62)
        for work in (plain.acquire(file), plain.events(), plain.release(recall)):
            assert await kind_of(work) is Kind.INVALID
        # What it says of its own leases is not believed.
        reader = await mount(parts)
        await reader.read(wire.GetNode(file))
        commit = await started(plain.commit(chmod(file, 0o600), is_covered=True))
        await reader.obey()
        await commit

    run_parts(tmp_path, scenario)


def test_what_is_open_when_a_lease_is_given_up_is_there_when_others_remove_it(
    tmp_path: Path,
) -> None:
    async def scenario(parts: Parts) -> None:
        client, bucket, file = await space(parts)
        reader, writer = await mount(parts), await mount(parts)
        await reader.read(wire.GetNode(file))
        acquiring = await started(writer.acquire(places=(wire.Place(bucket, b"file"),)))
        (recall,) = (await reader.events()).recalls
        await reader.release(recall, file, InodeNumber(2**40))
        await acquiring
        await writer.commit(wire.Unlink(bucket, b"file", 9), is_covered=True)
        assert (await client.node(file)).attributes.nlink == 0
        await reader.commit(wire.Release(file), is_covered=True)
        assert not await client.exists(file)

    run_parts(tmp_path, scenario)


def test_unreasonable_requests_are_invalid(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        one = await mount(parts)
        many = tuple(InodeNumber(number) for number in range(wire.LEASES_COUNT_MAX + 1))
        claim = wire.Claim(one.grant.session, one.grant.epoch, 1, many, (), True)
        for work in (
            one.release(wire.Recall(many, 0, 1)),
            one.release(wire.Recall((), 0, 1), *many),
            one.release(wire.Recall((), wire.LeaseMode.WRITE, 1)),
            one.acquire(*range(wire.ACQUIRE_COUNT_MAX + 1)),
            one.acquire(places=(wire.Place(ROOT_INODE, b".."),)),
            parts.handlers.claim(claim),
        ):
            assert await kind_of(work) is Kind.INVALID
        read = parts.handlers.reads()[0]
        answer = await read.handler(wire.Lookup(ROOT_INODE, b"x"), b"no session")
        assert isinstance(answer, LeasedAnswer)
        assert isinstance(answer.answer, MictlanError)
        assert answer.answer.kind is Kind.INVALID

    run_parts(tmp_path, scenario)


def test_session_that_closes_leaves_its_leases_to_who_waits(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, file = await space(parts)
        holder, waiter = await mount(parts), await mount(parts)
        await holder.acquire(file)
        poll, own = await started(waiter.events()), await started(waiter.acquire(file))
        await parts.handlers.close_session(
            wire.SessionRef(holder.grant.session, holder.grant.epoch)
        )
        assert (await own).keys == (bucket,)
        await parts.handlers.close_session(
            wire.SessionRef(waiter.grant.session, waiter.grant.epoch)
        )
        assert await kind_of(poll) is Kind.FENCED

    run_parts(tmp_path, scenario)


def test_what_a_fenced_session_waits_for_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(parts: Parts) -> None:
        _, _, file = await space(parts)
        holder, waiter = await mount(parts), await mount(parts)
        await holder.acquire(file)
        await waiter.read(wire.GetNode(ROOT_INODE))
        acquire = await started(waiter.acquire(file))
        await parts.gate.end(waiter.grant.session)
        assert await kind_of(acquire) is Kind.FENCED
        # It may trust what it holds: the database keeps it until it cannot.
        assert len(await parts.store.sessions()) == 3
        change = await started(holder.commit(chmod(ROOT_INODE, 0o700)))
        parts.clock.advance(11)
        await parts.gate.tick(11)
        await change
        assert len(await parts.store.sessions()) == 2

    run_parts(tmp_path, scenario)
    caplog.clear()


def test_router_that_stops_lets_nobody_wait(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, _, file = await space(parts)
        holder, waiter = await mount(parts), await mount(parts)
        await holder.acquire(file)
        poll, acquire = await started(waiter.events()), await started(waiter.acquire(file))
        parts.gate.stop()
        assert (await poll).recalls == ()
        assert await kind_of(acquire) is Kind.UNAVAILABLE

    run_parts(tmp_path, scenario)


def noted(parts: Parts) -> float | None:
    return parts.store.lease_time_s


def test_lease_time_is_noted_before_it_is_told_and_for_as_long_as_it_is_trusted(
    tmp_path: Path,
) -> None:
    async def begin(parts: Parts) -> None:
        assert noted(parts) is None
        assert await agree_on_lease_time(parts.store, parts.sessions, 10, 30) == 0
        assert noted(parts) == 10
        await mount(parts)

    async def longer(parts: Parts) -> None:
        assert await agree_on_lease_time(parts.store, parts.sessions, 20, 30) == 10
        assert noted(parts) == 20

    async def shorter(parts: Parts) -> None:
        earlier_s = await agree_on_lease_time(parts.store, parts.sessions, 2, 30)
        assert (earlier_s, noted(parts)) == (20, 20)
        gate = LeaseGate(parts.store, parts.sessions, parts.clock, 2, earlier_s)
        for _ in range(21):
            parts.clock.advance(1)
            await gate.tick(1)
            assert noted(parts) == 20
        parts.clock.advance(1)
        await gate.tick(1)
        assert noted(parts) == 2

    async def afterwards(parts: Parts) -> None:
        assert await agree_on_lease_time(parts.store, parts.sessions, 2, 30) == 2

    for scenario in (begin, longer, shorter, afterwards):
        run_parts(tmp_path, scenario)


def test_lease_time_that_cannot_be_noted_is_told_once_and_noted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(_seconds: float) -> None:
        raise MictlanError(Kind.NO_SPACE, "commit")

    async def scenario(parts: Parts) -> None:
        await mount(parts)
        await agree_on_lease_time(parts.store, parts.sessions, 20, 30)
        earlier_s = await agree_on_lease_time(parts.store, parts.sessions, 2, 30)
        before = noted(parts)
        gate = LeaseGate(parts.store, parts.sessions, parts.clock, 2, earlier_s)
        with monkeypatch.context() as full:
            full.setattr(parts.store, "note_lease_time", refuse)
            for _ in range(40):
                parts.clock.advance(1)
                await gate.tick(1)
        assert noted(parts) == before != 2
        assert [r.levelname for r in caplog.records if "earlier lease time" in r.message] == [
            "WARNING"
        ]
        parts.clock.advance(1)
        await gate.tick(1)
        assert noted(parts) == 2

    run_parts(tmp_path, scenario)


def test_sessions_of_before_lease_times_were_noted_may_trust_the_longest_there_is(
    tmp_path: Path,
) -> None:
    async def scenario(parts: Parts) -> None:
        await mount(parts)
        assert await agree_on_lease_time(parts.store, parts.sessions, 10, 30) == 30
        assert parts.store.lease_time_s == 30

    run_parts(tmp_path, scenario)


def test_router_started_again_waits_for_the_claims_of_its_sessions(tmp_path: Path) -> None:
    async def before(parts: Parts) -> tuple[wire.SessionGrant, InodeNumber, InodeNumber]:
        _, bucket, file = await space(parts)
        holder = await mount(parts)
        await holder.acquire(file)
        return holder.grant, bucket, file

    grant, bucket, file = run_parts(tmp_path, before)

    async def after(parts: Parts) -> None:
        holder, reader = Mount(parts, grant), await mount(parts)
        read = await started(reader.read(wire.GetNode(file)))
        events = await holder.events()
        assert events.recalls == ()
        assert events.incarnation != grant.incarnation
        await parts.handlers.claim(
            wire.Claim(grant.session, grant.epoch, events.incarnation, (), (bucket,), True)
        )
        holder.grant = msgspec.structs.replace(grant, incarnation=events.incarnation)
        parts.clock.advance(1)
        await holder.obey()
        assert (await read).grants.keys == (bucket,)

    run_parts(tmp_path, after, FakeClock(now_s=200.0))
