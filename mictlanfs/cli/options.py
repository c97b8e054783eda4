"""Options that several commands share, each declared once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from mictlanfs.clientvariables import LOG_FORMAT, LOG_FORMATS
from mictlanfs.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from mictlanfs.paths import LastSpace

URI_VARIABLE = "MICTLANX_CLIENT_URI"
# Long enough for a router that is being started again; `put` and `get` of data use it too.
TIMEOUT_S_DEFAULT = 10.0


@dataclass(frozen=True, slots=True)
class SpaceChoice:
    """The space a command works on.

    Attributes:
        uri: of the space.
        timeout_s: how long to try again when it does not answer.
        data: where its data is, of a space that this user made last and did not name; else None.
    """

    uri: str
    timeout_s: float
    data: Path | None = None


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
        return command(space=choose_space(uri, timeout), **values)

    return with_space


def json_option(command: Callable[..., object]) -> Callable[..., object]:
    """Give `command` the option `--json`, and `as_json: bool` for it."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def choose_uri(given: str | None) -> str:
    """The URI of the space: the one given, else that of the space this user made last.

    Raises:
        UsageError: there is none; names the remedies.
    """
    return given or _last_space().uri


def choose_space(given: str | None, timeout_s: float) -> SpaceChoice:
    """As `choose_uri`, with where the data of the space made last is."""
    if given:
        return SpaceChoice(given, timeout_s)
    last = _last_space()
    return SpaceChoice(last.uri, timeout_s, last.data)


def _last_space() -> LastSpace:
    from mictlanfs.paths import read_last_space

    last = read_last_space()
    if last is None:
        raise UsageError(
            f"which space? Give --uri URI, or set {URI_VARIABLE}, "
            "or make one with 'mictlanfs up' or 'mictlanfs server start'"
        )
    return last


class VariableOption(click.Option):
    """An option whose default is a variable; a bad value of that is refused by its name."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:  # noqa: ANN401 - as click.
        """The value as the command gets it.

        Raises:
            UsageError: the variable means nothing.
        """
        try:
            return super().process_value(ctx, value)
        except click.BadParameter as error:
            source = ctx.get_parameter_source(self.name)
            if source is not click.core.ParameterSource.ENVIRONMENT:
                raise
            names = [self.envvar] if isinstance(self.envvar, str) else list(self.envvar or ())
            name = next(name for name in names if os.environ.get(name))
            raise UsageError(f"{name} is {os.environ[name]!r}: {self._must_be(error)}") from None

    def _must_be(self, error: click.BadParameter) -> str:
        if isinstance(self.type, click.IntRange):
            return f"it must be a whole number from {self.type.min} to {self.type.max}"
        return error.message


def log_format_option(command: Callable[..., object]) -> Callable[..., object]:
    """Give `command` the option `--log-format`, and `log_format: str | None` for it."""
    return click.option(
        "--log-format",
        cls=VariableOption,
        type=click.Choice(LOG_FORMATS, case_sensitive=False),
        envvar=LOG_FORMAT.name,
        show_envvar=True,
        help="Form of log lines on stderr.  [default: text for a terminal, else json]",
    )(command)


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
