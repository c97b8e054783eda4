"""`mictlanfs heal`: look for chunks that are short of copies now, and wait for their copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mictlanfs.cli.exits import Exit
from mictlanfs.cli.following import wait_option
from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.wire import SpaceStatus


@click.command()
@wait_option
@json_option
@space_options
def heal(space: SpaceChoice, *, as_json: bool, waits: bool) -> None:
    """Make missing copies of chunks now.

    A space does so by itself; this spares waiting for its next look. The exit code is 1 when copies
    are missing afterwards: for want of peers, or of a copy to read.
    """
    from mictlanfs.cli.following import follow
    from mictlanfs.cli.main import complain
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> SpaceStatus:
        look = await client.router.start_upkeep()
        if not waits:
            return await client.status()
        most = 0

        def part_done(status: SpaceStatus) -> float:
            nonlocal most
            upkeep = status.upkeep
            if upkeep.look_count >= look:
                return 1.0
            most = max(most, upkeep.short_count)
            return min(0.99, 1 - upkeep.short_count / most) if most else 0.0

        return await follow(client, "healing", part_done, complain)

    found = run_on_space(space, "heal", work)
    if as_json:
        import msgspec

        from mictlanfs.cli.output import print_json

        print_json(msgspec.to_builtins(found.upkeep))
    elif waits:
        click.echo(_verdict(found))
    if waits and (found.upkeep.short_count or found.upkeep.unhealable_count):
        raise click.exceptions.Exit(Exit.FAILED)


def _verdict(status: SpaceStatus) -> str:
    from mictlanfs.cli.output import counted

    upkeep = status.upkeep
    parts = []
    if upkeep.short_count:
        parts.append(f"{counted(upkeep.short_count, 'chunk')} with too few copies")
    if upkeep.unhealable_count:
        parts.append(f"{counted(upkeep.unhealable_count, 'chunk')} without a copy that can be read")
    if not parts:
        waiting = ", ".join(sorted(upkeep.waiting_peers))
        return f"nothing to heal; waiting for {waiting}" if waiting else "nothing is left to heal"
    return ", ".join(parts) + (f" ({upkeep.problem})" if upkeep.problem else "")
