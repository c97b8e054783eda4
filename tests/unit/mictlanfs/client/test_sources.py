import io
import os
from pathlib import Path

import pytest

from mictlanfs.client.sources import STREAM_MODE, Source, StreamSource, open_source
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB
from tests.unit.mictlanfs.client.making import pattern, write_sparse

PIECE = 1000


async def read(source: Source, piece_size: int = PIECE) -> list[tuple[int, bytes]]:
    try:
        return [(piece.offset, piece.data) async for piece in source.pieces(piece_size)]
    finally:
        source.close()


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 200_000])
async def test_a_file_is_cut_at_multiples_of_the_piece_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(pattern(size))
    source = open_source(tmp_path / "f")
    pieces = await read(source)
    assert [offset for offset, _ in pieces] == list(range(0, size, PIECE))
    assert b"".join(data for _, data in pieces) == pattern(size)
    assert source.size == size


async def test_a_file_tells_its_mode_and_time(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    path.chmod(0o4640)
    os.utime(path, ns=(1, 2_000_000_003))
    source = open_source(path)
    assert (source.mode, source.mtime_ns) == (0o4640, 2_000_000_003)
    source.close()


async def test_holes_are_left_out(tmp_path: Path) -> None:
    write_sparse(tmp_path / "f", [(0, b"start"), (4 * MIB, b"end")], 8 * MIB)
    source = open_source(tmp_path / "f")
    pieces = await read(source, 1 * MIB)
    assert source.size == 8 * MIB
    content = bytearray(8 * MIB)
    for offset, data in pieces:
        content[offset : offset + len(data)] = data
    assert content == (tmp_path / "f").read_bytes()
    assert sum(len(data) for _, data in pieces) < MIB


async def test_a_file_system_that_knows_no_holes_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sparse(tmp_path / "f", [(5 * PIECE, b"end")], 6 * PIECE)

    def refuse(descriptor: int, offset: int, whence: int) -> int:
        raise OSError(22, "Invalid argument")

    source = open_source(tmp_path / "f")
    monkeypatch.setattr(os, "lseek", refuse)
    pieces = await read(source)
    assert b"".join(data for _, data in pieces) == (tmp_path / "f").read_bytes()


async def test_a_file_that_is_cut_meanwhile_ends_where_it_ends_then(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(pattern(10 * PIECE))
    source = open_source(path)
    pieces = []
    async for piece in source.pieces(PIECE):
        pieces.append(piece)
        os.truncate(path, 3 * PIECE + 5)
    source.close()
    assert b"".join(piece.data for piece in pieces) == pattern(10 * PIECE)[: 3 * PIECE + 5]
    assert source.size == 3 * PIECE + 5


async def test_a_file_that_grows_meanwhile_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(pattern(3 * PIECE))
    source = open_source(path)
    with path.open("ab") as file:
        file.write(b"more")
    assert b"".join(data for _, data in await read(source)) == pattern(3 * PIECE)


@pytest.mark.parametrize(("name", "kind"), [("none", Kind.NOT_FOUND), ("", Kind.IS_DIRECTORY)])
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, kind: Kind) -> None:
    with pytest.raises(MictlanError) as caught:
        open_source(tmp_path / name)
    assert caught.value.kind is kind
    assert str(tmp_path) in str(caught.value)


class Trickle(io.RawIOBase):
    """A pipe that gives three bytes at a time."""

    def __init__(self, content: bytes) -> None:
        self.rest = content

    def read(self, size: int = -1) -> bytes:
        part, self.rest = self.rest[: min(3, size)], self.rest[min(3, size) :]
        return part


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, 3 * PIECE + 1])
async def test_a_stream_is_cut_into_full_pieces_whatever_it_gives_at_once(size: int) -> None:
    source = StreamSource(Trickle(pattern(size)))  # type: ignore[arg-type]  # Enough of a stream.
    pieces = await read(source)
    assert [offset for offset, _ in pieces] == list(range(0, size, PIECE))
    assert b"".join(data for _, data in pieces) == pattern(size)
    assert (source.size, source.mode, source.mtime_ns) == (size, STREAM_MODE, None)


async def test_a_stream_of_the_caller_is_left_open() -> None:
    stream = io.BytesIO(b"x")
    await read(open_source(stream))
    assert not stream.closed


async def test_a_device_is_read_as_a_stream() -> None:
    source = open_source(Path("/dev/null"))
    assert isinstance(source, StreamSource)
    assert await read(source) == []


async def test_a_stream_that_fails_is_an_error() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    source = StreamSource(Broken())  # type: ignore[arg-type]  # Enough of a stream.
    with pytest.raises(MictlanError) as caught:
        await read(source)
    assert caught.value.kind is Kind.INTERNAL
