"""System calls as these tests make them: by any user, with an errno for a result, times watched.

Tests run in a bucket of their own as the working directory, so all names are relative; that is also
how users who may not search the folders above reach it. Calls are made in this process with its
effective ids changed, since a process per call would take longer than the call. The few calls that
look at real ids or limits of the process run in a child, see `in_child`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pytest

OK = "OK"

_libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


class User(NamedTuple):
    """Who makes a call."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User(0, 0)
ALICE = User(65531, 65531)
BOB = User(65532, 65532)
# Bob when he is also in the group of Alice.
FRIEND = User(65532, 65532, (65531,))
# Somebody else whose first group is that of Alice.
MATE = User(65530, 65531)


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Be `user` for a while, as far as file systems look: the effective ids and the groups."""
    groups = os.getgroups()
    os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def attempt(call: Callable[..., object], *args: object, user: User = ROOT) -> str:
    """Make a call as a user: OK, or the name of the errno."""
    with acting_as(user):
        try:
            call(*args)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return OK


def in_child(work: Callable[[], object], user: User = ROOT) -> str:
    """Do `work` in a process of its own with all ids of `user`: OK, or the name of the errno."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            work()
            code = 0
        except OSError as error:
            code = error.errno or 255
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert 0 <= code < 255, f"the child ended with {code}"
    return errno.errorcode[code] if code else OK


# --- calls that Python does not offer ------------------------------------------------------------


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(source: str, target: str, flags: int) -> None:
    """rename(2) with flags."""
    names = os.fsencode(source), os.fsencode(target)
    _checked(_libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flags))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2): times are seconds with nanoseconds, UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    _checked(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def getxattr_into(path: str, name: str, size: int) -> int:
    """getxattr(2) with a buffer of `size` bytes; 0 asks for the size."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _checked(_libc.getxattr(os.fsencode(path), name.encode(), buffer, size))


def listxattr_into(path: str, size: int) -> int:
    """listxattr(2) with a buffer of `size` bytes; 0 asks for the size."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _checked(_libc.listxattr(os.fsencode(path), buffer, size))


# --- nodes ---------------------------------------------------------------------------------------

NOT_DIRECTORIES = ("file", "fifo", "block", "character", "socket", "symlink")
KINDS = ("directory", *NOT_DIRECTORIES)
# What a path that follows symlinks can lead to.
SOLID_KINDS = ("directory", "file", "fifo", "block", "character", "socket")
MKNOD_TYPES = {
    "file": stat.S_IFREG,
    "fifo": stat.S_IFIFO,
    "block": stat.S_IFBLK,
    "character": stat.S_IFCHR,
    "socket": stat.S_IFSOCK,
}
RDEV = os.makedev(7, 99)

every_kind = pytest.mark.parametrize("kind", KINDS)
every_solid_kind = pytest.mark.parametrize("kind", SOLID_KINDS)


def make(kind: str, path: str = "node", mode: int = 0o644, owner: User = ROOT) -> str:
    """Make a node of a kind, with exactly this mode, and return its path."""
    if kind == "directory":
        os.mkdir(path, mode)
    elif kind == "symlink":
        os.symlink("target of the symlink", path)
    else:
        rdev = RDEV if kind in {"block", "character"} else 0
        os.mknod(path, MKNOD_TYPES[kind] | mode & 0o777, rdev)
    if owner != ROOT:
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
    if kind != "symlink" and mode & 0o7000:
        os.chmod(path, mode)
    return path


def remove(kind: str, path: str) -> None:
    """Remove a node of a kind."""
    (os.rmdir if kind == "directory" else os.unlink)(path)


def mode_of(path: str) -> int:
    """The permission bits."""
    return stat.S_IMODE(os.lstat(path).st_mode)


def write_file(path: str, data: bytes = b"") -> None:
    """Make or replace the content of a file."""
    with open(path, "wb") as file:
        file.write(data)


def read_file(path: str) -> bytes:
    """The content of a file."""
    with open(path, "rb") as file:
        return file.read()


# --- times ---------------------------------------------------------------------------------------


class Times(NamedTuple):
    """Times of a node in ns."""

    atime: int
    mtime: int
    ctime: int


def times_of(path: str | int) -> Times:
    """Times of a node, of a symlink itself."""
    found = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    return Times(found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)


@contextmanager
def touching(*, ctime: Sequence[str | int] = (), mtime: Sequence[str | int] = ()) -> Iterator[None]:
    """Check that what happens inside advances ctime of `ctime`, and mtime and ctime of `mtime`."""
    before = {path: times_of(path) for path in (*ctime, *mtime)}
    yield
    for path in (*ctime, *mtime):
        old, new = before[path], times_of(path)
        assert new.ctime > old.ctime, f"ctime of {path}"
        if path in mtime:
            assert new.mtime > old.mtime, f"mtime of {path}"
        else:
            assert new.mtime == old.mtime, f"mtime of {path}"


@contextmanager
def touching_nothing(*paths: str) -> Iterator[None]:
    """Check that what happens inside leaves all times alone."""
    before = {path: times_of(path) for path in paths}
    yield
    assert {path: times_of(path) for path in paths} == before


# --- paths that lead nowhere ---------------------------------------------------------------------

NAME_MAX = 255
# PATH_MAX less the NUL.
PATH_SIZE_MAX = 4095


def path_of(size: int, name: str = "name") -> str:
    """A path of `size` bytes that leads to `name` here."""
    padding = size - len(name)
    return "./" * (padding // 2 - 1) + "./" + "/" * (padding % 2) + name


class BadPath(NamedTuple):
    """A path that no call can follow."""

    title: str
    error: str
    path: str
    prefix_kind: str = ""
    link_to: str = ""
    user: User = ROOT
    prefix_mode: int = 0o755

    def prepare(self) -> None:
        """Make what stands in the way."""
        if self.prefix_kind:
            make(self.prefix_kind, "prefix", self.prefix_mode)
        if self.link_to:
            os.symlink(self.link_to, "link")
        if self.user != ROOT:
            os.mkdir("prefix/inner", 0o777)
            os.chown("prefix", ALICE.uid, ALICE.gid)

    def check(self, call: Callable[[str], object]) -> None:
        """Make a call with the path: it says what is wrong, and changes no directory."""
        self.prepare()
        with touching_nothing("."):
            assert attempt(call, self.path, user=self.user) == self.error


LONG_NAME = "n" * (NAME_MAX + 1)
BAD_PATHS = [
    BadPath("a name too long", "ENAMETOOLONG", LONG_NAME),
    BadPath("a name far too long", "ENAMETOOLONG", "n" * 1500),
    BadPath("a prefix too long", "ENAMETOOLONG", f"{LONG_NAME}/name"),
    BadPath("a path too long", "ENAMETOOLONG", path_of(PATH_SIZE_MAX + 1)),
    BadPath("a path far too long", "ENAMETOOLONG", path_of(3 * PATH_SIZE_MAX)),
    BadPath("below nothing", "ENOENT", "missing/name"),
    BadPath("an empty path", "ENOENT", ""),
    *(
        BadPath(f"below a {kind}", "ENOTDIR", "prefix/name", kind)
        for kind in NOT_DIRECTORIES
        if kind != "symlink"
    ),
    BadPath("below a symlink to a file", "ENOTDIR", "link/name", "file", "prefix"),
    BadPath("below a symlink to nothing", "ENOENT", "link/name", "", "missing"),
    BadPath("below a symlink to itself", "ELOOP", "link/name", "", "link"),
    BadPath("no search allowed", "EACCES", "prefix/name", "directory", "", BOB, 0o776),
    BadPath("no search above allowed", "EACCES", "prefix/inner/name", "directory", "", BOB, 0o776),
    BadPath("no search for the owner", "EACCES", "prefix/name", "directory", "", ALICE, 0o677),
    BadPath("no search for the group", "EACCES", "prefix/name", "directory", "", FRIEND, 0o767),
]
every_bad_path = pytest.mark.parametrize("bad", BAD_PATHS, ids=lambda bad: bad.title)


# --- who may change the names of a directory -----------------------------------------------------


class Access(NamedTuple):
    """A directory of Alice whose bits for one class of users are `bits`, and all other bits set."""

    user: User
    shift: int
    bits: int

    @property
    def mode(self) -> int:
        """The mode: only the class of the user matters."""
        return 0o777 & ~(7 << self.shift) | self.bits << self.shift

    @property
    def expected(self) -> str:
        """Changing names takes the right to write and to search."""
        return OK if self.bits & 3 == 3 else "EACCES"

    def make_directory(self) -> None:
        """Make the directory as `prefix`."""
        os.mkdir("prefix")

    def close_directory(self) -> None:
        """Give it its owner and mode."""
        os.chown("prefix", ALICE.uid, ALICE.gid)
        os.chmod("prefix", self.mode)


ACCESSES = [
    Access(user, shift, bits)
    for user, shift in ((ALICE, 6), (MATE, 3), (FRIEND, 3), (BOB, 0))
    for bits in range(8)
]
every_access = pytest.mark.parametrize(
    "access", ACCESSES, ids=lambda a: f"{a.user.uid}:{a.user.gid}+{len(a.user.groups)} {a.mode:o}"
)


class Sticky(NamedTuple):
    """A sticky directory that all may write, with a node in it."""

    directory_owner: User
    node_owner: User
    caller: User

    @property
    def is_allowed(self) -> bool:
        """Only the owners of the node and of the directory, and root, may remove it."""
        return self.caller in {ROOT, self.directory_owner, self.node_owner}

    def make(self, kind: str, path: str) -> None:
        """Make the directory `sticky`, and the node in it."""
        make("directory", "sticky", 0o1777, self.directory_owner)
        make(kind, path, 0o755, self.node_owner)


STICKIES = [
    Sticky(directory_owner, node_owner, caller)
    for directory_owner in (ROOT, ALICE, BOB)
    for node_owner in (ROOT, ALICE, BOB)
    for caller in (ROOT, ALICE)
]
every_sticky = pytest.mark.parametrize(
    "sticky", STICKIES, ids=lambda s: "/".join(str(user.uid) for user in s)
)
