"""The directory that a space is to be mounted at: everything that can be checked before.

Owns no state. Whatever a person can put right is refused here in one line that names the remedy.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from mictlanfs.errors import UsageError
from mictlanfs.mounts.pulse import Pulse, pulse_of
from mictlanfs.mounts.table import Mount, find_mount, resolved
from mictlanfs.mounts.unmounting import unmount


def prepare(path: Path, say: Callable[[str], None]) -> Path:
    """Check that a space can be mounted at `path`; returns it absolute and without symlinks.

    A dead mount of ours is unmounted first, which `say` is told.

    Raises:
        UsageError: it cannot; names the remedy.
    """
    mountpoint = resolved(path)
    mount = find_mount(mountpoint)
    if mount is not None and mount.is_fuse:
        _clear(mount, say)
    try:
        _check_directory(mountpoint)
    except OSError as error:
        raise UsageError(_why_not(mountpoint, error)) from error
    return mountpoint


def _clear(mount: Mount, say: Callable[[str], None]) -> None:
    """Unmount what is left of a mount of ours; refuse to touch any other."""
    path = mount.mountpoint
    if not mount.is_ours:
        raise UsageError(
            f"something else is mounted at {path} ({mount.type}, {mount.source}): "
            "choose another directory"
        )
    match pulse_of(path):
        case Pulse.DEAD:
            say(f"the mount of {mount.source} at {path} had lost its process: unmounting it first")
            unmount(path, lazy=True)
        case Pulse.ALIVE:
            raise UsageError(
                f"{mount.source} is mounted at {path} already: "
                f"unmount it with 'mictlanfs umount {path}' or choose another directory"
            )
        case Pulse.HANGS:
            raise UsageError(
                f"{mount.source} is mounted at {path} and does not answer: "
                f"unmount it with 'mictlanfs umount --lazy {path}' or choose another directory"
            )


def _check_directory(path: Path) -> None:
    if not stat.S_ISDIR(path.stat().st_mode):
        raise UsageError(f"{path} is not a directory: choose another mountpoint")
    with os.scandir(path) as entries:
        if next(entries, None) is not None:
            raise UsageError(
                f"{path} is not empty (see 'ls -A {path}'): "
                "choose an empty directory, for the mount would hide what is in it"
            )
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise UsageError(f"this user may not write to {path}: choose a directory of your own")


def _why_not(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"{path} does not exist: make it with 'mkdir -p {path}'"
        case errno.ENOTDIR:
            return f"{path} lies below something that is not a directory: choose another one"
        case errno.EACCES | errno.EPERM:
            return f"this user may not enter {path}, or a directory above it: choose another one"
        case _:
            return f"cannot mount at {path}: {error.strerror}"
