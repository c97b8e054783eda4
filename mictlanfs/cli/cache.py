"""`mictlanfs cache`: fill, list, clear and show the cache of a mount.

Works on paths in a mounted space, as whoever calls it: the kernel decides what may be read. Asks
the mount by `mictlanfs.mounts.cachewords`, in parts, so that it can be interrupted between them.
"""

from __future__ import annotations

import json
import os
import stat as modes
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mictlanfs.cli.exits import Exit
from mictlanfs.cli.options import json_option
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.mounts import cachewords
from mictlanfs.oserrors import translated_os_errors

if TYPE_CHECKING:
    from mictlanfs.cli.output import Failures
    from mictlanfs.mounts.cachewords import Answer, Warmed

_DOCUMENTS = ".mictlanfs"
_PATHS = click.Path(exists=True, path_type=Path)


@click.group()
def cache() -> None:
    """Fill, list, clear and show the cache of a mount.

    PATHs are files and directories in a mounted space; a directory stands for all below it.
    """


@dataclass
class _Total:
    """What became of the bytes of all files; see `Warmed`."""

    files: int = 0
    size: int = 0
    stored: int = 0
    kept: int = 0
    near: int = 0
    inline: int = 0
    small: int = 0
    refused: int = 0
    left: int = 0

    def add(self, part: Warmed) -> None:
        for field in fields(self):
            amount = getattr(part, field.name, None)
            if amount is not None:
                setattr(self, field.name, getattr(self, field.name) + amount)


# What is said of each number that is not 0, in this order.
_SAID = {
    "stored": "put into the disk cache",
    "kept": "were there already",
    "near": "read from files of peers on this machine, which are not copied",
    "inline": "come with the metadata, or are holes",
    "small": "in chunks too small for the disk cache",
    "refused": "refused by the disk cache: it is full, slow or off",
    "left": "not tried: the disk cache would have given up what was just put into it",
}


@cache.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=_PATHS)
@json_option
def warm(paths: tuple[Path, ...], *, as_json: bool) -> None:
    """Put files into the disk cache, so that they are read without the network.

    They stay until something else needs the room, also when the space is mounted anew. Bytes that a
    peer on this machine has are not copied, since its files are read themselves.
    """
    from mictlanfs.cli.meter import byte_meter
    from mictlanfs.cli.output import Failures, print_json

    failures = Failures()
    total = _Total()
    files = list(_files(paths, failures))
    total.files, total.size = len(files), sum(size for _, size in files)
    room = _budget_of(paths[0])
    with byte_meter("warm", total.size) as progress:
        for path, size in files:
            with failures.going_on():
                for part, length in _warmed_parts(path, size, total, room):
                    total.add(part)
                    progress(length)
    if as_json:
        print_json(asdict(total))
    else:
        _print_total(total)
    failures.exit_if_any()
    if total.refused or total.left:
        raise click.exceptions.Exit(Exit.NO_SPACE)


def _warmed_parts(
    path: Path, size: int, total: _Total, room: int | None
) -> Iterator[tuple[Warmed, int]]:
    """Warm a file part by part; each part with its length. Ends when there is no room."""
    offset = 0
    while offset < size:
        if room is not None and total.stored + total.kept >= room:
            total.left += size - offset
            return
        part = _asked(path, cachewords.warm_from(offset), cachewords.Warmed)
        if part.end <= offset:
            # The file became shorter.
            return
        yield part, part.end - offset
        offset = part.end


def _print_total(total: _Total) -> None:
    from mictlanfs.cli.output import counted
    from mictlanfs.config import format_size

    click.echo(f"{counted(total.files, 'file')}, {format_size(total.size)}")
    for name, words in _SAID.items():
        amount = getattr(total, name)
        if amount:
            click.echo(f"{format_size(amount):>9}  {words}")


@cache.command()
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=_PATHS)
@json_option
def ls(paths: tuple[Path, ...], *, as_json: bool) -> None:
    """Show how much of each file is at hand; by default, of those below the current directory.

    At hand is what is in the disk cache, in the memory of the mount, on a peer of this machine or
    in the metadata. The page cache of the kernel is not counted.
    """
    from mictlanfs.cli.output import Failures, json_list

    failures = Failures()
    files = _files(paths or (Path(),), failures)
    if as_json:
        with json_list() as items:
            for path, held in _held(files, failures):
                items.add({"path": os.fspath(path), **held._asdict()})
    else:
        _print_held(_held(files, failures))
    failures.exit_if_any()


def _held(
    files: Iterator[tuple[Path, int]], failures: Failures
) -> Iterator[tuple[Path, cachewords.Held]]:
    for path, _ in files:
        with failures.going_on():
            yield path, _asked(path, cachewords.HELD, cachewords.Held)


def _print_held(files: Iterator[tuple[Path, cachewords.Held]]) -> None:
    from mictlanfs.cli.output import print_name
    from mictlanfs.config import format_size

    heads = ("size", "disk", "memory", "near", "inline")
    click.echo("".join(f"{head:>10}" for head in heads) + "  name")
    for path, held in files:
        sizes = "".join(f"{format_size(getattr(held, head)):>10}" for head in heads)
        print_name(os.fsencode(path), before=f"{sizes}  ")


@cache.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=_PATHS)
@json_option
def clear(paths: tuple[Path, ...], *, as_json: bool) -> None:
    """Forget files that are cached, or everything when PATH is where the space is mounted.

    For everything, only who made the mount may ask. What is not stored in the space yet is not
    cached, and stays.
    """
    from mictlanfs.cli.output import Failures, print_json
    from mictlanfs.config import format_size
    from mictlanfs.mounts.table import is_mounted, resolved

    failures = Failures()
    size = 0
    for path in paths:
        whole = is_mounted(resolved(path))
        targets = iter([(path, 0)]) if whole else _files((path,), failures)
        for target, _ in targets:
            with failures.going_on():
                size += _asked(target, cachewords.CLEAR, cachewords.Cleared).size
    if as_json:
        print_json({"size": size})
    else:
        click.echo(f"{format_size(size)} removed from the disk cache")
    failures.exit_if_any()


@cache.command()
@click.argument("path", metavar="[PATH]", required=False, type=_PATHS)
@json_option
def stats(path: Path | None, *, as_json: bool) -> None:
    """Show what the cache of a mount holds and did; by default, that of the current directory."""
    from mictlanfs.cli.output import print_json

    told = _cache_stats(path or Path())
    if as_json:
        print_json(told)
        return
    for name, value in _stat_lines(told):
        click.echo(f"{name:9} {value}")


def _stat_lines(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from mictlanfs.cli.output import counted
    from mictlanfs.config import format_size

    for name in ("memory", "disk"):
        level = told[name]
        if level is None:
            yield name, "none"
            continue
        held, budget = format_size(level["size_bytes"]), format_size(level["budget_bytes"])
        line = f"{held} of {budget} in {level['entries']} entries, {level['evictions']} evicted"
        if name == "disk":
            line += f", {level['corrupt']} damaged, {level['dropped']} not written"
            line += "" if level["is_enabled"] else "; off after an error of the disk"
        yield name, line
    local = told["local"]
    if local is not None:
        yield "near", f"{counted(local['descriptors'], 'chunk')} open, {local['corrupt']} damaged"
    near_hits = 0 if local is None else local["hits"]
    hits = f"{told['memory_hits']} in memory, {told['disk_hits']} on disk, {near_hits} near"
    yield "reads", f"{hits}, {told['misses']} fetched"
    requests = counted(told["fetches"], "request")
    yield "fetched", f"{format_size(told['fetched_bytes'])} in {requests}"
    if told["fetch_errors"]:
        yield "failed", counted(told["fetch_errors"], "request")


# --- the mount -----------------------------------------------------------------------------------


def _root_of(path: Path) -> Path:
    """Where the space that `path` lies in is mounted.

    Raises:
        MictlanError: NOT_FOUND when it lies in none.
    """
    from mictlanfs.mounts.table import is_mounted, mount_around, resolved

    absolute = resolved(path)
    if is_mounted(absolute):
        return absolute
    mount = mount_around(absolute)
    if mount is None:
        raise _not_mounted(path)
    return mount.mountpoint


def _not_mounted(path: Path) -> MictlanError:
    detail = "it is not in a mounted space"
    return MictlanError(Kind.NOT_FOUND, "cache", os.fspath(path), detail)


def _cache_stats(path: Path) -> dict[str, Any]:
    document = _root_of(path) / _DOCUMENTS / "stats"
    with translated_os_errors("read", os.fspath(document)):
        told: dict[str, Any] = json.loads(document.read_bytes())["cache"]
    return told


def _budget_of(path: Path) -> int | None:
    """Bytes that the disk cache may take; None when there is none, which pushes nothing out."""
    disk = _cache_stats(path)["disk"]
    return None if disk is None else int(disk["budget_bytes"])


def _asked(path: Path, request: bytes, kind: type[Answer]) -> Answer:
    """What the mount answers about a file.

    Raises:
        MictlanError: NOT_FOUND when no mount of ours is there; else what the system says.
    """
    import errno

    with translated_os_errors("cache", os.fspath(path)):
        try:
            value = os.getxattr(path, request)
        except OSError as error:
            if error.errno in {errno.ENODATA, errno.ENOTSUP}:
                raise _not_mounted(path) from error
            raise
    return cachewords.decode(value, kind)


def _files(paths: tuple[Path, ...], failures: Failures) -> Iterator[tuple[Path, int]]:
    """Every regular file that is, or is below, one of `paths`, with its size."""
    from mictlanfs.oserrors import from_os_error

    def note(error: OSError) -> None:
        failures.add(from_os_error(error, "list", os.fsdecode(error.filename or "")))

    for path in paths:
        _root_of(path)
        if path.is_file():
            yield path, path.stat().st_size
            continue
        for folder, _, names in os.walk(path, onerror=note):
            for name in sorted(names):
                file = Path(folder) / name
                try:
                    status = file.lstat()
                except OSError as error:
                    note(error)
                    continue
                if modes.S_ISREG(status.st_mode):
                    yield file, status.st_size
