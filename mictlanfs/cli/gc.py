"""`mictlanfs gc`: remove chunks from peers that no file needs and nobody will name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.wireverify import CheckState

_SHOWN = (
    "orphan_count",
    "orphan_bytes",
    "young_count",
    "restored_count",
    "collected_count",
    "collected_bytes",
    "peers_checked",
    "peers_skipped",
)


@click.command()
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option(
    "--force", is_flag=True, help="Also remove what was there before the metadata was restored."
)
@json_option
@space_options
def gc(space: SpaceChoice, *, dry_run: bool, force: bool, as_json: bool) -> None:
    """Remove orphans: chunks on peers that the metadata does not know.

    Uploads that came to nothing leave them. The router does this by itself, from time to time. An
    orphan that is younger than the router's --orphan-age is left alone, and none is removed that
    may still be committed. After "mictlanfs server restore" those that were there before stay for
    30 days: another restore may need them.
    """
    from mictlanfs.cli.meter import text_meter
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.wireverify import CheckSpace

    request = CheckSpace(begin=True, peers=True, collect=not dry_run, force=force)

    async def work(client: SpaceClient) -> CheckState:
        with text_meter() as say:
            return await client.verifier.check(request, say)

    found = run_on_space(space, "gc", work)
    if as_json:
        from mictlanfs.cli.output import print_json

        print_json({name: getattr(found, name) for name in _SHOWN})
        return
    from mictlanfs.cli.output import counted
    from mictlanfs.config import format_size

    size = format_size(found.orphan_bytes)
    click.echo(f"{counted(found.orphan_count, 'orphan')}, {size}; {found.young_count} too young")
    if found.restored_count:
        click.echo(f"{found.restored_count} from before the restore are kept (--force: not)")
    if not dry_run:
        removed = format_size(found.collected_bytes)
        click.echo(f"{found.collected_count} will be removed within the grace period, {removed}")
    for peer_id in found.peers_skipped:
        click.echo(f"peer {peer_id} does not answer: nothing of it is known")
