import json
import logging
import sys
from pathlib import Path
from typing import Any

from mictlanfs.logevents import Event
from mictlanfs.logformats import JSON, TEXT, JsonFormatter, formatter_of


def format_one(log: str = "a.b", **fields: Any) -> dict[str, Any]:
    values = {"name": log, "levelname": "INFO", "msg": "hello %s", "args": ("you",), **fields}
    line = JsonFormatter("server-1").format(logging.makeLogRecord(values))
    assert "\n" not in line
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def test_a_line_has_the_fields_of_the_design() -> None:
    line = format_one(threadName="T", created=0.0, msecs=7)
    fields = ["timestamp", "level", "logger_name", "thread_name", "server", "event", "message"]
    assert list(line) == fields
    assert line["timestamp"].endswith(",007")
    del line["timestamp"]
    assert line == {
        "level": "INFO",
        "logger_name": "a.b",
        "thread_name": "T",
        "server": "server-1",
        "event": "LOG.INFO",
        "message": "hello you",
    }


def test_extra_fields_follow_and_replace_nothing() -> None:
    line = format_one(peer_id="p", size=3, event="other", key=Path("x"))
    assert (line["peer_id"], line["size"], line["key"]) == ("p", 3, "x")
    assert (line["event"], line["message"]) == ("LOG.INFO", "hello you")


def test_an_exception_comes_with_its_traceback() -> None:
    try:
        raise ZeroDivisionError("a bug")
    except ZeroDivisionError:
        line = format_one(exc_info=sys.exc_info())
    assert line["exception"].splitlines()[-1] == "ZeroDivisionError: a bug"


def test_lines_break_nothing() -> None:
    line = format_one(msg="two\nlines \udcff %s\n")
    assert line["message"] == "two\nlines \udcff you"


def test_an_event_gives_its_fields_and_no_message() -> None:
    line = format_one(msg=Event("PUT.DATA", {"size": 5, "key": b"a\xff", "level": "x"}), args=())
    assert (line["event"], line["size"], line["key"]) == ("PUT.DATA", 5, "a\\xff")
    assert line["level"] == "INFO"
    assert "message" not in line


def test_people_read_plain_lines() -> None:
    values = {"name": "a.b", "levelname": "INFO", "msg": Event("PUT.DATA", {"size": 5})}
    line = formatter_of(TEXT).format(logging.makeLogRecord(values))
    assert line.endswith(" INFO a.b: PUT.DATA size=5")


def test_a_process_without_a_name_has_no_such_field() -> None:
    line = json.loads(formatter_of(JSON).format(logging.makeLogRecord({"msg": "hello"})))
    assert "server" not in line
