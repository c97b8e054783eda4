"""Where a mount process writes its log: stderr in the foreground, a file of bounded size behind.

Owns the format of log lines and the size of the file. The file also takes what libraries write to
stdout and stderr themselves.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from mictlanfs import paths
from mictlanfs.errors import UsageError
from mictlanfs.oserrors import translated_os_errors

# The same name as for the servers.
LOG_LEVEL_VARIABLE = "MICTLANFS_LOG_LEVEL"
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
LOG_SIZE_BYTES_MAX = 8 * 1024 * 1024
_NAME_LENGTH_MAX = 100
_TAIL_SIZE_BYTES = 4096
_REASON_LENGTH_MAX = 300
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_path_of(mountpoint: Path) -> Path:
    """The log file of the mount at `mountpoint`; its folder is made.

    Raises:
        MictlanError: the folder cannot be made.
    """
    folder = paths.state_dir() / "logs"
    with translated_os_errors("make directory", str(folder)):
        folder.mkdir(mode=0o700, exist_ok=True)
    # Readable, and with the digest of the whole path unique.
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", str(mountpoint)).strip("-")[-_NAME_LENGTH_MAX:]
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:8]
    return folder / f"mount-{readable}-{digest}.log"


def open_log(path: Path) -> int:
    """A descriptor that appends to a log file.

    Raises:
        MictlanError: it cannot be opened.
    """
    with translated_os_errors("open", str(path)):
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def last_line(path: Path, offset: int) -> str:
    """The last line written to a log file behind `offset`; may be empty."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(offset, size), size - _TAIL_SIZE_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:_REASON_LENGTH_MAX]


def log_to_stderr() -> None:
    """Send every log line of this process to stderr.

    Raises:
        UsageError: MICTLANFS_LOG_LEVEL names no level.
    """
    _configure(logging.StreamHandler(sys.stderr))


def log_to_file(path: Path) -> None:
    """Send every log line of this process, and its stdout and stderr, to a file.

    A file that is over its size is renamed to `NAME.log.1` and a new one begun.

    Raises:
        UsageError: MICTLANFS_LOG_LEVEL names no level.
        MictlanError: the file cannot be opened.
    """
    with translated_os_errors("open", str(path)):
        _configure(_LogFile(path))


class _LogFile(RotatingFileHandler):
    """A log file that takes stdout and stderr along when it begins anew."""

    def __init__(self, path: Path) -> None:
        # A backslash, not an exception, for what UTF-8 cannot say: names are bytes.
        super().__init__(
            path,
            maxBytes=LOG_SIZE_BYTES_MAX,
            backupCount=1,
            encoding="utf-8",
            errors="backslashreplace",
        )
        self._take_output()

    def doRollover(self) -> None:  # noqa: N802 - the name is that of the standard library.
        """Begin a new file."""
        super().doRollover()
        self._take_output()

    def _take_output(self) -> None:
        assert self.stream is not None, "the file is opened when the handler is made"
        os.chmod(self.baseFilename, 0o600)  # noqa: PTH101 - a plain string.
        for descriptor in (1, 2):
            os.dup2(self.stream.fileno(), descriptor)


def _configure(handler: logging.Handler) -> None:
    level = os.environ.get(LOG_LEVEL_VARIABLE, "").upper() or "INFO"
    if level not in LOG_LEVELS:
        raise UsageError(f"{LOG_LEVEL_VARIABLE} is {level!r}: use one of {', '.join(LOG_LEVELS)}")
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line for every request, which says nothing here.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
