import io
import os
from pathlib import Path

import pytest
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.client.making import CHUNK, Events, content, pattern


def make_local_tree(top: Path) -> None:
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "one").write_bytes(b"1")
    (top / "sub" / "two").write_bytes(pattern(3 * CHUNK))
    (top / "sub" / "deep" / "three").write_bytes(b"")
    (top / "sub" / "link").symlink_to("../one")
    os.utime(top / "one", ns=(7, 7_000_000_000))
    (top / "one").chmod(0o640)


async def test_a_tree_goes_in_and_comes_out_the_same(space: FakeSpace, tmp_path: Path) -> None:
    make_local_tree(tmp_path / "in")
    events = Events()
    async with space.client() as client:
        await client.put_tree(tmp_path / "in", "b", "t", events.callbacks, keep_times=True)
        assert sorted(events.files) == [
            "b/t/one",
            "b/t/sub/deep/three",
            "b/t/sub/link",
            "b/t/sub/two",
        ]
        await client.get_tree("b", "t", tmp_path / "out", events.callbacks)
    assert not events.errors
    assert events.size == 2 * (1 + 3 * CHUNK)
    for folder in ("", "sub", "sub/deep", "empty"):
        assert sorted(os.listdir(tmp_path / "out" / folder)) == sorted(
            os.listdir(tmp_path / "in" / folder)
        )
    assert (tmp_path / "out/sub/two").read_bytes() == pattern(3 * CHUNK)
    assert os.readlink(tmp_path / "out/sub/link") == "../one"
    found = (tmp_path / "out/one").stat()
    assert (found.st_mtime_ns, found.st_mode & 0o777) == (7_000_000_000, 0o640)


async def test_a_tree_put_again_merges_and_replaces(space: FakeSpace, tmp_path: Path) -> None:
    make_local_tree(tmp_path)
    async with space.client() as client:
        await client.put(io.BytesIO(b"other"), "b", "t/sub/other")
        await client.put_tree(tmp_path, "b", "t", Events().callbacks)
        (tmp_path / "one").write_bytes(b"changed")
        await client.put_tree(tmp_path, "b", "t", Events().callbacks)
        assert await content(client, "t/one") == b"changed"
        assert await content(client, "t/sub/other") == b"other"
        assert (await client.stat("b/t/sub/link")).target == b"../one"


async def test_one_bad_file_does_not_keep_the_others_from_being_put(
    space: FakeSpace, tmp_path: Path
) -> None:
    make_local_tree(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    space.router.make(FileKind.DIRECTORY, b"b", b"one")
    events = Events()
    async with space.client() as client:
        await client.put_tree(tmp_path, "b", "", events.callbacks)
    kinds = {os.path.basename(path): error.kind for path, error in events.errors}
    assert kinds == {"pipe": Kind.UNSUPPORTED, "one": Kind.IS_DIRECTORY}
    assert space.router.tree(b"b") == [
        b"empty",
        b"one",
        b"sub",
        b"sub/deep",
        b"sub/deep/three",
        b"sub/link",
        b"sub/two",
    ]


async def test_a_tree_put_ends_when_the_space_is_full(space: FakeSpace, tmp_path: Path) -> None:
    make_local_tree(tmp_path)
    for peer in space.peers:
        peer.is_full = True
    events = Events()
    async with space.client() as client:
        with pytest.raises(MictlanError) as caught:
            await client.put_tree(tmp_path, "b", "t", events.callbacks)
    assert caught.value.kind is Kind.NO_SPACE
    assert not events.errors


async def test_names_that_lead_elsewhere_are_refused_when_a_tree_is_got(
    space: FakeSpace, tmp_path: Path
) -> None:
    bucket = space.router.find(b"b")
    inode = space.router.make(FileKind.FILE, b"b", b"f")
    bucket.entries[b"../escaped"] = inode.attributes.ino
    async with space.client() as client:
        with pytest.raises(MictlanError) as caught:
            await client.get_tree("b", "", tmp_path / "out", Events().callbacks)
    assert caught.value.kind is Kind.INVALID
    assert not (tmp_path / "escaped").exists()


async def test_a_directory_got_does_not_follow_a_local_symlink(
    space: FakeSpace, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d").symlink_to(tmp_path / "elsewhere")
    events = Events()
    async with space.client() as client:
        await client.put(io.BytesIO(b"x"), "b", "d/f")
        await client.get_tree("b", "", tmp_path / "out", events.callbacks)
    assert [error.kind for _, error in events.errors] == [Kind.EXISTS]
    assert not os.listdir(tmp_path / "elsewhere")


async def test_files_of_a_tree_share_their_commits(
    space: FakeSpace, tmp_path: Path, autojump_clock: MockClock
) -> None:
    space.net.latency_s = 0.01
    for n in range(100):
        (tmp_path / f"f{n}").write_bytes(b"%d" % n)
    async with space.client() as client:
        await client.put_tree(tmp_path, "b", "", Events().callbacks)
    assert len(space.router.tree(b"b")) == 100
    assert len(space.router.commits) < 20
    # Whoever is told that a file is there can rely on it.
    renames = [batch for batch in space.router.commits if has_rename(batch)]
    assert all(batch.sync for batch in renames)


def has_rename(batch: wire.Commit) -> bool:
    return any(isinstance(op, wire.Rename) for op in batch.ops)


async def test_a_file_of_a_tree_whose_content_is_refused_never_appears(
    space: FakeSpace, tmp_path: Path
) -> None:
    (tmp_path / "good").write_bytes(b"good")
    (tmp_path / "bad").write_bytes(b"evil")

    def refuse(op: wire.Operation) -> None:
        if isinstance(op, wire.WriteExtents) and op.chunks[0].digest == digest_of([b"evil"]):
            raise MictlanError(Kind.INVALID, "write")

    space.router.before_apply = refuse
    events = Events()
    async with space.client() as client:
        await client.put(io.BytesIO(b"old"), "b", "bad")
        await client.put_tree(tmp_path, "b", "", events.callbacks)
        assert await content(client, "bad") == b"old"
        assert await content(client, "good") == b"good"
    assert [error.kind for _, error in events.errors] == [Kind.INVALID]
    assert space.router.tree(b"b") == [b"bad", b"good"]


async def test_a_large_file_of_a_tree_commits_on_the_way(
    space: FakeSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mictlanfs.client.upload.EXTENTS_PER_COMMIT_MAX", 2)
    (tmp_path / "large").write_bytes(pattern(7 * CHUNK))
    async with space.client() as client:
        await client.put_tree(tmp_path, "b", "", Events().callbacks)
        assert await content(client, "large") == pattern(7 * CHUNK)
    assert space.router.tree(b"b") == [b"large"]
