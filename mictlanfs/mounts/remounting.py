"""Changing a mount that is there: read-only or not, and what programs on it may do.

The kernel does it alone, without asking the process that serves the mount. Owns no state and never
decides what may be changed.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Collection, Iterable

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.mounts.table import Mount
from mictlanfs.oserrors import from_os_error

# Flags of mount(2), from <sys/mount.h>, by the words of /proc/mounts. What is not given is taken
# away, so those that are there have to be given again.
_FLAGS = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "noatime": 1 << 10,
    "nodiratime": 1 << 11,
    "relatime": 1 << 21,
}
_MS_REMOUNT = 32
# The word that takes each flag away.
_CONTRARY = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec"}
_CHANGEABLE = frozenset({*_CONTRARY, *_CONTRARY.values()})


def remounted_flags(now: Collection[str], changes: Iterable[str]) -> frozenset[str]:
    """The flags that a mount with `now` has after `changes`, in order, were applied.

    Words that are no flag are left out; only `ro`, `nosuid`, `nodev`, `noexec` and their contraries
    change anything.
    """
    flags = {word for word in now if word in _FLAGS}
    for word in changes:
        if word in _CHANGEABLE:
            flags.discard(_CONTRARY.get(word, word))
            flags |= {word} & _FLAGS.keys()
    return frozenset(flags)


def remount(mount: Mount, changes: Iterable[str]) -> None:
    """Apply `changes`, such as "ro", to a mount that is there.

    Blocks while the kernel stores what it holds for the mount.

    Raises:
        MictlanError: BUSY when it is to become read-only and files are open for writing; else what
            the system says.
    """
    flags = remounted_flags(mount.options, changes)
    number = sum(_FLAGS[word] for word in flags) | _MS_REMOUNT
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(mount.mountpoint)
    if libc.mount(os.fsencode(mount.source), path, None, ctypes.c_ulong(number), None) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        detail = "files are open for writing there: close them first"
        raise MictlanError(Kind.BUSY, "remount", str(mount.mountpoint), detail)
    error = OSError(code, os.strerror(code), str(mount.mountpoint))
    raise from_os_error(error, "remount", str(mount.mountpoint))
