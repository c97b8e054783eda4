"""Where the log lines of a process go, and which of them: one level for all of it.

Owns the level and the form, their environment variables, and the log files that a user asked for;
what lines look like belongs to `logformats`.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from msgspec import Struct

from mictlanfs import clientvariables, logformats
from mictlanfs.logfiles import TimedLogFileHandler
from mictlanfs.oserrors import translated_os_errors

LOG_LEVEL_VARIABLE = clientvariables.LOG_LEVEL.name
LOG_LEVELS = clientvariables.LOG_LEVELS
# They tell of every request, or of every step of one, where our own lines say enough.
_TALKATIVE_LOGGERS = ("httpx", "httpcore", "asyncio", "urllib3")
ERROR_SUFFIX = ".error"


class LogFiles(Struct, frozen=True):
    """Log files besides where a process logs anyway: JSON lines, begun anew now and then.

    Attributes:
        path: of the file; those that were ended have the time behind their name.
        when, interval: a file is used for so many of that unit of the standard library, as `h`.
        has_errors: whether errors also go to `NAME.error`.
    """

    path: Path
    when: str = "h"
    interval: int = 24
    has_errors: bool = True


class LogSettings(Struct, frozen=True):
    """How a server logs.

    Attributes:
        level: the least that is logged, unless MICTLANFS_LOG_LEVEL says otherwise.
        form: `json` or `text` on stderr; empty: text if that is a terminal.
        is_shown: whether lines below WARNING go to stderr.
        files: None: stderr only.
    """

    level: str = "INFO"
    form: str = ""
    is_shown: bool = True
    files: LogFiles | None = None


DEFAULT_LOGS = LogSettings()


def log_to(*handlers: logging.Handler, level: str = "INFO") -> None:
    """Send every log line of this process to `handlers`, and to nobody else.

    Args:
        handlers: where lines go.
        level: the least that is logged, unless MICTLANFS_LOG_LEVEL says otherwise.

    Raises:
        UsageError: MICTLANFS_LOG_LEVEL names no level.
    """
    variable = clientvariables.LOG_LEVEL
    said = variable.read({variable.name: os.environ.get(variable.name, "").upper()})
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(said or level)
    for talkative in _TALKATIVE_LOGGERS:
        logging.getLogger(talkative).setLevel(logging.WARNING)


def chosen_form(default: str) -> str:
    """The form of log lines that MICTLANFS_LOG_FORMAT names, else `default`.

    Raises:
        UsageError: it names none.
    """
    return clientvariables.LOG_FORMAT.read(os.environ) or default


def log_to_stderr(server: str, settings: LogSettings) -> None:
    """Send every log line of this process to stderr, and to the files of `settings`.

    Args:
        server: the name of the process in JSON lines.
        settings: how to log.

    Raises:
        UsageError: MICTLANFS_LOG_LEVEL or MICTLANFS_LOG_FORMAT mean nothing.
        MictlanError: a file cannot be opened.
    """
    form = settings.form or chosen_form(logformats.form_for_stderr())
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(logformats.formatter_of(form, server))
    if not settings.is_shown:
        shown.setLevel(logging.WARNING)
    files = [] if settings.files is None else file_handlers(settings.files, server)
    log_to(shown, *files, level=settings.level)


def file_handlers(files: LogFiles, server: str = "") -> list[logging.Handler]:
    """The handlers that write `files`.

    Raises:
        MictlanError: a file cannot be made.
    """
    paths = [files.path]
    if files.has_errors:
        paths.append(files.path.with_name(files.path.name + ERROR_SUFFIX))
    handlers: list[logging.Handler] = []
    for path, level in zip(paths, (logging.NOTSET, logging.ERROR), strict=False):
        with translated_os_errors("open", str(path)):
            handler = TimedLogFileHandler(path, files.when, files.interval)
        handler.setLevel(level)
        handler.setFormatter(logformats.JsonFormatter(server))
        handlers.append(handler)
    return handlers
