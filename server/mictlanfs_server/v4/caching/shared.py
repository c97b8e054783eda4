"""Values in POSIX shared memory: files of /dev/shm that all processes of one user and space see.

Each value is one *block*: a file named by the digest of its key, which begins with key and token.
A block gets its name when it is complete and never changes afterwards, so readers take no lock
and need none; it is read, not mapped, since a mapped file that somebody cuts short kills the
process. Owns the folder of the blocks and its lock. Invariants: folder and blocks are private to
the user; every process that uses the folder holds its lock shared, so who gets it alone knows that
all blocks there are left-overs, and removes them; a process that comes to others takes the blocks
that are there over, so each one is in the books of a living process, but those of one that was
killed while others lived, until the next one starts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

from mictlanfs_server.v4.caching.base import encoded

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - shared memory, in folders of our own.
_LOCK_NAME = "lock"
# Before a block is complete: then the process id and a number.
_UNFINISHED = "new-"
_MAGIC = b"MFSBLK01"
_LENGTHS = struct.Struct("<II")
_DIGEST_SIZE_BYTES = 16
# What one system call moves, at most (read(2), write(2)).
_BLOCK_SIZE_BYTES_MAX = 0x7FFFF000
# Others hold the lock alone for as long as it takes to remove left-overs.
_LOCK_PATIENCE_S = 5.0
_LOCK_RETRY_S = 0.02


def _digest(text: str) -> str:
    return blake2b(encoded(text), digest_size=_DIGEST_SIZE_BYTES).hexdigest()


def _head(key: str, token: str) -> bytes:
    raw_key, raw_token = encoded(key), encoded(token)
    return b"".join([_MAGIC, _LENGTHS.pack(len(raw_key), len(raw_token)), raw_key, raw_token])


class SharedValues:
    """Values as blocks of shared memory; see `ValueStore`.

    Args:
        namespace: what the blocks belong to. Processes with the same user, namespace and
            `memory` share their values; no others do.
        memory: where shared memory is mounted.

    Raises:
        OSError: there is no shared memory, or its folder is not ours.
    """

    def __init__(self, namespace: str, memory: Path = SHARED_MEMORY) -> None:
        self._path = memory / f"mictlanfs-{os.geteuid()}-{_digest(namespace)}"
        self._unfinished_count = 0
        self._folder, self._lock, is_alone = _joined(self._path)
        if is_alone:
            self._remove_all()
            # Not one step: another one may come between and remove what is not there.
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    @property
    def path(self) -> Path:
        """The folder of the blocks."""
        return self._path

    def held(self) -> Iterable[tuple[str, int]]:
        """See `ValueStore`: blocks of other processes."""
        return [(key, size) for _, key, size in sorted(self._found())]

    def read(self, key: str, token: str) -> bytes | None:
        """See `ValueStore`."""
        name, head = _digest(key), _head(key, token)
        try:
            block = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        except OSError:
            return None
        try:
            size = os.fstat(block).st_size - len(head)
            if size > 0 and os.pread(block, len(head), 0) == head:
                return os.pread(block, size, len(head))
        except OSError:
            return None
        finally:
            os.close(block)
        self._unlink(name)
        return None

    def write(self, key: str, token: str, value: memoryview) -> None:
        """See `ValueStore`."""
        head = _head(key, token)
        size = len(head) + value.nbytes
        if size > _BLOCK_SIZE_BYTES_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._unfinished_count += 1
        unfinished = f"{_UNFINISHED}{os.getpid()}-{self._unfinished_count}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        block = os.open(unfinished, flags, 0o600, dir_fd=self._folder)
        try:
            try:
                # Short only for want of room.
                if os.writev(block, [head, value]) != size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(block)
            folder = self._folder
            os.rename(unfinished, _digest(key), src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            self._unlink(unfinished)
            raise

    def discard(self, key: str) -> bool:
        """See `ValueStore`."""
        return self._unlink(_digest(key))

    def clear(self) -> None:
        """See `ValueStore`: the blocks of all processes."""
        # Unfinished blocks are the work of a process that goes on.
        self._remove_all(but=_UNFINISHED)

    def close(self) -> None:
        """See `ValueStore`: the last process removes the folder."""
        if self._folder < 0:
            return
        with contextlib.suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_all()
            self._unlink(_LOCK_NAME)
            self._path.rmdir()
        os.close(self._lock)
        os.close(self._folder)
        self._folder = self._lock = -1

    def _remove_all(self, but: str = _LOCK_NAME) -> None:
        """Remove all files but the lock and those whose name begins with `but`."""
        for name in self._names():
            if not name.startswith(but):
                self._unlink(name)

    def _found(self) -> Iterator[tuple[int, str, int]]:
        """Time, key and size of every block."""
        for name in self._names():
            with contextlib.suppress(OSError, ValueError, struct.error):
                yield self._described(name)

    def _names(self) -> list[str]:
        """The names of all blocks, unfinished ones too."""
        # By the descriptor: the path may lead elsewhere by now.
        names = os.listdir(self._folder)  # noqa: PTH208
        return [name for name in names if name != _LOCK_NAME]

    def _described(self, name: str) -> tuple[int, str, int]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        block = os.open(name, flags, dir_fd=self._folder)
        try:
            status = os.fstat(block)
            start = len(_MAGIC) + _LENGTHS.size
            prefix = os.pread(block, start, 0)
            key_length, token_length = _LENGTHS.unpack(prefix[len(_MAGIC) :])
            key = os.pread(block, key_length, start).decode("utf-8", "surrogatepass")
            size = status.st_size - start - key_length - token_length
            if not prefix.startswith(_MAGIC) or name != _digest(key) or size <= 0:
                raise ValueError("it is no block")
            return status.st_mtime_ns, key, size
        finally:
            os.close(block)

    def _unlink(self, name: str) -> bool:
        try:
            os.unlink(name, dir_fd=self._folder)
        except OSError:
            return False
        return True


def _joined(path: Path) -> tuple[int, int, bool]:
    """Descriptors of the folder and of its lock, which is held; whether it is held alone.

    Raises:
        OSError: the folder is somebody else's, or the lock is not to be had.
    """
    deadline_s = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        folder = _own_folder(path)
        lock = -1
        try:
            lock = os.open(_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)
            for mode in (fcntl.LOCK_EX, fcntl.LOCK_SH):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, mode | fcntl.LOCK_NB)
                    # The last one that used the folder may have removed it just before.
                    if os.path.samestat(os.fstat(lock), (path / _LOCK_NAME).stat()):
                        return folder, lock, mode == fcntl.LOCK_EX
                    break
        except OSError as error:
            _close(folder, lock)
            if not isinstance(error, FileNotFoundError) or time.monotonic() >= deadline_s:
                raise
        else:
            _close(folder, lock)
            if time.monotonic() >= deadline_s:
                raise BlockingIOError(errno.EWOULDBLOCK, "its lock is held", str(path))
        time.sleep(_LOCK_RETRY_S)


def _own_folder(path: Path) -> int:
    """A descriptor of the folder at `path`, made if it is missing, which only we can look into."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(0o700)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(folder)
        raise PermissionError(errno.EPERM, "it is open to others", str(path))
    return folder


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
