"""The last words of a supervised process that died, as a reason for people.

Knows the forms in which our processes log and complain; changes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from mictlanfs.cli.main import PROGRAM
from mictlanfs.logfiles import REASON_LENGTH_MAX, last_line

_UNIMPORTANT = frozenset({"DEBUG", "INFO"})


def last_words(path: Path, offset: int) -> str:
    """What the last line that was written to a log file behind `offset` says; may be empty.

    Takes the text out of a log line of JSON and the name of our program from the front. A log line
    below WARNING is no reason.
    """
    words = _text_of(last_line(path, offset))
    return words.removeprefix(f"{PROGRAM}: ")[:REASON_LENGTH_MAX]


def _text_of(line: str) -> str:
    try:
        fields = json.loads(line)
    except ValueError:
        return line
    if not isinstance(fields, dict):
        return line
    words = fields.get("message", fields.get("event"))
    if not isinstance(words, str):
        return line
    return "" if fields.get("level") in _UNIMPORTANT else words
