"""`mictlanfs rm`: remove files and directories of a space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mictlanfs.cli.options import SpaceChoice, space_options
from mictlanfs.errors import Kind, MictlanError, UsageError

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="BUCKET/PATH...")
@click.option("-r", "--recursive", is_flag=True, help="Remove directories with all in them.")
@click.option("-f", "--force", is_flag=True, help="What does not exist is no error.")
@space_options
def rm(space: SpaceChoice, paths: tuple[str, ...], *, recursive: bool, force: bool) -> None:
    """Remove files and directories.

    An empty directory is removed like a file. Buckets are removed with "mictlanfs bucket rm".
    """
    from mictlanfs.cli.meter import count_meter
    from mictlanfs.cli.output import Failures
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.client.names import parse_path

    for path in paths:
        if len(parse_path(path)) < 2:
            raise UsageError(f"{path or '/'} is no file in a bucket; see 'mictlanfs bucket rm'")
    failures = Failures()

    async def work(client: SpaceClient) -> None:
        with count_meter("removed") as progress:
            for path in paths:
                with failures.going_on():
                    try:
                        await client.remove(path, recursive=recursive, progress=progress)
                    except MictlanError as error:
                        if not (force and error.kind is Kind.NOT_FOUND):
                            raise

    run_on_space(space, "rm", work)
    failures.exit_if_any()
