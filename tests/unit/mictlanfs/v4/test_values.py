import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer
from mictlanfs.v4 import values
from mictlanfs.v4.values import MemoryValue, Value, open_file, open_pieces, sizes_of
from tests.support.v4space import sha256
from tests.unit.mictlanfs.v4.making import noise


@given(st.integers(0, 10_000), st.integers(1, 3_000))
def test_all_chunks_but_the_last_are_full(size: int, chunk_size: int) -> None:
    sizes = sizes_of(size, chunk_size)
    assert sum(sizes) == size
    assert len(sizes) == max(1, -(-size // chunk_size))
    assert set(sizes[:-1]) <= {chunk_size}
    assert sizes[-1] <= chunk_size


async def chunks_of(value: Value) -> list[bytes]:
    found = [(piece.index, bytes(piece.data)) async for piece in value.pieces()]
    assert [index for index, _ in found] == list(range(len(value.sizes)))
    assert [len(data) for _, data in found] == list(value.sizes)
    return [data for _, data in found]


async def check(value: Value, data: bytes) -> None:
    assert await value.checksum() == sha256(data)
    for _ in range(2):
        assert b"".join(await chunks_of(value)) == data
    value.close()


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 300_000])
async def test_bytes_and_files_are_cut_alike(size: int, tmp_path: Path) -> None:
    data = noise(size)
    (tmp_path / "f").write_bytes(data)
    in_memory, in_file = MemoryValue(data, 1000), await open_file(tmp_path / "f", 1000)
    assert list(in_memory.sizes) == list(in_file.sizes)
    await check(in_memory, data)
    await check(in_file, data)


async def test_a_view_of_something_larger_than_bytes_is_its_bytes() -> None:
    view = memoryview(bytes(range(8))).cast("I")
    await check(MemoryValue(view, 3), bytes(range(8)))


@pytest.mark.parametrize("spool_size", [0, 5, 1000])
async def test_pieces_stay_as_they_were_cut(
    spool_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "SPOOL_SIZE_BYTES_MAX", spool_size)
    buffer = bytearray(b"same")
    pieces: list[Buffer] = [b"a", b"", buffer, memoryview(b"bcd"), noise(900)]

    async def slowly() -> AsyncIterator[Buffer]:
        for piece in pieces:
            await trio.lowlevel.checkpoint()
            yield piece
            if piece is buffer:
                # Who makes pieces may use its buffer again.
                buffer[:] = b"else"

    copies = [bytes(piece) for piece in pieces]
    value = await open_pieces(slowly())
    assert await chunks_of(value) == copies
    await check(value, b"".join(copies))
    buffer[:] = b"same"
    await check(await open_pieces(iter(pieces)), b"".join(copies))


async def test_no_pieces_are_one_empty_chunk() -> None:
    value = await open_pieces([])
    assert list(value.sizes) == [0]
    await check(value, b"")


async def test_pieces_that_fail_leave_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "SPOOL_SIZE_BYTES_MAX", 0)

    async def broken() -> AsyncIterator[Buffer]:
        yield b"a"
        raise ZeroDivisionError

    before = os.listdir("/proc/self/fd")
    with pytest.raises(ZeroDivisionError):
        await open_pieces(broken())
    assert os.listdir("/proc/self/fd") == before


async def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    data = noise(200_000)
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    writer.start()
    value = await open_file(tmp_path / "pipe", 1000)
    writer.join()
    assert list(value.sizes) == [1000] * 200
    await check(value, data)


@pytest.mark.parametrize(
    ("make", "kind"), [(Path.mkdir, Kind.IS_DIRECTORY), (lambda path: None, Kind.NOT_FOUND)]
)
async def test_what_cannot_be_opened_says_why(make: object, kind: Kind, tmp_path: Path) -> None:
    assert callable(make)
    make(tmp_path / "f")
    with pytest.raises(MictlanError) as caught:
        await open_file(tmp_path / "f", 1000)
    assert caught.value.kind is kind


@pytest.mark.parametrize("data", [b"short", b"y" * 5000, b"z" * 3000])
async def test_a_file_that_changes_while_it_is_read_is_stale(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 3000)
    os.utime(path, ns=(1, 1))
    value = await open_file(path, 1000)
    await value.checksum()
    path.write_bytes(data)
    with pytest.raises(MictlanError) as caught:
        await chunks_of(value)
    assert caught.value.kind is Kind.STALE
    value.close()


async def test_a_file_that_is_cut_before_it_is_hashed_is_stale(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 3000)
    value = await open_file(tmp_path / "f", 1000)
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(MictlanError) as caught:
        await value.checksum()
    assert caught.value.kind is Kind.STALE
    value.close()
