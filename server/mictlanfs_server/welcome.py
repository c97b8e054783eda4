"""What `up` says when all works: where everything is, and commands to try that work as printed.

Only words; starts and checks nothing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mictlanfs
from mictlanfs.cli.main import PROGRAM
from mictlanfs.cli.options import URI_VARIABLE
from mictlanfs.config import parse_mount_options

_BUCKET = "photos"
# Something small that is there on most machines; the last one is there on all.
_SAMPLES = (
    Path("/usr/share/doc/fuse3"),
    Path("/usr/share/doc/bash"),
    Path("/usr/share/doc/libc6"),
    Path(mictlanfs.__file__).parent / "cli",
)


@dataclass(frozen=True, slots=True)
class Welcome:
    """The facts of a space that is up.

    Attributes:
        mountpoint, data: absolute.
        options: of the mount, as in `-o`.
        is_detached: whether the space goes on without the terminal.
    """

    uri: str
    mountpoint: Path
    data: Path
    options: str
    is_detached: bool

    def text(self, environment: Mapping[str, str]) -> str:
        """The block to print, in the current directory and with `environment`."""
        commands = "\n".join(f"  {command}" for command in self.commands(environment))
        where = "" if self.is_detached else ", in another terminal"
        return (
            f"  space       {self.uri}\n"
            f"  mounted at  {self.mountpoint}\n"
            f"  data in     {self.data}\n"
            f"\n"
            f"Try{where}:\n"
            f"\n"
            f"{commands}\n"
            f"\n"
            f"{self._ending(environment)}"
        )

    def commands(self, environment: Mapping[str, str]) -> list[str]:
        """Commands to try, for a shell in the current directory."""
        options = parse_mount_options(self.options)
        mountpoint = quoted(self.mountpoint)
        if options.read_only or options.subdir:
            return [f"ls -la {mountpoint}"]
        sample = next(path for path in _SAMPLES if path.is_dir())
        # A command may be given in a shell where another space was chosen.
        other = environment.get(URI_VARIABLE, self.uri) != self.uri
        uri = f" --uri {shlex.quote(self.uri)}" if other else ""
        return [
            f"mkdir -p {mountpoint}/{_BUCKET}",
            f"cp -r {shlex.quote(str(sample))} {mountpoint}/{_BUCKET}/",
            f"{program(environment)} ls -l{uri} {_BUCKET}",
        ]

    def _ending(self, environment: Mapping[str, str]) -> str:
        stop = f"{program(environment)} down --data {quoted(self.data)}"
        how = f"`{stop}`" if self.is_detached else "Ctrl-C"
        return f"{how} stops everything; the data stays in {quoted(self.data)}."


def quoted(path: Path) -> str:
    """`path` as one would type it in the current directory."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else f"./{relative}")


def program(environment: Mapping[str, str]) -> str:
    """Our command as one would type it: by its name when PATH finds this very program."""
    ours = Path(sys.executable).parent / PROGRAM
    found = shutil.which(PROGRAM, path=environment.get("PATH"))
    if not ours.exists() or (found is not None and ours.samefile(found)):
        return PROGRAM
    return quoted(ours)
