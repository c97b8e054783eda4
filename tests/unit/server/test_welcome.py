import shlex
import sys
from pathlib import Path

import pytest

from mictlanfs_server.welcome import Welcome, program, quoted

URI = "mictlanx://mictlanx-router-0@127.0.0.1:60666/?protocol=http&api_version=4&http2=0"
PATH_OF_OURS = {"PATH": str(Path(sys.executable).parent)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def welcome(here: Path, *, options: str = "", is_detached: bool = False) -> Welcome:
    return Welcome(URI, here / "vss", here / "vss-data", options, is_detached)


def test_everything_one_has_to_know_is_said(here: Path) -> None:
    text = welcome(here).text(PATH_OF_OURS)
    assert URI in text
    assert f"mounted at  {here}/vss\n" in text
    assert f"data in     {here}/vss-data\n" in text
    assert text.endswith("Ctrl-C stops everything; the data stays in ./vss-data.")


def test_a_detached_space_is_stopped_by_a_command(here: Path) -> None:
    text = welcome(here, is_detached=True).text(PATH_OF_OURS)
    assert "`mictlanfs down --data ./vss-data` stops everything" in text
    assert "Ctrl-C" not in text


def test_the_commands_are_those_one_would_type_here(here: Path) -> None:
    made, copied, listed = welcome(here).commands(PATH_OF_OURS)
    assert made == "mkdir -p ./vss/photos"
    _, _, source, target = shlex.split(copied)
    assert Path(source).is_dir()
    assert target == "./vss/photos/"
    assert listed == "mictlanfs ls -l photos"


def test_a_space_chosen_by_the_environment_is_overruled_where_it_is_another(here: Path) -> None:
    other = {**PATH_OF_OURS, "MICTLANX_CLIENT_URI": "mictlanx://another:1"}
    assert welcome(here).commands(other)[-1] == f"mictlanfs ls -l --uri '{URI}' photos"
    same = {**PATH_OF_OURS, "MICTLANX_CLIENT_URI": URI}
    assert welcome(here).commands(same)[-1] == "mictlanfs ls -l photos"


@pytest.mark.parametrize("options", ["ro", "subdir=photos/a"])
def test_where_the_commands_could_not_work_others_are_shown(here: Path, options: str) -> None:
    assert welcome(here, options=options).commands(PATH_OF_OURS) == ["ls -la ./vss"]


def test_paths_with_blanks_are_quoted_and_far_ones_absolute(here: Path) -> None:
    assert quoted(here / "my files") == "'./my files'"
    assert quoted(Path("/usr")) == "/usr"
    assert quoted(here.parent) == str(here.parent)


def test_the_program_is_named_so_that_a_shell_finds_it(here: Path) -> None:
    assert program(PATH_OF_OURS) == "mictlanfs"
    assert program({"PATH": str(here)}) == str(Path(sys.executable).parent / "mictlanfs")
