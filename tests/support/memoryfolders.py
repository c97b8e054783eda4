"""Temporary folders in memory, for tests whose files are of SQLite alone.

A metadata store syncs all that it commits, 12 ms each time on a disk that others use too. Nothing
else may be here: a file system in memory knows no RWF_NOWAIT, so that chunks on it are read in
another way than on a disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")
# Far more than the largest store of a test.
_ROOM_BYTES_MIN = 1 << 30


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """An empty folder, removed on leaving; on disk where memory has no room for it."""
    where = _MEMORY if _has_room() else None
    with tempfile.TemporaryDirectory(prefix="mictlanfs-test-", dir=where) as name:
        yield Path(name)


def _has_room() -> bool:
    try:
        found = os.statvfs(_MEMORY)
    except OSError:
        return False
    return os.access(_MEMORY, os.W_OK) and found.f_bavail * found.f_frsize >= _ROOM_BYTES_MIN
