"""When set-user-id and set-group-id end, in the cases that the kernel leaves to the mount. Pure.

The kernel ends both when a file is written, truncated or given away, with two exceptions: O_TRUNC,
and set-group-id of what the group may not execute, which of a FUSE file it never ends. Local file
systems end that too, when who makes the change is not in the group (`setattr_should_drop_sgid`).

With FUSE_HANDLE_KILLPRIV_V2 (see `handshake`) it leaves the mount the rest as well, but says when:
for writing, and for chown(2) to nobody, it sends a SETATTR that changes nothing (`fuse_setattr`).
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from mictlanfs.model import Attributes, FileKind

IsMember = Callable[[int], bool]


def in_every_group(_: int) -> bool:
    """Of whom nothing is known, or all is allowed."""
    return True


def after_change(
    known: Attributes, mode: int | None, is_member: IsMember, *, is_kept: bool = True
) -> int | None:
    """The mode to set when the size or the owner of an inode is changed.

    Args:
        known: what the inode is before.
        mode: that the kernel wants to be set; None: the mode stays.
        is_member: whether who changes it is in a group, or is root.
        is_kept: whether the kernel ends what it ends itself, or the change ends nothing.
    """
    if known.kind is FileKind.DIRECTORY:
        return mode
    ended = 0
    if not is_kept:
        ended = stat.S_ISUID | (stat.S_ISGID if known.mode & stat.S_IXGRP else 0)
    if _ends_for_others(known.mode) and not is_member(known.gid):
        ended |= stat.S_ISGID
    wanted = known.mode if mode is None else mode
    return wanted & ~ended if wanted & ended else mode


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
