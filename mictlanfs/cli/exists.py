"""`mictlanfs exists`: tell by the exit code whether something is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mictlanfs.cli.exits import Exit
from mictlanfs.cli.options import SpaceChoice, space_options

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient


@click.command()
@click.argument("path", metavar="BUCKET[/PATH]")
@space_options
def exists(space: SpaceChoice, path: str) -> None:
    """Tell by the exit code whether something exists.

    0 when it does, 1 when it does not, more when that cannot be known. Prints nothing.
    """
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> bool:
        return await client.exists(path)

    if not run_on_space(space, "exists", work):
        raise click.exceptions.Exit(Exit.FAILED)
