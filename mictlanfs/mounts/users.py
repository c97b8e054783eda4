"""The processes around a mount, found in /proc: those that use it and the one that serves it.

Asks the kernel where links lead and never the file system that they lead to, so that a mount which
hangs holds nobody up. Sees what this user may see. Owns no state; scans are bounded in number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mictlanfs.mounts.ability import FUSE_DEVICE
from mictlanfs.mounts.table import Mount
from mictlanfs.processes import PROC, ProcessIdentity, identify

_USERS_SHOWN_MAX = 5
_PROCESSES_SCANNED_MAX = 20_000
_DESCRIPTORS_SCANNED_MAX = 4096


@dataclass(frozen=True, slots=True)
class User:
    """A process that works in a directory or has a file open below it."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def users_of(path: Path) -> list[User]:
    """Processes that work in `path` or have files open below it, but not this process itself."""
    found = []
    for folder in _process_folders():
        if any(_is_within(link, path) for link in _links(folder)):
            with suppress(OSError):
                name = (folder / "comm").read_text(errors="replace").strip()
                found.append(User(int(folder.name), name))
    return found


def names_of(users: Sequence[User]) -> str:
    """Some of `users`, for people."""
    shown = ", ".join(str(user) for user in users[:_USERS_SHOWN_MAX])
    hidden_count = len(users) - _USERS_SHOWN_MAX
    return f"{shown} and {hidden_count} more" if hidden_count > 0 else shown


def serving_process(mount: Mount) -> ProcessIdentity | None:
    """The process that serves a FUSE mount; None where the kernel does not tell us.

    It has the FUSE device open, and newer kernels (6.18 was seen to) show the connection in
    /proc/PID/fdinfo. The number of a mount that is gone is used again while its process may still
    run, so the youngest of several counts: a mount process mounts when it starts.
    """
    wanted = f"fuse_connection:\t{mount.device[1]}\n"
    found = [
        process
        for folder in _process_folders()
        if _has_connection(folder, wanted) and (process := identify(int(folder.name))) is not None
    ]
    return max(found, key=lambda process: process.started_ticks, default=None)


def _has_connection(folder: Path, wanted: str) -> bool:
    for link in _descriptors(folder):
        with suppress(OSError):
            if (
                link.readlink() == FUSE_DEVICE
                and wanted in (folder / "fdinfo" / link.name).read_text()
            ):
                return True
    return False


def _process_folders() -> Iterator[Path]:
    names = sorted(int(folder.name) for folder in PROC.iterdir() if folder.name.isdecimal())
    for pid in names[:_PROCESSES_SCANNED_MAX]:
        if pid != os.getpid():
            yield PROC / str(pid)


def _descriptors(folder: Path) -> list[Path]:
    try:
        return list((folder / "fd").iterdir())[:_DESCRIPTORS_SCANNED_MAX]
    except OSError:
        return []


def _links(folder: Path) -> Iterator[str]:
    for link in (folder / "cwd", folder / "root", *_descriptors(folder)):
        with suppress(OSError):
            yield os.fspath(link.readlink())


def _is_within(link: str, path: Path) -> bool:
    return link == str(path) or link.startswith(f"{path}/")
