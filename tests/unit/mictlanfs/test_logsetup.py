import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.errors import MictlanError, UsageError
from mictlanfs.logsetup import (
    DEFAULT_LOGS,
    LOG_LEVEL_VARIABLE,
    LogFiles,
    LogSettings,
    file_handlers,
    log_to,
    log_to_stderr,
)
from tests.support.logs import restored_logging


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    with restored_logging() as root:
        yield root


def test_lines_go_to_the_last_handler_only(root_logger: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    for stream in (first, second):
        log_to(logging.StreamHandler(stream))
    logging.getLogger("x").info("hello")
    assert (first.getvalue(), second.getvalue()) == ("", "hello\n")
    assert len(root_logger.handlers) == 1


@pytest.mark.parametrize(
    ("value", "level"),
    [(None, "INFO"), ("", "INFO"), ("debug", "DEBUG"), ("WARNING", "WARNING")],
)
def test_the_level_comes_from_the_environment(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, value: str | None, level: str
) -> None:
    monkeypatch.delenv(LOG_LEVEL_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(LOG_LEVEL_VARIABLE, value)
    log_to(logging.NullHandler())
    assert logging.getLevelName(root_logger.level) == level
    assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)


def test_a_level_that_is_none_is_refused_with_the_choices(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = root_logger.handlers[:]
    monkeypatch.setenv(LOG_LEVEL_VARIABLE, "loud")
    with pytest.raises(UsageError, match=r"LOUD.*DEBUG, INFO, WARNING, ERROR"):
        log_to(logging.NullHandler())
    assert root_logger.handlers == before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stderr_of(
    monkeypatch: pytest.MonkeyPatch, settings: LogSettings, stream: io.StringIO | None = None
) -> list[str]:
    """What goes to stderr of an INFO, an ERROR and a DEBUG line."""
    stream = stream or io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log_to_stderr("s", settings)
    log = logging.getLogger("x")
    log.info("hello")
    log.error("trouble")
    log.debug("detail")
    return stream.getvalue().splitlines()


def test_servers_log_json_to_stderr_once(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MICTLANFS_LOG_FORMAT", raising=False)
    stderr_of(monkeypatch, DEFAULT_LOGS)
    lines = [json.loads(line) for line in stderr_of(monkeypatch, DEFAULT_LOGS)]
    assert [line["message"] for line in lines] == ["hello", "trouble"]
    assert {line["server"] for line in lines} == {"s"}
    assert len(root_logger.handlers) == 1


def test_at_a_terminal_lines_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MICTLANFS_LOG_FORMAT", raising=False)
    lines = stderr_of(monkeypatch, DEFAULT_LOGS, Terminal())
    assert lines[0].endswith(" INFO x: hello")
    json.loads(stderr_of(monkeypatch, LogSettings(form="json"), Terminal())[0])


def test_the_form_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICTLANFS_LOG_FORMAT", "Text")
    assert stderr_of(monkeypatch, DEFAULT_LOGS)[0].endswith(" INFO x: hello")
    monkeypatch.setenv("MICTLANFS_LOG_FORMAT", "xml")
    with pytest.raises(UsageError, match=r"MICTLANFS_LOG_FORMAT is 'xml'.*json, text"):
        log_to_stderr("s", DEFAULT_LOGS)


def test_only_trouble_is_shown_when_asked_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = stderr_of(monkeypatch, LogSettings(form="text", is_shown=False))
    assert [line.rpartition(": ")[2] for line in lines] == ["trouble"]


def test_files_get_all_lines_and_errors_apart(
    monkeypatch: pytest.MonkeyPatch, root_logger: logging.Logger, tmp_path: Path
) -> None:
    path = tmp_path / "a" / "log" / "router-0"
    settings = LogSettings("DEBUG", "text", is_shown=False, files=LogFiles(path))
    stderr_of(monkeypatch, settings)
    for handler in root_logger.handlers:
        handler.close()
    said = [json.loads(line)["message"] for line in path.read_text().splitlines()]
    assert said == ["hello", "trouble", "detail"]
    [line] = (tmp_path / "a" / "log" / "router-0.error").read_text().splitlines()
    assert json.loads(line)["message"] == "trouble"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_is_begun_anew_after_its_time(tmp_path: Path) -> None:
    path = tmp_path / "log"
    [handler] = file_handlers(LogFiles(path, "s", 1, has_errors=False))
    record = logging.makeLogRecord({"msg": "first"})
    handler.emit(record)
    time.sleep(1.1)
    handler.emit(logging.makeLogRecord({"msg": "second"}))
    handler.close()
    assert json.loads(path.read_text())["message"] == "second"
    [old] = tmp_path.glob("log.*")
    assert json.loads(old.read_text())["message"] == "first"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MictlanError):
        file_handlers(LogFiles(tmp_path / "file" / "log"))
