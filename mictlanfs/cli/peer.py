"""`mictlanfs peer`: list, empty, remove and clone the peers of a space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mictlanfs.cli.following import wait_option
from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.wire import PeerStatus, SpaceStatus
    from mictlanfs.wirecopies import Drain, Removed, UpkeepStatus


@click.group()
def peer() -> None:
    """List, empty, remove and clone the peers of a space.

    Peers of this machine are added, stopped and started with "mictlanfs server peers"; those of
    other machines join by themselves ("mictlanfs server peer").
    """


@peer.command("ls")
@json_option
@space_options
def list_peers(space: SpaceChoice, *, as_json: bool) -> None:
    """List the peers."""
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> SpaceStatus:
        return await client.status()

    found = run_on_space(space, "peer ls", work)
    peers = sorted(found.peers, key=lambda peer: peer.id)
    if as_json:
        import msgspec

        from mictlanfs.cli.output import print_json

        print_json([{**msgspec.to_builtins(peer), **_more(peer, found.upkeep)} for peer in peers])
        return
    width = max((len(peer.id) for peer in peers), default=0)
    for one in peers:
        click.echo(f"{one.id:{width}}  {_line(one, found.upkeep)}")


def _more(peer: PeerStatus, upkeep: UpkeepStatus) -> dict[str, object]:
    return {
        "copies_elsewhere_in_s": upkeep.waiting_peers.get(peer.id),
        "left_to_drain": upkeep.draining.get(peer.id),
    }


def _line(peer: PeerStatus, upkeep: UpkeepStatus) -> str:
    from mictlanfs.cli.output import counted, duration
    from mictlanfs.config import format_size

    parts = [
        f"{'draining' if peer.is_draining else peer.state:8}",
        f"{peer.url}  {format_size(peer.used)} of {format_size(peer.capacity)}",
        counted(peer.chunk_count, "chunk"),
    ]
    if peer.zone:
        parts.append(f"zone {peer.zone}")
    if peer.is_full:
        parts.append("full")
    if peer.state != "up":
        parts.append(f"last seen {duration(peer.last_seen_s)} ago")
    if peer.id in upkeep.waiting_peers:
        parts.append(f"copied elsewhere in {duration(upkeep.waiting_peers[peer.id])}")
    if peer.id in upkeep.draining:
        left = upkeep.draining[peer.id]
        parts.append(f"{left} left to move" if left else "empty, can be removed")
    return "  ".join(parts)


@peer.command()
@click.argument("peer_id", metavar="PEER")
@click.option("--undo", is_flag=True, help="Use it again instead.")
@click.option("--force", is_flag=True, help="Also when too few peers stay for the copies wanted.")
@wait_option
@json_option
@space_options
def drain(
    space: SpaceChoice, peer_id: str, *, undo: bool, force: bool, waits: bool, as_json: bool
) -> None:
    """Empty PEER: it gets no new chunks, and those that it has move to the others.

    Everything stays readable meanwhile. An empty peer can be stopped and removed. Refused when
    fewer peers would stay than a bucket wants copies.
    """
    from mictlanfs.cli.following import follow
    from mictlanfs.cli.main import complain
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.errors import Kind, MictlanError

    async def work(client: SpaceClient) -> Drain:
        begun = await client.router.drain_peer(peer_id, is_draining=not undo, force=force)
        if undo or not waits or not begun.chunk_count:
            return begun

        def is_draining(status: SpaceStatus) -> bool:
            return any(one.id == peer_id and one.is_draining for one in status.peers)

        def part_done(status: SpaceStatus) -> float:
            left = status.upkeep.draining.get(peer_id)
            if left == 0 or not is_draining(status):
                return 1.0
            return 0.0 if left is None else min(0.99, max(0.0, 1 - left / begun.chunk_count))

        status = await follow(client, f"emptying {peer_id}", part_done, complain)
        if not is_draining(status):
            detail = "somebody uses it again, or has removed it: it may not be empty"
            raise MictlanError(Kind.CONFLICT, "drain", peer_id, detail)
        return begun

    begun = run_on_space(space, "peer drain", work)
    if as_json:
        from mictlanfs.cli.output import print_json

        print_json({"chunk_count": begun.chunk_count, "other_count": begun.other_count})
    elif undo:
        click.echo(f"{peer_id} is in use again")
    elif waits:
        click.echo(f"{peer_id} is empty")
    else:
        click.echo(f"{peer_id} is being emptied: {begun.chunk_count} chunks to move")


@peer.command()
@click.argument("peer_id", metavar="PEER")
@click.option("--force-lost", is_flag=True, help="Give up chunks that have their only copy there.")
@click.option("--force", is_flag=True, help="Also when too few peers stay for the copies wanted.")
@json_option
@space_options
def rm(space: SpaceChoice, peer_id: str, *, force_lost: bool, force: bool, as_json: bool) -> None:
    """Take PEER out of the space for ever.

    It must be empty, or down. Refused while chunks have their only copy on it, and when fewer peers
    would stay than a bucket wants copies.
    """
    from mictlanfs.cli.output import counted, print_json
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> Removed:
        return await client.router.remove_peer(peer_id, force_lost=force_lost, force=force)

    removed = run_on_space(space, "peer rm", work)
    if as_json:
        print_json({"lost_count": removed.lost_count})
        return
    lost = f"; {counted(removed.lost_count, 'chunk')} lost" if removed.lost_count else ""
    click.echo(f"{peer_id} is removed{lost}")


@peer.command()
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@wait_option
@json_option
@space_options
def clone(space: SpaceChoice, source: str, target: str, *, waits: bool, as_json: bool) -> None:
    """Copy all chunks of peer SOURCE onto peer TARGET, as copies to be kept.

    They come on top of those that their buckets want. What is written meanwhile may not be there.
    """
    from mictlanfs.cli.following import follow
    from mictlanfs.cli.main import complain
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> tuple[SpaceStatus, SpaceStatus]:
        before = await client.status()
        await client.router.clone_peer(source, target)
        if not waits:
            return before, await client.status()
        order = f"clone {source} {target}"
        return before, await follow(
            client, "cloning", lambda status: status.upkeep.orders.get(order, 1.0), complain
        )

    before, after = run_on_space(space, "peer clone", work)
    copied = after.upkeep.moved_count - before.upkeep.moved_count
    if as_json:
        from mictlanfs.cli.output import print_json

        print_json({"copied_count": copied})
    elif waits:
        from mictlanfs.cli.output import counted

        click.echo(f"{target} has all chunks of {source} ({counted(copied, 'chunk')} copied)")
