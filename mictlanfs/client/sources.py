"""Where the bytes of a put come from: a local file or a stream, cut into pieces.

Reads in threads. A piece lies within one chunk-sized slice of the file; holes of a sparse file are
left out. Never interprets what it reads.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import trio

from mictlanfs.intervals import split_at
from mictlanfs.model import KIB
from mictlanfs.oserrors import translated_os_errors

STREAM_MODE = 0o644
# A small local file is read faster than a thread is asked to.
INLINE_SIZE_BYTES_MAX = 64 * KIB


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a source that start at `offset`."""

    offset: int
    data: bytes


class Source(Protocol):
    """Bytes to store, and what is known of them.

    Attributes:
        mode: permission bits, before the umask.
        mtime_ns: of the content; None when it has none.
        size: bytes; valid once `pieces` is exhausted.
        stored_size: bytes that are no hole, as far as is known before they are read.
    """

    mode: int
    mtime_ns: int | None
    size: int
    stored_size: int

    def pieces(self, piece_size: int) -> AsyncGenerator[Piece, None]:
        """The pieces in order, none larger than `piece_size` bytes. To be read once."""
        ...

    def close(self) -> None:
        """Let go of what was opened."""
        ...


def open_source(source: Path | BinaryIO) -> Source:
    """The source that a caller named: a path of a local file, or a stream open for reading.

    Raises:
        MictlanError: the file cannot be opened, or is a directory.
    """
    if not isinstance(source, Path):
        return StreamSource(source)
    with translated_os_errors("open", str(source)):
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            os.close(descriptor)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISREG(found.st_mode):
        return FileSource(descriptor, found, str(source))
    return StreamSource(os.fdopen(descriptor, "rb"), is_owned=True)


class FileSource:
    """A regular file, as large as it was when it was opened."""

    def __init__(self, descriptor: int, found: os.stat_result, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self.mode = stat.S_IMODE(found.st_mode)
        self.mtime_ns: int | None = found.st_mtime_ns
        self.size = found.st_size
        self.stored_size = min(found.st_size, found.st_blocks * 512)

    async def pieces(self, piece_size: int) -> AsyncGenerator[Piece, None]:
        """The pieces in order, without the holes.

        A file that is cut meanwhile ends where it then ends.
        """
        for start, end in self._data_ranges():
            for offset, stop in split_at(start, end, piece_size):
                with translated_os_errors("read", self._name):
                    if self.size <= INLINE_SIZE_BYTES_MAX:
                        data = self._read(offset, stop - offset)
                    else:
                        data = await trio.to_thread.run_sync(self._read, offset, stop - offset)
                if data:
                    yield Piece(offset, data)
                if len(data) < stop - offset:
                    self.size = offset + len(data)
                    return

    def _data_ranges(self) -> Iterator[tuple[int, int]]:
        """Where the file has data; all of it on a file system that does not tell.

        Source: lseek(2), SEEK_DATA and SEEK_HOLE.
        """
        end = 0
        while end < self.size:
            try:
                start = os.lseek(self._descriptor, end, os.SEEK_DATA)
                end = min(os.lseek(self._descriptor, start, os.SEEK_HOLE), self.size)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                start, end = end, self.size
            if start < end:
                yield start, end
            else:
                return

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        while 0 < len(data) < length:
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class StreamSource:
    """Whatever can be read from start to end: standard input, a pipe, a buffer."""

    def __init__(self, stream: BinaryIO, *, is_owned: bool = False) -> None:
        self._stream = stream
        self._is_owned = is_owned
        self.mode = STREAM_MODE
        self.mtime_ns: int | None = None
        self.size = 0
        self.stored_size = 0

    async def pieces(self, piece_size: int) -> AsyncGenerator[Piece, None]:
        """The pieces in order, all of them full but the last.

        Cancellation: a read under way goes on in its thread, and what it gets is lost.
        """
        while True:
            with translated_os_errors("read", "stream"):
                data = await trio.to_thread.run_sync(
                    self._read_full, piece_size, abandon_on_cancel=True
                )
            if data:
                yield Piece(self.size, data)
                self.size += len(data)
            if len(data) < piece_size:
                return

    def _read_full(self, length: int) -> bytes:
        """`length` bytes, fewer only at the end: a pipe gives them in small portions."""
        parts = []
        missing = length
        while missing and (part := self._stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the stream unless it belongs to the caller."""
        if self._is_owned:
            self._stream.close()
