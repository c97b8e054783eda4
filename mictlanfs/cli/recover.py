"""`mictlanfs recover`: what a mount could not commit, and what becomes of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.exits import Exit
from mictlanfs.cli.options import TIMEOUT_S_DEFAULT, URI_VARIABLE, SpaceChoice, json_option

if TYPE_CHECKING:
    from mictlanfs.client.recovering import Outcome
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.recoveries import Recovery, RecoveryFile


@click.group()
def recover() -> None:
    """List, show, re-apply and export what a mount could not commit.

    A mount that lost its session, or was unmounted while the space did not answer, keeps on the
    local disk what is not in the space. It stays there until "remove".
    """


@recover.command("list")
@json_option
def list_(*, as_json: bool) -> None:
    """List all recoveries of this user, oldest first."""
    from mictlanfs.cli.output import Failures, print_json
    from mictlanfs.errors import MictlanError
    from mictlanfs.recoveries import list_recoveries

    failures = Failures()
    found: list[RecoveryFile] = []
    for one in list_recoveries():
        if isinstance(one, MictlanError):
            failures.add(one)
        else:
            found.append(one)
    if as_json:
        print_json([_summary(file) for file in found])
    elif found:
        _print_table(found)
    failures.exit_if_any()


def _summary(file: RecoveryFile) -> dict[str, object]:
    recovery = file.recovery
    return {
        "id": recovery.id,
        "space_id": recovery.space_id,
        "uri": recovery.uri,
        "mountpoint": recovery.mountpoint,
        "time_ns": recovery.time_ns,
        "reason": recovery.reason,
        "operation_count": len(recovery.ops),
        "file_count": len(recovery.files),
        "bytes": recovery.lost_bytes,
        "is_applied": file.is_applied,
        "path": os.fspath(file.path),
    }


def _print_table(found: list[RecoveryFile]) -> None:
    from mictlanfs.cli.output import counted, print_name

    for file in found:
        recovery = file.recovery
        what = (
            f"{counted(len(recovery.ops), 'operation')}, "
            f"{counted(recovery.lost_bytes, 'byte')} of {counted(len(recovery.files), 'file')}"
        )
        state = ", applied" if file.is_applied else ""
        print_name(os.fsencode(recovery.mountpoint), f"{recovery.id}  {what}{state}  ")


@recover.command()
@click.argument("recovery_id", metavar="ID")
def show(recovery_id: str) -> None:
    """Show what a recovery holds: operations in words, files with sizes."""
    from mictlanfs.recoveries import open_recovery

    for line in _lines(open_recovery(recovery_id)):
        click.echo(line)


def _lines(file: RecoveryFile) -> list[str]:
    """What a recovery holds, for people; safe for a terminal."""
    from mictlanfs.cli.output import counted, local_time, quoted
    from mictlanfs.client.recovering import describe

    def safe(text: str) -> str:
        return quoted(os.fsencode(text))

    recovery = file.recovery
    lines = [
        f"recovery   {recovery.id}{' (applied)' if file.is_applied else ''}",
        f"mountpoint {safe(recovery.mountpoint)}",
        f"space      {recovery.space_id} at {safe(recovery.uri)}",
        f"time       {local_time(recovery.time_ns)}",
        f"reason     {safe(recovery.reason)}",
        f"operations {len(recovery.ops)}",
        *(f"  {safe(describe(lost))}" for lost in recovery.ops),
        f"files      {len(recovery.files)}",
    ]
    for lost in recovery.files:
        part = "" if lost.is_whole else f" in {counted(len(lost.ranges), 'range')}"
        size = f"{counted(lost.lost_bytes, 'byte')}{part}, file size {lost.size}"
        lines.append(f"  {safe(lost.show())}: {size}")
    if recovery.dropped_ops or recovery.dropped_bytes:
        lost_for_good = (
            f"{counted(recovery.dropped_ops, 'operation')} and "
            f"{counted(recovery.dropped_bytes, 'byte')} did not fit and are lost"
        )
        lines.append(lost_for_good)
    return lines


@recover.command()
@click.argument("recovery_id", metavar="ID")
@click.option(
    "--uri",
    envvar=URI_VARIABLE,
    show_envvar=True,
    metavar="URI",
    help="The space; by default the one that the mount used.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=TIMEOUT_S_DEFAULT,
    show_default=True,
    metavar="SECONDS",
    help="How long to try again when the space does not answer.",
)
def apply(recovery_id: str, *, uri: str | None, timeout: float) -> None:
    """Bring a recovery back into its space.

    What others changed since stays as it is: files that conflict are put beside it under the name
    NAME.recovered-ID, and changes that do not fit any more are left out, which ends the command
    with exit code 4. Applying again goes on where it ended.
    """
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.client.recovering import Verdict
    from mictlanfs.recoveries import open_recovery

    file = open_recovery(recovery_id)
    choice = SpaceChoice(uri or file.recovery.uri, timeout)

    async def work(client: SpaceClient) -> Sequence[Outcome]:
        return await client.apply_recovery(file)

    outcomes = run_on_space(choice, "recover", work)
    for outcome in outcomes:
        _print_outcome(outcome)
    if not outcomes:
        click.echo("all of it was applied before")
    if any(outcome.verdict is Verdict.LEFT for outcome in outcomes):
        raise click.exceptions.Exit(Exit.CONFLICT)


def _print_outcome(outcome: Outcome) -> None:
    from mictlanfs.cli.output import quoted

    detail = f" ({outcome.detail})" if outcome.detail else ""
    what = quoted(os.fsencode(f"{outcome.what}{detail}"))
    click.echo(f"{outcome.verdict.value}: {what}")


@recover.command()
@click.argument("recovery_id", metavar="ID")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def export(recovery_id: str, directory: Path) -> None:
    """Write the files of a recovery, and a list of all in it, to a new local directory.

    What was not written to a file is a hole in it.
    """
    from mictlanfs.errors import Kind, MictlanError
    from mictlanfs.oserrors import translated_os_errors
    from mictlanfs.recoveries import open_recovery

    file = open_recovery(recovery_id)
    with translated_os_errors("make directory", os.fspath(directory)):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            detail = "it is not empty"
            raise MictlanError(Kind.NOT_EMPTY, "export to", os.fspath(directory), detail)
    for index in range(len(file.recovery.files)):
        _export_file(file, index, directory)
    with translated_os_errors("write", os.fspath(directory)):
        text = "\n".join(_lines(file)) + "\n"
        (directory / "RECOVERY.txt").write_bytes(text.encode("utf-8", "surrogateescape"))


def _export_file(file: RecoveryFile, index: int, directory: Path) -> None:
    """Write one file below a directory that nobody else writes to."""
    from mictlanfs.oserrors import translated_os_errors

    lost = file.recovery.files[index]
    path = directory / "files" / _local_path(file.recovery, index)
    with translated_os_errors("write", os.fspath(path)):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            # Removed and made again: two files had the same name.
            path = path.with_name(f"{path.name[:200]}.{lost.ino}")
        with path.open("xb") as out:
            for offset, data in file.ranges(index):
                out.seek(offset)
                out.write(data)
            out.truncate(lost.size)
        os.utime(path, ns=(lost.mtime_ns, lost.mtime_ns))


def _local_path(recovery: Recovery, index: int) -> Path:
    from mictlanfs.client.names import check_name

    lost = recovery.files[index]
    if lost.path is None or not lost.path.names:
        return Path(f"inode-{lost.ino}")
    for name in lost.path.names:
        check_name(name)
    above = () if lost.path.is_whole else (f"inode-{lost.path.top}",)
    return Path(*above, *map(os.fsdecode, lost.path.names))


@recover.command()
@click.argument("recovery_ids", nargs=-1, required=True, metavar="ID...")
def remove(recovery_ids: tuple[str, ...]) -> None:
    """Delete recoveries for good."""
    from mictlanfs.cli.output import Failures
    from mictlanfs.recoveries import open_recovery

    failures = Failures()
    for recovery_id in recovery_ids:
        with failures.going_on():
            open_recovery(recovery_id).remove()
    failures.exit_if_any()
