"""`mictlanfs bucket`: make, list, show, change and remove buckets."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.options import SizeType, SpaceChoice, json_option, space_options
from mictlanfs.cli.protecting import ProtectionOptions, protection_options

if TYPE_CHECKING:
    from mictlanfs.client.recode import Recoded
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.wire import BucketInfo


@click.group()
def bucket() -> None:
    """Make, list, show, change and remove buckets."""


_Command = Callable[..., object]


def _policy_options(command: _Command) -> _Command:
    """The options that say how a bucket keeps its data; what is not given is None."""
    for decorate in (
        click.option(
            "--trash-days",
            type=click.IntRange(0, 36_500),
            metavar="N",
            help="For how long removed and overwritten files are kept; 0: not at all.",
        ),
        click.option(
            "--quota", type=SizeType(), metavar="SIZE", help="Of its files together; 0: no limit."
        ),
        click.option(
            "--chunk-size",
            type=SizeType(),
            metavar="SIZE",
            help="Of a full chunk, from 64K to 16M.",
        ),
        protection_options,
    ):
        command = decorate(command)
    return command


def _check_sizes(chunk_size: int | None, quota: int | None) -> None:
    from mictlanfs.model import CHUNK_SIZE_BYTES_MAX, CHUNK_SIZE_BYTES_MIN, FILE_SIZE_BYTES_MAX

    if chunk_size is not None and not CHUNK_SIZE_BYTES_MIN <= chunk_size <= CHUNK_SIZE_BYTES_MAX:
        raise click.BadParameter("it must be from 64K to 16M", param_hint="--chunk-size")
    if quota is not None and quota > FILE_SIZE_BYTES_MAX:
        raise click.BadParameter("it is too large", param_hint="--quota")


@bucket.command()
@click.argument("name")
@_policy_options
@space_options
def create(
    space: SpaceChoice,
    name: str,
    *,
    protection: ProtectionOptions,
    chunk_size: int | None,
    quota: int | None,
    trash_days: int | None,
) -> None:
    """Make a bucket."""
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.model import CHUNK_SIZE_BYTES_DEFAULT, BucketPolicy

    protection.check()
    _check_sizes(chunk_size, quota)
    others = (chunk_size, quota, trash_days)
    is_default = not protection.is_given and all(given is None for given in others)

    async def work(client: SpaceClient) -> None:
        policy = BucketPolicy(
            chunk_size=chunk_size or CHUNK_SIZE_BYTES_DEFAULT,
            quota=quota or 0,
            trash_days=trash_days or 0,
        )
        if protection.is_given:
            policy = (await protection.protection(client, policy)).applied(policy)
        await client.make_bucket(name, None if is_default else policy)

    run_on_space(space, "bucket create", work)


@bucket.command("set")
@click.argument("name")
@_policy_options
@space_options
def set_policy(
    space: SpaceChoice,
    name: str,
    *,
    protection: ProtectionOptions,
    chunk_size: int | None,
    quota: int | None,
    trash_days: int | None,
) -> None:
    """Change how a bucket keeps what is written from now on, and how much it may hold."""
    from mictlanfs.cli.running import run_on_space

    protection.check()
    others = (chunk_size, quota, trash_days)
    if not protection.is_given and all(given is None for given in others):
        options = "--code, --replicas, --chunk-size, --quota or --trash-days"
        raise click.UsageError(f"say what to change: {options}")
    _check_sizes(chunk_size, quota)

    async def work(client: SpaceClient) -> None:
        wanted = None
        if protection.is_given:
            old = (await client.bucket(name)).policy
            wanted = await protection.protection(client, old)
        await client.set_bucket_policy(
            name,
            protection=wanted,
            chunk_size=chunk_size,
            quota=quota,
            trash_days=trash_days,
        )

    run_on_space(space, "bucket set", work)


@bucket.command()
@click.argument("name")
@space_options
def recode(space: SpaceChoice, name: str) -> None:
    """Store what a bucket has as `bucket set` says by now; can be stopped and run again."""
    from mictlanfs.cli.meter import byte_meter
    from mictlanfs.cli.output import Failures, counted
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.config import format_size

    async def work(client: SpaceClient) -> Recoded:
        with byte_meter("recoding", None) as progress:
            return await client.recode_bucket(name, progress)

    done = run_on_space(space, "bucket recode", work)
    click.echo(f"stored {format_size(done.bytes)} of {counted(done.files, 'file')} anew")
    failures = Failures()
    for error in done.left:
        failures.add(error)
    failures.exit_if_any()


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
    from mictlanfs.cli.output import counted, local_time, print_json, quoted
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
    if policy.data:
        least = f"at least {policy.fragments_min} fragments while peers are down"
        click.echo(f"code      {policy.data}+{policy.parity}, {least}")
    click.echo(f"copies    {policy.replicas}, at least {policy.replicas_min} while peers are down")
    click.echo(f"chunks    of at most {format_size(policy.chunk_size)}")
    limit = f" of {format_size(policy.quota)}" if policy.quota else ", no quota"
    click.echo(f"used      {format_size(found.used)}{limit}")
    kept = f"for {counted(policy.trash_days, 'day')}" if policy.trash_days else "no"
    click.echo(f"trash     {kept}")
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
        "code": f"{info.policy.data}+{info.policy.parity}" if info.policy.data else None,
        "chunk_size": info.policy.chunk_size,
        "quota": info.policy.quota,
        "trash_days": info.policy.trash_days,
        "used": info.used,
        "mtime_ns": info.attributes.mtime_ns,
    }
