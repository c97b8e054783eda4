"""What one mount is told: where the space is, where to mount it and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mictlanfs.config import MountOptions


@dataclass(frozen=True, slots=True)
class MountSettings:
    """Settings of a mount.

    Attributes:
        uri: of the space, as the user gave it; also shown as the source in /proc/mounts.
        mountpoint: absolute.
        options: as given with `-o`.
    """

    uri: str
    mountpoint: Path
    options: MountOptions
