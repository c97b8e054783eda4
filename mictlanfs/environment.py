"""Environment variables, each declared once: name, default, unit, effect; and files of them.

Owns how a value is read and refused, and which names a file may set. What a variable does is
decided where its value is used; those without effect are declared too, with the reason, since
programs of MictlanX set them. An empty value counts as none. The table in `docs/configuration.md`
is made from the declarations: those of clients and mounts are in `clientvariables`, the server has
its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Generic, TypeVar

from mictlanfs.errors import UsageError

T_co = TypeVar("T_co", covariant=True)

ENV_FILE_VARIABLES = ("ENV_FILE_PATH", "MICTLANX_ENV_FILE")
ENV_FILE_DEFAULT = ".env.local"
# A file found in the current directory must not reach other programs, as PATH or LD_PRELOAD would.
FILE_PREFIXES = ("MICTLANX_", "MICTLANFS_", "OTEL_", "NODE_")
FILE_NAMES = frozenset(
    {
        *("IP_ADDRESS", "SERVER_IP_ADDR", "DATA_PATH", "BASE_PATH", "LOCAL_PATH", "LOG_PATH"),
        *("PEERS", "OPENAPI_PREFIX", "MAX_WORKERS", "WORKERS", "PAYLOAD_LIMIT", "PROTOCOL"),
        *("CLIENT_REQUEST_TIMEOUT", "CLIENT_DISCONNECT_TIMEOUT", "CLEAN_CACHE", "ELASTIC"),
        *("MIN_INTERVAL_TIME", "MAX_INTERVAL_TIME", "TRAVERSE_AND_CLEAN", "CLIENT_ID"),
        *("DISK_CHECK_INTERVAL_TIME", "PEERS_CONFIG_PATH", "GITHUB_ACTIONS"),
    }
)

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class Variable(Generic[T_co]):
    """One variable of the environment.

    Not a data class: there are a hundred, and every command makes them.

    Attributes:
        name: as it is set; with `*` at its end all that begin so.
        text: what it does; for one without effect, why it has none.
        parse: gives its value; raises ValueError with what is wrong. None: it has no effect.
        default: as a user would write it; empty when there is none.
        unit: of a plain number; empty where it has none.
    """

    __slots__ = ("default", "name", "parse", "text", "unit")

    def __init__(
        self,
        name: str,
        text: str,
        parse: Callable[[str], T_co] | None,
        default: str = "",
        unit: str = "",
    ) -> None:
        self.name = name
        self.text = text
        self.parse = parse
        self.default = default
        self.unit = unit

    def read(self, environ: Mapping[str, str]) -> T_co | None:
        """The value; None when it is neither set nor has a default.

        Raises:
            UsageError: the value means nothing; names the variable and what it must be.
        """
        assert self.parse is not None, f"{self.name} has no effect"
        text = environ.get(self.name, "").strip() or self.default
        if not text:
            return None
        try:
            return self.parse(text)
        except ValueError as error:
            raise UsageError(f"{self.name} is {text!r}: {error}") from None

    def value(self, environ: Mapping[str, str]) -> T_co:
        """The value of a variable that has a default. Raises as `read` does."""
        found = self.read(environ)
        assert found is not None, f"{self.name} has no default"
        return found

    def names_set(self, environ: Mapping[str, str]) -> list[str]:
        """The names that this declares and `environ` gives a value."""
        if not self.name.endswith("*"):
            return [self.name] if environ.get(self.name) else []
        start = self.name[:-1]
        return sorted(name for name in environ if name.startswith(start) and environ[name])


def ineffective(name: str, reason: str, default: str = "", unit: str = "") -> Variable[None]:
    """The declaration of a variable without effect; `default` and `unit` as MictlanX has them."""
    return Variable(name, reason, None, default, unit)


# --- what values look like -----------------------------------------------------------------------


def text_of(text: str) -> str:
    """Any text."""
    return text


def switch(text: str) -> bool:
    """1 or 0, also in words."""
    if (word := text.lower()) in _TRUE | _FALSE:
        return word in _TRUE
    raise ValueError("it must be 1 or 0")


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if text.isascii() and text.isdecimal() and least <= int(text) <= most:
            return int(text)
        raise ValueError(f"it must be a whole number from {least} to {most}")

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    """One of `words`, in any case; gives it as it stands there."""
    known = {word.lower(): word for word in words}

    def parse(text: str) -> str:
        if (found := known.get(text.lower())) is not None:
            return found
        raise ValueError(f"it must be one of {', '.join(words)}")

    return parse


def path_of(text: str) -> Path:
    """A path, from the current directory when it is relative."""
    return Path(text).expanduser().absolute()


# --- files ---------------------------------------------------------------------------------------


def read_environment_file(environ: MutableMapping[str, str]) -> Path | None:
    """Give `environ` what the file of variables says and it has not got itself.

    The file is the one that ENV_FILE_PATH or MICTLANX_ENV_FILE names, else `.env.local` in the
    current directory if there is one. Names that are not ours are passed over. The variable that
    names the file is made absolute, for processes in other directories.

    Returns:
        The file, None when there is none.

    Raises:
        UsageError: a file that was named cannot be read, or a line of it means nothing.
    """
    variable = next((name for name in ENV_FILE_VARIABLES if environ.get(name)), None)
    path = Path(environ[variable] if variable else ENV_FILE_DEFAULT)
    if variable is None and not _is_there(path):
        return None
    path = path.absolute()
    # The library takes a while to load, and hardly anybody has such a file.
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    said = f" (named by {variable})" if variable else ""
    try:
        with path.open(encoding="utf-8") as file:
            bad = next((item for item in parse_stream(file) if item.error), None)
        values = dotenv_values(path)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot read variables from {path}{said}: {error}") from error
    if bad is not None:
        raise UsageError(f"{path}, line {bad.original.line}: it must be NAME=value")
    for name, value in values.items():
        if value is not None and may_come_from_file(name):
            environ.setdefault(name, value)
    if variable is not None:
        environ[variable] = str(path)
    return path


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # A current directory that was removed, is forbidden, or lies in a mount that is dead.
        return False


def may_come_from_file(name: str) -> bool:
    """Whether a file may set the variable `name`."""
    return name in FILE_NAMES or name.startswith(FILE_PREFIXES)


def log_ineffective(
    log: logging.Logger, variables: Iterable[Variable[None]], environ: Mapping[str, str]
) -> None:
    """Say in one line which of `variables` are set in vain, if any."""
    names = [name for variable in variables for name in variable.names_set(environ)]
    if names:
        log.info("without effect here: %s (see docs/configuration.md)", ", ".join(names))


def load() -> None:
    """Complete the environment of this process from its file. Raises as its reading does."""
    read_environment_file(os.environ)
