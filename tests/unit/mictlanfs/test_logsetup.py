import io
import logging
from collections.abc import Iterator

import pytest

from mictlanfs.errors import UsageError
from mictlanfs.logsetup import LOG_LEVEL_VARIABLE, log_to
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
