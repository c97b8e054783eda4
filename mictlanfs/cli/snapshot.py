"""`mictlanfs snapshot`: take, list and remove snapshots of buckets and directories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.wire import SnapshotInfo


@click.group()
def snapshot() -> None:
    """Take, list and remove snapshots of buckets and directories.

    A snapshot is read at BUCKET/.snapshots/NAME, in every mount and by every command.
    """


@snapshot.command()
@click.argument("path", metavar="BUCKET[/PATH]")
@click.argument("name")
@space_options
def create(space: SpaceChoice, path: str, name: str) -> None:
    """Keep a bucket or a directory as it is now.

    No bytes are copied. What mounts have changed before is in it.
    """
    from mictlanfs.cli.output import counted
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.config import format_size

    async def work(client: SpaceClient) -> SnapshotInfo:
        return await client.create_snapshot(path, name)

    info = run_on_space(space, "snapshot create", work)
    click.echo(f"{_where(info)}: {counted(info.names, 'name')}, {format_size(info.nbytes)}")


def _where(info: SnapshotInfo) -> str:
    from mictlanfs.cli.output import quoted
    from mictlanfs.snapshotnumbers import SNAPSHOTS_NAME

    return quoted(b"/".join((info.bucket, SNAPSHOTS_NAME, info.name)))


@snapshot.command("ls")
@click.argument("bucket", default="", metavar="[BUCKET]")
@json_option
@space_options
def list_(space: SpaceChoice, bucket: str, *, as_json: bool) -> None:
    """List snapshots: when each was taken, names and bytes in it, of what, and its name."""
    from mictlanfs.cli.output import local_time, print_json, print_name, quoted
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.config import format_size

    async def work(client: SpaceClient) -> tuple[SnapshotInfo, ...]:
        return await client.snapshots(bucket)

    snapshots = run_on_space(space, "snapshot ls", work)
    if as_json:
        print_json([_described(info) for info in snapshots])
        return
    for info in snapshots:
        before = (
            f"{local_time(info.created_ns, '%Y-%m-%d %H:%M')} {info.names:8} "
            f"{format_size(info.nbytes):>10} {quoted(info.path)} "
        )
        print_name(info.name, before)


def _described(info: SnapshotInfo) -> dict[str, object]:
    return {
        "bucket": os.fsdecode(info.bucket),
        "name": os.fsdecode(info.name),
        "path": os.fsdecode(info.path),
        "created_ns": info.created_ns,
        "names": info.names,
        "bytes": info.nbytes,
    }


@snapshot.command()
@click.argument("bucket")
@click.argument("name")
@space_options
def rm(space: SpaceChoice, bucket: str, name: str) -> None:
    """Remove a snapshot; what only it held is let go in the background."""
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> None:
        await client.remove_snapshot(bucket, name)

    run_on_space(space, "snapshot rm", work)
