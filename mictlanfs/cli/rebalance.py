"""`mictlanfs rebalance`: move copies to where they would be placed today."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mictlanfs.cli.following import wait_option
from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.wire import SpaceStatus

ORDER = "rebalance"


@click.command()
@click.option("--cancel", is_flag=True, help="End this move and all clones of peers.")
@wait_option
@json_option
@space_options
def rebalance(space: SpaceChoice, *, as_json: bool, waits: bool, cancel: bool) -> None:
    """Move copies to where they would be placed today.

    After peers were added: old chunks stay where they are until then. As little moves as can be,
    and a move that is cut short goes on by itself when the router is back.
    """
    from mictlanfs.cli.following import follow
    from mictlanfs.cli.main import complain
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> tuple[SpaceStatus, SpaceStatus]:
        before = await client.status()
        await client.router.start_upkeep(rebalance=not cancel, cancel=cancel)
        if cancel or not waits:
            return before, await client.status()
        return before, await follow(
            client, "rebalancing", lambda status: status.upkeep.orders.get(ORDER, 1.0), complain
        )

    before, after = run_on_space(space, "rebalance", work)
    if as_json:
        import msgspec

        from mictlanfs.cli.output import print_json

        print_json(msgspec.to_builtins(after.upkeep))
    elif waits and not cancel:
        from mictlanfs.cli.output import counted

        # Fewer when the router was started again meanwhile: it counts from then on.
        moved = after.upkeep.moved_count - before.upkeep.moved_count
        click.echo(
            "every chunk is in its place" if moved <= 0 else f"{counted(moved, 'chunk')} moved"
        )
