"""Whether a mount answers. A *dead* mount is one whose process has ended without unmounting.

The kernel keeps a dead mount and answers ENOTCONN for it. Asking is bounded in time, since a mount
whose process hangs does not answer at all. Owns no state.
"""

from __future__ import annotations

import errno
import os
import threading
from enum import Enum
from pathlib import Path

from mictlanfs.mounts.table import is_mounted

PROBE_TIMEOUT_S = 5.0


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
    answers: list[Pulse] = []

    def ask() -> None:
        try:
            os.statvfs(path)
        except OSError as error:
            answers.append(Pulse.DEAD if error.errno == errno.ENOTCONN else Pulse.ALIVE)
        else:
            answers.append(Pulse.ALIVE)

    # A daemon thread: one that hangs for ever must not keep this process from ending.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answers[0] if answers else Pulse.HANGS


def is_dead(path: Path) -> bool:
    """Whether a space is mounted at `path` and its process has ended. One that hangs has not."""
    return is_mounted(path) and pulse_of(path) is Pulse.DEAD
