"""What commands print: names that are safe for a terminal, JSON, modes, times, owners."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.exits import exit_code_of
from mictlanfs.cli.main import complain
from mictlanfs.errors import MictlanError, UsageError

if TYPE_CHECKING:
    from mictlanfs.model import Attributes, Node

_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "'": "\\'"}
NANOSECONDS = 1_000_000_000


def quoted(name: bytes) -> str:
    r"""`name` as it is when a terminal can show it, else in the form `$'a\nb'` that shells read."""
    text = os.fsdecode(name)
    if text.isprintable():
        return text
    parts = []
    for character in text:
        if character in _ESCAPES:
            parts.append(_ESCAPES[character])
        elif character.isprintable():
            parts.append(character)
        else:
            parts.extend(f"\\x{byte:02x}" for byte in os.fsencode(character))
    return "$'" + "".join(parts) + "'"


def print_name(name: bytes, before: str = "", after: str = "") -> None:
    """Print a line with a name: quoted on a terminal, byte for byte into a pipe or file."""
    if sys.stdout.isatty():
        click.echo(f"{before}{quoted(name)}{after}")
    else:
        click.echo(os.fsencode(before) + name + os.fsencode(after))


def print_json(value: object) -> None:
    r"""Print one JSON document. Names that are not UTF-8 have their odd bytes as `\udcXX`."""
    click.echo(json.dumps(value, indent=2))


class JsonList:
    """A JSON list that is printed item by item."""

    def __init__(self) -> None:
        self._is_empty = True

    def add(self, item: Mapping[str, object]) -> None:
        """Print one more item."""
        click.echo(("[\n" if self._is_empty else ",\n") + json.dumps(item), nl=False)
        self._is_empty = False

    def end(self) -> None:
        """Print the end of the list."""
        click.echo("[]" if self._is_empty else "\n]")


@contextmanager
def json_list() -> Iterator[JsonList]:
    """A JSON list that is complete when the block ends, with an error or without."""
    items = JsonList()
    try:
        yield items
    finally:
        items.end()


class Failures:
    """Errors of single files: each is reported at once, and the command goes on."""

    def __init__(self) -> None:
        self._codes: list[int] = []

    def add(self, error: MictlanError) -> None:
        """Report one."""
        complain(str(error))
        self._codes.append(exit_code_of(error))

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Report the error that ends the block, and go on behind it.

        Raises:
            MictlanError: one that every other file would meet too: the space does not answer.
            UsageError: the command itself is wrong.
        """
        try:
            yield
        except MictlanError as error:
            if error.is_retryable or isinstance(error, UsageError):
                raise
            self.add(error)

    def exit_if_any(self) -> None:
        """End the command with the code of the first error, if there was one."""
        if self._codes:
            raise click.exceptions.Exit(self._codes[0])


# --- attributes ----------------------------------------------------------------------------------


def described(path: bytes, node: Node) -> dict[str, object]:
    """What `--json` says of a file."""
    attributes = node.attributes
    name = path.rpartition(b"/")[2]
    description: dict[str, object] = {
        "path": os.fsdecode(path),
        "name": os.fsdecode(name),
        "kind": kind_word(attributes),
        "ino": attributes.ino,
        "mode": f"{attributes.mode:04o}",
        "uid": attributes.uid,
        "gid": attributes.gid,
        "size": attributes.size,
        "nlink": attributes.nlink,
        "atime_ns": attributes.atime_ns,
        "mtime_ns": attributes.mtime_ns,
        "ctime_ns": attributes.ctime_ns,
    }
    if node.target:
        description["target"] = os.fsdecode(node.target)
    return description


def kind_word(attributes: Attributes) -> str:
    """The kind as a word, such as `directory` or `block device`."""
    return attributes.kind.name.lower().replace("_", " ")


def long_line(attributes: Attributes) -> str:
    """All of a line of `ls -l` before the name."""
    return (
        f"{stat.filemode(attributes.st_mode)} {attributes.nlink:3} "
        f"{user_name(attributes.uid):8} {group_name(attributes.gid):8} "
        f"{attributes.size:12} {local_time(attributes.mtime_ns, '%Y-%m-%d %H:%M')} "
    )


def local_time(time_ns: int, form: str = "%Y-%m-%d %H:%M:%S %z") -> str:
    """A time for people, in the local zone; the number where no calendar has it."""
    try:
        return time.strftime(form, time.localtime(time_ns // NANOSECONDS))
    except (OverflowError, ValueError, OSError):
        return f"@{time_ns // NANOSECONDS}"


def duration(seconds: float) -> str:
    """A duration for people, such as `3 h 12 min`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def counted(count: int, word: str, plural: str = "") -> str:
    """A number of things, such as `1 chunk` or `2 chunks`."""
    return f"{count} {word if count == 1 else plural or f'{word}s'}"


@cache
def user_name(uid: int) -> str:
    """The name of a user of this machine, else the number."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


@cache
def group_name(gid: int) -> str:
    """The name of a group of this machine, else the number."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)
