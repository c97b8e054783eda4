"""The place where a space is mounted: the kernel's table of mounts, checks, and unmounting.

Owns no state. Asks the kernel's table and `/proc` first: to look at a mountpoint whose mount hangs
is to hang with it, so whatever looks there is bounded in time. A *dead* mount is one whose process
has ended without unmounting; the kernel keeps it and answers ENOTCONN. Everything here may block.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.oserrors import from_os_error
from mictlanfs_mount.processes import PROC, ProcessIdentity, identify

MOUNT_TYPE = "fuse.mictlanfs"
MOUNT_TABLE = Path("/proc/self/mountinfo")
FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONFIGURATION = Path("/etc/fuse.conf")
FUSERMOUNT = "fusermount3"

PROBE_TIMEOUT_S = 5.0
# A process that has just ended may hold the mount for a moment longer.
_BUSY_RETRIES_MAX = 5
_BUSY_DELAY_S = 0.1
_FUSERMOUNT_TIMEOUT_S = 30.0
_USERS_SHOWN_MAX = 5
_PROCESSES_SCANNED_MAX = 20_000
_DESCRIPTORS_SCANNED_MAX = 4096
# Flags of umount2, from its manual page.
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of the kernel's table of mounts.

    Attributes:
        type: of the file system, e.g. "ext4" or "fuse.mictlanfs".
        source: what is mounted: a device, or the URI of a space.
        device: major and minor number; the minor is that of the FUSE connection.
    """

    mountpoint: Path
    type: str
    source: str
    device: tuple[int, int]

    @property
    def is_ours(self) -> bool:
        """Whether it is a space."""
        return self.type == MOUNT_TYPE


class Pulse(Enum):
    """How a mount answers."""

    ALIVE = "alive"
    DEAD = "dead"
    HANGS = "hangs"


# --- the table -----------------------------------------------------------------------------------


def parse_mount_table(text: str) -> list[Mount]:
    """The mounts in a text like /proc/self/mountinfo; a later one covers an earlier one."""
    return [_parse_line(line) for line in text.splitlines() if line]


def _parse_line(line: str) -> Mount:
    # Optional fields of any number end with a dash: proc_pid_mountinfo(5).
    before, _, after = line.partition(" - ")
    _, _, device, _, mountpoint, *_ = before.split(" ")
    kind, source, *_ = after.split(" ")
    major, minor = device.split(":")
    return Mount(Path(_unescaped(mountpoint)), kind, _unescaped(source), (int(major), int(minor)))


def _unescaped(field: str) -> str:
    # The kernel writes blanks and backslashes as octal escapes, such as \040.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def find_mount(path: Path) -> Mount | None:
    """The topmost mount at `path`, which is absolute and without symlinks; None: none."""
    found = [mount for mount in _mounts() if mount.mountpoint == path]
    return found[-1] if found else None


def mount_around(path: Path) -> Mount | None:
    """The space that `path` lies in, itself not being the mountpoint; None: none."""
    around = [m for m in _mounts() if m.mountpoint in path.parents]
    inmost = max(around, key=lambda m: len(m.mountpoint.parts), default=None)
    return inmost if inmost is not None and inmost.is_ours else None


def _mounts() -> list[Mount]:
    return parse_mount_table(MOUNT_TABLE.read_text(errors="surrogateescape"))


def resolved(path: Path) -> Path:
    """`path`, absolute and without symlinks, without looking into a mount that lies there."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  # pathlib keeps "..".
    if find_mount(absolute) is not None:
        return absolute
    in_parent = absolute.parent.resolve() / absolute.name
    return in_parent if find_mount(in_parent) is not None else absolute.resolve()


def pulse_of(path: Path, timeout_s: float = PROBE_TIMEOUT_S) -> Pulse:
    """How the mount at `path` answers.

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


# --- before mounting -----------------------------------------------------------------------------


def check_ability(*, allow_other: bool) -> None:
    """Whether this process can mount at all.

    Raises:
        MictlanError: it cannot; the detail names the remedy.
        UsageError: root has to allow `allow_other` first.
    """
    if not FUSE_DEVICE.exists():
        detail = (
            f"{FUSE_DEVICE} is missing: load the module (modprobe fuse), or start the container "
            f"with --device {FUSE_DEVICE} --cap-add SYS_ADMIN"
        )
        raise MictlanError(Kind.UNSUPPORTED, detail=detail)
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        detail = f"this user may not open {FUSE_DEVICE}: run as root, or have root chmod 666 it"
        raise MictlanError(Kind.ACCESS_DENIED, detail=detail)
    if os.geteuid() == 0:
        return
    if shutil.which(FUSERMOUNT) is None:
        detail = f"{FUSERMOUNT} is missing, and only root mounts without it: install fuse3"
        raise MictlanError(Kind.UNSUPPORTED, detail=detail)
    if allow_other and not _is_allow_other_allowed():
        raise UsageError(
            f"-o allow_other needs a line user_allow_other in {FUSE_CONFIGURATION}: "
            "root has to add it, or leave the option out"
        )


def _is_allow_other_allowed() -> bool:
    try:
        lines = FUSE_CONFIGURATION.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def prepare(path: Path, say: Callable[[str], None]) -> Path:
    """Check that a space can be mounted at `path`; returns it absolute and without symlinks.

    A dead mount of ours is unmounted first, which `say` is told.

    Raises:
        UsageError: it cannot; names the remedy.
    """
    mountpoint = resolved(path)
    mount = find_mount(mountpoint)
    if mount is not None and mount.type.startswith("fuse"):
        _clear(mount, say)
    try:
        _check_directory(mountpoint)
    except OSError as error:
        raise UsageError(_why_not(mountpoint, error)) from error
    return mountpoint


def _clear(mount: Mount, say: Callable[[str], None]) -> None:
    """Unmount what is left of a mount of ours; refuse to touch any other."""
    path = mount.mountpoint
    if not mount.is_ours:
        raise UsageError(
            f"something else is mounted at {path} ({mount.type}, {mount.source}): "
            "choose another directory"
        )
    match pulse_of(path):
        case Pulse.DEAD:
            say(f"the mount of {mount.source} at {path} had lost its process: unmounting it first")
            unmount(path, lazy=True)
        case Pulse.ALIVE:
            raise UsageError(
                f"{mount.source} is mounted at {path} already: "
                f"unmount it with 'mictlanfs umount {path}' or choose another directory"
            )
        case Pulse.HANGS:
            raise UsageError(
                f"{mount.source} is mounted at {path} and does not answer: "
                f"unmount it with 'mictlanfs umount --lazy {path}' or choose another directory"
            )


def _check_directory(path: Path) -> None:
    if not stat.S_ISDIR(path.stat().st_mode):
        raise UsageError(f"{path} is not a directory: choose another mountpoint")
    with os.scandir(path) as entries:
        if next(entries, None) is not None:
            raise UsageError(
                f"{path} is not empty (see 'ls -A {path}'): "
                "choose an empty directory, for the mount would hide what is in it"
            )
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise UsageError(f"this user may not write to {path}: choose a directory of your own")


def _why_not(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"{path} does not exist: make it with 'mkdir -p {path}'"
        case errno.ENOTDIR:
            return f"{path} lies below something that is not a directory: choose another one"
        case errno.EACCES | errno.EPERM:
            return f"this user may not enter {path}, or a directory above it: choose another one"
        case _:
            return f"cannot mount at {path}: {error.strerror}"


# --- unmounting ----------------------------------------------------------------------------------


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount what is mounted at `path`, which is absolute and without symlinks.

    Args:
        path: the mountpoint.
        lazy: take it out of the tree now, while programs that use it go on using it.

    Raises:
        MictlanError: BUSY, naming the processes that use it; else what the system says.
    """
    for retries_left in reversed(range(_BUSY_RETRIES_MAX)):
        try:
            _unmount_once(path, lazy=lazy)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise from_os_error(error, "unmount", str(path)) from error
            if not retries_left:
                raise _busy(path) from error
            time.sleep(_BUSY_DELAY_S)
        else:
            return


def _unmount_once(path: Path, *, lazy: bool) -> None:
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
        if libc.umount2(os.fsencode(path), flags) == 0:
            return
        number = ctypes.get_errno()
        if number != errno.EPERM or shutil.which(FUSERMOUNT) is None:
            raise OSError(number, os.strerror(number), str(path))
        # Root without CAP_SYS_ADMIN, as in a container: fusermount3 may have it.
    _run_fusermount(path, lazy=lazy)


def _run_fusermount(path: Path, *, lazy: bool) -> None:
    command = [FUSERMOUNT, "-u", *(["-z"] if lazy else []), "--", str(path)]
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_FUSERMOUNT_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        detail = f"{FUSERMOUNT} is missing: install fuse3, or unmount as root"
        raise MictlanError(Kind.UNSUPPORTED, "unmount", str(path), detail) from None
    except subprocess.TimeoutExpired:
        detail = f"{FUSERMOUNT} did not end within {_FUSERMOUNT_TIMEOUT_S:g} s"
        raise MictlanError(Kind.TIMED_OUT, "unmount", str(path), detail) from None
    if done.returncode == 0:
        return
    reason = done.stderr.strip().splitlines()[-1:] or [f"{FUSERMOUNT} failed"]
    if "busy" in reason[0]:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
    raise MictlanError(Kind.NOT_PERMITTED, "unmount", str(path), reason[0])


def _busy(path: Path) -> MictlanError:
    users = users_of(path)
    if not users:
        detail = "it is in use; find out by whom with 'fuser -vm', or unmount it with --lazy"
        return MictlanError(Kind.BUSY, "unmount", str(path), detail)
    shown = ", ".join(users[:_USERS_SHOWN_MAX])
    hidden_count = len(users) - _USERS_SHOWN_MAX
    more = f" and {hidden_count} more" if hidden_count > 0 else ""
    detail = f"it is in use by {shown}{more}: end them, or unmount it with --lazy"
    return MictlanError(Kind.BUSY, "unmount", str(path), detail)


def users_of(path: Path) -> list[str]:
    """Names and numbers of processes that work in `path` or have files open below it.

    Only those that this user may look at, and not this process itself.
    """
    found = []
    for folder in _process_folders():
        if any(_is_within(link, path) for link in _links(folder)):
            with suppress(OSError):
                name = (folder / "comm").read_text(errors="replace").strip()
                found.append(f"{name} (pid {folder.name})")
    return found


def serving_process(mount: Mount) -> ProcessIdentity | None:
    """The process that serves a FUSE mount; None where the kernel does not tell us.

    It has the FUSE device open, and newer kernels (6.18 was seen to) show the connection in
    /proc/PID/fdinfo. The number of a mount that is gone is used again while its process may still
    run, so the youngest of several counts: a mount process mounts when it starts.
    """
    wanted = f"fuse_connection:\t{mount.device[1]}\n"
    found = [
        process
        for folder in _process_folders()
        if _has_connection(folder, wanted) and (process := identify(int(folder.name))) is not None
    ]
    return max(found, key=lambda process: process.started_ticks, default=None)


def _has_connection(folder: Path, wanted: str) -> bool:
    for link in _descriptors(folder):
        with suppress(OSError):
            if (
                link.readlink() == FUSE_DEVICE
                and wanted in (folder / "fdinfo" / link.name).read_text()
            ):
                return True
    return False


def _process_folders() -> Iterator[Path]:
    names = sorted(int(folder.name) for folder in PROC.iterdir() if folder.name.isdecimal())
    for pid in names[:_PROCESSES_SCANNED_MAX]:
        if pid != os.getpid():
            yield PROC / str(pid)


def _descriptors(folder: Path) -> list[Path]:
    try:
        return list((folder / "fd").iterdir())[:_DESCRIPTORS_SCANNED_MAX]
    except OSError:
        return []


def _links(folder: Path) -> Iterator[str]:
    for link in (folder / "cwd", folder / "root", *_descriptors(folder)):
        with suppress(OSError):
            # The kernel tells the path without asking the file system that it leads to.
            yield os.fspath(link.readlink())


def _is_within(link: str, path: Path) -> bool:
    return link == str(path) or link.startswith(f"{path}/")
