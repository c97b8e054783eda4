import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
