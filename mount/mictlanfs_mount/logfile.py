"""Where a mount process writes its log: stderr in the foreground, a file of bounded size behind.

Owns the place of the file and the form of log lines. The file also takes what libraries write to
stdout and stderr themselves.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from pathlib import Path

from mictlanfs import paths
from mictlanfs.logfiles import LogFileHandler
from mictlanfs.logsetup import log_to
from mictlanfs.oserrors import translated_os_errors

_NAME_LENGTH_MAX = 100
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_path_of(mountpoint: Path) -> Path:
    """The log file of the mount at `mountpoint`.

    Raises:
        MictlanError: the state directory cannot be made.
    """
    # Readable, and with the digest of the whole path unique.
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", str(mountpoint)).strip("-")[-_NAME_LENGTH_MAX:]
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:8]
    return paths.state_dir() / "logs" / f"mount-{readable}-{digest}.log"


def log_to_stderr() -> None:
    """Send every log line of this process to stderr.

    Raises:
        UsageError: MICTLANFS_LOG_LEVEL names no level.
    """
    _log_to(logging.StreamHandler(sys.stderr))


def log_to_file(path: Path) -> None:
    """Send every log line of this process, and its stdout and stderr, to a file.

    Raises:
        UsageError: MICTLANFS_LOG_LEVEL names no level.
        MictlanError: the file cannot be opened.
    """
    with translated_os_errors("open", str(path)):
        handler = _OutputHandler(path)
    _log_to(handler)


class _OutputHandler(LogFileHandler):
    """A log file that takes stdout and stderr along when it begins anew."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._take_output()

    def doRollover(self) -> None:  # noqa: N802 - the name is that of the standard library.
        """Begin a new file."""
        super().doRollover()
        self._take_output()

    def _take_output(self) -> None:
        assert self.stream is not None, "the file is opened when the handler is made"
        for descriptor in (1, 2):
            os.dup2(self.stream.fileno(), descriptor)


def _log_to(handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    log_to(handler)
