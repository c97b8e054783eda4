import logging
import os
from pathlib import Path

import pytest

from mictlanfs import logfiles
from mictlanfs.logfiles import LogFileHandler, last_line, open_log, shorten, size_of


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log" / "peer-0.log"


def write(log: Path, text: str) -> None:
    descriptor = open_log(log)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def test_a_log_is_made_with_its_folder_for_its_owner_alone(log: Path) -> None:
    write(log, "a\n")
    write(log, "b\n")
    assert log.read_text() == "a\nb\n"
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700


def test_a_missing_log_has_no_size_and_no_last_line(log: Path) -> None:
    assert size_of(log) == 0
    assert last_line(log, 0) == ""


@pytest.mark.parametrize(
    ("content", "offset", "line"),
    [
        ("one\ntwo\n", 0, "two"),
        ("one\ntwo\n\n  \n", 0, "two"),
        ("one\ntwo", 0, "two"),
        ("one\ntwo\n", 4, "two"),
        ("one\ntwo\n", 8, ""),
        ("", 0, ""),
        ("begun anew\n", 100, "begun anew"),
        ("x" * 100_000 + "\nthe end\n", 0, "the end"),
    ],
)
def test_the_last_line_behind_an_offset_is_found(
    log: Path, content: str, offset: int, line: str
) -> None:
    write(log, content)
    assert last_line(log, offset) == line


def test_of_an_endless_line_the_end_is_told(log: Path) -> None:
    write(log, "x" * 100_000)
    assert 0 < len(last_line(log, 0)) <= 8192


# --- size ----------------------------------------------------------------------------------------


def test_a_log_over_the_limit_is_kept_aside_once_and_goes_on_from_nothing(log: Path) -> None:
    writer = open_log(log)
    os.write(writer, b"first\n" * 10)
    shorten(log, limit=20)
    os.write(writer, b"second\n")
    os.close(writer)
    assert log.read_text() == "second\n"
    assert log.with_name("peer-0.log.1").read_text() == "first\n" * 10


def test_a_log_within_the_limit_is_left_alone(log: Path) -> None:
    write(log, "a\n")
    shorten(log, limit=20)
    assert [path.name for path in log.parent.iterdir()] == ["peer-0.log"]


def test_a_handler_bounds_its_own_file(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfiles, "LOG_SIZE_BYTES_MAX", 1000)
    handler = LogFileHandler(log)
    for number in range(100):
        handler.handle(logging.makeLogRecord({"msg": f"line {number} of \udcff"}))
    handler.close()
    assert log.read_text().splitlines()[-1] == "line 99 of \\udcff"
    assert sorted(path.name for path in log.parent.iterdir()) == ["peer-0.log", "peer-0.log.1"]
    for path in log.parent.iterdir():
        assert path.stat().st_size <= 1000
        assert path.stat().st_mode & 0o777 == 0o600
