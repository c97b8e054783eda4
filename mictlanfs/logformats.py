"""The two forms of log lines: one JSON object a line for programs, plain lines for people.

Owns the names of fields, which are those of MictlanX, and what becomes of events and exceptions.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from mictlanfs.logevents import Event

JSON, TEXT = "json", "text"
_TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# What every record has, and what uvicorn adds for its own colours; the rest came by `extra=`.
_RECORD_FIELDS = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON.

    Fields: `timestamp` (`YYYY-MM-DD HH:MM:SS,mmm`, local time), `level`, `logger_name`,
    `thread_name`, `server`, then `event` and the fields of an event, or `event` as `LOG.INFO` and
    the text as `message`; then whatever the caller passed by `extra=`, and `exception` with the
    traceback where there is one.

    Args:
        server: the name of the process, the field `server`; empty: without it.
    """

    def __init__(self, server: str = "") -> None:
        super().__init__()
        self._server = {"server": server} if server else {}
        self._second = -1
        self._text_of_second = ""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields: dict[str, object] = {
            "timestamp": self.formatTime(record),
            "level": record.levelname,
            "logger_name": record.name,
            "thread_name": record.threadName,
            **self._server,
        }
        said: object = record.msg
        if isinstance(said, Event):
            fields["event"] = said.name
            for name, value in said.fields.items():
                fields.setdefault(name, value)
        else:
            fields["event"] = f"LOG.{record.levelname}"
            fields["message"] = record.getMessage().strip()
        for key, value in vars(record).items():
            if key not in _RECORD_FIELDS:
                fields.setdefault(key, value)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _encode(fields)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """The local time of a record; most lines are of the second of the one before."""
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._text_of_second = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._text_of_second},{int(record.msecs):03d}"


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


_encode = json.JSONEncoder(ensure_ascii=False, default=_text).encode


def text_formatter() -> logging.Formatter:
    """A record as plain lines: time, level, logger, text, traceback."""
    return logging.Formatter(_TEXT_FORMAT)


def formatter_of(form: str, server: str = "") -> logging.Formatter:
    """The formatter of the form `form`: JSON, or TEXT."""
    return JsonFormatter(server) if form == JSON else text_formatter()


def form_for_stderr() -> str:
    """What suits who reads stderr: text for a terminal, else JSON."""
    return TEXT if sys.stderr.isatty() else JSON
