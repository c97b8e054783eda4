"""The links by which mount(8) finds our helper, which lives wherever MictlanFS was installed.

mount(8) looks in /sbin only: for `mount.mictlanfs` at `mount -t mictlanfs` and lines of fstab, and
for `mount.fuse.mictlanfs` when it learns the type from /proc/mounts, as for `mount -o remount DIR`.
Replaces links only, never a file of somebody else.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mictlanfs.errors import UsageError
from mictlanfs.oserrors import translated_os_errors

PROGRAM = "mount.mictlanfs"
NAMES = (PROGRAM, "mount.fuse.mictlanfs")
DIRECTORY = Path("/sbin")


def install(directory: Path = DIRECTORY) -> list[Path]:
    """Make the links in `directory`, in the place of older ones; returns them.

    Raises:
        UsageError: something else has one of the names.
        MictlanError: the directory cannot be written: only root may.
    """
    program = Path(sys.executable).parent / PROGRAM
    if not program.exists():
        raise UsageError(f"{program} does not exist: install MictlanFS with pip first")
    links = [directory / name for name in NAMES]
    for link in links:
        if link.exists() and not link.is_symlink():
            raise UsageError(f"{link} is there and is no link: remove it first")
    for link in links:
        with translated_os_errors("link", str(link)):
            link.unlink(missing_ok=True)
            link.symlink_to(program)
    return links
