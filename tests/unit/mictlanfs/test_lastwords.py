from pathlib import Path

import pytest

from mictlanfs.lastwords import last_words


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "peer-0.log"


def test_a_missing_log_has_no_words(log: Path) -> None:
    assert last_words(log, 0) == ""


def test_the_last_line_is_the_reason_without_the_name_of_our_program(log: Path) -> None:
    log.write_text("something\nmictlanfs: port 1 is in use\n\n")
    assert last_words(log, 0) == "port 1 is in use"


@pytest.mark.parametrize("detail", ["", "x" * 1000])
def test_a_line_of_json_is_read_for_its_text(log: Path, detail: str) -> None:
    log.write_text(f'{{"level": "ERROR", "event": "the disk is full", "detail": "{detail}"}}\n')
    assert last_words(log, 0) == "the disk is full"


def test_a_log_line_about_ordinary_work_is_no_reason(log: Path) -> None:
    log.write_text('{"level": "INFO", "event": "listening"}\n')
    assert last_words(log, 0) == ""


@pytest.mark.parametrize("line", ['{"level": "ERROR"}', '["event"]', "{not json", "42"])
def test_a_line_of_another_form_is_told_as_it_is(log: Path, line: str) -> None:
    log.write_text(line + "\n")
    assert last_words(log, 0) == line


def test_what_an_earlier_process_wrote_is_no_reason(log: Path) -> None:
    log.write_text("old\n")
    assert last_words(log, 4) == ""


def test_a_reason_is_never_a_page(log: Path) -> None:
    log.write_text("x" * 5000)
    assert len(last_words(log, 0)) == 300
