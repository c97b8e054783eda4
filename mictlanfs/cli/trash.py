"""`mictlanfs trash`: list, restore and give up what buckets keep of what they lost."""

from __future__ import annotations

import os
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.options import SpaceChoice, json_option, space_options
from mictlanfs.errors import UsageError

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.wire import Emptied, TrashItem

SECONDS_PER_DAY = 24 * 3600


@click.group()
def trash() -> None:
    """List, restore and give up removed and overwritten files.

    A bucket keeps what it loses when it has trash days: "mictlanfs bucket set NAME --trash-days N".
    """


@trash.command("ls")
@click.argument("path", default="", metavar="[BUCKET[/PATH]]")
@json_option
@space_options
def list_(space: SpaceChoice, path: str, *, as_json: bool) -> None:
    """List what is kept of a path and of all below it.

    Each line: number, when it was lost, how, bytes, until when it is kept, path.
    """
    from mictlanfs.cli.output import json_list
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> None:
        async with aclosing(client.trash.items(path)) as items:
            if not as_json:
                async for item in items:
                    _print(item)
                return
            with json_list() as printed:
                async for item in items:
                    printed.add(_described(item))

    run_on_space(space, "trash ls", work)


def _print(item: TrashItem) -> None:
    from mictlanfs.cli.output import local_time, print_name

    form = "%Y-%m-%d %H:%M"
    how = "open" if item.is_open else item.reason.name.lower()
    before = (
        f"{item.ino:8} {local_time(item.removed_ns, form)} {how:11} {item.size:12} "
        f"{local_time(item.expires_ns, form)} "
    )
    print_name(item.path, before, "/" if _is_directory(item) else "")


def _is_directory(item: TrashItem) -> bool:
    from mictlanfs.model import FileKind

    return item.kind is FileKind.DIRECTORY


def _described(item: TrashItem) -> dict[str, object]:
    return {
        "item": item.ino,
        "path": os.fsdecode(item.path),
        "kind": item.kind.name.lower().replace("_", " "),
        "reason": item.reason.name.lower(),
        "is_open": item.is_open,
        "removed_ns": item.removed_ns,
        "expires_ns": item.expires_ns,
        "mode": f"{item.mode:04o}",
        "uid": item.uid,
        "gid": item.gid,
        "size": item.size,
        "mtime_ns": item.mtime_ns,
        "bytes": item.nbytes,
    }


@trash.command()
@click.argument("path", metavar="BUCKET/PATH")
@click.option("--to", metavar="BUCKET/PATH", help="Where to, instead of the old path.")
@click.option("--item", type=int, metavar="N", help="That of this number, instead of the newest.")
@click.option("-r", "--recursive", is_flag=True, help="All that was removed there and below.")
@space_options
def restore(
    space: SpaceChoice, path: str, *, to: str | None, item: int | None, recursive: bool
) -> None:
    """Put back what was removed, replaced or overwritten.

    Nothing is overwritten: what is in the way ends the command with exit code 4. Missing
    directories are made.
    """
    from mictlanfs.cli.output import Failures, counted
    from mictlanfs.cli.running import run_on_space

    if recursive and item is not None:
        raise UsageError("--item names one item, and --recursive means many")
    failures = Failures()

    async def work(client: SpaceClient) -> None:
        if recursive:
            count = await client.trash.restore_tree(path, failures.add, to=to)
            click.echo(f"restored {counted(count, 'item')}")
        else:
            await client.trash.restore(path, to=to, item=item)

    run_on_space(space, "trash restore", work)
    failures.exit_if_any()


@trash.command()
@click.argument("path", default="", metavar="[BUCKET[/PATH]]")
@click.option("--all", "is_all", is_flag=True, help="Of the whole space, when no path is given.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Only what was lost longer ago.",
)
@space_options
def empty(space: SpaceChoice, path: str, *, is_all: bool, older_than: float | None) -> None:
    """Give up what is kept of a path and of all below it, for good."""
    from mictlanfs.cli.meter import count_meter
    from mictlanfs.cli.output import counted
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.config import format_size

    if bool(path) == is_all:
        raise UsageError("say what to give up: a path, or --all")

    async def work(client: SpaceClient) -> Emptied:
        with count_meter("given up") as progress:
            age_s = (older_than or 0.0) * SECONDS_PER_DAY
            return await client.trash.empty(path, older_than_s=age_s, progress=progress)

    emptied = run_on_space(space, "trash empty", work)
    click.echo(f"gave up {counted(emptied.count, 'item')} of {format_size(emptied.nbytes)}")
