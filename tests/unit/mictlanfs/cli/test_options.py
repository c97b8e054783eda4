from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mictlanfs.cli.options import (
    URI_VARIABLE,
    SizeType,
    SpaceChoice,
    choose_uri,
    json_option,
    space_options,
)
from mictlanfs.errors import UsageError
from mictlanfs.paths import record_last_space

GIVEN, VARIABLE, LAST = "mictlanx://given:1", "mictlanx://variable:1", "mictlanx://last:1"


@click.command()
@click.option("--size", type=SizeType(), default=7)
@json_option
@space_options
def command(space: SpaceChoice, size: int, *, as_json: bool) -> None:
    click.echo(f"{space.uri} {space.timeout_s} {size} {as_json}")


def invoke(*args: str) -> str:
    return CliRunner().invoke(command, args, catch_exceptions=False).output.strip()


def test_the_option_wins_over_the_variable_and_that_over_the_last_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_last_space(LAST, tmp_path)
    assert invoke() == f"{LAST} 10.0 7 False"
    monkeypatch.setenv(URI_VARIABLE, VARIABLE)
    assert invoke("--timeout", "3", "--json") == f"{VARIABLE} 3.0 7 True"
    assert invoke("--uri", GIVEN, "--size", "2K") == f"{GIVEN} 10.0 2048 False"


def test_an_empty_variable_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_last_space(LAST, tmp_path)
    monkeypatch.setenv(URI_VARIABLE, "")
    assert invoke().startswith(LAST)


def test_without_any_space_the_remedies_are_named() -> None:
    with pytest.raises(UsageError) as caught:
        choose_uri(None)
    for remedy in ("--uri", URI_VARIABLE, "mictlanfs up"):
        assert remedy in str(caught.value)


@pytest.mark.parametrize("args", [("--size", "big"), ("--timeout", "-1"), ("--timeout", "soon")])
def test_a_bad_value_is_a_usage_error(args: tuple[str, ...]) -> None:
    result = CliRunner().invoke(command, args)
    assert result.exit_code == 2
    assert args[0] in result.output
