"""`mictlanfs bucket`: make, list, show and remove buckets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.options import SizeType, SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.wire import BucketInfo


@click.group()
def bucket() -> None:
    """Make, list, show and remove buckets."""


@bucket.command()
@click.argument("name")
@click.option("--replicas", type=click.IntRange(1, 5), help="Copies of each chunk.")
@click.option(
    "--chunk-size", type=SizeType(), metavar="SIZE", help="Of a full chunk, from 64K to 16M."
)
@space_options
def create(space: SpaceChoice, name: str, *, replicas: int | None, chunk_size: int | None) -> None:
    """Make a bucket."""
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.model import (
        CHUNK_SIZE_BYTES_DEFAULT,
        CHUNK_SIZE_BYTES_MAX,
        CHUNK_SIZE_BYTES_MIN,
        REPLICAS_DEFAULT,
        BucketPolicy,
    )

    if chunk_size is not None and not CHUNK_SIZE_BYTES_MIN <= chunk_size <= CHUNK_SIZE_BYTES_MAX:
        raise click.BadParameter("it must be from 64K to 16M", param_hint="--chunk-size")
    policy = None
    if replicas is not None or chunk_size is not None:
        policy = BucketPolicy(
            replicas=replicas or REPLICAS_DEFAULT,
            chunk_size=chunk_size or CHUNK_SIZE_BYTES_DEFAULT,
        )

    async def work(client: SpaceClient) -> None:
        await client.make_bucket(name, policy)

    run_on_space(space, "bucket create", work)


@bucket.command("ls")
@json_option
@space_options
def list_buckets(space: SpaceChoice, *, as_json: bool) -> None:
    """List the buckets."""
    from mictlanfs.cli.output import print_json, print_name
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> tuple[BucketInfo, ...]:
        return await client.buckets()

    buckets = run_on_space(space, "bucket ls", work)
    if as_json:
        print_json([_described(info) for info in buckets])
        return
    for info in buckets:
        print_name(info.name)


@bucket.command()
@click.argument("name")
@json_option
@space_options
def info(space: SpaceChoice, name: str, *, as_json: bool) -> None:
    """Show how a bucket keeps its data."""
    from mictlanfs.cli.output import local_time, print_json, quoted
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.config import format_size

    async def work(client: SpaceClient) -> BucketInfo:
        return await client.bucket(name)

    found = run_on_space(space, "bucket info", work)
    if as_json:
        print_json(_described(found))
        return
    policy = found.policy
    click.echo(f"bucket    {quoted(found.name)}")
    click.echo(f"entries   {found.attributes.size}")
    click.echo(f"copies    {policy.replicas}, at least {policy.replicas_min} while peers are down")
    click.echo(f"chunks    of at most {format_size(policy.chunk_size)}")
    click.echo(f"modified  {local_time(found.attributes.mtime_ns)}")


@bucket.command()
@click.argument("name")
@click.option("-r", "--recursive", is_flag=True, help="Remove all that is in it as well.")
@space_options
def rm(space: SpaceChoice, name: str, *, recursive: bool) -> None:
    """Remove a bucket."""
    from mictlanfs.cli.meter import count_meter
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> None:
        with count_meter("removed") as progress:
            await client.remove_bucket(name, recursive=recursive, progress=progress)

    run_on_space(space, "bucket rm", work)


def _described(info: BucketInfo) -> dict[str, object]:
    return {
        "name": os.fsdecode(info.name),
        "entries": info.attributes.size,
        "replicas": info.policy.replicas,
        "replicas_min": info.policy.replicas_min,
        "chunk_size": info.policy.chunk_size,
        "mtime_ns": info.attributes.mtime_ns,
    }
