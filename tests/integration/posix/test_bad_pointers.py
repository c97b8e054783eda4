"""EFAULT: pointers to memory that is not there change nothing and end nothing."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import pytest

from tests.integration.posix.calls import (
    AT_FDCWD,
    make,
    read_file,
    touching_nothing,
    write_file,
)

pytestmark = pytest.mark.usefixtures("bucket")

_libc = ctypes.CDLL(None, use_errno=True)
# Never mapped: the last page below the kernel's half, and no pointer at all.
BAD = [ctypes.c_void_p(-1), ctypes.c_void_p(0x7FFF_FFFF_F000)]
GOOD = b"node"
SIZE = ctypes.c_size_t(64)

Call = Callable[[ctypes.c_void_p], int]
PATHS: dict[str, Call] = {
    "open": lambda bad: _libc.open(bad, os.O_RDONLY),
    "create": lambda bad: _libc.open(bad, os.O_CREAT | os.O_WRONLY, 0o644),
    "truncate": lambda bad: _libc.truncate(bad, ctypes.c_int64(0)),
    "mkdir": lambda bad: _libc.mkdir(bad, 0o755),
    "rmdir": lambda bad: _libc.rmdir(bad),
    "mkfifo": lambda bad: _libc.mkfifo(bad, 0o644),
    "mknod": lambda bad: _libc.mknod(bad, 0o140644, 0),
    "unlink": lambda bad: _libc.unlink(bad),
    "chmod": lambda bad: _libc.chmod(bad, 0o600),
    "chown": lambda bad: _libc.chown(bad, 1, 1),
    "lchown": lambda bad: _libc.lchown(bad, 1, 1),
    "rename from": lambda bad: _libc.rename(bad, b"new"),
    "rename to": lambda bad: _libc.rename(GOOD, bad),
    "link from": lambda bad: _libc.link(bad, b"new"),
    "link to": lambda bad: _libc.link(GOOD, bad),
    "symlink target": lambda bad: _libc.symlink(bad, b"new"),
    "symlink": lambda bad: _libc.symlink(b"target", bad),
    "readlink": lambda bad: _libc.readlink(bad, ctypes.create_string_buffer(64), SIZE),
    "utimensat": lambda bad: _libc.utimensat(AT_FDCWD, bad, None, 0),
    "setxattr": lambda bad: _libc.setxattr(bad, b"user.a", b"x", ctypes.c_size_t(1), 0),
    "getxattr": lambda bad: _libc.getxattr(bad, b"user.b", None, ctypes.c_size_t(0)),
    "access": lambda bad: _libc.access(bad, os.R_OK),
}
OTHERS: dict[str, Call] = {
    "times": lambda bad: _libc.utimensat(AT_FDCWD, GOOD, bad, 0),
    "xattr name": lambda bad: _libc.setxattr(GOOD, bad, b"x", ctypes.c_size_t(1), 0),
    "xattr value": lambda bad: _libc.setxattr(GOOD, b"user.a", bad, SIZE, 0),
    "xattr value to": lambda bad: _libc.getxattr(GOOD, b"user.b", bad, SIZE),
    "xattr list to": lambda bad: _libc.listxattr(GOOD, bad, SIZE),
    "link target to": lambda bad: _libc.readlink(b"symlink", bad, SIZE),
    "statfs to": lambda bad: _libc.statfs(GOOD, bad),
}
DESCRIPTORS: dict[str, Callable[[int, ctypes.c_void_p], int]] = {
    "read": lambda fd, bad: _libc.read(fd, bad, SIZE),
    "pread": lambda fd, bad: _libc.pread(fd, bad, SIZE, ctypes.c_int64(0)),
    "readv": lambda fd, bad: _libc.readv(fd, bad, 1),
    "write": lambda fd, bad: _libc.write(fd, bad, SIZE),
    "pwrite": lambda fd, bad: _libc.pwrite(fd, bad, SIZE, ctypes.c_int64(0)),
    "writev": lambda fd, bad: _libc.writev(fd, bad, 1),
}


@pytest.fixture
def node() -> str:
    make("file")
    write_file("node", b"content")
    os.setxattr("node", "user.b", b"blue")
    os.symlink("target", "symlink")
    return "node"


@pytest.mark.parametrize("bad", BAD, ids=["-1", "unmapped"])
@pytest.mark.parametrize("name", [*PATHS, *OTHERS])
def test_a_bad_pointer_for_a_name_or_a_result_is_efault(
    node: str, bad: ctypes.c_void_p, name: str
) -> None:
    with touching_nothing(".", node):
        assert {**PATHS, **OTHERS}[name](bad) == -1
        assert ctypes.get_errno() == 14
    assert sorted(os.listdir(".")) == ["node", "symlink"]


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["", "O_DIRECT"])
@pytest.mark.parametrize("name", DESCRIPTORS)
def test_a_bad_buffer_is_efault_and_writes_nothing(node: str, flags: int, name: str) -> None:
    fd = os.open(node, os.O_RDWR | flags)
    try:
        for bad in BAD:
            assert DESCRIPTORS[name](fd, bad) == -1
            assert ctypes.get_errno() == 14
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    finally:
        os.close(fd)
    assert read_file(node) == b"content"
    assert os.getxattr(node, "user.b") == b"blue"


def test_getdents_into_a_bad_buffer_is_efault(node: str) -> None:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    for bad in BAD:
        assert _libc.syscall(217, fd, bad, 4096) == -1
        assert ctypes.get_errno() == 14
    os.close(fd)
    assert sorted(os.listdir(".")) == [node, "symlink"]
