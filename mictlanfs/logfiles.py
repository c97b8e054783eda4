"""Log files of processes that go on without a terminal: private, bounded in size, read for reasons.

What is over the size goes to `NAME.log.1`, which is all that is kept besides. A process bounds its
own file by `LogFileHandler`, or by the time where that was asked for; where it writes to a
descriptor that others opened for it, so that nothing is lost when they are killed, they bound it by
`shorten`. Never decides where files lie or what is written to them.
"""

from __future__ import annotations

import os
import shutil
from logging.handlers import RotatingFileHandler, TimedRotatingFileHandler
from pathlib import Path

LOG_SIZE_BYTES_MAX = 8 * 1024 * 1024
# Of those that are begun anew after some time: so many are kept besides the one in use.
TIMED_LOGS_MAX = 30
_TAIL_SIZE_BYTES = 8 * 1024
# A last line that is told as a reason is never a page.
REASON_LENGTH_MAX = 300


def open_log(path: Path) -> int:
    """A descriptor that appends to the log file `path`, made with its folder when missing.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def size_of(path: Path) -> int:
    """Bytes in a log file; 0 when it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def last_line(path: Path, offset: int) -> str:
    """The last line with something in it that was written behind `offset`; may be empty.

    A file that is shorter than `offset` was begun anew: all of it counts.
    """
    size = size_of(path)
    start = max(offset if offset <= size else 0, size - _TAIL_SIZE_BYTES)
    try:
        with path.open("rb") as file:
            file.seek(start)
            lines = file.read(_TAIL_SIZE_BYTES).decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def shorten(path: Path, limit: int = LOG_SIZE_BYTES_MAX) -> None:
    """Move the content of a log file over `limit` bytes to `NAME.log.1`, whoever writes to it.

    Lines written between the copy and the emptying are lost.

    Raises:
        OSError: there is no space for the copy; the file is as it was.
    """
    if size_of(path) <= limit:
        return
    shutil.copyfile(path, path.with_name(path.name + ".1"))
    os.truncate(path, 0)


class LogFileHandler(RotatingFileHandler):
    """Writes log lines of this process to a file of bounded size, made with its folder.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        # Made here, for its owner alone.
        os.close(open_log(path))
        # A backslash, not an exception, for what UTF-8 cannot say: names are bytes.
        super().__init__(
            path,
            maxBytes=LOG_SIZE_BYTES_MAX,
            backupCount=1,
            encoding="utf-8",
            errors="backslashreplace",
        )

    def doRollover(self) -> None:  # noqa: N802 - the name is that of the standard library.
        """Begin a new file."""
        super().doRollover()
        os.chmod(self.baseFilename, 0o600)  # noqa: PTH101 - a plain string.


class TimedLogFileHandler(TimedRotatingFileHandler):
    """Writes log lines of this process to a file that is begun anew after some time.

    The folder is made when missing; the newest 30 files that were ended are kept.

    Args:
        path: of the file.
        when: unit of the interval, as the standard library names it.
        interval: how many of that unit.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, when: str, interval: int) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(open_log(path))
        super().__init__(
            path,
            when=when,
            interval=interval,
            backupCount=TIMED_LOGS_MAX,
            encoding="utf-8",
            errors="backslashreplace",
        )

    def doRollover(self) -> None:  # noqa: N802 - the name is that of the standard library.
        """Begin a new file."""
        super().doRollover()
        os.chmod(self.baseFilename, 0o600)  # noqa: PTH101 - a plain string.
