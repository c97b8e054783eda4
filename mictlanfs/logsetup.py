"""Where the log lines of a process go, and which of them: one handler, one level for all of it.

Owns the level and its environment variable; the form of lines belongs to the handler.
"""

from __future__ import annotations

import logging
import os

from mictlanfs.errors import UsageError

LOG_LEVEL_VARIABLE = "MICTLANFS_LOG_LEVEL"
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# They tell of every request, or of every step of one, where our own lines say enough.
_TALKATIVE_LOGGERS = ("httpx", "httpcore", "asyncio")


def log_to(handler: logging.Handler) -> None:
    """Send every log line of this process to `handler`, and to nobody else.

    Raises:
        UsageError: MICTLANFS_LOG_LEVEL names no level.
    """
    level = os.environ.get(LOG_LEVEL_VARIABLE, "").upper() or "INFO"
    if level not in LOG_LEVELS:
        raise UsageError(f"{LOG_LEVEL_VARIABLE} is {level!r}: use one of {', '.join(LOG_LEVELS)}")
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for talkative in _TALKATIVE_LOGGERS:
        logging.getLogger(talkative).setLevel(logging.WARNING)
