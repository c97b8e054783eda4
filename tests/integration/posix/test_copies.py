"""Programs that copy trees keep all of it: `cp -a`, `rsync -aHAX`, `tar --acls --xattrs`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.posix.calls import ALICE, BOB, MKNOD_TYPES, RDEV, write_file
from tests.support.spaces import run

pytestmark = pytest.mark.usefixtures("bucket")

SECOND = 10**9
TIMES_NS = {
    "before 1970": -(10**18) + 123_456_789,
    "after 2038": (1 << 33) * SECOND + 987_654_321,
    "at 0": 0,
}
SPARSE_SIZE = 64 << 20


LONG_AGO_NS = 1_000_000_000_123_456_789


def plant(tree: str) -> None:
    """Everything that a copy could lose."""
    os.mkdir(tree)
    os.chdir(tree)
    for kind, file_type in MKNOD_TYPES.items():
        # A socket is no part of an archive of tar.
        if kind != "socket":
            os.mknod(kind, file_type | 0o640, RDEV if kind in {"block", "character"} else 0)
    os.mkdir("directory")
    os.symlink("../nowhere", "directory/symlink")
    os.lchown("directory/symlink", ALICE.uid, BOB.gid)
    write_file("directory/data", bytes(range(256)) * 1000)
    os.link("directory/data", "linked")
    os.link("directory/symlink", "linked symlink")
    for name in ("\udcff\udcfe", "line\nbreak", " blank", "-rf", "*"):
        write_file(name, os.fsencode(name))
    with open("sparse", "wb") as file:
        file.seek(SPARSE_SIZE // 2)
        file.write(b"in the middle")
        file.truncate(SPARSE_SIZE)
    for mode in (0o6755, 0o2644, 0o000, 0o1666):
        write_file(f"{mode:o}", b"mode")
        os.chown(f"{mode:o}", ALICE.uid, BOB.gid)
        os.chmod(f"{mode:o}", mode)
    os.setxattr("directory/data", "user.colour", b"blue\0green")
    os.setxattr("directory/data", "trusted.secret", b"x" * 1000)
    os.setxattr("directory", "user.of the directory", b"")
    run("setfacl", "-m", f"u:{ALICE.uid}:rw,g:{BOB.gid}:r", "directory/data")
    run("setfacl", "-m", f"u:{ALICE.uid}:rwx,d:u:{BOB.uid}:rx,d:g::rwx", "directory")
    for name in os.listdir("."):
        # rsync takes times within the same second for equal.
        os.utime(name, ns=(LONG_AGO_NS, LONG_AGO_NS), follow_symlinks=False)
    for name, time_ns in TIMES_NS.items():
        write_file(name, b"")
        os.utime(name, ns=(time_ns, time_ns))
    os.utime("directory/symlink", ns=(7, TIMES_NS["after 2038"]), follow_symlinks=False)
    os.chmod("directory", 0o2775)
    os.utime("directory", ns=(1, TIMES_NS["before 1970"]))
    os.chdir("..")
    os.utime(tree, ns=(LONG_AGO_NS, LONG_AGO_NS))


def seen(tree: str) -> dict[bytes, object]:
    """All that a copy has to keep, by path; names of one inode have the same number."""
    found: dict[bytes, object] = {}
    numbers: dict[int, int] = {}
    top = os.fsencode(tree)
    for parent, folders, files in os.walk(top):
        folders.sort()
        for name in [b"", *folders, *sorted(files)]:
            path = os.path.join(parent, name)
            has = os.lstat(path)
            mode = has.st_mode
            is_solid = not stat.S_ISLNK(mode)
            xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path)} if is_solid else {}
            content: bytes = b""
            if stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(mode):
                content = os.readlink(path)
            found[os.path.relpath(path, top)] = (
                (mode, has.st_uid, has.st_gid, has.st_rdev),
                has.st_mtime_ns,
                numbers.setdefault(has.st_ino, len(numbers)),
                xattrs,
                content,
            )
    return found


def by_cp(source: str, target: str) -> None:
    run("cp", "-a", source, target)


def by_rsync(source: str, target: str) -> None:
    run("rsync", "-aHAXS", f"{source}/", f"{target}/")


def by_tar(source: str, target: str) -> None:
    os.mkdir(target)
    keeping = ("--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner")
    packing = ("--format=posix", "--sparse", "-C", source, "-cf", f"{target}.tar", ".")
    run("tar", *keeping, *packing)
    run("tar", *keeping, "-C", target, "-xpf", f"{target}.tar")


@pytest.mark.parametrize("copy", [by_cp, by_rsync, by_tar], ids=lambda copy: copy.__name__)
def test_a_copy_within_the_mount_keeps_everything(copy: Callable[[str, str], None]) -> None:
    plant("tree")
    before = seen("tree")
    copy("tree", "copy")
    assert seen("copy") == before
    assert os.stat("copy/sparse").st_blocks < SPARSE_SIZE // 512 // 2


@pytest.mark.parametrize("copy", [by_cp, by_rsync, by_tar], ids=lambda copy: copy.__name__)
def test_a_copy_out_and_back_keeps_everything(
    copy: Callable[[str, str], None], tmp_path: Path
) -> None:
    plant("tree")
    before = seen("tree")
    outside = f"{tmp_path}/outside"
    copy("tree", outside)
    copy(outside, "back")
    assert seen("back") == before


def test_a_second_rsync_finds_nothing_to_do() -> None:
    plant("tree")
    by_rsync("tree", "copy")
    shown = run("rsync", "-aHAXS", "--itemize-changes", "tree/", "copy/").stdout
    assert shown == ""
