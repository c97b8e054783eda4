"""The commands `up`, `down` and `server`: arguments in, one call, words out.

Owns options, help texts and what is printed. Decides nothing else: `cluster.py` serves a space,
`control.py` stops and inspects one, `router.app` and `peer.app` are the servers. These are imported
by the command that needs them, so that help stays quick and a server loads no other.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mictlanfs import clientvariables
from mictlanfs.cli.exits import Exit
from mictlanfs.cli.options import SizeType, VariableOption, json_option, log_format_option
from mictlanfs_server import environment as variables
from mictlanfs_server.metacli import restore

if TYPE_CHECKING:
    from mictlanfs.environment import Variable
    from mictlanfs_server.channel import Request
    from mictlanfs_server.cluster import MountRequest
    from mictlanfs_server.control import LocalStatus
    from mictlanfs_server.plan import ServerOptions
    from mictlanfs_server.space import SpaceDirectory, SpaceRecord

MOUNTPOINT_DEFAULT = "./vss"
DATA_DEFAULT = "./vss-data"
# As init scripts say it: the program is not running (LSB).
NOT_RUNNING = 3

Command = TypeVar("Command", bound=Callable[..., Any])


PORT = click.IntRange(0, 65535)
SIZE = SizeType()
DIRECTORY = click.Path(path_type=Path, file_okay=True)


def _with(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, listed in help in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def variable_option(
    *names: str, variable: Variable[Any], **attributes: Any
) -> Callable[[Command], Command]:
    """An option that a variable of the environment is the default of."""
    return click.option(
        *names, cls=VariableOption, envvar=variable.name, show_envvar=True, **attributes
    )


lease_option = click.option(
    "--lease-ttl",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds after which a mount that does not answer loses its leases.  [default: 10]",
)

space_options = _with(
    click.option(
        "--peers", type=click.IntRange(1, 64), help="How many peers.  [default: 3, or as before]"
    ),
    variable_option(
        "--port",
        variable=variables.ROUTER_PORT,
        type=PORT,
        help="Port of the router; 0: any free one.  [default: 60666, or as before]",
    ),
    variable_option(
        "--peer-port",
        variable=variables.PEER_PORT,
        type=PORT,
        help="Port of the first peer, the others follow; 0: any.  [default: 24000, or as before]",
    ),
    variable_option(
        "--capacity",
        variable=variables.PEER_CAPACITY,
        type=SIZE,
        help="How much each peer may hold, as 10G.  [default: what the disk offers, or as before]",
    ),
    lease_option,
    click.option("--detach", is_flag=True, help="Go on in the background once all works."),
    # The write end of the pipe on which the daemon tells its launcher that all works.
    click.option("--ready-fd", type=int, hidden=True),
)

insecure_option = variable_option(
    "--insecure",
    variable=variables.INSECURE,
    is_flag=True,
    help="Listen beyond this machine without TLS.",
)


def _host_option(variable: Variable[str]) -> Callable[[Command], Command]:
    return variable_option(
        "--host",
        variable=variable,
        default=variable.default,
        show_default=True,
        help="Address to listen on.",
    )


process_options = _with(
    insecure_option,
    log_format_option,
    click.option("--lifeline-fd", type=int, hidden=True),
)

checksums_option = variable_option(
    "--verify-checksums/--no-verify-checksums",
    variable=variables.VERIFY_CHECKSUMS,
    default=True,
    show_default=True,
    help="Whether the v4 door compares the checksums that clients send.",
)
data_option = click.option("--data", type=DIRECTORY, help="Where its data is.  [default: the last]")


@click.group()
def server() -> None:
    """Run the servers of a space."""


server.add_command(restore)


# --- one process each -----------------------------------------------------------------------------


@server.command()
@click.option("--data", type=DIRECTORY, required=True, help="Where metadata is kept.")
@_host_option(variables.ROUTER_HOST)
@variable_option(
    "--port",
    variable=variables.ROUTER_PORT,
    type=PORT,
    default=60666,
    show_default=True,
    help="Port to listen on; 0: any free one.",
)
@click.option("--id", "router_id", default="mictlanx-router-0", show_default=True, help="Its name.")
@variable_option(
    "--gc-grace",
    variable=variables.GC_GRACE,
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds before the chunks of deleted files are removed from peers.",
)
@variable_option(
    "--heal-delay",
    variable=variables.HEAL_DELAY,
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    help="Seconds for which a peer is down before its chunks are copied elsewhere.",
)
@variable_option(
    "--heal-rate",
    variable=variables.HEAL_RATE,
    type=SIZE,
    default=0,
    show_default=True,
    help="Bytes a second that peers copy among themselves at most; 0: no limit.",
)
@variable_option(
    "--popular-reads",
    variable=variables.POPULAR_READS,
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="N",
    help="Reads a minute of each copy of a chunk above which it gets an extra one.",
)
@variable_option(
    "--extra-copies",
    variable=variables.EXTRA_COPIES,
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    metavar="N",
    help="Extra copies in the space at most; 0: none.",
)
@variable_option(
    "--extra-bytes",
    variable=variables.EXTRA_BYTES,
    type=SIZE,
    default="4G",
    show_default=True,
    help="Bytes of extra copies at most.",
)
@click.option(
    "--snapshot-interval",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds between snapshots of the metadata on the peers; 0: none.",
)
@variable_option(
    "--orphan-age",
    variable=variables.ORPHAN_AGE,
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="Age of a chunk that no file needs before it is removed from peers.",
)
@click.option(
    "--audit-interval",
    type=click.FloatRange(min=0),
    default=12.0,
    show_default=True,
    metavar="HOURS",
    help="How often peers are compared with the metadata; 0: only when asked.",
)
@lease_option
@checksums_option
@process_options
def router(
    data: Path,
    host: str,
    port: int,
    router_id: str,
    gc_grace: float,
    heal_delay: float,
    heal_rate: int,
    popular_reads: float,
    extra_copies: int,
    extra_bytes: int,
    snapshot_interval: float,
    orphan_age: float,
    audit_interval: float,
    lease_ttl: float | None,
    verify_checksums: bool,
    insecure: bool,
    log_format: str | None,
    lifeline_fd: int | None,
) -> None:
    """Run one router in the foreground until SIGTERM or Ctrl-C."""
    from mictlanfs_server.logsettings import router_logs
    from mictlanfs_server.router.app import run
    from mictlanfs_server.router.settings import LEASE_TTL_S, RouterSettings
    from mictlanfs_server.v4.caching.settings import CacheSettings

    run(
        RouterSettings(
            data=data.absolute(),
            host=host,
            port=port,
            router_id=router_id,
            insecure=insecure,
            lifeline_fd=lifeline_fd,
            gc_grace_s=gc_grace,
            heal_delay_s=heal_delay,
            heal_rate=heal_rate,
            popular_reads_per_min=popular_reads,
            extra_copies_max=extra_copies,
            extra_bytes_max=extra_bytes,
            snapshot_interval_s=snapshot_interval,
            orphan_age_s=orphan_age * 3600,
            audit_interval_s=audit_interval * 3600,
            lease_ttl_s=LEASE_TTL_S if lease_ttl is None else lease_ttl,
            logs=router_logs(os.environ, log_format or "", router_id),
            cache=CacheSettings.parse(os.environ),
            verifies_checksums=verify_checksums,
        )
    )


@server.command()
@variable_option(
    "--router",
    "router_uri",
    variable=clientvariables.URI,
    required=True,
    metavar="URI",
    help="The space to join.",
)
@variable_option(
    "--data",
    variable=variables.PEER_DATA,
    type=DIRECTORY,
    required=True,
    help="Where chunks are kept.",
)
@_host_option(variables.PEER_HOST)
@variable_option(
    "--port",
    variable=variables.PEER_PORT,
    type=PORT,
    default=24000,
    show_default=True,
    help="Port to listen on; 0: any.",
)
@variable_option(
    "--id",
    "peer_id",
    variable=variables.PEER_ID,
    default=variables.PEER_ID.default,
    show_default=True,
    help="Its name.",
)
@click.option("--zone", default="", help="What it may fail together with, such as a rack.")
@variable_option(
    "--capacity",
    variable=variables.PEER_CAPACITY,
    type=SIZE,
    help="How much it may hold.  [default: the disk]",
)
@click.option("--sharers", type=click.IntRange(1), default=1, help="Peers on the same disk.")
@click.option("--sharers-file", type=DIRECTORY, hidden=True)
@click.option("--advertise", metavar="URL", help="Where others reach it.  [default: as listening]")
@click.option(
    "--scrub-rate",
    type=SIZE,
    default="32M",
    show_default=True,
    help="Bytes per second that it reads at most to verify what it holds.",
)
@click.option(
    "--scrub-days",
    type=click.FloatRange(min=0),
    default=14.0,
    show_default=True,
    metavar="DAYS",
    help="Time in which it verifies all that it holds once; 0: only when asked.",
)
@checksums_option
@process_options
def peer(
    router_uri: str,
    data: Path,
    host: str,
    port: int,
    peer_id: str,
    zone: str,
    capacity: int | None,
    sharers: int,
    sharers_file: Path | None,
    advertise: str | None,
    scrub_rate: int,
    scrub_days: float,
    verify_checksums: bool,
    insecure: bool,
    log_format: str | None,
    lifeline_fd: int | None,
) -> None:
    """Run one peer in the foreground until SIGTERM or Ctrl-C."""
    from mictlanfs_server.logsettings import peer_logs
    from mictlanfs_server.peer.app import run
    from mictlanfs_server.peer.settings import PeerSettings

    address = variables.PEER_ADDRESS.read(os.environ)
    # That is the address of one peer: where a supervisor runs several, it knows where they are.
    if advertise is None and address is not None and lifeline_fd is None and port:
        advertise = f"http://{f'[{address}]' if ':' in address else address}:{port}"
    run(
        PeerSettings(
            data=data.absolute(),
            router=router_uri,
            host=host,
            port=port,
            peer_id=peer_id,
            zone=zone,
            capacity=capacity,
            insecure=insecure,
            lifeline_fd=lifeline_fd,
            advertise=advertise,
            sharers=sharers,
            logs=peer_logs(os.environ, log_format or "", peer_id),
            sharers_file=sharers_file,
            scrub_rate=scrub_rate,
            scrub_period_s=scrub_days * 86_400,
            verifies_checksums=verify_checksums,
        )
    )


# --- all on this machine --------------------------------------------------------------------------


@server.command()
@click.option("--data", type=DIRECTORY, required=True, help="Where everything is kept.")
@variable_option(
    "--host",
    variable=variables.ROUTER_HOST,
    help="Address to listen on.  [default: 127.0.0.1, or as before]",
)
@insecure_option
@space_options
def start(
    data: Path,
    host: str | None,
    insecure: bool,
    peers: int | None,
    port: int | None,
    peer_port: int | None,
    capacity: int | None,
    lease_ttl: float | None,
    detach: bool,
    ready_fd: int | None,
) -> int:
    """Run a router and its peers on this machine, and keep them running.

    Prints the URI of the space when all are healthy. Started again with the same --data it is the
    same space, with as many peers and the same ports unless told otherwise.
    """
    from mictlanfs_server.plan import ServerOptions

    options = ServerOptions(
        data.resolve(), peers, host, port, peer_port, capacity, insecure, lease_ttl
    )
    if detach:
        return _launch("server", "start", *_arguments(options))
    _serve(options, None, ready_fd, lambda record: record.uri)
    return Exit.OK


@click.command()
@click.argument("mountpoint", type=DIRECTORY, default=MOUNTPOINT_DEFAULT)
@click.option(
    "--data",
    type=DIRECTORY,
    default=DATA_DEFAULT,
    show_default=True,
    help="Where everything is kept.",
)
@click.option("-o", "mount_options", default="", help="Options of the mount, as for `mount`.")
@space_options
def up(
    mountpoint: Path,
    data: Path,
    mount_options: str,
    peers: int | None,
    port: int | None,
    peer_port: int | None,
    capacity: int | None,
    lease_ttl: float | None,
    detach: bool,
    ready_fd: int | None,
) -> int:
    """Start a space on this machine and mount it at MOUNTPOINT (./vss unless given).

    Ctrl-C stops everything in order and loses nothing. The same command starts it again.
    """
    from mictlanfs.config import parse_mount_options
    from mictlanfs.mounts.table import resolved
    from mictlanfs_server.cluster import MountRequest
    from mictlanfs_server.plan import ServerOptions
    from mictlanfs_server.welcome import Welcome

    parse_mount_options(mount_options)
    options = ServerOptions(
        data.resolve(), peers, None, port, peer_port, capacity, lease_ttl_s=lease_ttl
    )
    mount = MountRequest(resolved(mountpoint), mount_options)
    if detach:
        given = ("-o", mount_options) if mount_options else ()
        return _launch("up", str(mount.path), *given, *_arguments(options))

    def words(record: SpaceRecord) -> str:
        is_detached = ready_fd is not None
        welcome = Welcome(record.uri, mount.path, options.data, mount_options, is_detached)
        return f"MictlanFS is up.\n\n{welcome.text(os.environ)}"

    _serve(options, mount, ready_fd, words)
    return Exit.OK


def _launch(*arguments: str) -> int:
    from mictlanfs_server.daemon import launch

    return launch(arguments)


def _arguments(options: ServerOptions) -> list[str]:
    """The arguments that say `options` again."""
    values = {
        "--data": options.data,
        "--peers": options.peers,
        "--host": options.host,
        "--port": options.port,
        "--peer-port": options.peer_port,
        "--capacity": options.capacity,
        "--lease-ttl": options.lease_ttl_s,
    }
    given = [str(part) for item in values.items() if item[1] is not None for part in item]
    return [*given, "--insecure"] if options.insecure else given


def _serve(
    options: ServerOptions,
    mount: MountRequest | None,
    ready_fd: int | None,
    words: Callable[[SpaceRecord], str],
) -> None:
    """Serve a space, and print `words` of it once it works."""
    from mictlanfs_server.cluster import serve_space
    from mictlanfs_server.daemon import report_ready

    _show_events()

    def on_ready(record: SpaceRecord) -> None:
        click.echo(words(record))
        sys.stdout.flush()
        if ready_fd is not None:
            report_ready(ready_fd)

    serve_space(options, mount, on_ready)


def _show_events() -> None:
    """Show on stderr what the supervisor does; without a terminal only what goes wrong."""
    # A full disk must not fill the terminal with tracebacks of the log.
    logging.raiseExceptions = False
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)
    handler.setFormatter(logging.Formatter("mictlanfs: %(message)s"))
    package = logging.getLogger(__package__)
    package.addHandler(handler)
    package.setLevel(logging.INFO)


# --- stop, status ---------------------------------------------------------------------------------


@server.command()
@data_option
def stop(data: Path | None) -> None:
    """Stop the servers that `server start` or `up` runs, and return when all are gone."""
    _stop(_directory(data))


@click.command()
@data_option
def down(data: Path | None) -> None:
    """Stop what `up --detach` started: unmount, then stop the servers. The data stays.

    Without --data it is the space in ./vss-data if it runs, else the one made last by this user.
    """
    from mictlanfs_server.space import SpaceDirectory

    here = SpaceDirectory(Path(DATA_DEFAULT).resolve())
    _stop(here if data is None and here.is_served() else _directory(data))


@server.command()
@data_option
@json_option
def status(data: Path | None, as_json: bool) -> int:
    """Show the servers on this machine.

    Exits with 0 when all are healthy, 1 when one is not, 3 when none runs.
    """
    import msgspec
    import trio

    from mictlanfs.cli.output import print_json
    from mictlanfs_server import control

    directory = _directory(data)
    if directory is None:
        click.echo("no space was started by this user", err=True)
        return NOT_RUNNING
    found = trio.run(control.inspect, directory)
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        click.echo(_table(found))
    return {control.HEALTHY: Exit.OK, control.DEGRADED: Exit.FAILED}.get(found.state, NOT_RUNNING)


# --- the peers of a running space -----------------------------------------------------------------


@server.group()
def peers() -> None:
    """Add, stop and start peers while the space runs."""


@peers.command("add")
@click.argument("count", type=click.IntRange(1, 63), default=1)
@data_option
def add_peers(count: int, data: Path | None) -> None:
    """Start COUNT (1 unless given) new peers. They belong to the space from now on."""
    from mictlanfs_server.channel import AddPeers

    _ask(data, AddPeers(count))


@peers.command("stop")
@click.argument("peer")
@click.option("--force", is_flag=True, help="Also when chunks cannot be read without it.")
@data_option
def stop_peer(peer: str, force: bool, data: Path | None) -> None:
    """Stop PEER, as `peer-2`, until `server peers start`; also over restarts of the space.

    Its data stays where it is. Refused when other peers lack chunks that it has.
    """
    from mictlanfs_server.channel import StopPeer

    _ask(data, StopPeer(peer, force))


@peers.command("start")
@click.argument("peer")
@data_option
def start_peer(peer: str, data: Path | None) -> None:
    """Start PEER, as `peer-2`, which was stopped before."""
    from mictlanfs_server.channel import StartPeer

    _ask(data, StartPeer(peer))


def _ask(data: Path | None, request: Request) -> None:
    """Have the supervisor do something; print what it says."""
    import trio

    from mictlanfs.errors import UsageError
    from mictlanfs_server import channel

    directory = _directory(data)
    if directory is None:
        raise UsageError("no space was started by this user: say which one with --data")

    def say(text: str) -> None:
        click.echo(text, err=True)

    click.echo(trio.run(channel.ask, directory, request, say))


def _directory(data: Path | None) -> SpaceDirectory | None:
    """The data directory meant, by default that of the last space; None when there is none."""
    from mictlanfs import paths
    from mictlanfs_server.space import SpaceDirectory

    if data is not None:
        return SpaceDirectory(data.resolve())
    last = paths.read_last_space()
    return SpaceDirectory(last.data) if last is not None else None


def _stop(directory: SpaceDirectory | None) -> None:
    from mictlanfs_server import control

    if directory is None:
        click.echo("nothing runs: no space was started by this user")
        return
    control.stop(directory, click.echo)


def _table(found: LocalStatus) -> str:
    lines = [f"{found.data}: {found.state}"]
    if found.uri is not None:
        lines.append(f"space       {found.uri}")
    if found.mountpoint is not None:
        lines.append(f"mounted at  {found.mountpoint}")
    if not found.processes:
        return "\n".join(lines)
    rows = [("NAME", "PID", "PORT", "SINCE", "HEALTH")]
    for process in found.processes:
        since = "-"
        if process.since is not None:
            since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(process.since))
        pid, port = str(process.pid or "-"), str(process.port or "-")
        rows.append((process.name, pid, port, since, process.health))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[4]]))
    return "\n".join(lines)
