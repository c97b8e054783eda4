"""Following work that a router does in the background: progress on a terminal, until it is done.

The work goes on whether anybody follows it or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.meter import part_meter

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.wire import SpaceStatus

INTERVAL_S = 0.3


def wait_option(command: Callable[..., object]) -> Callable[..., object]:
    """Give `command` the option `--no-wait`, and `waits: bool` for it."""
    return click.option(
        "--wait/--no-wait",
        "waits",
        default=True,
        show_default=True,
        help="Wait until it is done; it goes on either way.",
    )(command)


async def follow(
    client: SpaceClient,
    label: str,
    part_done: Callable[[SpaceStatus], float],
    on_problem: Callable[[str], None],
) -> SpaceStatus:
    """Show how far something is until it is done, and return the status then.

    Args:
        client: of the space.
        label: before the bar.
        part_done: of the work, as a status tells it: 1.0 and more is the end.
        on_problem: told once of each reason why copies cannot be made.
    """
    import trio

    told: set[str] = set()
    with part_meter(label) as show:
        while True:
            status = await client.status()
            part = part_done(status)
            show(part)
            if part >= 1.0:
                return status
            problem = status.upkeep.problem
            if problem and problem not in told:
                told.add(problem)
                on_problem(problem)
            await trio.sleep(INTERVAL_S)
