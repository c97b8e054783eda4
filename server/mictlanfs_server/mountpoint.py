"""The directory that the mount of a space goes to, as seen by who supervises that mount.

Never mounts or unmounts anything. A question to a mount is bounded in time, for it may hang.
"""

from __future__ import annotations

import os
from pathlib import Path

import trio

from mictlanfs.errors import UsageError
from mictlanfs.mounts.table import find_mount, is_mounted

PROBE_INTERVAL_S = 0.1
PROBE_TIMEOUT_S = 3.0


def check_free(path: Path) -> None:
    """Whether `path` is an empty directory, or nothing at all, with nothing mounted there.

    The mount checks again, and more; this is to say so before any server is started.

    Raises:
        UsageError: it is not.
    """
    mount = find_mount(path)
    if mount is not None and mount.is_fuse:
        raise UsageError(
            f"{path} is mounted already ({mount.source}): "
            f"unmount it with `mictlanfs umount {path}` or choose another directory"
        )
    try:
        with os.scandir(path) as entries:
            first = next(entries, None)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UsageError(f"{path} is not a directory: choose another mountpoint") from None
    except OSError as error:
        raise UsageError(f"cannot mount at {path}: {error.strerror}") from error
    if first is not None:
        raise UsageError(f"{path} is not empty: choose an empty or a new directory to mount at")


async def is_answering(path: Path) -> bool:
    """Whether a space is mounted at `path` and lists its root."""
    if not is_mounted(path):
        return False
    with trio.move_on_after(PROBE_TIMEOUT_S):
        try:
            # A mount that hangs keeps the thread, but not us.
            await trio.to_thread.run_sync(os.listdir, path, abandon_on_cancel=True)
        except OSError:
            return False
        return True
    return False


async def wait_until_answering(path: Path) -> None:
    """Return when a space is mounted at `path` and lists its root."""
    while not await is_answering(path):  # noqa: ASYNC110 - another process answers.
        await trio.sleep(PROBE_INTERVAL_S)
