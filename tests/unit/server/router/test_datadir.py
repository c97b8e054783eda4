import os
import subprocess
import sys
from pathlib import Path

import pytest

from mictlanfs.errors import UsageError
from mictlanfs_server.router.datadir import DataDirectory


def test_directory_is_made_with_those_above_it(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "a" / "b")
    assert data.database == tmp_path / "a" / "b" / "metadata.db"
    assert data.path.is_dir()
    data.close()


def test_the_name_of_a_new_directory_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    DataDirectory(tmp_path / "a" / "b").close()
    assert {str(tmp_path), str(tmp_path / "a")} <= set(synced)


def test_second_owner_is_refused_in_one_line_that_names_the_remedy(tmp_path: Path) -> None:
    first = DataDirectory(tmp_path)
    with pytest.raises(UsageError) as raised:
        DataDirectory(tmp_path)
    line = str(raised.value)
    assert "\n" not in line
    assert str(tmp_path) in line
    assert "stop it first" in line
    first.close()
    first.close()
    DataDirectory(tmp_path).close()


def test_lock_holds_between_processes_and_ends_with_its_owner(tmp_path: Path) -> None:
    source = (
        "import sys; from pathlib import Path;"
        "from mictlanfs_server.router.datadir import DataDirectory;"
        "data = DataDirectory(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    path = ":".join(str(Path(__file__).parents[4] / part) for part in (".", "server"))
    with subprocess.Popen(
        [sys.executable, "-c", source, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": path},
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(UsageError):
            DataDirectory(tmp_path)
        owner.kill()
        owner.wait()
    DataDirectory(tmp_path).close()


def test_path_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UsageError, match="cannot be used"):
        DataDirectory(file / "data")
