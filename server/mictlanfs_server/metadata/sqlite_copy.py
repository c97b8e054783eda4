"""A copy of the database as it was at one moment, made while others go on changing it.

The copy is SQLite's own (`sqlite3_backup`), from a connection that holds a read transaction: in WAL
mode that neither waits for the writer nor keeps it waiting, and what is committed meanwhile is not
in the copy. Nothing of it is synced: it is there to be read at once and removed, or synced by
whoever wants to keep it.

The thread works a third of the time. A low priority would be worse than none: a thread that is not
let run while it has the interpreter's lock holds up the whole router.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from mictlanfs.errors import Kind, MictlanError
from mictlanfs_server.metadata.sqlite_writer import LOG_SIZE_BYTES_MAX, connect, translated

if TYPE_CHECKING:
    import threading
    from pathlib import Path

# 1 MiB, about a millisecond of work: then others have their turn.
STEP_PAGES: Final = 256
PAUSE_FACTOR: Final = 2.0
PAUSE_S_MAX: Final = 0.05
# For the write-ahead log, twice the size at which it is copied.
ROOM_LEFT_BYTES: Final = 2 * LOG_SIZE_BYTES_MAX


class CopyStopped(Exception):  # noqa: N818 - tells of a wish, not of a failure.
    """Nobody wants the copy any more."""


class _Pace:
    """Pauses twice as long as was worked, until told to stop."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._since_s = time.monotonic()

    def __call__(self, _status: int, _remaining: int, _total: int) -> None:
        worked_s = time.monotonic() - self._since_s
        if self._stop.wait(min(PAUSE_FACTOR * worked_s, PAUSE_S_MAX)):
            raise CopyStopped
        self._since_s = time.monotonic()


def check_room(source: Path, target: Path) -> None:
    """Refuse a copy that would leave the database itself without room. Raises NO_SPACE."""
    free = shutil.disk_usage(target.parent).free
    needed = source.stat().st_size + ROOM_LEFT_BYTES
    if free < needed:
        detail = f"the disk of the router has {free} bytes free, a copy needs {needed}"
        raise MictlanError(Kind.NO_SPACE, "copy metadata", detail=detail)


def copy_database(source: Path, target: Path, stop: threading.Event) -> None:
    """Write the database `source`, as it is when this begins, into the file `target`. Blocks.

    A file that is there is replaced. What is there after an error is of no use.

    Raises:
        CopyStopped: `stop` was set meanwhile.
        MictlanError: NO_SPACE, INTERNAL.
    """
    target.unlink(missing_ok=True)
    try:
        with (
            closing(connect(source, read_only=True)) as reader,
            closing(sqlite3.connect(target, isolation_level=None)) as copy,
        ):
            copy.execute("PRAGMA journal_mode=OFF")
            copy.execute("PRAGMA synchronous=OFF")
            # From the first read on it is of one moment, whatever is committed between two steps.
            reader.execute("BEGIN")
            reader.execute("SELECT 1 FROM meta").fetchone()
            reader.backup(copy, pages=STEP_PAGES, progress=_Pace(stop))
    except sqlite3.Error as error:
        raise translated(error) from error
