"""The caches of the kernel, of which a machine has one: dropped, or kept while somebody counts.

Tests run in several processes at once. One that drops the caches makes every mount of the machine
ask its questions anew, so that another that counts requests would count too many.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_SWITCH = "/proc/sys/vm/drop_caches"
_PAGES_AND_NAMES = b"3"


@contextmanager
def kept() -> Iterator[None]:
    """Have everybody wait who would drop the caches."""
    with _held(fcntl.LOCK_SH):
        yield


def drop() -> None:
    """Drop all that is clean, once everything is stored and nobody counts."""
    subprocess.run(["sync"], check=True)
    with _held(fcntl.LOCK_EX) as switch:
        os.write(switch, _PAGES_AND_NAMES)


@contextmanager
def _held(how: int) -> Iterator[int]:
    # The lock is on the switch itself, which all test runs of the machine have in common.
    switch = os.open(_SWITCH, os.O_WRONLY)
    try:
        fcntl.flock(switch, how)
        yield switch
    finally:
        os.close(switch)
