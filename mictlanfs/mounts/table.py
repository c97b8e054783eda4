"""The kernel's table of mounts: what is mounted where.

Owns no state and never looks at a mountpoint itself: to look at one whose mount hangs is to hang
with it. So paths are resolved here, without following what lies inside a mount.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

MOUNT_TYPE = "fuse.mictlanfs"
MOUNT_TABLE = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of the table.

    Attributes:
        type: of the file system, e.g. "ext4" or "fuse.mictlanfs".
        source: what is mounted: a device, or the URI of a space.
        device: major and minor number; the minor is that of the FUSE connection.
        options: of this mount and of its file system, as /proc/mounts shows them.
    """

    mountpoint: Path
    type: str
    source: str
    device: tuple[int, int]
    # They may change while it is the same mount.
    options: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def is_ours(self) -> bool:
        """Whether it is a space."""
        return self.type == MOUNT_TYPE

    @property
    def is_fuse(self) -> bool:
        """Whether a process serves it, one of ours or another."""
        return self.type.partition(".")[0] in {"fuse", "fuseblk"}


def parse_mount_table(text: str) -> list[Mount]:
    """The mounts in a text like /proc/self/mountinfo; a later one covers an earlier one."""
    return [_parse_line(line) for line in text.splitlines() if line]


def find_mount(path: Path) -> Mount | None:
    """The topmost mount at `path`, which is absolute and without symlinks; None: none."""
    found = [mount for mount in _mounts() if mount.mountpoint == path]
    return found[-1] if found else None


def is_mounted(path: Path) -> bool:
    """Whether a space, dead or alive, is mounted at `path`, absolute and without symlinks."""
    mount = find_mount(path)
    return mount is not None and mount.is_ours


def mount_around(path: Path) -> Mount | None:
    """The space that `path` lies in, itself not being the mountpoint; None: none."""
    around = [mount for mount in _mounts() if mount.mountpoint in path.parents]
    inmost = max(around, key=lambda mount: len(mount.mountpoint.parts), default=None)
    return inmost if inmost is not None and inmost.is_ours else None


def resolved(path: Path) -> Path:
    """`path`, absolute and without symlinks, without looking into a mount that lies there."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  # pathlib keeps "..".
    if find_mount(absolute) is not None:
        return absolute
    in_parent = absolute.parent.resolve() / absolute.name
    return in_parent if find_mount(in_parent) is not None else absolute.resolve()


def _mounts() -> list[Mount]:
    return parse_mount_table(MOUNT_TABLE.read_text(errors="surrogateescape"))


def _parse_line(line: str) -> Mount:
    # Optional fields of any number end with a dash: proc_pid_mountinfo(5).
    before, _, after = line.partition(" - ")
    _, _, device, _, mountpoint, own_options, *_ = before.split(" ")
    kind, source, *rest = after.split(" ")
    major, minor = device.split(":")
    return Mount(
        Path(_unescaped(mountpoint)),
        kind,
        _unescaped(source),
        (int(major), int(minor)),
        frozenset(",".join([own_options, *rest]).split(",")),
    )


def _unescaped(field: str) -> str:
    # The kernel writes blanks and backslashes as octal escapes, such as \040.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
