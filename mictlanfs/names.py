"""Short names of spaces: what may stand for a URI in `mount` and in /etc/fstab.

Owns the form of `spaces.conf`, which is TOML::

    [spaces]
    home = "mictlanx://mictlanx-router-0@127.0.0.1:60666/?protocol=http"

Never writes it. A name is looked up in the user's file first, then in that of the machine.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from mictlanfs import paths
from mictlanfs.errors import UsageError
from mictlanfs.uri import SCHEME, parse_routers

FILE_NAME = "spaces.conf"
_TABLE = "spaces"
# Neither a path nor anything that the options of a mount would have to escape.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def is_uri(spec: str) -> bool:
    """Whether `spec` is a URI of a space, right or wrong, and not a short name."""
    return "://" in spec or spec.startswith(SCHEME)


def uri_of(spec: str) -> str:
    """The URI that `spec` is, or that it is the short name of.

    Raises:
        UsageError: it is neither, or a file that was looked into is wrong; names the remedy.
    """
    if is_uri(spec):
        parse_routers(spec)
        return spec
    if not _NAME.fullmatch(spec):
        raise UsageError(
            f"{spec!r} is neither a URI ({SCHEME}…) nor a short name "
            "(letters, digits, '_', '-' and '.', at most 64)"
        )
    files = [directory / FILE_NAME for directory in paths.configuration_dirs()]
    for file in files:
        uri = _read(file).get(spec)
        if uri is not None:
            return _checked(uri, spec, file)
    looked_into = " or ".join(map(str, files))
    raise UsageError(
        f'no space is called {spec!r}: write {spec} = "{SCHEME}…" below [{_TABLE}] in {looked_into}'
    )


def _read(file: Path) -> dict[str, object]:
    """The table of a file; empty when there is no such file."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file} is not TOML: {error}") from error
    table = content.get(_TABLE)
    if not isinstance(table, dict):
        raise UsageError(f"{file} has no table [{_TABLE}]")
    return table


def _checked(uri: object, name: str, file: Path) -> str:
    if not isinstance(uri, str):
        raise UsageError(f"{file}: {name} is not a text in quotes")
    try:
        parse_routers(uri)
    except UsageError as error:
        raise UsageError(f"{file}: {name}: {error}") from error
    return uri
