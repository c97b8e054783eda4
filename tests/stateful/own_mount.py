"""A space and a mount that a long run of a program makes for itself, and takes down at its end."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.spaces import Mount, Space, mounted, run, running_space

BUCKET = "bucket"


@dataclass
class OwnMount:
    """What a run works with.

    Attributes:
        base: a temporary directory of this run, for whatever else it needs.
        bucket: an empty bucket on the mount.
    """

    base: Path
    space: Space
    mount: Mount

    @property
    def bucket(self) -> Path:
        return self.mount.path / BUCKET


def add_mount_arguments(parser: ArgumentParser) -> None:
    """Let the caller say what the mount and its bucket are like."""
    parser.add_argument(
        "--mount-option", action="append", default=[], help="as memory=8M; may be repeated"
    )
    parser.add_argument("--chunk-size", default="4M", help="of the bucket, from 64K to 16M")


@contextlib.contextmanager
def own_mount(arguments: Namespace) -> Iterator[OwnMount]:
    """A mount of a new space as the arguments say, gone on leaving."""
    with tempfile.TemporaryDirectory(prefix="mictlanfs-run-") as folder:
        base = Path(folder)
        with (
            running_space(base / "data") as space,
            mounted(space.uri, base, *arguments.mount_option) as mount,
        ):
            make_bucket(space, BUCKET, arguments.chunk_size)
            yield OwnMount(base, space, mount)


def make_bucket(space: Space, name: str, chunk_size: str) -> None:
    """Make a bucket with chunks of this size."""
    space.command("bucket", "create", name, "--chunk-size", chunk_size)


@contextlib.contextmanager
def tmpfs(path: Path) -> Iterator[Path]:
    """An empty tmpfs at `path`: a file system that keeps times and counts links as POSIX says.

    Without access times, which a mount of ours never changes by reading.
    """
    path.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", "noatime,mode=755,size=1G", "tmpfs", path)
    try:
        yield path
    finally:
        # Lazily, since a failure may have left files open.
        subprocess.run(["umount", "--lazy", path], check=True)
