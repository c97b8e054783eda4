"""`mictlanfs heal`: look for chunks that are short of copies now, and wait for their copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mictlanfs.cli.exits import Exit
from mictlanfs.cli.following import wait_option
from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from collections.abc import Callable

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
        while True:
            look = await client.router.start_upkeep()
            if not waits:
                return await client.status()
            status = await follow(client, "healing", _until(look), complain)
            if status.upkeep.look_count >= look:
                return status

    found = run_on_space(space, "heal", work)
    if as_json:
        import msgspec

        from mictlanfs.cli.output import print_json

        print_json(msgspec.to_builtins(found.upkeep))
    elif waits:
        click.echo(_verdict(found))
    if waits and (found.upkeep.short_count or found.upkeep.unhealable_count):
        raise click.exceptions.Exit(Exit.FAILED)


def _until(look: int) -> Callable[[SpaceStatus], float]:
    """How much is done of what ends with a look, or when there is no telling any more."""
    most = look_count = 0

    def part_done(status: SpaceStatus) -> float:
        nonlocal most, look_count
        upkeep = status.upkeep
        # A router that was started again counts its looks anew.
        if upkeep.look_count >= look or upkeep.look_count < look_count:
            return 1.0
        look_count = upkeep.look_count
        most = max(most, upkeep.short_count)
        return min(0.99, 1 - upkeep.short_count / most) if most else 0.0

    return part_done


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
