import os
from pathlib import Path

import pytest

from mictlanfs_server.logs import last_words, open_log, shorten, size_of


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
    assert log.stat().st_mode & 0o077 == 0


def test_a_missing_log_has_no_size_and_no_words(log: Path) -> None:
    assert size_of(log) == 0
    assert last_words(log, 0) == ""


def test_the_last_line_is_the_reason_without_the_name_of_our_program(log: Path) -> None:
    write(log, "something\nmictlanfs: port 1 is in use\n\n")
    assert last_words(log, 0) == "port 1 is in use"


def test_a_line_of_json_is_read_for_its_text(log: Path) -> None:
    write(log, '{"level": "ERROR", "event": "the disk is full"}\n')
    assert last_words(log, 0) == "the disk is full"


def test_a_log_line_about_ordinary_work_is_no_reason(log: Path) -> None:
    write(log, '{"level": "INFO", "event": "listening"}\n')
    assert last_words(log, 0) == ""


@pytest.mark.parametrize("line", ['{"level": "ERROR"}', '["event"]', "{not json", "42"])
def test_a_line_of_another_form_is_told_as_it_is(log: Path, line: str) -> None:
    write(log, line + "\n")
    assert last_words(log, 0) == line


def test_what_an_earlier_process_wrote_is_no_reason(log: Path) -> None:
    write(log, "old\n")
    assert last_words(log, size_of(log)) == ""


def test_an_offset_from_before_the_log_was_emptied_counts_as_its_start(log: Path) -> None:
    write(log, "new\n")
    assert last_words(log, 1000) == "new"


def test_the_end_of_a_long_log_is_found(log: Path) -> None:
    write(log, "x" * 100_000 + "\nthe end\n")
    assert last_words(log, 0) == "the end"


def test_a_reason_is_never_a_page(log: Path) -> None:
    write(log, "x" * 5000)
    assert len(last_words(log, 0)) == 300


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
