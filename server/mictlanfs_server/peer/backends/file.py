"""Chunks as files of a folder, on a disk or on any mounted file system.

::

    chunks/xx/<id>.<length>.<digest>     published; xx are the last two digits of the id
    temporary/<number>                   staged; swept when the back end is opened
    quarantine/<id>.<length>.<digest>    set aside: found to be something else

All three parts of a name are hexadecimal, so what is stored is known from the names alone. Ids
begin with a time: only their last digits spread evenly. The 256 folders exist from the start, so
no upload pays for making one durable.

A chunk that another process writes (`stage_file`) is staged like the others: it is read, and its
name comes last.

Order of durability: the bytes (fdatasync), then the name (rename, fsync of the folder). A crash
before the rename leaves a temporary file; one after it leaves the chunk whole, and before the fsync
of the folder either of the two. A name therefore never stands for less than all of the bytes.

Everything that may wait for the disk happens in a bounded number of threads. The one exception is
a short read that the page cache answers (preadv2(2), RWF_NOWAIT): it costs less than a thread.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from mictlanfs.blocksums import BlockSummer
from mictlanfs.checksums import new_hasher
from mictlanfs.durable import sync_folder, write_all
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB, MIB, Buffer, ChunkId
from mictlanfs_server.peer.backends.base import (
    Give,
    StoredChunk,
    Traits,
    corrupt,
    translated_errors,
)
from mictlanfs_server.peer.backends.checking import check_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Collection, Iterator
    from pathlib import Path

# More do not help two cores, but several may wait for the disk at a time. A read must not wait
# behind writes for a thread: most reads need no disk at all.
WRITE_THREADS = 8
READ_THREADS = 4
# Bytes gathered before a thread is asked to hash and write them.
SEGMENT_SIZE_BYTES = 1 * MIB
_PART_SIZE_BYTES = MIB // 4
# A read up to this size is tried in the loop first.
INLINE_READ_SIZE_BYTES_MAX = 256 * KIB
CHUNKS_NAME = "chunks"
_FANOUT = 256
# A process that is made while another has a descriptor has it as well, until it runs its program.
_LEASE_ATTEMPTS = 50
_LEASE_INTERVAL_S = 0.002
_NAME = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{1,8})\.([0-9a-f]{64})")

P = ParamSpec("P")
T = TypeVar("T")


def chunk_files(folder: Path) -> Iterator[StoredChunk]:
    """The chunks in a folder `chunks` by the names of their files, in no order. Blocks."""
    for part in folder.iterdir():
        yield from _named_chunks(part)


class FileBackend:
    """Chunks below `folder`, which must exist and belong to nobody else.

    Without `fsync` nothing outlives a crash of the machine: for benchmarks only.

    Raises:
        OSError: the folder cannot be used.
    """

    traits = Traits(name="file", is_persistent=True)

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        self._chunks = folder / CHUNKS_NAME
        self._temporary = folder / "temporary"
        self._quarantine = folder / "quarantine"
        self._fsync = fsync
        self._numbers = itertools.count()
        self._writers = ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="disk-write")
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="disk-read")
        # One: checking is never in a hurry, and shall leave the disk to others.
        self._checkers = ThreadPoolExecutor(1, thread_name_prefix="disk-check")
        self._make_folders(folder)
        self._sweep()

    async def stage(self, chunk: StoredChunk, pieces: AsyncIterable[Buffer]) -> _Staged:
        """Write and verify a temporary file; see `Backend`."""
        upload = _Upload(
            chunk, self._temporary / str(next(self._numbers)), self._path(chunk), self._fsync
        )
        staged = _Staged(self._writers, upload)
        try:
            segment: list[Buffer] = []
            size = 0
            async for piece in pieces:
                segment.append(piece)
                size += len(piece)
                if size >= SEGMENT_SIZE_BYTES:
                    await _in_thread(self._writers, upload.write, segment)
                    segment, size = [], 0
            await _in_thread(self._writers, upload.finish, segment)
        except BaseException:
            await staged.discard()
            raise
        return staged

    async def stage_file(self, chunk: StoredChunk, give: Give) -> _Staged:
        """Have a temporary file written and verify it; see `Backend`."""
        upload = _GivenAway(
            chunk, self._temporary / str(next(self._numbers)), self._path(chunk), self._fsync
        )
        staged = _Staged(self._writers, upload)
        try:
            await give(await _in_thread(self._writers, upload.begin))
            await _in_thread(self._writers, upload.take_back)
        except BaseException:
            await staged.discard()
            raise
        return staged

    async def read(self, chunk: StoredChunk, start: int, end: int) -> Buffer:
        """Read a file; see `Backend`."""
        path = self._path(chunk)
        if end - start <= INLINE_READ_SIZE_BYTES_MAX:
            cached = _read_cached(path, start, end)
            if cached is not None:
                return cached
        return await _in_thread(self._readers, _read, chunk, path, start, end)

    def open_file(self, chunk: StoredChunk) -> int | None:
        """Open a file; see `Backend`."""
        try:
            return os.open(self._path(chunk), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None

    async def delete(self, chunk: StoredChunk) -> None:
        """Unlink a file; see `Backend`."""
        await _in_thread(self._writers, _delete, chunk, self._path(chunk))

    async def check(self, chunk: StoredChunk) -> bytes:
        """Read a file past the page cache; see `Backend`."""
        return await _in_thread(self._checkers, check_file, chunk, self._path(chunk))

    async def set_aside(self, chunk: StoredChunk) -> bool:
        """Move a file to the quarantine; see `Backend`."""
        aside = self._quarantine / _name(chunk)
        return await _in_thread(
            self._writers, _set_aside, chunk, self._path(chunk), aside, self._fsync
        )

    async def drop_aside(self, chunk: StoredChunk) -> None:
        """Unlink a file of the quarantine; see `Backend`."""
        await _in_thread(self._writers, _delete, chunk, self._quarantine / _name(chunk))

    def chunks_aside(self) -> Iterator[StoredChunk]:
        """Chunks by the names of the files in the quarantine; see `Backend`."""
        return _named_chunks(self._quarantine)

    def sweep_aside(self, kept: Collection[StoredChunk]) -> None:
        """Unlink the other files of the quarantine; see `Backend`."""
        for chunk in set(self.chunks_aside()) - set(kept):
            (self._quarantine / _name(chunk)).unlink(missing_ok=True)

    def chunks(self) -> Iterator[StoredChunk]:
        """Chunks by the names of their files; other files are passed over. See `Backend`."""
        return chunk_files(self._chunks)

    def free_bytes(self) -> int | None:
        """What the file system offers to users; see `Backend`."""
        status = os.statvfs(self._chunks)
        return status.f_bavail * status.f_frsize

    def close(self) -> None:
        """Wait for the threads; see `Backend`."""
        for threads in (self._writers, self._readers, self._checkers):
            threads.shutdown()

    def _path(self, chunk: StoredChunk) -> Path:
        return self._chunks / chunk.id.hex()[-2:] / _name(chunk)

    def _make_folders(self, folder: Path) -> None:
        self._temporary.mkdir(exist_ok=True)
        self._quarantine.mkdir(exist_ok=True)
        self._chunks.mkdir(exist_ok=True)
        for number in range(_FANOUT):
            (self._chunks / f"{number:02x}").mkdir(exist_ok=True)
        if self._fsync:
            sync_folder(self._chunks)
            sync_folder(folder)

    def _sweep(self) -> None:
        for path in self._temporary.iterdir():
            path.unlink()


class _Upload:
    """One temporary file, used by one thread at a time.

    ::

        writing --finish--> verified --publish--> published
           |                   |
           +------discard------+-----> discarded

    The lock is for `discard` after a cancellation, when a write may still run in a thread.
    """

    def __init__(self, chunk: StoredChunk, temporary: Path, path: Path, fsync: bool) -> None:
        self._chunk = chunk
        self._temporary = temporary
        self._path = path
        self._fsync = fsync
        self._lock = threading.Lock()
        self._hasher = new_hasher()
        self._summer = BlockSummer()
        self._size = 0
        self._fd: int | None = None
        self._is_over = False
        self.sums = b""

    def write(self, pieces: list[Buffer]) -> None:
        """Add bytes. Raises CORRUPT as soon as there are too many."""
        with self._lock, translated_errors("write chunk", self._chunk):
            self._write(pieces)

    def finish(self, pieces: list[Buffer]) -> None:
        """Add the last bytes, verify all of them and make them durable."""
        with self._lock, translated_errors("write chunk", self._chunk):
            self._write(pieces)
            self._verify_and_sync()

    def publish(self) -> None:
        """Give the file its name."""
        with self._lock, translated_errors("publish chunk", self._chunk):
            if self._is_over:
                return
            self._temporary.rename(self._path)
            self._is_over = True
            if self._fsync:
                sync_folder(self._path.parent)

    def discard(self) -> None:
        """Remove the file unless it is published."""
        with self._lock:
            if not self._is_over:
                self._is_over = True
                self._close()
                self._temporary.unlink(missing_ok=True)

    def _verify_and_sync(self) -> None:
        if self._size != self._chunk.length:
            raise corrupt(self._chunk, f"{self._size} of {self._chunk.length} bytes came")
        if self._hasher.digest() != self._chunk.digest:
            raise corrupt(self._chunk, "the bytes do not match the digest")
        assert self._fd is not None
        self.sums = self._summer.sums()
        if self._fsync:
            os.fdatasync(self._fd)
        self._close()

    def _refuse_when_over(self) -> None:
        if self._is_over:
            raise MictlanError(Kind.INTERNAL, "write chunk", self._chunk.id.hex(), "discarded")

    def _write(self, pieces: list[Buffer]) -> None:
        self._refuse_when_over()
        self._size += sum(len(piece) for piece in pieces)
        if self._size > self._chunk.length:
            raise corrupt(self._chunk, f"more than {self._chunk.length} bytes came")
        if self._fd is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, 0o600)
        for piece in pieces:
            # In parts that stay in the cache of a core between hashing and writing.
            view = memoryview(piece)
            for start in range(0, len(view), _PART_SIZE_BYTES):
                part = view[start : start + _PART_SIZE_BYTES]
                self._hasher.update(part)
                self._summer.update(part)
                write_all(self._fd, [part])

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class _GivenAway(_Upload):
    """A temporary file that another process writes.

    ::

        begun --written elsewhere--> take_back --> verified --publish--> published

    Opened for reading before the first byte is written, so that its sync meets every error of the
    disk that a write caused.
    """

    _given: int | None = None

    def begin(self) -> int:
        """Make the file. The descriptor for writing to it stays of this object."""
        with self._lock, translated_errors("write chunk", self._chunk):
            self._refuse_when_over()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._given = os.open(self._temporary, flags, 0o600)
            self._fd = os.open(self._temporary, os.O_RDONLY | os.O_CLOEXEC)
            return self._given

    def take_back(self) -> None:
        """Verify what is in the file, which nobody can change any more, and make it durable.

        Raises:
            MictlanError: CORRUPT; UNSUPPORTED when there is no telling whether somebody writes to
                it, or somebody does.
        """
        with self._lock, translated_errors("write chunk", self._chunk):
            self._refuse_when_over()
            assert self._fd is not None
            self._close_given()
            _see_that_nobody_writes(self._fd, self._chunk)
            # What is too long is found to be so by its first byte too many.
            view = memoryview(bytearray(_PART_SIZE_BYTES))
            while self._size <= self._chunk.length:
                count = os.preadv(self._fd, [view], self._size)
                if not count:
                    break
                self._hasher.update(view[:count])
                self._summer.update(view[:count])
                self._size += count
            self._verify_and_sync()

    def _close_given(self) -> None:
        if self._given is not None:
            os.close(self._given)
            self._given = None

    def _close(self) -> None:
        self._close_given()
        super()._close()


def _see_that_nobody_writes(fd: int, chunk: StoredChunk) -> None:
    """Return when nobody has the file `fd`, which is open for reading, open for writing.

    A lease is granted under no other condition. Source: fcntl(2), F_SETLEASE.
    """
    for _ in range(_LEASE_ATTEMPTS):
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise MictlanError(
                    Kind.UNSUPPORTED, "write chunk", chunk.id.hex(), str(error)
                ) from error
        else:
            # What opens it from now on would be told of the lease by a signal.
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return
        time.sleep(_LEASE_INTERVAL_S)
    detail = "somebody has its file open for writing"
    raise MictlanError(Kind.UNSUPPORTED, "write chunk", chunk.id.hex(), detail)


class _Staged:
    """An upload that is verified; see `Staged`."""

    def __init__(self, threads: ThreadPoolExecutor, upload: _Upload) -> None:
        self._threads = threads
        self._upload = upload

    @property
    def sums(self) -> bytes:
        return self._upload.sums

    async def publish(self) -> None:
        await _in_thread(self._threads, self._upload.publish)

    async def discard(self) -> None:
        # Shielded, so that the file is gone when even a second cancellation comes.
        await asyncio.shield(_in_thread(self._threads, self._upload.discard))


async def _in_thread(
    threads: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run `call` in one of `threads`. Cancellation: it runs to its end all the same."""
    return await asyncio.wrap_future(threads.submit(call, *args, **kwargs))


def _read_cached(path: Path, start: int, end: int) -> bytearray | None:
    """The bytes, when the page cache has them all; None in every other case."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            body = bytearray(end - start)
            size = os.preadv(fd, [body], start, os.RWF_NOWAIT)
        finally:
            os.close(fd)
    except OSError:
        return None
    return body if size == len(body) else None


def _read(chunk: StoredChunk, path: Path, start: int, end: int) -> bytes:
    with translated_errors("read chunk", chunk):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise MictlanError(Kind.NOT_FOUND, "read chunk", chunk.id.hex()) from error
        try:
            body = os.pread(fd, end - start, start)
        finally:
            os.close(fd)
    if len(body) != end - start:
        raise corrupt(chunk, f"the file ends at {start + len(body)}, not at {chunk.length}")
    return body


def _name(chunk: StoredChunk) -> str:
    return f"{chunk.id.hex()}.{chunk.length:x}.{chunk.digest.hex()}"


def _named_chunks(folder: Path) -> Iterator[StoredChunk]:
    """The chunks that the names of files in a folder tell of."""
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match is not None:
                chunk_id, length, digest = match.groups()
                yield StoredChunk(
                    ChunkId(bytes.fromhex(chunk_id)), int(length, 16), bytes.fromhex(digest)
                )


def _set_aside(chunk: StoredChunk, path: Path, aside: Path, fsync: bool) -> bool:
    with translated_errors("set chunk aside", chunk):
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        if fsync:
            # A name that came back after a power cut would be a chunk in service again.
            sync_folder(path.parent)
            sync_folder(aside.parent)
    return True


def _delete(chunk: StoredChunk, path: Path) -> None:
    with translated_errors("delete chunk", chunk):
        path.unlink(missing_ok=True)
