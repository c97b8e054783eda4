"""Options that several commands share, each declared once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from mictlanfs.errors import UsageError

URI_VARIABLE = "MICTLANX_CLIENT_URI"
# Long enough for a router that is being started again; `put` and `get` of data use it too.
TIMEOUT_S_DEFAULT = 10.0


@dataclass(frozen=True, slots=True)
class SpaceChoice:
    """The space a command works on.

    Attributes:
        uri: of the space.
        timeout_s: how long to try again when it does not answer.
    """

    uri: str
    timeout_s: float


def space_options(command: Callable[..., object]) -> Callable[..., object]:
    """Give `command` the options `--uri` and `--timeout`, and `space: SpaceChoice` for them."""

    @click.option(
        "--uri",
        envvar=URI_VARIABLE,
        show_envvar=True,
        metavar="URI",
        help="The space; by default the one this user made last.",
    )
    @click.option(
        "--timeout",
        type=click.FloatRange(min=0),
        default=TIMEOUT_S_DEFAULT,
        show_default=True,
        metavar="SECONDS",
        help="How long to try again when the space does not answer.",
    )
    @functools.wraps(command)
    def with_space(uri: str | None, timeout: float, **values: Any) -> object:
        return command(space=SpaceChoice(choose_uri(uri), timeout), **values)

    return with_space


def json_option(command: Callable[..., object]) -> Callable[..., object]:
    """Give `command` the option `--json`, and `as_json: bool` for it."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def choose_uri(given: str | None) -> str:
    """The URI of the space: the one given, else that of the space this user made last.

    Raises:
        UsageError: there is none; names the remedies.
    """
    if given:
        return given
    from mictlanfs.paths import read_last_space

    last = read_last_space()
    if last is None:
        raise UsageError(
            f"which space? Give --uri URI, or set {URI_VARIABLE}, "
            "or make one with 'mictlanfs up' or 'mictlanfs server start'"
        )
    return last.uri


class SizeType(click.ParamType[int]):
    """A size such as `256M`; units are powers of 1024."""

    name = "size"

    def convert(
        self,
        value: Any,  # noqa: ANN401  # As click declares it.
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Bytes."""
        from mictlanfs.config import parse_size

        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
