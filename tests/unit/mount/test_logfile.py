import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.errors import UsageError
from mictlanfs_mount import logfile
from tests.support.logs import restored_logging


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    with restored_logging():
        yield


@pytest.mark.usefixtures("user_directories")
def test_each_mountpoint_has_its_own_log() -> None:
    paths = {logfile.log_path_of(Path(text)) for text in ("/mnt/a-b", "/mnt/a/b", "/mnt/a b")}
    assert len(paths) == 3
    assert all("mnt-a-b" in path.name for path in paths)


@pytest.mark.usefixtures("user_directories")
def test_the_name_of_a_log_is_short_enough_for_any_mountpoint() -> None:
    assert len(logfile.log_path_of(Path("/" + "x/" * 2000)).name) < 255


def test_in_the_foreground_lines_go_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MICTLANFS_LOG_LEVEL", "warning")
    logfile.log_to_stderr()
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    assert capsys.readouterr().err.endswith("WARNING x: loud\n")


CHATTER = """
import logging, os, sys
from pathlib import Path
from mictlanfs import logfiles
from mictlanfs.errors import UsageError
from mictlanfs_mount import logfile
logfiles.LOG_SIZE_BYTES_MAX = 2000
logfile.log_to_file(Path(sys.argv[1]))
for number in range(100):
    logging.info("line %d of a name with \\udcff", number)
os.write(2, b"from a library\\n")
"""


def test_the_file_is_bounded_and_takes_stderr_along(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    subprocess.run([sys.executable, "-c", CHATTER, log], check=True)
    assert log.stat().st_size <= 2100
    assert log.with_name("log.1").stat().st_size <= 2100
    assert log.read_text().splitlines()[-1] == "from a library"
    assert "line 99 of a name with \\udcff" in log.read_text()
    assert sorted(path.name for path in log.parent.iterdir()) == ["log", "log.1"]
    assert log.stat().st_mode & 0o777 == 0o600


def close_files() -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()


def test_lines_are_json_when_asked_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MICTLANFS_LOG_FORMAT", "json")
    logfile.log_to_stderr()
    logging.getLogger("x").warning("loud")
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["logger_name"], line["message"]) == ("WARNING", "x", "loud")


def test_further_files_are_written_where_mictlanx_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = {"PATH": str(tmp_path / "a"), "TO_FILE": "1", "ERROR_FILE": "1", "LEVEL": "error"}
    for name, value in values.items():
        monkeypatch.setenv(f"MICTLANX_LOG_{name}", value)
    monkeypatch.delenv("MICTLANFS_LOG_LEVEL", raising=False)
    logfile.log_to_stderr()
    logging.getLogger("x").warning("not so bad")
    logging.getLogger("x").error("bad")
    close_files()
    files = sorted((tmp_path / "a").iterdir())
    assert [path.suffix for path in files] == ["", ".error"]
    for path in files:
        assert json.loads(path.read_text())["message"] == "bad"


def test_a_folder_alone_makes_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MICTLANX_LOG_PATH", str(tmp_path / "a"))
    logfile.log_to_stderr()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("LEVEL", "loud"), ("TO_FILE", "2"), ("ROTATION_WHEN", "y"), ("ROTATION_INTERVAL", "0")],
)
def test_a_bad_variable_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    monkeypatch.setenv("MICTLANX_LOG_PATH", str(tmp_path))
    monkeypatch.setenv("MICTLANX_LOG_TO_FILE", "1")
    monkeypatch.setenv(f"MICTLANX_LOG_{name}", value)
    with pytest.raises(UsageError, match=f"MICTLANX_LOG_{name} is '{value}': it must be"):
        logfile.log_to_stderr()
