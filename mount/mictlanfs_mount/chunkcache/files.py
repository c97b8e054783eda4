"""The directory of the disk cache: its owner, its format and the files of chunks in it.

::

    DIRECTORY/
        owner.lock      flock(2)ed by the mount that uses the directory
        format          one line that names the format and its version
        chunks/7f/<32 hexadecimal digits>        one whole chunk, folder named by its last byte
        chunks/7f/<32 hexadecimal digits>.part   a chunk being written

Every call may block: use them in a thread. They share nothing that changes, so several may run at
once. Invariants: only files named like those above are ever deleted; a file appears under its
final name with all its bytes, as far as this process is concerned. After a crash it may be short
or wrong, since nothing is fsynced here: whoever reads a file of an earlier process verifies it.
All paths are relative to a descriptor of the directory, so that renaming the directory or putting
another in its place never makes us write into somebody else's files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mictlanfs.checksums import new_hasher
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.model import MIB, Buffer, Chunk, ChunkId
from mictlanfs.oserrors import translated_os_errors

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_FORMAT_FILE = "format"
_FORMAT_MAGIC = "mictlanfs chunk cache "
_LOCK_FILE = "owner.lock"
_CHUNKS_FOLDER = "chunks"
_PART = ".part"
_OWN_NAMES = frozenset({_FORMAT_FILE, _LOCK_FILE, _CHUNKS_FOLDER})

_FILE_MODE = 0o600
_FOLDER_MODE = 0o700
_FANOUT_NAME = re.compile("[0-9a-f]{2}")
_CHUNK_NAME = re.compile(f"(?P<id>[0-9a-f]{{32}})(?P<part>{re.escape(_PART)})?")

_READ_SIZE_BYTES = MIB


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A chunk file as a listing shows it; what is in it is not known."""

    chunk_id: ChunkId
    length: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of the file system, and how many of them this user may still take."""

    total: int
    free: int


class ChunkFiles:
    """One cache directory, owned until `close`.

    Args:
        directory: made when missing.

    Raises:
        MictlanError: BUSY when another mount owns the directory; else what the system says.
        UsageError: the directory holds something else.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with contextlib.ExitStack() as undo, translated_os_errors("use", str(directory)):
            directory.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            undo.callback(os.close, self._root)
            self._refuse_foreign()
            self._lock = self._locked()
            undo.callback(os.close, self._lock)
            self._is_current = self._read_format() == f"{_FORMAT_MAGIC}{FORMAT_VERSION}"
            undo.pop_all()

    def close(self) -> None:
        """Give the directory up. No other call may be running or follow."""
        os.close(self._lock)
        os.close(self._root)

    def _refuse_foreign(self) -> None:
        names = {entry.name for entry in self._entries_of(".")}
        if names <= _OWN_NAMES or self._read_format().startswith(_FORMAT_MAGIC):
            return
        raise UsageError(
            f"{self.directory} holds other files: "
            "choose an empty directory for the cache with -o cache_dir="
        )

    def _read_format(self) -> str:
        """What the format file says; empty when it is missing or not text."""
        try:
            fd = os.open(_FORMAT_FILE, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._root)
        except FileNotFoundError:
            return ""
        with os.fdopen(fd, "rb") as file:
            return file.read(256).decode("ascii", "replace").strip()

    def _locked(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        fd = os.open(_LOCK_FILE, flags, _FILE_MODE, dir_fd=self._root)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            detail = "another mount uses it: give this one its own with -o cache_dir=DIRECTORY"
            raise MictlanError(
                Kind.BUSY, "use cache directory", str(self.directory), detail
            ) from None
        return fd

    # --- all files -------------------------------------------------------------------------------

    def listing(self) -> list[FoundFile]:
        """Every chunk file, the one touched longest ago first. To be called once, before others.

        Sweeps what a crash left half written. A directory of another version is emptied first.
        """
        if not self._is_current:
            self._empty()
        found = []
        for folder, entry, match in self._chunk_entries():
            if match["part"]:
                self._unlink(f"{folder}/{entry.name}")
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                chunk_id = ChunkId(bytes.fromhex(match["id"]))
                found.append(FoundFile(chunk_id, status.st_size, status.st_mtime_ns))
        found.sort(key=lambda file: file.mtime_ns)
        return found

    def _empty(self) -> None:
        count = 0
        for folder, entry, _ in self._chunk_entries():
            self._unlink(f"{folder}/{entry.name}")
            count += 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        fd = os.open(_FORMAT_FILE, flags, _FILE_MODE, dir_fd=self._root)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(f"{_FORMAT_MAGIC}{FORMAT_VERSION}\n")
        self._is_current = True
        if count:
            log.info(
                "emptied the cache in %s: its %d files have another format", self.directory, count
            )

    def _chunk_entries(self) -> Iterator[tuple[str, os.DirEntry[str], re.Match[str]]]:
        """Every regular file that is named like ours and lies where we would put it."""
        for fanout in self._entries_of(_CHUNKS_FOLDER):
            if not _FANOUT_NAME.fullmatch(fanout.name):
                continue
            folder = f"{_CHUNKS_FOLDER}/{fanout.name}"
            for entry in self._entries_of(folder):
                match = _CHUNK_NAME.fullmatch(entry.name)
                is_ours = match is not None and match["id"].endswith(fanout.name)
                if match is not None and is_ours and entry.is_file(follow_symlinks=False):
                    yield folder, entry, match

    def _entries_of(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """The entries of a folder; none when it is missing, no folder or a symbolic link."""
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            fd = os.open(folder, flags, dir_fd=self._root)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return
            raise
        try:
            with os.scandir(fd) as entries:
                yield from entries
        finally:
            os.close(fd)

    def space(self) -> Space:
        """The space of the file system that the directory lies in."""
        found = os.fstatvfs(self._root)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    # --- one file --------------------------------------------------------------------------------

    def write(self, chunk_id: ChunkId, body: Buffer) -> None:
        """Make the file of a chunk. On an error nothing is left of it.

        Raises:
            OSError: as the system gives it; FileNotFoundError when the directory itself is gone.
        """
        path = _path_of(chunk_id)
        part = path + _PART
        fd = self._create(part)
        try:
            try:
                _write_all(fd, body)
            finally:
                os.close(fd)
            os.rename(part, path, src_dir_fd=self._root, dst_dir_fd=self._root)
        except OSError:
            self._unlink(part)
            raise

    def _create(self, path: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags, _FILE_MODE, dir_fd=self._root)
        for folder in (_CHUNKS_FOLDER, os.path.dirname(path)):  # noqa: PTH120 - a plain string.
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, _FOLDER_MODE, dir_fd=self._root)
        return os.open(path, flags, _FILE_MODE, dir_fd=self._root)

    def open(self, chunk_id: ChunkId) -> int:
        """A descriptor for reading the file; the caller closes it. FileNotFoundError: none."""
        return os.open(_path_of(chunk_id), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._root)

    def read(self, chunk_id: ChunkId, start: int, end: int) -> bytes:
        """Bytes `[start, end)` of the file, fewer when it is too short."""
        fd = self.open(chunk_id)
        try:
            return os.pread(fd, end - start, start)
        finally:
            os.close(fd)

    def is_good(self, chunk: Chunk) -> bool:
        """Whether the file holds the bytes that the chunk's digest names, all of them and no more.

        Raises:
            FileNotFoundError: there is no file.
        """
        hasher = new_hasher()
        buffer = memoryview(bytearray(min(_READ_SIZE_BYTES, chunk.length)))
        with os.fdopen(self.open(chunk.id), "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != chunk.length:
                return False
            while count := file.readinto(buffer):
                hasher.update(buffer[:count])
        return hasher.digest() == chunk.digest

    def read_ahead(self, chunk_id: ChunkId) -> None:
        """Ask the system to have the file in its page cache soon. FileNotFoundError: none."""
        fd = self.open(chunk_id)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)

    def delete(self, chunk_ids: Iterable[ChunkId]) -> None:
        """Delete files, where they exist."""
        for chunk_id in chunk_ids:
            self._unlink(_path_of(chunk_id))

    def touch(self, chunk_ids: Sequence[ChunkId]) -> None:
        """Note in the files' times that they were used just now; the first is the oldest use."""
        for chunk_id in chunk_ids:
            with contextlib.suppress(FileNotFoundError):
                os.utime(_path_of(chunk_id), dir_fd=self._root, follow_symlinks=False)

    def _unlink(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=self._root)


def _path_of(chunk_id: ChunkId) -> str:
    # Ids begin with their time, so the first byte would put all files of years into one folder.
    name = chunk_id.hex()
    return f"{_CHUNKS_FOLDER}/{name[-2:]}/{name}"


def _write_all(fd: int, body: Buffer) -> None:
    rest = memoryview(body)
    while rest.nbytes:
        rest = rest[os.write(fd, rest) :]
