import asyncio
import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mictlanfs.durable import write_all
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB
from mictlanfs_server.peer.backends import file as file_module
from mictlanfs_server.peer.backends.base import Staged, StoredChunk
from mictlanfs_server.peer.backends.file import FileBackend
from tests.unit.server.peer.making import files_below, make_chunk, on_asyncio, pieces_of


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[FileBackend]:
    with closing(FileBackend(tmp_path)) as opened:
        yield opened


async def store(backend: FileBackend, chunk: StoredChunk, body: bytes) -> None:
    await (await backend.stage(chunk, pieces_of(body))).publish()


def failing(number: int) -> Any:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@on_asyncio
async def test_a_file_name_says_all_that_the_index_says(
    backend: FileBackend, tmp_path: Path
) -> None:
    chunk, body = make_chunk(70_000)
    await store(backend, chunk, body)
    name = f"{chunk.id.hex()}.{70_000:x}.{chunk.digest.hex()}"
    path = tmp_path / "chunks" / chunk.id.hex()[-2:] / name
    assert path.read_bytes() == body


@on_asyncio
async def test_what_an_interrupted_process_left_is_swept_at_start(tmp_path: Path) -> None:
    with closing(FileBackend(tmp_path)) as backend:
        await store(backend, *make_chunk(70_000))
    (tmp_path / "temporary" / "3").write_bytes(b"half a chunk")
    with closing(FileBackend(tmp_path)) as backend:
        assert os.listdir(tmp_path / "temporary") == []
        assert len(list(backend.chunks())) == 1


@pytest.mark.parametrize(
    "name", ["x", "ab.1.cd", "a" * 32 + ".1." + "g" * 64, "A" * 32 + ".1." + "b" * 64]
)
def test_files_with_other_names_are_passed_over(
    backend: FileBackend, tmp_path: Path, name: str
) -> None:
    (tmp_path / "chunks" / "00" / name).write_bytes(b"x")
    assert list(backend.chunks()) == []


@on_asyncio
async def test_bytes_are_durable_before_the_name_and_the_name_before_the_answer(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps: list[str] = []
    fdatasync, rename, fsync = os.fdatasync, Path.rename, os.fsync

    def note_data(fd: int) -> None:
        steps.append(f"data in {Path(os.readlink(f'/proc/self/fd/{fd}')).parent.name}")
        fdatasync(fd)

    def note_rename(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    def note_folder(fd: int) -> None:
        steps.append(f"folder {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    monkeypatch.setattr(os, "fdatasync", note_data)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(os, "fsync", note_folder)
    chunk, body = make_chunk(70_000)
    await store(backend, chunk, body)
    assert steps == ["data in temporary", "rename", f"folder {chunk.id.hex()[-2:]}"]


@on_asyncio
async def test_without_fsync_no_sync_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    monkeypatch.setattr(os, "fdatasync", failing(errno.EIO))
    with closing(FileBackend(tmp_path, fsync=False)) as backend:
        chunk, body = make_chunk(70_000)
        await store(backend, chunk, body)
        assert await backend.read(chunk, 0, 70_000) == body


@pytest.mark.parametrize("call", ["writev", "fdatasync"])
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, Kind.NO_SPACE),
        (errno.EDQUOT, Kind.NO_SPACE),
        (errno.EIO, Kind.INTERNAL),
    ],
)
@on_asyncio
async def test_a_disk_that_fails_during_the_upload_leaves_nothing(
    backend: FileBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    kind: Kind,
) -> None:
    monkeypatch.setattr(os, call, failing(number))
    chunk, body = make_chunk(70_000)
    with pytest.raises(MictlanError) as caught:
        await backend.stage(chunk, pieces_of(body))
    assert caught.value.kind is kind
    assert files_below(tmp_path) == []


@on_asyncio
async def test_a_name_that_cannot_be_given_leaves_the_chunk_staged(
    backend: FileBackend, tmp_path: Path
) -> None:
    chunk, body = make_chunk(70_000)
    folder = tmp_path / "chunks" / chunk.id.hex()[-2:]
    folder.rmdir()
    staged = await backend.stage(chunk, pieces_of(body))
    with pytest.raises(MictlanError) as caught:
        await staged.publish()
    assert caught.value.kind is Kind.INTERNAL
    folder.mkdir()
    await staged.publish()
    assert await backend.read(chunk, 0, 70_000) == body


@pytest.mark.parametrize("length", [70_000, 4 * MIB])
@on_asyncio
async def test_a_file_that_was_cut_short_is_corrupt(
    backend: FileBackend, tmp_path: Path, length: int
) -> None:
    chunk, body = make_chunk(length)
    await store(backend, chunk, body)
    [path] = files_below(tmp_path)
    os.truncate(path, length - 1)
    with pytest.raises(MictlanError) as caught:
        await backend.read(chunk, 0, length)
    assert caught.value.kind is Kind.CORRUPT
    assert await backend.read(chunk, 0, length - 1) == body[:-1]


@on_asyncio
async def test_a_short_read_does_not_wait_for_a_thread_when_the_bytes_are_cached(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk, body = make_chunk(70_000)
    await store(backend, chunk, body)
    monkeypatch.setattr(file_module, "_in_thread", failing(errno.EIO))
    assert await backend.read(chunk, 10, 4106) == body[10:4106]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EOPNOTSUPP])
@on_asyncio
async def test_a_short_read_that_would_wait_for_the_disk_goes_to_a_thread(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    chunk, body = make_chunk(70_000)
    await store(backend, chunk, body)
    monkeypatch.setattr(os, "preadv", failing(number))
    assert await backend.read(chunk, 10, 4106) == body[10:4106]


@on_asyncio
async def test_a_read_that_is_cached_in_part_is_whole(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk, body = make_chunk(70_000)
    await store(backend, chunk, body)
    preadv = os.preadv

    def half(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        return preadv(fd, [memoryview(buffers[0])[: len(buffers[0]) // 2]], offset, flags)

    monkeypatch.setattr(os, "preadv", half)
    assert await backend.read(chunk, 10, 4106) == body[10:4106]


@on_asyncio
async def test_a_write_that_runs_during_a_cancellation_leaves_nothing(
    backend: FileBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()
    write = write_all

    def slow(fd: int, pieces: list[Any]) -> None:
        started.set()
        assert go_on.wait(10)
        write(fd, pieces)

    monkeypatch.setattr(file_module, "write_all", slow)
    chunk, body = make_chunk(2 * MIB)
    upload = asyncio.create_task(backend.stage(chunk, pieces_of(body)))
    await asyncio.to_thread(started.wait, 10)
    upload.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([upload])
    assert upload.cancelled()
    assert files_below(tmp_path) == []


@on_asyncio
async def test_no_descriptor_is_left_open(backend: FileBackend, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        chunk, body = make_chunk(70_000, number)
        await store(backend, chunk, body)
        await backend.read(chunk, 0, 10)
        await backend.read(chunk, 0, 70_000)
        await (await backend.stage(chunk, pieces_of(body))).discard()
        with pytest.raises(MictlanError):
            await backend.stage(chunk, pieces_of(body[1:]))
    assert len(os.listdir("/proc/self/fd")) == before


# --- files that others write ---


async def stage_file(backend: FileBackend, chunk: StoredChunk, body: bytes) -> Staged:
    async def give(descriptor: int) -> None:
        os.write(descriptor, body)

    return await backend.stage_file(chunk, give)


@on_asyncio
async def test_a_file_that_another_wrote_is_a_chunk_like_any_other(
    backend: FileBackend, tmp_path: Path
) -> None:
    chunk, body = make_chunk(700_001)
    staged = await stage_file(backend, chunk, body)
    assert list(backend.chunks()) == []
    assert staged.sums == (await backend.stage(chunk, pieces_of(body))).sums
    await staged.publish()
    assert await backend.read(chunk, 0, chunk.length) == body
    assert list(backend.chunks()) == [chunk]


@pytest.mark.parametrize("change", [b"", b"x", -1])
@on_asyncio
async def test_other_bytes_in_such_a_file_are_found(
    backend: FileBackend, tmp_path: Path, change: bytes | int
) -> None:
    chunk, body = make_chunk(300_000)
    wrong = body[:change] if isinstance(change, int) else change + body[1 - len(change) :]
    with pytest.raises(MictlanError) as caught:
        await stage_file(backend, chunk, wrong + (b"longer" if not change else b""))
    assert caught.value.kind is Kind.CORRUPT
    assert files_below(tmp_path) == []


@on_asyncio
async def test_a_file_that_somebody_can_still_write_to_is_refused(
    backend: FileBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "_LEASE_ATTEMPTS", 2)
    chunk, body = make_chunk(300_000)
    kept: list[int] = []

    async def give(descriptor: int) -> None:
        kept.append(os.dup(descriptor))
        os.write(descriptor, body)

    with pytest.raises(MictlanError) as caught:
        await backend.stage_file(chunk, give)
    assert caught.value.kind is Kind.UNSUPPORTED
    assert files_below(tmp_path) == []
    os.close(kept[0])


@on_asyncio
async def test_a_writer_that_lets_go_a_little_later_is_waited_for(backend: FileBackend) -> None:
    chunk, body = make_chunk(300_000)

    async def give(descriptor: int) -> None:
        copy = os.dup(descriptor)
        os.write(descriptor, body)
        asyncio.get_running_loop().call_later(0.01, os.close, copy)

    await (await backend.stage_file(chunk, give)).publish()
    assert await backend.read(chunk, 0, chunk.length) == body


@on_asyncio
async def test_a_file_system_without_leases_is_no_place_for_others_to_write(
    backend: FileBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "fcntl", failing(errno.EINVAL))
    chunk, body = make_chunk(300_000)
    with pytest.raises(MictlanError) as caught:
        await stage_file(backend, chunk, body)
    assert caught.value.kind is Kind.UNSUPPORTED
    assert files_below(tmp_path) == []


@on_asyncio
async def test_a_writer_that_fails_or_is_cancelled_leaves_nothing(
    backend: FileBackend, tmp_path: Path
) -> None:
    chunk, _ = make_chunk(300_000)
    before = len(os.listdir("/proc/self/fd"))
    for error in (ConnectionResetError(), asyncio.CancelledError()):

        async def give(descriptor: int, error: BaseException = error) -> None:
            os.write(descriptor, b"a part")
            raise error

        with pytest.raises(type(error)):
            await backend.stage_file(chunk, give)
        assert files_below(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before
