"""Snapshots are of one moment for sessions with leases and without, and hold up no reader."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs.snapshotnumbers import snapshots_directory
from mictlanfs.wire import LeaseMode
from mictlanfs_server.metadata.base import CopyPlace, SnapshotTree
from tests.contract.metadata.forms import kind_of
from tests.unit.server.router.parts import Parts, run_parts
from tests.unit.server.router.test_gate import chmod, mount, space, started

CREATE = wire.CreateSnapshot((b"bucket",), b"monday")


def handler(parts: Parts, path: str) -> Callable[[object], Awaitable[object]]:
    (route,) = [route for route in parts.handlers.routes() if route.path == path]
    return route.handler


def create(parts: Parts, request: wire.CreateSnapshot = CREATE) -> Awaitable[object]:
    return handler(parts, wire.Path.SNAPSHOT_CREATE)(request)


def remove(parts: Parts, name: bytes = b"monday") -> Awaitable[object]:
    return handler(parts, wire.Path.SNAPSHOT_REMOVE)(wire.RemoveSnapshot(b"bucket", name))


async def mode_of(parts: Parts, *path: bytes) -> int:
    nodes = (await parts.store.resolve(wire.Resolve(path))).nodes
    assert len(nodes) == len(path) + 1
    return nodes[-1].attributes.mode


class Pause:
    """Holds up copying, between two slices."""

    def __init__(self, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_reached = asyncio.Event()
        self.goes_on = asyncio.Event()
        copy = parts.store.copy_names

        async def copy_names(
            number: int, tree: SnapshotTree, place: CopyPlace, count_max: int
        ) -> CopyPlace | None:
            self.is_reached.set()
            await self.goes_on.wait()
            return await copy(number, tree, place, count_max)

        monkeypatch.setattr(parts.store, "copy_names", copy_names)


def test_what_was_changed_under_a_lease_is_in_it(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, file = await space(parts)
        one = await mount(parts)
        await one.acquire(bucket)
        parts.clock.advance(1)
        taken = await started(create(parts))
        # The holder stores what it changed, and keeps the lease for reading.
        (recall,) = (await one.events()).recalls
        assert (recall.keys, recall.keep) == ((bucket,), LeaseMode.READ)
        await one.commit(chmod(file, 0o600), is_covered=True)
        await one.release(recall)
        info = await taken
        assert isinstance(info, wire.SnapshotInfo)
        assert (info.name, info.names, info.path) == (b"monday", 2, b"bucket")
        assert await mode_of(parts, b"bucket", b".snapshots", b"monday", b"file") == 0o600
        assert parts.gate.table.mode(one.grant.session, bucket) == LeaseMode.READ

    run_parts(tmp_path, scenario)


@pytest.mark.parametrize("leases", [True, False])
def test_tree_stands_still_while_it_is_copied_and_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leases: bool
) -> None:
    async def scenario(parts: Parts) -> None:
        client, bucket, file = await space(parts)
        other = await client.make(InodeNumber(1), b"other", FileKind.DIRECTORY)
        writer = await mount(parts, "writer") if leases else None
        pause = Pause(parts, monkeypatch)
        taken = asyncio.ensure_future(create(parts))
        await pause.is_reached.wait()
        grant = writer.grant if writer is not None else await parts.open_session()

        def commit(number: int, op: wire.Operation) -> Awaitable[object]:
            batch = wire.Commit(grant.session, grant.epoch, number, (op,), False)
            return parts.handlers.commit(batch)

        # Elsewhere everything goes on; here it can be read, under leases too.
        await commit(1, chmod(other, 0o700))
        if writer is not None:
            read = await writer.read(wire.Lookup(bucket, b"file"))
            assert set(read.grants.keys) == {bucket}
        changing = await started(commit(2, chmod(file, 0o600)))
        pause.goes_on.set()
        await taken
        await changing
        assert await mode_of(parts, b"bucket", b"file") == 0o600
        assert await mode_of(parts, b"bucket", b".snapshots", b"monday", b"file") == 0o644

    run_parts(tmp_path, scenario)


def test_directory_made_while_it_waited_is_in_it(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, _ = await space(parts)
        one = await mount(parts)
        await one.acquire(bucket)
        parts.clock.advance(1)
        taken = await started(create(parts))
        (recall,) = (await one.events()).recalls
        made = InodeNumber(one.grant.inodes.first)
        below = InodeNumber(one.grant.inodes.first + 1)
        await one.commit(
            wire.MakeNode(bucket, b"d", made, FileKind.DIRECTORY, 0o755, 0, 0, 1),
            wire.MakeNode(made, b"e", below, FileKind.FILE, 0o644, 0, 0, 1),
            is_covered=True,
        )
        parts.clock.advance(1)
        await one.release(recall)
        # It is leased with its parent, and recalled as soon as it is known.
        await one.obey()
        await taken
        assert await mode_of(parts, b"bucket", b".snapshots", b"monday", b"d", b"e") == 0o644

    run_parts(tmp_path, scenario)


def test_leases_on_a_snapshot_are_recalled_before_it_goes(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, _ = await space(parts)
        one = await mount(parts)
        top = snapshots_directory(bucket)
        listed = await one.read(wire.ListDirectory(top))
        assert listed.grants.keys == (top,)
        taken = await started(create(parts))
        await one.obey()
        await taken
        found = await one.read(wire.Lookup(top, b"monday"))
        assert top in found.grants.keys
        removed = await started(remove(parts))
        await one.obey()
        assert isinstance(await removed, wire.Done)
        gone = await one.read(wire.Lookup(top, b"monday"))
        assert getattr(gone.answer, "kind", None) is Kind.NOT_FOUND

    run_parts(tmp_path, scenario)


def test_cancelled_snapshot_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(parts: Parts) -> None:
        _, bucket, file = await space(parts)
        with monkeypatch.context() as patched:
            pause = Pause(parts, patched)
            taken = asyncio.ensure_future(create(parts))
            await pause.is_reached.wait()
            taken.cancel()
            await asyncio.wait([taken])
            assert taken.cancelled()
        one = await mount(parts)
        await one.commit(chmod(file, 0o600))
        await parts.collector.reclaim()
        assert (await parts.store.counts()).snapshots == 0
        await create(parts)
        assert (await parts.store.counts()).snapshots == 1
        assert await kind_of(create(parts)) is Kind.EXISTS
        assert bucket

    run_parts(tmp_path, scenario)


def test_impossible_snapshot_is_refused(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await space(parts)
        await create(parts)
        kept = (b"bucket", b".snapshots", b"monday")
        for path, name, kind in (
            ((), b"a", Kind.INVALID),
            ((b"none",), b"a", Kind.NOT_FOUND),
            ((b"bucket", b"none"), b"a", Kind.NOT_FOUND),
            ((b"bucket", b"file"), b"a", Kind.NOT_DIRECTORY),
            (kept, b"a", Kind.READ_ONLY),
            (kept[:2], b"a", Kind.READ_ONLY),
            ((b"bucket",), b"monday", Kind.EXISTS),
            ((b"bucket",), b"a/b", Kind.INVALID),
            ((b"bucket",), b"", Kind.INVALID),
        ):
            assert await kind_of(create(parts, wire.CreateSnapshot(path, name))) is kind, path
        assert await kind_of(remove(parts, b"none")) is Kind.NOT_FOUND

    run_parts(tmp_path, scenario)
