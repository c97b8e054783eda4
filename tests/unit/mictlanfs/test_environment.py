import errno
import logging
import os
from pathlib import Path

import pytest

from mictlanfs import clientvariables
from mictlanfs.environment import (
    FILE_NAMES,
    Variable,
    ineffective,
    log_ineffective,
    may_come_from_file,
    one_of,
    path_of,
    read_environment_file,
    switch,
    text_of,
    whole_number,
)
from mictlanfs.errors import UsageError

log = logging.getLogger("tests.environment")


# --- values --------------------------------------------------------------------------------------


def test_what_is_not_set_has_the_default() -> None:
    assert Variable("A", "", text_of, "x").read({}) == "x"
    assert Variable("A", "", text_of, "x").read({"A": " "}) == "x"
    assert Variable("A", "", text_of).read({"A": ""}) is None
    assert Variable("A", "", text_of, "x").value({"A": " y "}) == "y"


@pytest.mark.parametrize("text", ["1", "true", "YES", "On"])
def test_a_switch_is_on_in_several_words(text: str) -> None:
    assert Variable("A", "", switch, "0").value({"A": text}) is True


@pytest.mark.parametrize("text", ["0", "false", "No", "off"])
def test_a_switch_is_off_in_several_words(text: str) -> None:
    assert Variable("A", "", switch, "1").value({"A": text}) is False


@pytest.mark.parametrize(
    ("variable", "text", "must_be"),
    [
        (Variable("A_B", "", switch), "2", "1 or 0"),
        (Variable("A_B", "", whole_number(1, 9)), "10", "a whole number from 1 to 9"),
        (Variable("A_B", "", whole_number(1, 9)), "-1", "a whole number from 1 to 9"),
        (Variable("A_B", "", whole_number(1, 9)), "1.5", "a whole number from 1 to 9"),
        (Variable("A_B", "", one_of("x", "Y")), "z", "one of x, Y"),
    ],
)
def test_a_bad_value_is_refused_by_name_with_what_it_must_be(
    variable: Variable[object], text: str, must_be: str
) -> None:
    with pytest.raises(UsageError) as caught:
        variable.read({"A_B": text})
    assert str(caught.value) == f"A_B is {text!r}: it must be {must_be}"


def test_words_come_in_any_case_and_go_as_declared() -> None:
    assert Variable("A", "", one_of("x", "Y")).read({"A": "y"}) == "Y"


def test_a_path_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Variable("A", "", path_of).read({"A": "log"}) == tmp_path / "log"


# --- without effect ------------------------------------------------------------------------------


def test_what_is_set_in_vain_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, log.name)
    declared = [ineffective("A", ""), ineffective("B_*", ""), ineffective("C", "")]
    log_ineffective(log, declared, {"A": "1", "B_2": "x", "B_1": "x", "B_3": "", "D": "1"})
    [record] = caplog.records
    assert "A, B_1, B_2 (" in record.getMessage()


def test_nothing_is_said_when_nothing_is_set(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, log.name)
    log_ineffective(log, [ineffective("A", ""), ineffective("B", "")], {"A": ""})
    assert not caplog.records


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_environment_wins_over_its_file(folder: Path) -> None:
    (folder / ".env.local").write_text("MICTLANX_CLIENT_URI=file\nexport NODE_ID='peer 1' # x\n")
    environ = {"MICTLANX_CLIENT_URI": "real"}
    assert read_environment_file(environ) == folder / ".env.local"
    assert environ == {"MICTLANX_CLIENT_URI": "real", "NODE_ID": "peer 1"}


def test_without_a_file_nothing_happens(folder: Path) -> None:
    environ: dict[str, str] = {}
    assert read_environment_file(environ) is None
    assert not environ


def test_a_current_directory_that_was_removed_has_no_file(folder: Path) -> None:
    gone = folder / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert read_environment_file({}) is None


def test_a_place_that_cannot_be_looked_into_has_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(_: Path) -> bool:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(Path, "is_file", dead)
    assert read_environment_file({}) is None


@pytest.mark.parametrize("variable", ["ENV_FILE_PATH", "MICTLANX_ENV_FILE"])
def test_a_named_file_is_read_and_its_name_made_absolute(folder: Path, variable: str) -> None:
    (folder / ".env.local").write_text("NODE_ID=other\n")
    (folder / "my.env").write_text("NODE_PORT=${NODE_ID}1\nNODE_ID=7\n")
    environ = {variable: "my.env"}
    read_environment_file(environ)
    assert environ[variable] == str(folder / "my.env")
    assert environ["NODE_ID"] == "7"


def test_a_named_file_that_is_missing_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.env \(named by ENV_FILE_PATH\)"):
        read_environment_file({"ENV_FILE_PATH": "missing.env"})


def test_a_line_that_means_nothing_is_refused_by_its_number(folder: Path) -> None:
    (folder / ".env.local").write_text("NODE_ID=1\n= what\n")
    with pytest.raises(UsageError, match=r"\.env\.local, line 2: it must be NAME=value"):
        read_environment_file({})


def test_a_file_cannot_reach_other_programs(folder: Path) -> None:
    (folder / ".env.local").write_text(
        "LD_PRELOAD=x\nPATH=x\nPYTHONPATH=x\nHOME=x\nXDG_STATE_HOME=x\nNODE_ID=1\n"
    )
    environ: dict[str, str] = {}
    read_environment_file(environ)
    assert environ == {"NODE_ID": "1"}


# --- declarations --------------------------------------------------------------------------------


def test_defaults_of_clients_are_values() -> None:
    for variable in clientvariables.EFFECTIVE:
        if variable.default:
            variable.value({})


def test_whatever_is_declared_may_come_from_a_file_except_the_name_of_the_file() -> None:
    declared = [*clientvariables.EFFECTIVE, *clientvariables.INEFFECTIVE]
    left_out = {v.name for v in declared if not may_come_from_file(v.name)}
    assert left_out == {"ENV_FILE_PATH"}
    assert "PATH" not in FILE_NAMES
