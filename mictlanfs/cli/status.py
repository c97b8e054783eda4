"""`mictlanfs status`: the health of a space at a glance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.exits import Exit
from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.wire import MetadataStatus, PeerStatus, SpaceStatus
    from mictlanfs.wirecopies import UpkeepStatus


@click.command()
@json_option
@space_options
def status(space: SpaceChoice, *, as_json: bool) -> None:
    """Show the health of a space.

    The exit code is 0 when it is healthy and 1 when it is not.
    """
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> SpaceStatus:
        return await client.status()

    found = run_on_space(space, "status", work)
    if as_json:
        import msgspec

        from mictlanfs.cli.output import print_json

        print_json(msgspec.to_builtins(found))
    else:
        for line in lines(found):
            click.echo(line)
    if not found.is_healthy:
        raise click.exceptions.Exit(Exit.FAILED)


def lines(status: SpaceStatus) -> Iterator[str]:
    """The status for people: ten lines when all is well with three peers."""
    from mictlanfs.cli.output import counted, duration
    from mictlanfs.config import format_size

    word = "healthy" if status.is_healthy else "DEGRADED"
    yield f"{word:9} space {status.space_id}"
    yield f"router    {status.router_id} {status.version}, up {duration(status.uptime_s)}"
    up_count = sum(peer.state == "up" for peer in status.peers)
    clients = counted(len(status.sessions), "client")
    yield f"peers     {up_count} of {len(status.peers)} up, {clients}"
    width = max((len(peer.id) for peer in status.peers), default=0)
    for peer in sorted(status.peers, key=lambda peer: peer.id):
        yield f"          {peer.id:{width}} {_peer_line(peer)}"
    used, capacity = (
        sum(peer.used for peer in status.peers),
        sum(peer.capacity for peer in status.peers),
    )
    yield f"space     {format_size(used)} of {format_size(capacity)} used"
    yield (
        f"data      {counted(status.bucket_count, 'bucket')}, "
        f"{counted(status.inode_count, 'inode')}, {counted(status.chunk_count, 'chunk')}, "
        f"{format_size(status.bytes_logical)}"
    )
    yield f"copies    {_copies_line(status)}{_inline_part(status)}"
    if (line := _upkeep_line(status.upkeep)) is not None:
        yield f"upkeep    {line}"
    if status.trash_count or status.snapshot_count:
        yield (
            f"kept      {counted(status.trash_count, 'item')} in the trash, "
            f"{format_size(status.trash_bytes)}; {counted(status.snapshot_count, 'snapshot')}"
        )
    if status.metadata is not None:
        yield f"metadata  {_metadata_line(status.metadata)}"
    for problem in status.problems:
        yield f"problem   {problem}"


def _upkeep_line(upkeep: UpkeepStatus) -> str | None:
    """What the router is doing about copies; None: nothing."""
    from mictlanfs.cli.output import counted, duration
    from mictlanfs.config import format_size

    parts = []
    if upkeep.short_count:
        short = f"{counted(upkeep.short_count, 'chunk')} to copy"
        parts.append(f"{short}, {format_size(upkeep.short_bytes)}")
    for name, part in upkeep.orders.items():
        parts.append(f"{name}: {part:.0%}")
    for name, left in upkeep.draining.items():
        parts.append(f"{name}: {left} left to move" if left else f"{name} is empty")
    for name, left_s in upkeep.waiting_peers.items():
        parts.append(f"{name} is copied elsewhere in {duration(left_s)}")
    if upkeep.extra_count:
        extra = f"{counted(upkeep.extra_count, 'extra copy', 'extra copies')}"
        popular = counted(upkeep.popular_count, "chunk")
        parts.append(f"{extra} of {popular} that are read often, {format_size(upkeep.extra_bytes)}")
    if not parts:
        return None
    if upkeep.problem:
        parts.append(upkeep.problem)
    return "; ".join(parts)


def _peer_line(peer: PeerStatus) -> str:
    from mictlanfs.cli.output import duration
    from mictlanfs.config import format_size

    parts = [
        f"{'draining' if peer.is_draining else peer.state:7}",
        peer.url,
        f" {format_size(peer.used)} of {format_size(peer.capacity)}",
    ]
    if peer.is_full:
        parts.append("full")
    if peer.state != "up":
        parts.append(f"last seen {duration(peer.last_seen_s)} ago")
    return " ".join(parts)


def _inline_part(status: SpaceStatus) -> str:
    from mictlanfs.cli.output import counted

    if not status.inline_count:
        return ""
    return f"; {counted(status.inline_count, 'small chunk')} in the metadata"


def _metadata_line(metadata: MetadataStatus) -> str:
    from mictlanfs.cli.output import NANOSECONDS, counted, duration, local_time

    if metadata.moment_s is None or metadata.age_s is None:
        return "no copy on the peers yet" if metadata.interval_s else "no copies on peers are made"
    at = local_time(int(metadata.moment_s * NANOSECONDS), "%Y-%m-%d %H:%M")
    on = counted(len(metadata.peers), "peer") if metadata.peers else "peers"
    age = f"{duration(metadata.age_s)} ago"
    return f"copied to {on} {age}, {at}{', nothing changed since' if metadata.is_current else ''}"


def _copies_line(status: SpaceStatus) -> str:
    if not status.under_replicated_count and not status.lost_count:
        return "every chunk has all its copies"
    from mictlanfs.cli.output import counted

    parts = []
    if status.under_replicated_count:
        parts.append(f"{counted(status.under_replicated_count, 'chunk')} with too few")
    if status.lost_count:
        parts.append(f"{counted(status.lost_count, 'chunk')} without any that can be reached")
    return ", ".join(parts)
