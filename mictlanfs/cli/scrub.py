"""`mictlanfs scrub`: have peers read and verify all that they hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.exits import Exit
from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.model import PeerInfo
    from mictlanfs.wireverify import ScrubState

    Found = list[tuple[PeerInfo, ScrubState]]


@click.command()
@click.option("--peer", "peer_id", metavar="ID", help="Only this peer.  [default: all that are up]")
@click.option("--wait", is_flag=True, help="Return when everything is read.")
@click.option("--status", "only_status", is_flag=True, help="Begin nothing: show how it stands.")
@json_option
@space_options
def scrub(
    space: SpaceChoice, peer_id: str | None, *, wait: bool, only_status: bool, as_json: bool
) -> None:
    """Have peers read and verify all that they hold.

    They do so by themselves, slowly; this begins a pass now. A copy that is bad or missing is taken
    out of service and no longer counts. With --wait the exit code is 8 when there was one.
    """
    from mictlanfs.cli.meter import text_meter
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> Found:
        verifier = client.verifier
        peers = await verifier.peers(peer_id)
        found = [(peer, await verifier.scrub(peer, begin=not only_status)) for peer in peers]
        if wait:
            with text_meter() as say:

                def progress(peer: PeerInfo, state: ScrubState) -> None:
                    say(f"scrubbing {peer.id}: {state.checked_count} of {state.total_count} chunks")

                found = [(peer, await verifier.scrubbed(peer, progress)) for peer in peers]
        return found

    found = run_on_space(space, "scrub", work)
    if as_json:
        import msgspec

        from mictlanfs.cli.output import print_json

        print_json({peer.id: msgspec.structs.asdict(state) for peer, state in found})
    else:
        for line in lines(found):
            click.echo(line)
    if wait and any(state.bad_count for _, state in found):
        raise click.exceptions.Exit(Exit.CORRUPT)


def lines(found: Found) -> Iterator[str]:
    """One line a peer."""
    from mictlanfs.cli.output import counted
    from mictlanfs.config import format_size

    if not found:
        yield "no peer is up"
    width = max((len(peer.id) for peer, _ in found), default=0)
    for peer, state in found:
        what = "reading" if state.is_running else "read" if state.started_ns else "never read yet"
        yield (
            f"{peer.id:{width}}  {what}: {counted(state.checked_count, 'chunk')}, "
            f"{format_size(state.checked_bytes)}, {state.bad_count} bad; "
            f"{counted(state.passes, 'pass', 'passes')} before; "
            f"{format_size(state.quarantined_bytes)} kept aside"
        )
