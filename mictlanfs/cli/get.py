"""`mictlanfs get`: fetch files and directories from a space."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.options import SpaceChoice, json_option, space_options
from mictlanfs.errors import Kind, MictlanError, UsageError

if TYPE_CHECKING:
    from mictlanfs.cli.output import Failures
    from mictlanfs.client.names import Names
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.model import Attributes

STREAM = "-"


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="BUCKET/PATH...")
@click.argument("destination", metavar="DEST")
@click.option("-r", "--recursive", is_flag=True, help="Fetch directories with all in them.")
@json_option
@space_options
def get(
    space: SpaceChoice,
    sources: tuple[str, ...],
    destination: str,
    *,
    recursive: bool,
    as_json: bool,
) -> None:
    """Fetch files from a space.

    DEST is a file, a directory that exists, or "-" for standard output. Modes and times of last
    change are kept, holes stay holes. A local file appears when it is complete.
    """
    from mictlanfs.cli.output import Failures, print_json
    from mictlanfs.cli.running import run_on_space

    if destination == STREAM and (recursive or as_json):
        raise UsageError("standard output takes the content of files: neither -r nor --json")
    failures = Failures()

    async def work(client: SpaceClient) -> list[dict[str, object]]:
        getting = _Getting(client, failures, recursive=recursive)
        await getting.get_all(sources, destination)
        return getting.done

    done = run_on_space(space, "get", work)
    if as_json:
        print_json(done)
    failures.exit_if_any()


class _Getting:
    """One run of the command.

    Attributes:
        done: what `--json` prints.
    """

    def __init__(self, client: SpaceClient, failures: Failures, *, recursive: bool) -> None:
        self._client = client
        self._failures = failures
        self._recursive = recursive
        self.done: list[dict[str, object]] = []

    async def get_all(self, sources: tuple[str, ...], destination: str) -> None:
        """Get every source, reporting those that fail."""
        from mictlanfs.client.names import parse_path

        is_into = destination != STREAM and _is_directory(Path(destination))
        needs_directory = len(sources) > 1 or destination.endswith("/")
        if destination != STREAM and needs_directory and not is_into:
            raise UsageError(f"{destination} is not a directory")
        for source in sources:
            names = parse_path(source)
            if not names:
                raise UsageError("name a bucket: BUCKET/PATH, or BUCKET with -r")
            with self._failures.going_on():
                await self._get(names, destination, is_into=is_into)

    async def _get(self, names: Names, destination: str, *, is_into: bool) -> None:
        if destination == STREAM:
            await self._client.get(names[0], b"/".join(names[1:]), sys.stdout.buffer)
            return
        target = Path(destination)
        if is_into:
            target /= os.fsdecode(names[-1])
        try:
            await self._get_file(names, target)
        except MictlanError as error:
            # Only the space's answer: a local directory in the way has the same kind.
            if error.kind is not Kind.IS_DIRECTORY or error.operation != "get":
                raise
            if not self._recursive:
                raise MictlanError(
                    error.kind, "get", error.target, "a directory needs -r"
                ) from None
            await self._get_tree(names, target)

    async def _get_file(self, names: Names, target: Path) -> None:
        from mictlanfs.cli.meter import byte_meter, is_shown

        path = b"/".join(names)
        size = (await self._client.stat(path)).attributes.size if is_shown() else None
        with byte_meter(target.name, size) as progress:
            attributes = await self._client.get(
                names[0], b"/".join(names[1:]), target, progress=progress
            )
        self._note(str(target), attributes)

    async def _get_tree(self, names: Names, target: Path) -> None:
        from mictlanfs.cli.meter import byte_meter
        from mictlanfs.client.copytree import CopyEvents

        with byte_meter(target.name, None) as progress:
            events = CopyEvents(progress, self._note, lambda _, error: self._failures.add(error))
            await self._client.get_tree(names[0], b"/".join(names[1:]), target, events)

    def _note(self, path: str, attributes: Attributes) -> None:
        self.done.append({"path": path, "size": attributes.size})


def _is_directory(path: Path) -> bool:
    return path.is_dir()
