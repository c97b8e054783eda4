"""The directory of one router: made when missing, durably, used by one process at a time.

The lock is flock(2) on `router.lock`: the kernel lets go of it when the process ends, however it
ends, so a lock is never stale.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mictlanfs.durable import make_folder, sync_folder
from mictlanfs.errors import UsageError

LOCK_NAME = "router.lock"
DATABASE_NAME = "metadata.db"
# A database that is still being made; what a crash leaves of it is made anew.
UNFINISHED_NAME = "metadata.db.unfinished"
_UNFINISHED = tuple(f"{UNFINISHED_NAME}{suffix}" for suffix in ("", "-wal", "-shm", "-journal"))
# What mkfs leaves in the root of a new file system does not make it somebody's.
_IGNORED = frozenset({LOCK_NAME, "lost+found", *_UNFINISHED})


class DataDirectory:
    """A locked data directory.

    Raises:
        UsageError: another process uses it, or it cannot be made or written; nothing was changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd = -1
        try:
            make_folder(path)
            lock_fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(
                f"the data directory {path} cannot be used: {error.strerror}"
            ) from error
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock_fd)
            raise UsageError(
                f"another router uses {path}: stop it first, or choose another directory"
            ) from error
        self._lock_fd = lock_fd

    @property
    def database(self) -> Path:
        """Where the metadata is."""
        return self.path / DATABASE_NAME

    def close(self) -> None:
        """Unlock; can be repeated."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


@contextmanager
def new_database(path: Path) -> Iterator[Path]:
    """A place for a new database in an empty directory, which is locked inside the block.

    The database is there when the block ends without an error, whole and durable; else the
    directory is as empty as before. It must be closed by then, with nothing left in a write-ahead
    log.

    Raises:
        UsageError: the directory holds something, is in use, or cannot be used.
        OSError: the disk failed.
    """
    _refuse_occupied(path)
    directory = DataDirectory(path)
    unfinished = path / UNFINISHED_NAME
    try:
        _refuse_occupied(path)
        _remove_unfinished(path)
        try:
            yield unfinished
            descriptor = os.open(unfinished, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            unfinished.replace(directory.database)
        finally:
            _remove_unfinished(path)
        sync_folder(path)
    finally:
        directory.close()


def _refuse_occupied(path: Path) -> None:
    try:
        found = sorted(entry.name for entry in path.iterdir() if entry.name not in _IGNORED)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"the directory {path} cannot be used: {error.strerror}") from error
    if found:
        raise UsageError(f"{path} is not empty (it has {found[0]!r}): choose an empty directory")


def _remove_unfinished(path: Path) -> None:
    for name in _UNFINISHED:
        (path / name).unlink(missing_ok=True)
