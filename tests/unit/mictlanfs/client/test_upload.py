import io
import os
from pathlib import Path

import pytest
import trio

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB, BucketPolicy, FileKind
from tests.support.fakespace import CALLER, FakeSpace
from tests.unit.mictlanfs.client.making import CHUNK, content, pattern, write_sparse


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17])
async def test_what_was_put_is_got(space: FakeSpace, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(pattern(size))
    async with space.client() as client:
        attributes = await client.put(source, "b", "f")
        assert attributes.size == size
        await client.get("b", "f", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == pattern(size)


async def test_put_makes_directories_and_leaves_nothing_else(space: FakeSpace) -> None:
    async with space.client() as client:
        await client.put(io.BytesIO(b"x"), "b", "a/b/c")
    assert space.router.tree(b"b") == [b"a", b"a/b", b"a/b/c"]
    directory = space.router.find(b"b", b"a").attributes
    assert (directory.mode, directory.uid, directory.gid) == (0o755, CALLER.uid, CALLER.gid)


async def test_a_small_put_is_one_batch_that_is_durable_when_it_returns(space: FakeSpace) -> None:
    async with space.client() as client:
        await client.put(io.BytesIO(pattern(3 * CHUNK)), "b", "new/f")
    (batch,) = space.router.commits
    assert [type(op).__name__ for op in batch.ops] == [
        "MakeNode",
        "MakeNode",
        "WriteExtents",
        "SetAttributes",
        "Rename",
    ]
    assert batch.sync
    assert batch.stop_on_error


async def test_the_router_is_told_what_the_umask_took_in_case_a_default_list_gives_it_back(
    space: FakeSpace, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    source.chmod(0o666)
    async with space.client() as client:
        await client.put(source, "b", "new/f")
    (batch,) = space.router.commits
    makes = [op for op in batch.ops if isinstance(op, wire.MakeNode)]
    assert [(op.mode, op.masked) for op in makes] == [(0o755, 0o022), (0o644, 0o022)]


async def test_put_keeps_the_mode_less_the_umask_and_the_time_on_request(
    space: FakeSpace, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    source.chmod(0o666)
    os.utime(source, ns=(5, 123_456_789))
    async with space.client() as client:
        await client.put(source, "b", "kept", keep_times=True)
        await client.put(source, "b", "now")
        stream = await client.put(io.BytesIO(b"x"), "b", "stream")
    kept = space.router.find(b"b", b"kept").attributes
    assert (kept.mode, kept.mtime_ns, kept.uid) == (0o644, 123_456_789, CALLER.uid)
    assert space.router.find(b"b", b"now").attributes.mtime_ns != 123_456_789
    assert stream.mode == 0o644


async def test_put_replaces_an_object_whole(space: FakeSpace) -> None:
    async with space.client() as client:
        await client.put(io.BytesIO(pattern(3 * CHUNK)), "b", "f")
        await client.put(io.BytesIO(b"short"), "b", "f")
        assert await content(client, "f") == b"short"
    assert space.router.tree(b"b") == [b"f"]


async def test_readers_see_the_old_object_until_the_new_one_is_complete(space: FakeSpace) -> None:
    async with space.client() as client:
        await client.put(io.BytesIO(b"old"), "b", "f")
        gate = space.net.hold(wire.Path.COMMIT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.put, io.BytesIO(pattern(4 * CHUNK)), "b", "f")
            await trio.testing.wait_all_tasks_blocked()
            assert await content(client, "f") == b"old"
            gate.set()
        assert await content(client, "f") == pattern(4 * CHUNK)


async def test_a_put_that_takes_long_commits_on_the_way_and_still_appears_whole(
    space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mictlanfs.client.upload.EXTENTS_PER_COMMIT_MAX", 2)
    seen: list[list[bytes]] = []
    space.router.before_apply = lambda op: seen.append(space.router.tree(b"b"))
    async with space.client() as client:
        await client.put(io.BytesIO(pattern(5 * CHUNK)), "b", "f")
        assert await content(client, "f") == pattern(5 * CHUNK)
    assert len(space.router.commits) == 3
    assert all(b"f" not in names for names in seen)
    assert space.router.tree(b"b") == [b"f"]


async def test_chunks_that_wait_long_are_committed(
    space: FakeSpace, autojump_clock: trio.testing.MockClock
) -> None:
    space.net.latency_s = 15.0
    async with space.client(deadline_s=600.0) as client:
        # One chunk at a time would take 33 chunks to fill the pipeline.
        await client.put(io.BytesIO(pattern(40 * CHUNK)), "b", "f")
    assert len(space.router.commits) > 1
    assert space.router.tree(b"b") == [b"f"]


async def test_a_failed_put_leaves_the_old_object_and_nothing_else(
    space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mictlanfs.client.upload.EXTENTS_PER_COMMIT_MAX", 1)

    def refuse_renames(op: wire.Operation) -> None:
        if isinstance(op, wire.Rename):
            raise MictlanError(Kind.NO_SPACE, "rename")

    async with space.client() as client:
        await client.put(io.BytesIO(b"old"), "b", "f")
        space.router.before_apply = refuse_renames
        with pytest.raises(MictlanError) as caught:
            await client.put(io.BytesIO(pattern(3 * CHUNK)), "b", "f")
        assert await content(client, "f") == b"old"
    assert caught.value.kind is Kind.NO_SPACE
    assert space.router.tree(b"b") == [b"f"]


async def test_a_put_whose_peers_are_full_says_so_and_leaves_nothing(
    space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mictlanfs.client.upload.EXTENTS_PER_COMMIT_MAX", 1)

    def fill(op: wire.Operation) -> None:
        if isinstance(op, wire.WriteExtents):
            for peer in space.peers:
                peer.is_full = True

    space.router.before_apply = fill
    async with space.client() as client:
        with pytest.raises(MictlanError) as caught:
            await client.put(io.BytesIO(pattern(200 * CHUNK)), "b", "f")
    assert caught.value.kind is Kind.NO_SPACE
    assert space.router.tree(b"b") == []


async def test_a_cancelled_put_leaves_nothing(
    space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mictlanfs.client.upload.EXTENTS_PER_COMMIT_MAX", 1)
    async with space.client() as client:
        with trio.CancelScope() as scope:

            def cancel(op: wire.Operation) -> None:
                if isinstance(op, wire.WriteExtents):
                    scope.cancel()

            space.router.before_apply = cancel
            await client.put(io.BytesIO(pattern(10 * CHUNK)), "b", "f")
        assert scope.cancelled_caught
    assert space.router.tree(b"b") == []


async def test_two_puts_that_need_the_same_new_directory_both_succeed(space: FakeSpace) -> None:
    async with space.client() as client, trio.open_nursery() as nursery:
        for name in ("new/x/1", "new/x/2", "new/y/3"):
            nursery.start_soon(client.put, io.BytesIO(name.encode()), "b", name)
    names = [b"new", b"new/x", b"new/x/1", b"new/x/2", b"new/y", b"new/y/3"]
    assert space.router.tree(b"b") == names


@pytest.mark.parametrize(
    ("bucket", "path", "kind"),
    [
        ("missing", "f", Kind.NOT_FOUND),
        ("b", "", Kind.IS_DIRECTORY),
        ("b", "d", Kind.IS_DIRECTORY),
        ("b", "f/below", Kind.NOT_DIRECTORY),
        ("b", "../f", Kind.INVALID),
        ("b/d", "f", Kind.INVALID),
        ("", "f", Kind.INVALID),
        ("b", "n" * 256, Kind.NAME_TOO_LONG),
    ],
)
async def test_put_refuses_impossible_targets_before_it_stores_anything(
    space: FakeSpace, bucket: str, path: str, kind: Kind
) -> None:
    space.router.make(FileKind.DIRECTORY, b"b", b"d")
    space.router.make(FileKind.FILE, b"b", b"f")
    async with space.client() as client:
        with pytest.raises(MictlanError) as caught:
            await client.put(io.BytesIO(b"x"), bucket, path)
    assert caught.value.kind is kind
    assert not any(peer.chunks for peer in space.peers)
    assert not space.router.commits


@pytest.mark.parametrize(("name", "kind"), [("none", Kind.NOT_FOUND), (".", Kind.IS_DIRECTORY)])
async def test_put_of_what_is_no_file_fails_without_a_request(
    space: FakeSpace, tmp_path: Path, name: str, kind: Kind
) -> None:
    async with space.client() as client:
        with pytest.raises(MictlanError) as caught:
            await client.put(tmp_path / name, "b", "f")
    assert caught.value.kind is kind
    assert not space.net.requests


async def test_put_reports_progress_up_to_the_size(space: FakeSpace, tmp_path: Path) -> None:
    counts: list[int] = []
    async with space.client() as client:
        await client.put(io.BytesIO(pattern(3 * CHUNK + 5)), "b", "f", progress=counts.append)
        assert sum(counts) == 3 * CHUNK + 5
        counts.clear()
        await client.get("b", "f", tmp_path / "copy", progress=counts.append)
        assert sum(counts) == 3 * CHUNK + 5


async def test_holes_stay_holes_both_ways(space: FakeSpace, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    write_sparse(source, [(0, b"start"), (8 * MIB, b"middle")], 16 * MIB)
    async with space.client() as client:
        attributes = await client.put(source, "b", "sparse")
        await client.get("b", "sparse", copy)
        assert await content(client, "sparse") == source.read_bytes()
    assert attributes.size == 16 * MIB
    assert space.router.find(b"b", b"sparse").attributes.allocated <= 4 * CHUNK
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks * 512 <= 4 * CHUNK


async def test_a_file_that_is_one_hole_keeps_its_size(space: FakeSpace, tmp_path: Path) -> None:
    write_sparse(tmp_path / "source", [], 3 * MIB)
    async with space.client() as client:
        await client.put(tmp_path / "source", "b", "hole")
        await client.get("b", "hole", tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == 3 * MIB
    assert not any(peer.chunks for peer in space.peers)


async def test_what_cannot_fit_into_the_quota_is_refused_before_anything_is_stored(
    space: FakeSpace, tmp_path: Path
) -> None:
    space.router.find(b"b").policy = BucketPolicy(chunk_size=CHUNK, quota=10 * CHUNK)
    space.router.used = 8 * CHUNK
    (tmp_path / "large").write_bytes(pattern(3 * CHUNK))
    async with space.client() as client:
        with pytest.raises(MictlanError, match="too much for the bucket") as caught:
            await client.put(tmp_path / "large", "b", "d/f")
        (tmp_path / "large").write_bytes(pattern(2 * CHUNK))
        await client.put(tmp_path / "large", "b", "f")
    assert caught.value.kind is Kind.QUOTA_EXCEEDED
    assert space.router.tree(b"b") == [b"f"]


async def test_a_stream_that_the_quota_ends_leaves_nothing(space: FakeSpace) -> None:
    def refuse_writes(op: wire.Operation) -> None:
        if isinstance(op, wire.WriteExtents):
            raise MictlanError(Kind.QUOTA_EXCEEDED, "write")

    space.router.before_apply = refuse_writes
    async with space.client() as client:
        with pytest.raises(MictlanError) as caught:
            await client.put(io.BytesIO(pattern(3 * CHUNK)), "b", "d/e/f")
    assert caught.value.kind is Kind.QUOTA_EXCEEDED
    assert space.router.tree(b"b") == []
