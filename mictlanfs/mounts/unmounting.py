"""Unmounting: as root by the system call, as anybody else by the helper of libfuse.

Never decides what may be unmounted: callers look that up first. Owns no state. Unmounting blocks
while the kernel stores what it still holds for the mount; a lazy unmount does not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import time
from pathlib import Path

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.mounts.ability import FUSERMOUNT
from mictlanfs.mounts.pulse import is_dead
from mictlanfs.mounts.users import names_of, users_of
from mictlanfs.oserrors import from_os_error

# A process that has just ended may hold the mount for a moment longer.
_BUSY_RETRIES_MAX = 5
_BUSY_DELAY_S = 0.1
_FUSERMOUNT_TIMEOUT_S = 30.0
# It waits for nobody.
_LAZY_FUSERMOUNT_TIMEOUT_S = 5.0
# Flags of umount2, from its manual page.
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount what is mounted at `path`, which is absolute and without symlinks.

    Args:
        path: the mountpoint.
        lazy: take it out of the tree now, while programs that use it go on using it.

    Raises:
        MictlanError: BUSY, naming the processes that use it; else what the system says.
    """
    for retries_left in reversed(range(_BUSY_RETRIES_MAX)):
        try:
            _unmount_once(path, lazy=lazy)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise from_os_error(error, "unmount", str(path)) from error
            if not retries_left:
                raise _busy(path) from error
            time.sleep(_BUSY_DELAY_S)
        else:
            return


def unmount_if_dead(path: Path) -> bool:
    """Unmount the space at `path` if its process has ended; False when there is no such mount.

    Raises:
        MictlanError: as `unmount`.
    """
    if not is_dead(path):
        return False
    unmount(path, lazy=True)
    return True


def _unmount_once(path: Path, *, lazy: bool) -> None:
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
        if libc.umount2(os.fsencode(path), flags) == 0:
            return
        number = ctypes.get_errno()
        if number != errno.EPERM or shutil.which(FUSERMOUNT) is None:
            raise OSError(number, os.strerror(number), str(path))
        # Root without CAP_SYS_ADMIN, as in a container: fusermount3 may have it.
    _run_fusermount(path, lazy=lazy)


def _run_fusermount(path: Path, *, lazy: bool) -> None:
    command = [FUSERMOUNT, "-u", *(["-z"] if lazy else []), "--", str(path)]
    timeout_s = _LAZY_FUSERMOUNT_TIMEOUT_S if lazy else _FUSERMOUNT_TIMEOUT_S
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        detail = f"{FUSERMOUNT} is missing: install fuse3, or unmount as root"
        raise MictlanError(Kind.UNSUPPORTED, "unmount", str(path), detail) from None
    except subprocess.TimeoutExpired:
        detail = f"{FUSERMOUNT} did not end within {timeout_s:g} s"
        raise MictlanError(Kind.TIMED_OUT, "unmount", str(path), detail) from None
    if done.returncode == 0:
        return
    reason = done.stderr.strip().splitlines()[-1:] or [f"{FUSERMOUNT} failed"]
    if "busy" in reason[0]:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
    raise MictlanError(Kind.NOT_PERMITTED, "unmount", str(path), reason[0])


def _busy(path: Path) -> MictlanError:
    users = users_of(path)
    if users:
        detail = f"it is in use by {names_of(users)}: end them, or unmount it with --lazy"
    else:
        detail = "it is in use; find out by whom with 'fuser -vm', or unmount it with --lazy"
    return MictlanError(Kind.BUSY, "unmount", str(path), detail)
