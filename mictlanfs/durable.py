"""Steps on a local file system that survive a power cut, and files that are replaced whole.

A name is durable once the folder that holds it was synced, not before: fsync(2) of a file says
nothing about its name. A reader of a file that is replaced meets the old content or the new one,
never a part of either. Everything here blocks and raises OSError.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mictlanfs.model import Buffer

# IOV_MAX of Linux: buffers that one writev(2) takes.
_WRITE_BUFFERS_MAX: Final = 1024


def replace_file(path: Path, content: bytes, *, is_durable: bool = False) -> None:
    """Give the file `path` a new content; it is made when missing.

    Several may do so at once: the last one wins. What a writer that was killed leaves behind is
    named `NAME.PID`.

    Args:
        path: in a directory that exists.
        content: all of it.
        is_durable: return when it is sure to survive a power cut.

    Raises:
        OSError: the old content, if any, still stands.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if is_durable:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make the content of a file durable that others have written; not its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing; what is there already stays."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def write_all(fd: int, pieces: Sequence[Buffer]) -> None:
    """Write `pieces` one behind the other, however often the system call stops short.

    Raises:
        OSError: some of them may be written.
    """
    left = [memoryview(piece) for piece in pieces if len(piece)]
    while left:
        written = os.writev(fd, left[:_WRITE_BUFFERS_MAX])
        count = 0
        while count < len(left) and written >= len(left[count]):
            written -= len(left[count])
            count += 1
        del left[:count]
        if written:
            left[0] = left[0][written:]
