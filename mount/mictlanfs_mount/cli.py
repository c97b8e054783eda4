"""The commands that mount and unmount: `mictlanfs mount`, `mictlanfs umount`, `mount.mictlanfs`.

Owns their command lines and exit codes; `daemon`, `mountpoint` and `mounts` do the work.
"""

from __future__ import annotations

import getopt
import os
import sys
from pathlib import Path

import click

from mictlanfs.cli.exits import Exit
from mictlanfs.cli.main import complain, run_command
from mictlanfs.cli.options import URI_VARIABLE, choose_uri
from mictlanfs.config import MOUNT_OPTIONS, parse_mount_options, without_options
from mictlanfs.errors import UsageError
from mictlanfs.mounts.ability import check_ability
from mictlanfs.names import uri_of
from mictlanfs.uri import SCHEME
from mictlanfs_mount import daemon, helperlinks, logfile, mountpoint
from mictlanfs_mount.settings import MountSettings

# Above the time that a mount process takes to store what is dirty while a space does not answer.
UMOUNT_TIMEOUT_S = 150.0

# What mount(8) says in its section on exit status.
HELPER_OK, HELPER_USAGE, HELPER_INTERRUPTED, HELPER_FAILED = 0, 1, 8, 32
_HELPER_CODES: dict[int, int] = {
    Exit.OK: HELPER_OK,
    Exit.USAGE: HELPER_USAGE,
    Exit.NOT_ALLOWED: HELPER_USAGE,
    Exit.INTERRUPTED: HELPER_INTERRUPTED,
}
HELPER_SYNTAX = "mount.mictlanfs SPACE MOUNTPOINT [-sfnv] [-o OPTIONS]"
# mount(8) does not name its own defaults to a helper, so absence means these, at a remount too:
# what is to stay otherwise it names.
_MOUNT_8_DEFAULTS = "suid,dev,exec"
# What the kernel shows of a FUSE mount in /proc/mounts, where mount(8) finds it for a remount.
_KERNEL_OPTIONS = frozenset({"user_id", "group_id", "rootmode", "fd", "max_read", "blksize"})
_REMOUNT = "remount"

_options_option = click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPTIONS",
    help="Mount options with commas between them, as in fstab.",
)


def _options_help() -> str:
    """The options of `-o`, for the end of the help text."""
    lines = []
    for option in MOUNT_OPTIONS:
        if not option.is_ignored:
            name = f"{option.name}={option.default or '…'}" if option.parse else option.name
            lines.append(f"  {name:24} {option.help}")
    return "\b\nMount options:\n" + "\n".join(lines)


def _install_helper(context: click.Context, _: click.Parameter, is_given: bool) -> None:
    if not is_given:
        return
    for link in helperlinks.install():
        click.echo(f"{link} -> {link.readlink()}")
    context.exit()


@click.command(epilog=_options_help())
@click.argument("space_and_mountpoint", nargs=-1, required=True, metavar="[SPACE] MOUNTPOINT")
@_options_option
@click.option(
    "--install-helper",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_install_helper,
    help="Make `mount -t mictlanfs` and /etc/fstab work (links in /sbin), and end.",
)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground until unmounted.")
def mount(
    space_and_mountpoint: tuple[str, ...], options: tuple[str, ...], foreground: bool
) -> None:
    """Mount a space at an empty directory.

    SPACE is a URI, or a short name from ~/.config/mictlanfs/spaces.conf or
    /etc/mictlanfs/spaces.conf. Without it the space is $MICTLANX_CLIENT_URI, else the one that this
    user made last. Returns when the mount answers.
    """
    spec, where = _space_and_mountpoint(space_and_mountpoint)
    settings, text = _checked(spec, Path(where), ",".join(options))
    if foreground:
        logfile.log_to_stderr()
        daemon.serve(settings, lambda: None)
    else:
        daemon.launch(settings.uri, settings.mountpoint, text)


def _space_and_mountpoint(arguments: tuple[str, ...]) -> tuple[str, str]:
    match arguments:
        case (uri, where):
            return uri, where
        case (where,) if where.startswith(SCHEME):
            raise UsageError(f"where shall {where} be mounted? Give a directory behind it")
        case (where,):
            return choose_uri(os.environ.get(URI_VARIABLE)), where
        case _:
            raise UsageError(
                "give a space and a mountpoint, not more (see 'mictlanfs mount --help')"
            )


def _checked(spec: str, where: Path, options: str) -> tuple[MountSettings, str]:
    """The settings of a mount and its options as a text, after all checks that need no space.

    Raises:
        MictlanError: one fails; the detail names the remedy.
    """
    uri = uri_of(spec)
    if uri != spec:
        # A short name is the source in /proc/mounts, unless the user names another.
        options = ",".join(filter(None, (f"fsname={spec}", options)))
    parsed = parse_mount_options(options)
    check_ability(allow_other=parsed.allow_other)
    return MountSettings(uri, mountpoint.prepare(where, complain), parsed), options


@click.command()
@click.argument("where", metavar="MOUNTPOINT", type=click.Path(path_type=Path))
@click.option(
    "-l", "--lazy", is_flag=True, help="Unmount although programs use it, and do not wait for them."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=UMOUNT_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until everything is stored.",
)
def umount(where: Path, *, lazy: bool, timeout: float) -> None:
    """Unmount a space and return when everything is durable.

    With --lazy it only leaves the directory tree: programs that use it go on, and what they write
    is stored when the last of them ends.
    """
    daemon.end_mount(where, is_lazy=lazy, timeout_s=timeout, say=complain)


@click.command(hidden=True)
@click.argument("uri")
@click.argument("where", type=click.Path(path_type=Path))
@_options_option
@click.option("--report-fd", type=int, required=True)
@click.option("--log", "log_path", type=click.Path(path_type=Path), required=True)
def serve(uri: str, where: Path, options: tuple[str, ...], report_fd: int, log_path: Path) -> None:
    """Be the process of a mount that `mictlanfs mount` started."""
    settings = MountSettings(uri, where, parse_mount_options(",".join(options)))
    daemon.serve_and_report(settings, report_fd, log_path)


def serve_main() -> None:
    """`python -m mictlanfs_mount`: run the command line of a mount process and end."""
    sys.exit(run_command(lambda: serve.main(prog_name="mictlanfs_mount", standalone_mode=False)))


# --- mount(8) ------------------------------------------------------------------------------------


def mount_helper() -> None:
    """The console script `mount.mictlanfs`, which mount(8) calls for `mount -t mictlanfs`."""
    sys.exit(run_helper(sys.argv[1:]))


def run_helper(arguments: list[str]) -> int:
    """Mount as mount(8) asks; returns one of its exit codes.

    Source: mount(8), "EXTERNAL HELPERS": `SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`.
    """
    code = run_command(lambda: _help_mount(arguments))
    return _HELPER_CODES.get(code, HELPER_FAILED)


def _help_mount(arguments: list[str]) -> None:
    try:
        flags, rest = getopt.gnu_getopt(arguments, "sfnvN:o:t:")
    except getopt.GetoptError as error:
        raise UsageError(f"{error} (usage: {HELPER_SYNTAX})") from None
    if len(rest) != 2:
        raise UsageError(f"a space and a directory are needed (usage: {HELPER_SYNTAX})")
    given = {name for name, _ in flags}
    options = ",".join(value for name, value in flags if name == "-o")
    is_remount = without_options(options, lambda name: name != _REMOUNT) != ""
    if is_remount:
        options = without_options(options, lambda name: name in {_REMOUNT, *_KERNEL_OPTIONS})
    if "-s" in given:
        # mount(8) calls that sloppy.
        known = {option.name for option in MOUNT_OPTIONS}
        options = without_options(options, lambda name: name not in known)
    if os.geteuid() == 0:
        options = ",".join(filter(None, (_MOUNT_8_DEFAULTS, options)))
    if is_remount:
        # -f: all but the mounting itself.
        if "-f" not in given:
            daemon.change_mount(Path(rest[1]), options)
        return
    settings, options = _checked(rest[0], Path(rest[1]), options)
    if "-f" not in given:
        daemon.launch(settings.uri, settings.mountpoint, options)
    if "-v" in given:
        click.echo(f"{settings.uri} mounted on {settings.mountpoint}")
