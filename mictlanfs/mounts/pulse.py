"""Whether a mount answers. A *dead* mount is one whose process has ended without unmounting.

The kernel keeps a dead mount and answers ENOTCONN for it. Asking is bounded in time, since a mount
whose process hangs does not answer at all. Owns no state.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from enum import Enum
from pathlib import Path

from mictlanfs.mounts.table import is_mounted

PROBE_TIMEOUT_S = 5.0
# What the kernel answers for a mount without a process, and for a request during which that ended.
_DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED})


class Pulse(Enum):
    """How a mount answers."""

    ALIVE = "alive"
    DEAD = "dead"
    HANGS = "hangs"


def pulse_of(path: Path, timeout_s: float = PROBE_TIMEOUT_S) -> Pulse:
    """How the mount at `path` answers. Blocks for `timeout_s` at most.

    Asked by statvfs(2), which always goes to the process; stat(2) is answered from the kernel's
    cache even when the process is gone.
    """
    # In a process of its own, which can be ended: as long as a call hangs in the mount, that is in
    # use and cannot be unmounted.
    child = os.fork()
    if child == 0:
        os._exit(_errno_of_statvfs(path))
    descriptor = os.pidfd_open(child)
    try:
        is_answered = bool(select.select([descriptor], [], [], timeout_s)[0])
        if not is_answered:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(descriptor)
    if not is_answered:
        return Pulse.HANGS
    return Pulse.DEAD if os.waitstatus_to_exitcode(status) in _DEAD else Pulse.ALIVE


def _errno_of_statvfs(path: Path) -> int:
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno or errno.EIO
    except BaseException:  # noqa: BLE001 - nothing may leave a process that is a copy of another.
        return errno.EIO
    return 0


def is_dead(path: Path) -> bool:
    """Whether a space is mounted at `path` and its process has ended. One that hangs has not."""
    return is_mounted(path) and pulse_of(path) is Pulse.DEAD
