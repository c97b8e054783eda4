"""When set-user-id and set-group-id end, in the cases that the kernel leaves to the mount. Pure.

The kernel ends both when a file is written, truncated or given away, with two exceptions: O_TRUNC,
and set-group-id of what the group may not execute, which of a FUSE file it never ends. Local file
systems end that too, when who makes the change is not in the group (`setattr_should_drop_sgid`).
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from mictlanfs.model import Attributes, FileKind

IsMember = Callable[[int], bool]


def in_every_group(_: int) -> bool:
    """Of whom nothing is known, or all is allowed."""
    return True


def after_change(known: Attributes, mode: int | None, is_member: IsMember) -> int | None:
    """The mode to set when the size or the owner of an inode is changed.

    Args:
        known: what the inode is before.
        mode: that the kernel wants to be set; None: the mode stays.
        is_member: whether who changes it is in a group, or is root.
    """
    if known.kind is FileKind.DIRECTORY or not _ends_for_others(known.mode):
        return mode
    if is_member(known.gid):
        return mode
    return (known.mode if mode is None else mode) & ~stat.S_ISGID


def after_open_truncating(known: Attributes, *, is_root: bool, is_member: IsMember) -> int | None:
    """The mode to set when a file is opened with O_TRUNC; None: the mode stays."""
    if is_root:
        return None
    ends = _ends_for_others(known.mode) and not is_member(known.gid)
    is_executable = known.mode & stat.S_IXGRP
    ended = stat.S_ISUID | (stat.S_ISGID if ends or is_executable else 0)
    return known.mode & ~ended if known.mode & ended else None


def _ends_for_others(mode: int) -> bool:
    return mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID
