"""The console script `mictlanfs`: finds the command, runs it, reports how it ended.

Owns the list of commands, the form of error messages and the end of the process. Imports a command
only when it is called, so that `mictlanfs --version` and completion stay quick; the commands of
the server and the mount are found by entry point and may be missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import click

from mictlanfs import __version__, environment
from mictlanfs.cli.exits import Exit, exit_code_of
from mictlanfs.errors import Kind, MictlanError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PROGRAM = "mictlanfs"
DEBUG_VARIABLE = "MICTLANFS_DEBUG"
ENTRY_POINT_GROUP = "mictlanfs.commands"
# What C0, DEL and C1 control characters become in a message; a terminal would act on them.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class Listed(NamedTuple):
    """A command as the list of commands shows it.

    Attributes:
        help: one line.
        extra: what to install for it; empty for the commands of this package, which live in a
            module of their own name beside this one.
    """

    help: str
    extra: str = ""


COMMANDS: dict[str, Listed] = {
    "up": Listed("Start a space on this machine and mount it.", "all"),
    "down": Listed("Stop what `up --detach` started.", "server"),
    "server": Listed("Run the servers of a space.", "server"),
    "mount": Listed("Mount a space at a directory.", "mount"),
    "umount": Listed("Unmount a space once everything is durable.", "mount"),
    "put": Listed("Store files in a space."),
    "get": Listed("Fetch files from a space."),
    "ls": Listed("List buckets and directories."),
    "stat": Listed("Show what is known of a file, directory or bucket."),
    "rm": Listed("Remove files and directories."),
    "exists": Listed("Tell by the exit code whether something exists."),
    "bucket": Listed("Make, list, show, change and remove buckets."),
    "trash": Listed("List, restore and give up removed and overwritten files."),
    "snapshot": Listed("Take, list and remove snapshots of buckets and directories."),
    "meta": Listed("Copy the metadata to the peers, dump and load it.", "server"),
    "cache": Listed("Fill, list, clear and show the cache of a mount."),
    "recover": Listed("List, show, re-apply and export what a mount could not commit."),
    "peer": Listed("List, empty, remove and clone the peers of a space."),
    "heal": Listed("Make missing copies of chunks now."),
    "rebalance": Listed("Move copies to where they would be placed today."),
    "status": Listed("Show the health of a space."),
    "fsck": Listed("Check a space while it is in use."),
    "scrub": Listed("Have peers read and verify all that they hold."),
    "gc": Listed("Remove orphans: chunks on peers that the metadata does not know."),
}

EPILOG = f"""\
The space is --uri, else $MICTLANX_CLIENT_URI, else the one that this user made last with
`{PROGRAM} up` or `{PROGRAM} server start`.

\b
Exit codes: 0 success, 1 failed, 2 wrong command line, 3 not found, 4 in the way or
changed meanwhile, 5 not reached in time, 6 no space, 7 not allowed, 8 damaged data.

Completion for bash (zsh and fish likewise), in ~/.bashrc:

\b
  eval "$(_MICTLANFS_COMPLETE=bash_source {PROGRAM})"
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, and listed without that."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands of this package and of its extras, in the order of help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None when there is none."""
        listed = COMMANDS.get(cmd_name)
        if listed is not None and not listed.extra:
            command = getattr(import_module(f"mictlanfs.cli.{cmd_name}"), cmd_name)
            assert isinstance(command, click.Command)
            return command
        entry_point = _entry_point(cmd_name)
        if entry_point is None:
            return _missing(cmd_name, listed.extra, "it is not installed") if listed else None
        try:
            command = entry_point.load()
        except ImportError as error:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            return _missing(cmd_name, listed.extra if listed else "all", str(error))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As any group, which knows only the commands that it has and not those that it lists."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=COMMANDS, ctx=ctx
            ) from None

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a reader of its output that went away ends it without a word."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # click would make exit code 1 of it.
            raise SystemExit(Exit.BROKEN_PIPE) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, listed.help) for name, listed in COMMANDS.items()])


def _entry_point(name: str) -> EntryPoint | None:
    # Not above: it takes longer to import than everything else here together.
    from importlib.metadata import entry_points

    return next(iter(entry_points(group=ENTRY_POINT_GROUP, name=name)), None)


def _missing(name: str, extra: str, why: str) -> click.Command:
    """Stands in for a command whose extra is not installed, and says so when it is called."""

    def explain(args: tuple[str, ...]) -> None:
        detail = f"{name} needs more than the core; pip install 'mictlanfs[{extra}]' ({why})"
        raise MictlanError(Kind.UNSUPPORTED, detail=detail)

    return click.Command(
        name,
        params=[click.Argument(["args"], nargs=-1, type=click.UNPROCESSED)],
        callback=explain,
        context_settings={"ignore_unknown_options": True},
        add_help_option=False,
    )


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """A Virtual Storage Space that programs use as an ordinary directory."""


def main() -> None:
    """The console script: run the command of `sys.argv` and end the process."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line, report its error if any, and return the exit code."""

    def command() -> object:
        # A mount that hangs must not hold up its end, which may be called from inside of it.
        if args[:1] != ["umount"]:
            environment.load()
        return cli.main(list(args), PROGRAM, standalone_mode=False)

    try:
        return run_command(command)
    finally:
        _close_output()


def run_command(command: Callable[[], object]) -> int:
    """Call `command` and turn whatever it raises into one line on stderr and an exit code.

    A whole number that it returns is the exit code. For commands of other console scripts too,
    such as `mount.mictlanfs`. With `MICTLANFS_DEBUG=1` errors keep their traceback.
    """
    try:
        result = command()
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Exit.USAGE
    except SystemExit as error:
        return _code_of_exit(error)
    except BaseException as error:  # noqa: BLE001  # The end of the program: all must be reported.
        return _report(error)
    return result if isinstance(result, int) else Exit.OK


def _report(raised: BaseException) -> int:
    error = raised
    if isinstance(raised, BaseExceptionGroup):
        from mictlanfs.taskerrors import single_error

        error = single_error(raised)
    code, message = _verdict(error)
    if code is not Exit.BROKEN_PIPE and os.environ.get(DEBUG_VARIABLE):
        import traceback

        traceback.print_exception(raised)
    if message:
        complain(message)
    return code


def _verdict(error: BaseException) -> tuple[int, str]:
    """The exit code for `error` and the line that says what happened; empty: say nothing."""
    match error:
        case click.Abort() | KeyboardInterrupt():
            return Exit.INTERRUPTED, "interrupted"
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else PROGRAM
            return Exit.USAGE, f"{error.format_message()} (see '{path} --help')"
        case click.ClickException():
            return error.exit_code, error.format_message()
        case MictlanError():
            return exit_code_of(error), str(error)
        case BrokenPipeError():
            return Exit.BROKEN_PIPE, ""
        case SystemExit():
            return _code_of_exit(error), ""
        case OSError():
            from mictlanfs.oserrors import from_os_error

            translated = from_os_error(error)
            return exit_code_of(translated), str(translated)
        case _:
            detail = f"internal error: {type(error).__name__}: {error}"
            return Exit.FAILED, f"{detail} (set {DEBUG_VARIABLE}=1 for the traceback)"


def _code_of_exit(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or Exit.OK
    complain(str(error.code))
    return Exit.FAILED


def complain(message: str) -> None:
    """Write `mictlanfs: MESSAGE` to stderr as one line that is safe for a terminal."""
    line = " ".join(message.split("\n")).translate(_CONTROLS)
    click.echo(f"{PROGRAM}: {line}", err=True)


def _close_output() -> None:
    """Keep the interpreter from reporting at its end that nobody reads the output."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    main()
