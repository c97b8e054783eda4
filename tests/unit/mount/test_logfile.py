import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.errors import UsageError
from mictlanfs_mount import logfile


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("user_directories")
def test_each_mountpoint_has_its_own_log() -> None:
    paths = {logfile.log_path_of(Path(text)) for text in ("/mnt/a-b", "/mnt/a/b", "/mnt/a b")}
    assert len(paths) == 3
    assert all("mnt-a-b" in path.name for path in paths)


@pytest.mark.usefixtures("user_directories")
def test_the_name_of_a_log_is_short_enough_for_any_mountpoint() -> None:
    assert len(logfile.log_path_of(Path("/" + "x/" * 2000)).name) < 255


def test_a_log_is_for_the_user_alone(tmp_path: Path) -> None:
    os.close(logfile.open_log(tmp_path / "log"))
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("content", "offset", "line"),
    [
        ("one\ntwo\n", 0, "two"),
        ("one\ntwo\n\n  \n", 0, "two"),
        ("one\ntwo\n", 8, ""),
        ("one\ntwo\n", 4, "two"),
        ("one\n", 100, ""),
        ("x" * 9000, 0, "x" * 300),
    ],
)
def test_the_last_line_behind_an_offset_is_found(
    tmp_path: Path, content: str, offset: int, line: str
) -> None:
    (tmp_path / "log").write_text(content)
    assert logfile.last_line(tmp_path / "log", offset) == line


def test_a_missing_log_has_no_last_line(tmp_path: Path) -> None:
    assert logfile.last_line(tmp_path / "log", 0) == ""


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logfile.LOG_LEVEL_VARIABLE, "loud")
    with pytest.raises(UsageError, match="DEBUG, INFO, WARNING, ERROR"):
        logfile.log_to_stderr()


def test_a_level_is_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logfile.LOG_LEVEL_VARIABLE, "warning")
    logfile.log_to_stderr()
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    assert "loud" in capsys.readouterr().err
    assert "quiet" not in capsys.readouterr().err


CHATTER = """
import logging, os, sys
from pathlib import Path
from mictlanfs_mount import logfile
logfile.LOG_SIZE_BYTES_MAX = 2000
logfile.log_to_file(Path(sys.argv[1]))
for number in range(100):
    logging.info("line %d of a name with \\udcff", number)
os.write(2, b"from a library\\n")
"""


def test_the_file_is_bounded_and_takes_stderr_along(tmp_path: Path) -> None:
    log = tmp_path / "log"
    subprocess.run([sys.executable, "-c", CHATTER, log], check=True)
    old = tmp_path / "log.1"
    assert log.stat().st_size <= 2100
    assert old.stat().st_size <= 2100
    assert log.read_text().splitlines()[-1] == "from a library"
    assert "line 99 of a name with \\udcff" in log.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert log.stat().st_mode & 0o777 == 0o600
