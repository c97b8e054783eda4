"""The commands `meta` and `server restore`: arguments in, one call, words out.

Owns options, help texts and what is printed. What they call is imported when they are called.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from mictlanfs.cli.exits import Exit
from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mictlanfs.wireobjects import MetadataSnapshot
    from mictlanfs_server.metasnapshots.restoring import Report

DIRECTORY = click.Path(path_type=Path, file_okay=True)
TIME_FORMATS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M")
# For a database of several gigabytes; a router that is gone is noticed at once.
SNAPSHOT_TIMEOUT_S = 3600.0


@click.group()
def meta() -> None:
    """Copy the metadata to the peers, dump and load it."""


@meta.command()
@json_option
@space_options
def snapshot(space: SpaceChoice, *, as_json: bool) -> None:
    """Make a snapshot of the metadata on the peers now, whether or not one is due.

    `server restore` gives back everything up to it.
    """
    import asyncio

    import msgspec

    from mictlanfs.cli.output import counted, local_time, print_json
    from mictlanfs.config import format_size

    made = asyncio.run(_snapshot(space.uri))
    if as_json:
        print_json(dict(zip(made.__struct_fields__, msgspec.structs.astuple(made), strict=True)))
        return
    click.echo(
        f"{format_size(made.size)} of metadata, as of {local_time(made.moment_ns)}, are on "
        f"{counted(len(made.peers), 'peer')}; {format_size(made.sent)} were sent"
    )


async def _snapshot(uri: str) -> MetadataSnapshot:
    from mictlanfs import wire
    from mictlanfs.client.transport import HttpTransport
    from mictlanfs.errors import MictlanError
    from mictlanfs.uri import parse_routers
    from mictlanfs.wireobjects import MetadataSnapshot

    transport = HttpTransport()
    failure: MictlanError | None = None
    try:
        for router in parse_routers(uri):
            try:
                answer = await transport.request(
                    "POST",
                    router.base_url + wire.Path.METADATA_SNAPSHOT,
                    body=wire.encode(wire.Done()),
                    headers={"content-type": wire.MSGPACK},
                    timeout_s=SNAPSHOT_TIMEOUT_S,
                )
            except MictlanError as error:
                failure = failure or error
                continue
            if answer.status != 200:
                raise wire.decode_error(answer.status, answer.body)
            return wire.decode(answer.body, MetadataSnapshot)
    finally:
        await transport.aclose()
    assert failure is not None, "a URI names a router"
    raise failure


@meta.command()
@click.option("--data", type=DIRECTORY, help="Of the router or space.  [default: the last space]")
@click.argument("target", type=click.File("wb", lazy=True, atomic=True), default="-")
def dump(data: Path | None, target: BinaryIO) -> None:
    """Write all metadata as JSON lines into the file TARGET, by default to standard output.

    The space may be in use: the dump is of one moment. It needs the router's files, not the router.
    """
    from mictlanfs_server.metadata.dump import dump as dumped

    for line in dumped(_database(data), time.time_ns()):
        target.write(line)


@meta.command()
@click.option("--data", type=DIRECTORY, required=True, help="Of the router: empty, or not there.")
@click.argument("source", type=click.File("rb"), default="-")
def load(data: Path, source: BinaryIO) -> None:
    """Make the metadata of a router from the dump SOURCE, by default from standard input.

    It is the space that was dumped, for its own peers. Sessions end, and every counter goes ahead,
    as after `server restore`.
    """
    from mictlanfs.cli.output import counted, local_time
    from mictlanfs.errors import Kind, MictlanError
    from mictlanfs_server.metadata.dump import load as loaded
    from mictlanfs_server.metadata.restored import RestoredDatabase
    from mictlanfs_server.router.datadir import new_database

    with new_database(data.absolute()) as path:
        moment_ns = loaded(source, path)
        with RestoredDatabase(path, time.time_ns()) as database:
            inode_count, _ = database.counts()
            database.revive(moment_ns, time.time_ns())
            if damage := database.damage():
                raise MictlanError(Kind.CORRUPT, "load", detail="; ".join(damage))
    count = counted(inode_count, "inode")
    click.echo(f"{count} are in {data}, as of {local_time(moment_ns)}", err=True)


def _database(data: Path | None) -> Path:
    """The database meant: of a router's directory, or of that of a space."""
    from mictlanfs import paths
    from mictlanfs.errors import UsageError
    from mictlanfs_server.router.datadir import DATABASE_NAME
    from mictlanfs_server.space import SpaceDirectory

    if data is None:
        last = paths.read_last_space()
        if last is None:
            raise UsageError("no space was started by this user: say which one with --data")
        data = last.data
    inner = SpaceDirectory(data).router / DATABASE_NAME
    return inner if inner.is_file() else data / DATABASE_NAME


# --- restore --------------------------------------------------------------------------------------


@click.command()
@click.option("--data", type=DIRECTORY, required=True, help="Of the router: empty, or not there.")
@click.option("--peers", "urls", multiple=True, metavar="URL", help="A peer that runs.")
@click.option("--from-data", "folders", multiple=True, metavar="DIR", help="The data of a peer.")
@click.argument("more", nargs=-1, metavar="[URL or DIR]...")
@click.option(
    "--at",
    type=click.DateTime(TIME_FORMATS),
    help="As it was at this time or before, local time.  [default: the newest]",
)
@click.option("--force", is_flag=True, help="Also when a router seems to serve the space.")
@json_option
def restore(
    data: Path,
    urls: tuple[str, ...],
    folders: tuple[str, ...],
    more: tuple[str, ...],
    at: datetime | None,
    *,
    force: bool,
    as_json: bool,
) -> int:
    """Make the metadata of a router anew, from snapshots of it on the peers alone.

    Give all peers of the space, running or not: they are asked which chunks they hold. Says which
    moment is back, and which files lack chunks. Exits with 0 when nothing is missing, else with 8.
    """
    import asyncio

    from mictlanfs.cli.output import print_json
    from mictlanfs.errors import UsageError

    names = [*urls, *folders, *more]
    if not names:
        raise UsageError("restore from what? Give the peers with --peers URL or --from-data DIR")

    def say(text: str) -> None:
        click.echo(text, err=True)

    until_ns = None if at is None else int(at.timestamp() * 1e9)
    report = asyncio.run(_restore(names, data.absolute(), say, until_ns, is_forced=force))
    if as_json:
        print_json(_described(report))
    else:
        _print_report(report)
    return Exit.OK if report.is_whole else Exit.CORRUPT


async def _restore(
    names: Sequence[str],
    folder: Path,
    say: Callable[[str], None],
    until_ns: int | None,
    *,
    is_forced: bool,
) -> Report:
    from mictlanfs.client.transport import HttpTransport
    from mictlanfs_server.metasnapshots.restoring import restore as restored
    from mictlanfs_server.metasnapshots.sources import FolderSource, PeerSource, Source

    transport = HttpTransport()
    try:
        sources: list[Source] = [
            PeerSource(transport, name) if "://" in name else FolderSource(Path(name))
            for name in dict.fromkeys(names)
        ]
        return await restored(sources, folder, say, until_ns=until_ns, is_forced=is_forced)
    finally:
        await transport.aclose()


def _described(report: Report) -> dict[str, object]:
    import os
    from dataclasses import asdict

    paths = [os.fsdecode(path) for path in report.missing_paths]
    return {**asdict(report), "missing_paths": paths, "is_whole": report.is_whole}


def _print_report(report: Report) -> None:
    from mictlanfs.cli.output import counted, duration, local_time, print_name

    age = duration(max(0.0, time.time() - report.moment_ns / 1e9))
    click.echo(
        f"space {report.space_id} is as it was at {local_time(report.moment_ns)}, {age} ago: "
        f"{counted(report.inode_count, 'inode')}, {counted(report.chunk_count, 'chunk')}"
    )
    if report.peers_not_asked:
        click.echo(f"not asked     {', '.join(report.peers_not_asked)}")
    if report.elsewhere_chunks:
        count = counted(report.elsewhere_chunks, "chunk")
        click.echo(f"not looked at {count}: only peers that were not asked may have them")
    if report.missing_chunks:
        click.echo(f"missing       {counted(report.missing_chunks, 'chunk')}, of these files:")
    for path in report.missing_paths:
        print_name(path, "  ")
    for sentence in report.damage:
        click.echo(f"damaged       {sentence}")
