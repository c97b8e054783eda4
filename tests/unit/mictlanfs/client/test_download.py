import io
import os
from pathlib import Path

import pytest
import trio

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.client.making import CHUNK, content, pattern


async def test_get_keeps_mode_and_time_but_no_set_user_id(space: FakeSpace, tmp_path: Path) -> None:
    async with space.client() as client:
        await client.put(io.BytesIO(b"x"), "b", "f")
        space.router.find(b"b", b"f").change(mode=0o4751, mtime_ns=1_000_000_007)
        await client.get("b", "f", tmp_path / "copy")
    found = (tmp_path / "copy").stat()
    assert (found.st_mode & 0o7777, found.st_mtime_ns) == (0o751, 1_000_000_007)


async def test_a_failed_get_leaves_the_local_file_and_nothing_else(
    space: FakeSpace, tmp_path: Path
) -> None:
    destination = tmp_path / "copy"
    destination.write_bytes(b"precious")
    async with space.client() as client:
        await client.put(io.BytesIO(pattern(3 * CHUNK)), "b", "f")
        for peer in space.peers:
            for chunk_id in peer.chunks:
                peer.damage(chunk_id)
        with pytest.raises(MictlanError) as caught:
            await client.get("b", "f", destination)
    assert caught.value.kind is Kind.CORRUPT
    assert destination.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["copy"]


async def test_get_writes_through_a_local_symlink(space: FakeSpace, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real").write_bytes(b"old")
    async with space.client() as client:
        await client.put(io.BytesIO(b"new"), "b", "f")
        await client.get("b", "f", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


async def test_get_to_a_device_writes_into_it(space: FakeSpace) -> None:
    async with space.client() as client:
        await client.put(io.BytesIO(b"x"), "b", "f")
        await client.get("b", "f", Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("none", Kind.NOT_FOUND),
        ("d", Kind.IS_DIRECTORY),
        ("f/below", Kind.NOT_DIRECTORY),
        ("pipe", Kind.UNSUPPORTED),
        ("up", Kind.INVALID),
        ("absolute", Kind.INVALID),
        ("circle", Kind.INVALID),
        ("dangling", Kind.NOT_FOUND),
        ("to_d/f", Kind.NOT_DIRECTORY),
    ],
)
async def test_get_says_why_there_is_nothing_to_get(
    space: FakeSpace, tmp_path: Path, path: str, kind: Kind
) -> None:
    make = space.router.make
    make(FileKind.DIRECTORY, b"b", b"d")
    make(FileKind.FILE, b"b", b"d", b"f")
    make(FileKind.FILE, b"b", b"f")
    make(FileKind.FIFO, b"b", b"pipe")
    make(FileKind.SYMLINK, b"b", b"up", target=b"../other/f")
    make(FileKind.SYMLINK, b"b", b"absolute", target=b"/b/f")
    make(FileKind.SYMLINK, b"b", b"circle", target=b"circle")
    make(FileKind.SYMLINK, b"b", b"dangling", target=b"nothing")
    make(FileKind.SYMLINK, b"b", b"to_d", target=b"d")
    async with space.client() as client:
        with pytest.raises(MictlanError) as caught:
            await client.get("b", path, tmp_path / "copy")
    assert caught.value.kind is kind
    assert not os.listdir(tmp_path)


async def test_get_follows_symlinks_at_the_end_inside_the_bucket(space: FakeSpace) -> None:
    space.router.make(FileKind.DIRECTORY, b"b", b"d")
    space.router.make(FileKind.SYMLINK, b"b", b"d", b"one", target=b"./../two")
    space.router.make(FileKind.SYMLINK, b"b", b"two", target=b"d/f")
    async with space.client() as client:
        await client.put(io.BytesIO(b"here"), "b", "d/f")
        assert await content(client, "d/one") == b"here"


async def test_a_file_of_many_extents_is_got_page_by_page(
    space: FakeSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "EXTENTS_PAGE_MAX", 2)
    async with space.client() as client:
        await client.put(io.BytesIO(pattern(7 * CHUNK)), "b", "f")
        await client.get("b", "f", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == pattern(7 * CHUNK)
    assert len(space.net.paths(wire.Path.EXTENTS)) == 3


async def test_a_file_that_changes_meanwhile_is_got_again_from_the_start(
    space: FakeSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "EXTENTS_PAGE_MAX", 1)
    async with space.client() as client:
        await client.put(io.BytesIO(pattern(3 * CHUNK)), "b", "f")
        await client.put(io.BytesIO(b"new" * CHUNK), "b", "later")
        gate = space.net.hold(wire.Path.EXTENTS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.get, "b", "f", tmp_path / "copy")
            await trio.testing.wait_all_tasks_blocked()
            bucket = space.router.find(b"b")
            bucket.entries[b"f"] = bucket.entries.pop(b"later")
            space.router.find(b"b", b"f").change()
            for ino, inode in space.router.inodes.items():
                if ino != bucket.entries[b"f"]:
                    inode.change()
            gate.set()
    assert (tmp_path / "copy").read_bytes() == b"new" * CHUNK


async def test_a_stream_is_never_given_two_versions_of_a_file(
    space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "EXTENTS_PAGE_MAX", 1)
    async with space.client() as client:
        await client.put(io.BytesIO(pattern(3 * CHUNK)), "b", "f")
        gate = space.net.hold(wire.Path.EXTENTS)
        sink = io.BytesIO()
        kinds: list[Kind] = []

        async def get() -> None:
            with pytest.raises(MictlanError) as caught:
                await client.get("b", "f", sink)
            kinds.append(caught.value.kind)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            await trio.testing.wait_all_tasks_blocked()
            space.router.find(b"b", b"f").change()
            gate.set()
    assert kinds == [Kind.STALE]
    assert pattern(3 * CHUNK).startswith(sink.getvalue())
