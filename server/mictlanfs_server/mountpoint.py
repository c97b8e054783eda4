"""A directory that a space is mounted at, as seen from outside the mount.

Asks the kernel's table of mounts and `/proc` first: to look at a mountpoint whose mount hangs is to
hang with it. Never mounts anything, and unmounts lazily only, what nobody serves any more.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from mictlanfs.errors import Kind, MictlanError, UsageError

MOUNT_TYPE = "fuse.mictlanfs"
FUSE_DEVICE = Path("/dev/fuse")
MOUNT_TABLE = Path("/proc/self/mountinfo")
PROBE_INTERVAL_S = 0.1
PROBE_TIMEOUT_S = 3.0
_UNMOUNT_TIMEOUT_S = 5.0
_USERS_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of the kernel's table of mounts.

    Attributes:
        type: of the file system, e.g. "ext4" or "fuse.mictlanfs".
        source: what is mounted: a device, a URI.
    """

    mountpoint: Path
    type: str
    source: str


@dataclass(frozen=True, slots=True)
class User:
    """A process that works in a directory or has a file open below it."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def mount_at(path: Path) -> Mount | None:
    """The topmost mount at `path`, which is absolute and without symlinks; None: none."""
    found = None
    for line in MOUNT_TABLE.read_text(errors="surrogateescape").splitlines():
        # Optional fields of any number end with a dash: proc_pid_mountinfo(5).
        before, _, after = line.partition(" - ")
        mountpoint, (kind, source, *_) = before.split(" ")[4], after.split(" ")
        if Path(_unescaped(mountpoint)) == path:
            found = Mount(path, kind, _unescaped(source))
    return found


def is_mounted(path: Path) -> bool:
    """Whether a space, dead or alive, is mounted at `path`."""
    mount = mount_at(path)
    return mount is not None and mount.type == MOUNT_TYPE


def resolved(path: Path) -> Path:
    """`path`, absolute and without symlinks, without looking into a mount that lies there."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  # pathlib keeps "..", and resolves late.
    in_parent = absolute.parent.resolve() / absolute.name
    return in_parent if mount_at(in_parent) else absolute.resolve()


def check_ability() -> None:
    """Whether this process can mount at all.

    Raises:
        MictlanError: it cannot; the detail names the remedy.
    """
    if importlib.util.find_spec("pyfuse3") is None:
        raise MictlanError(
            Kind.UNSUPPORTED, detail="pyfuse3 is not installed: pip install 'mictlanfs[mount]'"
        )
    if not FUSE_DEVICE.exists():
        raise MictlanError(
            Kind.UNSUPPORTED,
            detail=f"{FUSE_DEVICE} is missing: load the module (`modprobe fuse`), or give the "
            f"container the device (`docker run --device {FUSE_DEVICE} --cap-add SYS_ADMIN`); "
            "`mictlanfs server start` runs a space without a mount",
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise MictlanError(
            Kind.ACCESS_DENIED,
            detail=f"this user may not open {FUSE_DEVICE}: run as root, or let the user in "
            f"(`sudo chmod 666 {FUSE_DEVICE}`); `mictlanfs server start` needs no mount",
        )
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise MictlanError(
            Kind.UNSUPPORTED,
            detail="fusermount3 is missing and only root can mount without it: "
            "install the package fuse3",
        )


def check_free(path: Path) -> None:
    """Whether `path` is an empty directory, or nothing at all, with nothing mounted there.

    The mount checks again, and more; this is to say so before any server is started.

    Raises:
        UsageError: it is not.
    """
    mount = mount_at(path)
    if mount is not None and mount.type.startswith("fuse"):
        raise UsageError(
            f"{path} is mounted already ({mount.source}): "
            f"unmount it with `mictlanfs umount {path}` or choose another directory"
        )
    try:
        with os.scandir(path) as entries:
            first = next(entries, None)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UsageError(f"{path} is not a directory: choose another mountpoint") from None
    except OSError as error:
        raise UsageError(f"cannot mount at {path}: {error.strerror}") from error
    if first is not None:
        raise UsageError(f"{path} is not empty: choose an empty or a new directory to mount at")


def unmount_lazily(path: Path) -> None:
    """Take a mounted space out of the tree at `path`; open files go on as long as it is served.

    Nothing happens when no space is mounted there. Blocks for 5 s at most.
    """
    for _ in range(2):
        if not is_mounted(path):
            return
        # As another user than root only fusermount3 may; as root both work.
        tool = ["fusermount3", "-u", "-z"] if shutil.which("fusermount3") else ["umount", "-l"]
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [*tool, str(path)],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_UNMOUNT_TIMEOUT_S / 2,
            )


def is_dead(path: Path) -> bool:
    """Whether a space is mounted at `path` and the process that served it is gone.

    A mount that hangs is not dead. Blocks for 3 s at most.
    """
    errors: list[int | None] = []

    def ask() -> None:
        try:
            os.statvfs(path)
        except OSError as error:
            errors.append(error.errno)

    if not is_mounted(path):
        return False
    # The thread of a mount that hangs stays behind; it ends with us.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S)
    return errno.ENOTCONN in errors


async def is_answering(path: Path) -> bool:
    """Whether a space is mounted at `path` and lists its root."""
    if not is_mounted(path):
        return False
    with trio.move_on_after(PROBE_TIMEOUT_S):
        try:
            # A mount that hangs keeps the thread, but not us.
            await trio.to_thread.run_sync(os.listdir, path, abandon_on_cancel=True)
        except OSError:
            return False
        return True
    return False


async def wait_until_answering(path: Path) -> None:
    """Return when a space is mounted at `path` and lists its root."""
    while not await is_answering(path):  # noqa: ASYNC110 - another process answers.
        await trio.sleep(PROBE_INTERVAL_S)


def users_of(path: Path) -> list[User]:
    """Processes that work in `path` or have files open below it, as far as this user may see."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and any(_is_within(link, path) for link in _links(folder)):
            with suppress(OSError):
                name = (folder / "comm").read_text(errors="replace").strip()
                found.append(User(int(folder.name), name))
    return found


def names_of(users: list[User]) -> str:
    """Some of `users`, for people."""
    shown = ", ".join(str(user) for user in users[:_USERS_SHOWN_MAX])
    hidden = len(users) - _USERS_SHOWN_MAX
    return f"{shown} and {hidden} more" if hidden > 0 else shown


def _links(folder: Path) -> Iterator[str]:
    links = [folder / "cwd", folder / "root"]
    with suppress(OSError):
        links += (folder / "fd").iterdir()
    for link in links:
        with suppress(OSError):
            # The kernel tells the path without asking the file system that it leads to.
            yield str(link.readlink())


def _is_within(link: str, path: Path) -> bool:
    return link == str(path) or link.startswith(f"{path}/")


def _unescaped(field: str) -> str:
    # The kernel writes blanks and backslashes as octal escapes, such as \040.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
