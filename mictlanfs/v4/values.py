"""What is to be put, cut into chunks: bytes in memory, a local file, or pieces of any origin.

The tags of every chunk tell the number of chunks and the checksum of the whole, so both must be
known before the first one leaves. A file is therefore read twice; what can be read only once goes
to a temporary file when it is large.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Protocol

import trio

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB, Buffer
from mictlanfs.oserrors import translated_os_errors
from mictlanfs.v4.digests import new_hasher, update_hasher

# Of the pieces of a put, before they go to a temporary file.
SPOOL_SIZE_BYTES_MAX = 16 * MIB
_HASH_SIZE_BYTES = 4 * MIB

Pieces = Iterable[Buffer] | AsyncIterable[Buffer]


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes of chunk number `index`."""

    index: int
    data: Buffer


class Value(Protocol):
    """Bytes to put.

    Attributes:
        sizes: of the chunks, in order; at least one.
    """

    sizes: Sequence[int]

    async def checksum(self) -> str:
        """SHA-256 of all bytes, in hex."""
        ...

    def pieces(self) -> AsyncGenerator[Piece, None]:
        """The chunks, in order; may be called again after it is exhausted."""
        ...

    def close(self) -> None:
        """Let go of what was opened."""
        ...


def sizes_of(size: int, chunk_size: int) -> list[int]:
    """The sizes of the chunks of `size` bytes: all of them `chunk_size` but for the last.

    No bytes make one chunk of size 0.
    """
    full, rest = divmod(size, chunk_size)
    return [chunk_size] * full + ([rest] if rest or not full else [])


class MemoryValue:
    """Bytes in memory, which must not change until they are put."""

    def __init__(self, data: Buffer, chunk_size: int) -> None:
        self._data = memoryview(data).cast("B")
        self.sizes: Sequence[int] = sizes_of(len(self._data), chunk_size)

    async def checksum(self) -> str:
        """SHA-256 of all bytes, in hex."""
        hasher = new_hasher()
        await update_hasher(hasher, self._data)
        return hasher.hexdigest()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The chunks, in order."""
        for index, (start, end) in enumerate(_bounds(self.sizes)):
            yield Piece(index, self._data[start:end])

    def close(self) -> None:
        """Nothing was opened."""


class FileValue:
    """A file, which must not change until it is put.

    Owns `file`, which can be read at any offset. One that did change is noticed when the last
    chunk is read.
    """

    def __init__(self, file: IO[bytes], name: str, sizes: Sequence[int]) -> None:
        self._file = file
        self._name = name
        self.sizes = sizes
        self._found = os.fstat(file.fileno())

    async def checksum(self) -> str:
        """SHA-256 of all bytes, in hex."""
        with translated_os_errors("read", self._name):
            return await trio.to_thread.run_sync(self._hash)

    def _hash(self) -> str:
        hasher = new_hasher()
        size, offset = sum(self.sizes), 0
        while offset < size:
            data = os.pread(self._file.fileno(), min(_HASH_SIZE_BYTES, size - offset), offset)
            if not data:
                raise self._changed()
            hasher.update(data)
            offset += len(data)
        return hasher.hexdigest()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The chunks, in order.

        Raises:
            MictlanError: STALE when the file changed since it was opened.
        """
        for index, (start, end) in enumerate(_bounds(self.sizes)):
            with translated_os_errors("read", self._name):
                data = await trio.to_thread.run_sync(self._read, start, end)
            if index == len(self.sizes) - 1:
                self._check_unchanged()
            yield Piece(index, data)

    def _read(self, start: int, end: int) -> bytearray:
        data = bytearray(end - start)
        with memoryview(data) as view:
            while start < end:
                count = os.preadv(self._file.fileno(), [view[len(view) - (end - start) :]], start)
                if not count:
                    raise self._changed()
                start += count
        return data

    def _check_unchanged(self) -> None:
        now, then = os.fstat(self._file.fileno()), self._found
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise self._changed()

    def _changed(self) -> MictlanError:
        return MictlanError(Kind.STALE, "put", self._name, "the file changed while it was read")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


async def open_file(path: Path, chunk_size: int) -> Value:
    """The value of a local file; a pipe or device is read to its end first.

    Raises:
        MictlanError: it cannot be opened, or is a directory.
    """
    name = str(path)
    with translated_os_errors("open", name):
        # A named pipe waits for its writer.
        file = await trio.to_thread.run_sync(lambda: path.open("rb"), abandon_on_cancel=True)
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode):
        return FileValue(file, name, sizes_of(found.st_size, chunk_size))
    try:
        with translated_os_errors("read", name):
            return await _spooled(_read_through(file, chunk_size))
    finally:
        file.close()


async def open_pieces(pieces: Pieces) -> Value:
    """The value whose chunks are `pieces`, each as it is; no pieces make one empty chunk."""
    return await _spooled(_as_async(pieces))


class _SpooledValue(FileValue):
    """Pieces in a temporary file."""

    def _check_unchanged(self) -> None:
        """Nobody else knows the file."""


class _PiecesValue:
    """Pieces in memory."""

    def __init__(self, pieces: Sequence[Buffer]) -> None:
        self._pieces = pieces
        self.sizes: Sequence[int] = [len(piece) for piece in pieces]

    async def checksum(self) -> str:
        """SHA-256 of all bytes, in hex."""
        hasher = new_hasher()
        for piece in self._pieces:
            await update_hasher(hasher, piece)
        return hasher.hexdigest()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The chunks, in order."""
        for index, piece in enumerate(self._pieces):
            yield Piece(index, piece)

    def close(self) -> None:
        """Nothing was opened."""


async def _spooled(pieces: AsyncIterable[Buffer]) -> Value:
    """`pieces` in memory, or in a temporary file when they are large."""
    kept: list[Buffer] = []
    sizes: list[int] = []
    size = 0
    file: IO[bytes] | None = None
    try:
        async for piece in pieces:
            sizes.append(len(piece))
            size += len(piece)
            if file is None and size <= SPOOL_SIZE_BYTES_MAX:
                # A copy: who made it may use its buffer again.
                kept.append(bytes(piece))
                continue
            with translated_os_errors("write", "temporary file"):
                if file is None:
                    file = tempfile.TemporaryFile()  # noqa: SIM115 # The value owns it.
                    file.writelines(kept)
                    kept.clear()
                await trio.to_thread.run_sync(file.write, piece)
        if file is None:
            return _PiecesValue(kept or [b""])
        with translated_os_errors("write", "temporary file"):
            file.flush()
        return _SpooledValue(file, "temporary file", sizes)
    except BaseException:
        if file is not None:
            file.close()
        raise


async def _as_async(pieces: Pieces) -> AsyncGenerator[Buffer, None]:
    if isinstance(pieces, AsyncIterable):
        async for piece in pieces:
            yield memoryview(piece).cast("B")
    else:
        for piece in pieces:
            yield memoryview(piece).cast("B")


async def _read_through(file: IO[bytes], chunk_size: int) -> AsyncGenerator[Buffer, None]:
    while data := await trio.to_thread.run_sync(file.read, chunk_size, abandon_on_cancel=True):
        yield data


def _bounds(sizes: Sequence[int]) -> Iterable[tuple[int, int]]:
    return pairwise(accumulate(sizes, initial=0))
