"""The log files of supervised processes: their size, and the last words of a process that died.

Processes write to their files themselves (opened for appending), so that nothing is lost when the
supervisor is killed. Owns nothing but the rule for size: a file over the limit is copied to
`NAME.log.1` and emptied. Lines written between the copy and the emptying are lost.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from mictlanfs.cli.main import PROGRAM

LOG_SIZE_BYTES_MAX = 8 * 1024 * 1024
_TAIL_SIZE_BYTES = 8 * 1024
_REASON_LENGTH_MAX = 300
_UNIMPORTANT = frozenset({"DEBUG", "INFO"})


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


def shorten(path: Path, limit: int = LOG_SIZE_BYTES_MAX) -> None:
    """Move the content of a log file over `limit` bytes to `NAME.log.1`, whoever writes to it.

    Raises:
        OSError: there is no space for the copy; the file is as it was.
    """
    if size_of(path) <= limit:
        return
    shutil.copyfile(path, path.with_name(path.name + ".1"))
    os.truncate(path, 0)


def last_words(path: Path, offset: int) -> str:
    """The last line that a process wrote behind `offset`, as a reason for people; may be empty.

    Takes the text out of a log line of JSON and the name of our program from the front. A log line
    below WARNING is no reason.
    """
    size = size_of(path)
    start = max(offset if offset <= size else 0, size - _TAIL_SIZE_BYTES)
    try:
        with path.open("rb") as file:
            file.seek(start)
            lines = file.read(_TAIL_SIZE_BYTES).decode(errors="replace").split("\n")
    except OSError:
        return ""
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return _text_of(line).removeprefix(f"{PROGRAM}: ")[:_REASON_LENGTH_MAX]


def _text_of(line: str) -> str:
    try:
        fields = json.loads(line)
    except ValueError:
        return line
    if not isinstance(fields, dict) or not isinstance(event := fields.get("event"), str):
        return line
    return "" if fields.get("level") in _UNIMPORTANT else event
