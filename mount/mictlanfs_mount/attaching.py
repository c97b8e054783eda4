"""Attaching the file system to the kernel, so that default access lists take the umask's place.

The kernel takes the umask off the mode of every new node before it asks, unless the file system
says that it does so itself. libfuse would say it in its answer to FUSE_INIT, which pyfuse3 gives no
hold on; the kernel also takes the flag MS_POSIXACL of mount(2) for it (`fuse_fill_super_common`).
So root mounts here, and hands libfuse the device as `/dev/fd/N`. Anybody else, and root where this
is refused, mounts by libfuse as ever: then the kernel masks, and masking again changes nothing.

Owns the mount from `attach` to `Attachment.close`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyfuse3

from mictlanfs.errors import MictlanError
from mictlanfs.mounts.ability import FUSE_DEVICE
from mictlanfs.mounts.unmounting import unmount

log = logging.getLogger(__name__)

FILESYSTEM_TYPE = "mictlanfs"
# Flags of mount(2), from <sys/mount.h>, by the words that libfuse takes for them.
_SET = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "noatime": 1024}
_UNSET = {"suid": "nosuid", "dev": "nodev", "exec": "noexec"}
# What libfuse sets unless told otherwise.
_DEFAULT = frozenset({"nosuid", "nodev"})
_MS_POSIXACL = 1 << 16
# Words that the file system in the kernel reads itself.
_DATA = ("allow_other", "default_permissions")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A mount that pyfuse3 serves.

    Attributes:
        device_fd: the device, if the mount was made here; pyfuse3 closes it. None: by libfuse.
    """

    mountpoint: Path
    device_fd: int | None

    def close(self) -> None:
        """End what pyfuse3 holds; unmount, if that has not happened yet."""
        is_mounted = self.device_fd is not None and not _is_unmounted(self.device_fd)
        # First: with the device closed the kernel waits for no answer.
        pyfuse3.close(unmount=self.device_fd is None)
        if is_mounted:
            _unmount(self.mountpoint)


def attach(
    operations: pyfuse3.Operations, mountpoint: Path, source: str, words: Collection[str]
) -> Attachment:
    """Mount at `mountpoint` and prepare pyfuse3 for serving it.

    Args:
        operations: the handlers; with `enable_acl` default lists take the place of the umask.
        mountpoint: absolute and without symlinks.
        source: as shown in /proc/mounts.
        words: options as libfuse takes them.

    Raises:
        RuntimeError: the kernel refuses; libfuse has printed why.
    """
    # The options are one string with commas for libfuse, and a source may hold commas.
    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    options = {*words, f"fsname={escaped}", f"subtype={FILESYSTEM_TYPE}"}
    is_wanted = operations.enable_acl and os.geteuid() == 0
    device_fd = _mounted(mountpoint, source, words) if is_wanted else None
    where = os.fspath(mountpoint) if device_fd is None else f"/dev/fd/{device_fd}"
    try:
        pyfuse3.init(operations, where, options)
    except BaseException:
        if device_fd is not None:
            os.close(device_fd)
            _unmount(mountpoint)
        raise
    return Attachment(mountpoint, device_fd)


def mount_flags(words: Collection[str]) -> int:
    """The flags of mount(2) for options as libfuse takes them."""
    kept = _DEFAULT - {_UNSET[word] for word in words if word in _UNSET}
    return sum(_SET[word] for word in kept | {word for word in words if word in _SET})


def _mounted(mountpoint: Path, source: str, words: Collection[str]) -> int | None:
    """The device of a new mount, None when mount(2) refuses: libfuse then may, or says why not."""
    try:
        device_fd = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        log.debug("%s cannot be opened: %s", FUSE_DEVICE, error)
        return None
    mode = mountpoint.stat().st_mode
    identity = f"fd={device_fd},rootmode={mode:o},user_id={os.getuid()},group_id={os.getgid()}"
    data = ",".join([identity, *(word for word in _DATA if word in words)])
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.mount(
        os.fsencode(source),
        os.fsencode(mountpoint),
        f"fuse.{FILESYSTEM_TYPE}".encode(),
        ctypes.c_ulong(mount_flags(words) | _MS_POSIXACL),
        data.encode(),
    )
    if result == 0:
        return device_fd
    log.info("mount(2): %s; libfuse mounts instead", os.strerror(ctypes.get_errno()))
    os.close(device_fd)
    return None


def _is_unmounted(device_fd: int) -> bool:
    """Whether the kernel has given up the connection."""
    poll = select.poll()
    poll.register(device_fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _unmount(mountpoint: Path) -> None:
    try:
        unmount(mountpoint, lazy=True)
    except MictlanError as error:
        log.warning("%s", error)
