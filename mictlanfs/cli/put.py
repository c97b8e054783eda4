"""`mictlanfs put`: store local files, directories and streams in a space."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
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
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.argument("target", metavar="BUCKET[/PATH]")
@click.option("-r", "--recursive", is_flag=True, help="Store directories with all in them.")
@click.option("-p", "--keep-times", is_flag=True, help="Keep the times of last change.")
@json_option
@space_options
def put(
    space: SpaceChoice,
    sources: tuple[str, ...],
    target: str,
    *,
    recursive: bool,
    keep_times: bool,
    as_json: bool,
) -> None:
    """Store files in a space.

    Each SRC is a local file, a directory (with -r) or "-" for standard input. With several, or when
    the target is a bucket, a directory, or ends in "/", each keeps its name and is put into the
    target; otherwise the target is its new name. Missing directories are made, buckets are not.
    Readers never see a part of a file: it appears when it is complete and durable.
    """
    from mictlanfs.cli.output import Failures, print_json
    from mictlanfs.cli.running import run_on_space

    failures = Failures()

    async def work(client: SpaceClient) -> list[dict[str, object]]:
        putting = _Putting(client, failures, recursive=recursive, keep_times=keep_times)
        await putting.put_all(sources, target)
        return putting.done

    done = run_on_space(space, "put", work)
    if as_json:
        print_json(done)
    failures.exit_if_any()


@dataclass(frozen=True, slots=True)
class _Job:
    """One SRC and the name it gets."""

    source: str
    names: Names


class _Putting:
    """One run of the command.

    Attributes:
        done: what `--json` prints.
    """

    def __init__(
        self, client: SpaceClient, failures: Failures, *, recursive: bool, keep_times: bool
    ) -> None:
        self._client = client
        self._failures = failures
        self._recursive = recursive
        self._keep_times = keep_times
        self.done: list[dict[str, object]] = []

    async def put_all(self, sources: tuple[str, ...], target: str) -> None:
        """Put every source, reporting those that fail."""
        jobs = await self._jobs(sources, target)
        for job in jobs:
            with self._failures.going_on():
                await self._put(job)

    async def _jobs(self, sources: tuple[str, ...], target: str) -> list[_Job]:
        from mictlanfs.client.names import check_name, parse_path
        from mictlanfs.model import FileKind

        names = parse_path(target)
        if not names:
            raise UsageError("the target needs a bucket: BUCKET or BUCKET/PATH")
        is_into = len(sources) > 1 or len(names) == 1 or target.endswith("/")
        if not is_into and await self._client.exists(target):
            node = await self._client.stat(target)
            is_into = node.attributes.kind is FileKind.DIRECTORY
        if not is_into:
            return [_Job(sources[0], names)]
        jobs = []
        for source in sources:
            if source == STREAM:
                raise UsageError("standard input needs a name of its own: BUCKET/PATH")
            name = os.fsencode(Path(source).name)
            # "." and ".." have no name to keep: what is in them is put.
            if name not in {b"", b".."}:
                check_name(name)
                jobs.append(_Job(source, (*names, name)))
            else:
                jobs.append(_Job(source, names))
        return jobs

    async def _put(self, job: _Job) -> None:
        from mictlanfs.cli.meter import byte_meter
        from mictlanfs.client.names import show_path

        bucket, path = job.names[0], b"/".join(job.names[1:])
        if job.source == STREAM:
            with byte_meter("stdin", None) as progress:
                attributes = await self._client.put(
                    sys.stdin.buffer, bucket, path, progress=progress
                )
            self._note(show_path(job.names), attributes)
            return
        source = Path(job.source)
        if _is_directory(source):
            await self._put_tree(source, job.names)
            return
        with byte_meter(source.name, _size(source)) as progress:
            attributes = await self._client.put(
                source, bucket, path, keep_times=self._keep_times, progress=progress
            )
        self._note(show_path(job.names), attributes)

    async def _put_tree(self, source: Path, names: Names) -> None:
        from mictlanfs.cli.meter import byte_meter
        from mictlanfs.client.copytree import CopyEvents

        if not self._recursive:
            raise MictlanError(Kind.IS_DIRECTORY, "put", str(source), "a directory needs -r")
        with byte_meter(source.name, None) as progress:
            events = CopyEvents(progress, self._note, lambda _, error: self._failures.add(error))
            await self._client.put_tree(
                source, names[0], b"/".join(names[1:]), events, keep_times=self._keep_times
            )

    def _note(self, path: str, attributes: Attributes) -> None:
        self.done.append({"path": path, "size": attributes.size, "ino": attributes.ino})


def _is_directory(path: Path) -> bool:
    return path.is_dir()


def _size(path: Path) -> int | None:
    """Bytes of a regular file, None when that says nothing."""
    try:
        return path.stat().st_size or None
    except OSError:
        return None
