"""One of two directories that get the same operations, and what of it must be equal.

Every operation is a method that returns something comparable or raises `OSError`; `attempt` makes
an outcome of either. What may legitimately differ is left out here, and nowhere else:

- The size of a directory: POSIX gives it no meaning.
- Times close to now: the two sides are changed one after the other. Older ones were set by
  `utime` and must be equal to the nanosecond.
- truncate(2) to the size that a file has already: tmpfs leaves its times alone, where a mount and
  ext4 change them. So on a tmpfs they are changed here.
- Writing into a FIFO: the kernel then sets the times of the inode for a local file system, and of
  FUSE it never does, without asking us.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Outcome = tuple[str, Any]

NOW_TOLERANCE_NS = 86_400 * 10**9
# Of a file that is larger, only so much at both ends is compared: it is sparse in between.
COMPARED_WHOLE_BYTES_MAX = 4 << 20
COMPARED_END_BYTES = 1 << 20
AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


class Side:
    """A directory and the handles that are open in it.

    Operations run with the directory as the current one, so that a user without rights on the way
    to it can work in it. Nothing holds it between operations.

    Args:
        root: made by the caller.
        is_tmpfs: see the module.
    """

    def __init__(self, root: Path, *, is_tmpfs: bool = False) -> None:
        self.root = root
        self._is_tmpfs = is_tmpfs
        self.fds: dict[int, int] = {}

    @contextlib.contextmanager
    def _inside(self, uid: int) -> Iterator[None]:
        os.chdir(self.root)
        umask = os.umask(0)
        os.setegid(uid)
        os.seteuid(uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.umask(umask)
            os.chdir("/")

    def attempt(self, verb: str, words: Sequence[object], uid: int = 0) -> Outcome:
        """What a method of this class gives, done by a user, or the errno it fails with."""
        with self._inside(uid):
            try:
                return "ok", getattr(self, verb)(*words)
            except OSError as error:
                return "failed", errno.errorcode[error.errno or errno.EIO]

    # --- handles ---------------------------------------------------------------------------------

    def open(self, index: int, path: str, flags: int, mode: int) -> tuple[int, ...]:
        # Without waiting, because a FIFO may have nobody at its other end.
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        self.fds[index] = fd
        return attributes_of(os.fstat(fd))

    def close(self, index: int) -> None:
        os.close(self.fds.pop(index))

    def close_all(self) -> None:
        for index in tuple(self.fds):
            self.close(index)

    def pread(self, index: int, length: int, offset: int) -> bytes:
        return os.pread(self.fds[index], length, offset)

    def pwrite(self, index: int, data: bytes, offset: int) -> int:
        return os.pwrite(self.fds[index], data, offset)

    def write(self, index: int, data: bytes) -> tuple[int, int] | str:
        """Write where the handle stands: at the end, with O_APPEND. Returns where it is then."""
        fd = self.fds[index]
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            return "left out"
        return os.write(fd, data), os.lseek(fd, 0, os.SEEK_CUR)

    def ftruncate(self, index: int, size: int) -> None:
        os.ftruncate(self.fds[index], size)

    def fsync(self, index: int) -> None:
        os.fsync(self.fds[index])

    def fchmod(self, index: int, mode: int) -> None:
        os.fchmod(self.fds[index], mode)

    def futime(self, index: int, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self.fds[index], ns=(atime_ns, mtime_ns))

    def fstat(self, index: int) -> tuple[int, ...]:
        return attributes_of(os.fstat(self.fds[index]))

    # --- names -----------------------------------------------------------------------------------

    mkdir = staticmethod(os.mkdir)
    rmdir = staticmethod(os.rmdir)
    unlink = staticmethod(os.unlink)
    symlink = staticmethod(os.symlink)
    readlink = staticmethod(os.readlink)
    mkfifo = staticmethod(os.mkfifo)

    @staticmethod
    def link(old: str, new: str) -> None:
        os.link(old, new, follow_symlinks=False)

    @staticmethod
    def rename(old: str, new: str, flags: int) -> None:
        names = os.fsencode(old), os.fsencode(new)
        if _libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flags) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    @staticmethod
    def scandir(path: str) -> list[tuple[str, bool, bool, bool]]:
        with os.scandir(path) as entries:
            return sorted(
                (
                    entry.name,
                    entry.is_dir(follow_symlinks=False),
                    entry.is_file(follow_symlinks=False),
                    entry.is_symlink(),
                )
                for entry in entries
            )

    # --- attributes ------------------------------------------------------------------------------

    chmod = staticmethod(os.chmod)

    def truncate(self, path: str, size: int) -> None:
        before = os.stat(path)
        os.truncate(path, size)
        if self._is_tmpfs and size == before.st_size:
            # As root: who may write need not be the owner.
            with _as_root():
                os.utime(path, ns=(before.st_atime_ns, time.time_ns()))

    @staticmethod
    def stat(path: str, follow: bool) -> tuple[int, ...]:
        return attributes_of(os.stat(path, follow_symlinks=follow))

    @staticmethod
    def chown(path: str, owner: int, group: int, follow: bool) -> None:
        os.chown(path, owner, group, follow_symlinks=follow)

    @staticmethod
    def utime(path: str, atime_ns: int, mtime_ns: int, follow: bool) -> None:
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=follow)

    @staticmethod
    def utime_now(path: str, follow: bool) -> None:
        os.utime(path, follow_symlinks=follow)

    @staticmethod
    def setxattr(path: str, name: str, value: bytes, follow: bool) -> None:
        os.setxattr(path, name, value, follow_symlinks=follow)

    @staticmethod
    def getxattr(path: str, name: str, follow: bool) -> bytes:
        return os.getxattr(path, name, follow_symlinks=follow)

    @staticmethod
    def listxattr(path: str, follow: bool) -> list[str]:
        return sorted(os.listxattr(path, follow_symlinks=follow))

    @staticmethod
    def removexattr(path: str, name: str, follow: bool) -> None:
        os.removexattr(path, name, follow_symlinks=follow)

    # --- the whole -------------------------------------------------------------------------------

    def tree(self) -> dict[str, object]:
        """All that is there, by path; equal inodes have the same number."""
        with self._inside(0):
            found: dict[str, object] = {}
            numbers: dict[int, int] = {}
            _collect(".", found, numbers)
            return found

    def paths(self) -> list[str]:
        """Of everything that is there, the directory itself left out."""
        with self._inside(0):
            return sorted(_walk("."))

    def directories(self) -> list[str]:
        """The directory itself and all directories in it."""
        with self._inside(0):
            return [".", *sorted(p for p in _walk(".") if stat.S_ISDIR(os.lstat(p).st_mode))]


@contextlib.contextmanager
def _as_root() -> Iterator[None]:
    uid = os.geteuid()
    os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(uid)


def _walk(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield f"{parent}/{name}"


def attributes_of(found: os.stat_result) -> tuple[int, ...]:
    """What two inodes that are treated alike have in common."""
    return (
        found.st_mode,
        found.st_uid,
        found.st_gid,
        found.st_nlink,
        0 if stat.S_ISDIR(found.st_mode) else found.st_size,
        _time(found.st_mtime_ns),
        _time(found.st_atime_ns),
    )


def _time(time_ns: int) -> int:
    """The time, or -1 when it is about now."""
    return -1 if abs(time_ns - time.time_ns()) < NOW_TOLERANCE_NS else time_ns


def _collect(path: str, found: dict[str, object], numbers: dict[int, int]) -> None:
    attributes = os.lstat(path)
    number = numbers.setdefault(attributes.st_ino, len(numbers))
    mode = attributes.st_mode
    xattrs: dict[str, bytes] = {}
    content: object = None
    if stat.S_ISLNK(mode):
        content = os.readlink(path)
    elif stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        xattrs = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    if stat.S_ISREG(mode):
        content = _content(path, attributes.st_size)
    found[path] = number, attributes_of(attributes), xattrs, content
    if stat.S_ISDIR(mode):
        for name in sorted(os.listdir(path)):
            _collect(f"{path}/{name}", found, numbers)


def _content(path: str, size: int) -> object:
    """The bytes; of many only their digest."""
    with open(path, "rb", buffering=0) as file:
        if size <= COMPARED_WHOLE_BYTES_MAX:
            content = file.readall()
        else:
            content = os.pread(file.fileno(), COMPARED_END_BYTES, 0)
            content += os.pread(file.fileno(), COMPARED_END_BYTES, size - COMPARED_END_BYTES)
    if len(content) <= 64:
        return content
    return len(content), hashlib.blake2b(content, digest_size=8).hexdigest()
