"""The directory of one router: made when missing, used by one process at a time.

The lock is flock(2) on `router.lock`: the kernel lets go of it when the process ends, however it
ends, so a lock is never stale.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from mictlanfs.errors import UsageError

LOCK_NAME = "router.lock"
DATABASE_NAME = "metadata.db"


class DataDirectory:
    """A locked data directory.

    Raises:
        UsageError: another process uses it, or it cannot be made or written; nothing was changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd = -1
        try:
            path.mkdir(parents=True, exist_ok=True)
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
