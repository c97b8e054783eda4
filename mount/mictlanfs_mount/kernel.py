"""Knobs of the kernel that pyfuse3 does not turn: read-ahead and requests in the background.

Both are files in sysfs that only root may write; without the right the mount works, only slower.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

# Read-ahead requests count as background; the kernel's default of 12 throttles a fast reader.
MAX_BACKGROUND = 64


@dataclass(frozen=True, slots=True)
class KernelLimits:
    """What took effect; None where the kernel's default stayed."""

    read_ahead_kib: int | None
    max_background: int | None


def raise_limits(mountpoint: Path, read_ahead_kib: int, sysfs: Path = Path("/sys")) -> KernelLimits:
    """Raise the limits of the mount at `mountpoint`, as far as allowed.

    Blocks on the mount itself, so it must not run on the thread that serves it.
    """
    device = mountpoint.stat().st_dev
    bdi = sysfs / "class" / "bdi" / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb"
    connection = sysfs / "fs" / "fuse" / "connections" / str(os.minor(device)) / "max_background"
    return KernelLimits(
        _write_number(bdi, read_ahead_kib), _write_number(connection, MAX_BACKGROUND)
    )


def _write_number(path: Path, number: int) -> int | None:
    try:
        path.write_text(str(number), encoding="ascii")
    except OSError as error:
        log.debug("%s stays as it is: %s", path, error)
        return None
    return number
