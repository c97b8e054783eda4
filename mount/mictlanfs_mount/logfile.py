"""Where a mount process writes its log: stderr in the foreground, a file of bounded size behind.

Owns the place of the file and of those that MICTLANX_LOG_PATH asks for besides. The file also takes
what libraries write to stdout and stderr themselves.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from pathlib import Path

from mictlanfs import clientvariables, logformats, paths
from mictlanfs.logfiles import LogFileHandler
from mictlanfs.logsetup import LogFiles, chosen_form, file_handlers, log_to
from mictlanfs.oserrors import translated_os_errors

_NAME_LENGTH_MAX = 100


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
        UsageError: a variable of logs means nothing.
    """
    _log_to(logging.StreamHandler(sys.stderr), f"mount-{os.getpid()}")


def log_to_file(path: Path) -> None:
    """Send every log line of this process, and its stdout and stderr, to a file.

    Raises:
        UsageError: a variable of logs means nothing.
        MictlanError: the file cannot be opened.
    """
    with translated_os_errors("open", str(path)):
        handler = _OutputHandler(path)
    _log_to(handler, path.stem)


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


def _log_to(handler: logging.Handler, name: str) -> None:
    handler.setFormatter(logformats.formatter_of(chosen_form(logformats.TEXT)))
    files = _files_asked_for(name)
    level = clientvariables.MOUNT_LOG_LEVEL.value(os.environ)
    log_to(handler, *(file_handlers(files) if files else []), level=level)


def _files_asked_for(name: str) -> LogFiles | None:
    """The further log files that the environment asks for; they are called `name`."""
    folder = clientvariables.MOUNT_LOG_PATH.read(os.environ)
    if folder is None or not clientvariables.MOUNT_LOG_TO_FILE.value(os.environ):
        return None
    return LogFiles(
        folder / name,
        clientvariables.MOUNT_LOG_ROTATION_WHEN.value(os.environ),
        clientvariables.MOUNT_LOG_ROTATION_INTERVAL.value(os.environ),
        clientvariables.MOUNT_LOG_ERROR_FILE.value(os.environ),
    )
