"""Access control lists on a real mount, with the real tools: setfacl, getfacl, cp, rsync, sed.

The kernel enforces them, so every rule is tried by users without privileges.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.spaces import Mount, mounted, run, running_space

OWNER, FRIEND, STRANGER = 65_501, 65_502, 65_503
# A group of nobody's, and one that STRANGER is in where a test says so.
GROUP, OTHER_GROUP = 65_501, 65_510


@pytest.fixture(scope="module")
def acl_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A space for the tests of this file."""
    with running_space(tmp_path_factory.mktemp("acl") / "data", peer_count=1) as space:
        yield space.uri


@pytest.fixture(scope="module")
def shared(acl_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount that every user may enter."""
    base = tmp_path_factory.mktemp("shared")
    with mounted(acl_uri, base, "allow_other") as mount:
        open_the_way(base)
        yield mount


@pytest.fixture
def here(shared: Mount, tmp_path: Path) -> Path:
    """An empty directory of OWNER in a bucket of this test's own."""
    bucket = shared.path / tmp_path.name
    bucket.mkdir()
    place = bucket / "d"
    place.mkdir()
    os.chown(place, OWNER, GROUP)
    return place


def open_the_way(path: Path) -> None:
    """Let every user reach a directory that pytest made for root alone."""
    for folder in (path, *path.parents):
        if folder.stat().st_uid == os.getuid() and folder.parts[:2] == ("/", "tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)


def as_user(
    uid: int, *words: str | Path, groups: str = "", check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program as a user without privileges, in the group of the same number and `groups`."""
    belongs = f"--groups={groups}" if groups else "--clear-groups"
    return run("setpriv", f"--reuid={uid}", f"--regid={uid}", belongs, *words, check=check)


def may(uid: int, access: str, path: Path, groups: str = "") -> bool:
    """Whether a user may read (r), write (w) or execute (x), as the system calls find."""
    code = (
        "import os, sys\n"
        "path, access = sys.argv[1:]\n"
        "try:\n"
        "    if access == 'x':\n"
        "        os.stat(path + '/.') if os.path.isdir(path) else os.execv(path, [path])\n"
        "    elif access == 'w' and os.path.isdir(path):\n"
        "        os.rmdir(os.mkdir(path + '/probe') or path + '/probe')\n"
        "    elif os.path.isdir(path):\n"
        "        os.listdir(path)\n"
        "    else:\n"
        "        os.close(os.open(path, os.O_WRONLY if access == 'w' else os.O_RDONLY))\n"
        "except PermissionError:\n"
        "    sys.exit(13)\n"
    )
    done = as_user(uid, "/usr/bin/python3", "-c", code, path, access, groups=groups, check=False)
    assert done.returncode in {0, 13}, done.stderr
    return done.returncode == 0


def new_file(path: Path, content: str = "content\n", mode: int = 0o640) -> Path:
    path.write_text(content, encoding="ascii")
    path.chmod(mode)
    os.chown(path, OWNER, GROUP)
    return path


def errno_of(call: Callable[..., object], *args: object) -> int | None:
    """The errno a system call fails with, None when it does not."""
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return None


def getfacl(path: Path) -> list[str]:
    """The entries as getfacl(1) prints them, with numbers."""
    printed = run("getfacl", "--numeric", "--omit-header", "--absolute-names", path).stdout
    return [line.split("\t")[0].strip() for line in printed.splitlines() if line]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


# --- stored --------------------------------------------------------------------------------------


def test_what_setfacl_sets_getfacl_shows(here: Path) -> None:
    file = new_file(here / "f")
    run("setfacl", "-m", f"u:{FRIEND}:rwx,g:{OTHER_GROUP}:r", file)
    assert getfacl(file) == [
        "user::rw-",
        f"user:{FRIEND}:rwx",
        "group::r--",
        f"group:{OTHER_GROUP}:r--",
        "mask::rwx",
        "other::---",
    ]
    assert mode(file) == 0o670
    assert "system.posix_acl_access" in os.listxattr(file)


def test_a_list_survives_a_remount(acl_uri: str, tmp_path: Path) -> None:
    with mounted(acl_uri, tmp_path) as mount:
        folder = mount.path / tmp_path.name
        folder.mkdir()
        run("setfacl", "-m", f"u:{FRIEND}:rx,d:u:{FRIEND}:rwx", folder)
        before = getfacl(folder)
        mount.remount_cold()
        assert f"default:user:{FRIEND}:rwx" in before
        assert getfacl(folder) == before


def test_removing_all_entries_leaves_the_mode_and_no_list(here: Path) -> None:
    file = new_file(here / "f")
    run("setfacl", "-m", f"u:{FRIEND}:rw", file)
    run("setfacl", "-b", file)
    assert getfacl(file) == ["user::rw-", "group::r--", "other::---"]
    assert os.listxattr(file) == []
    run("setfacl", "-b", "-k", here)
    assert os.listxattr(here) == []


def test_a_list_of_three_entries_is_a_chmod(here: Path) -> None:
    file = new_file(here / "f")
    run("setfacl", "--set", "u::rwx,g::x,o::r", file)
    assert mode(file) == 0o714
    assert os.listxattr(file) == []


def test_other_names_of_the_system_are_unsupported(here: Path) -> None:
    file = new_file(here / "f")
    for name in ("system.nfs4_acl", "system.other"):
        assert errno_of(os.setxattr, file, name, b"x") == errno.ENOTSUP


def test_bytes_that_are_no_list_are_refused(here: Path) -> None:
    file = new_file(here / "f")
    value = b"\2\0\0\0no list"
    assert errno_of(os.setxattr, file, "system.posix_acl_access", value) == errno.EINVAL
    assert mode(file) == 0o640


def test_a_default_list_is_for_directories(here: Path) -> None:
    file = new_file(here / "f")
    run("setfacl", "-m", f"d:u:{FRIEND}:rwx", here)
    value = os.getxattr(here, "system.posix_acl_default")
    assert errno_of(os.setxattr, file, "system.posix_acl_default", value) == errno.EACCES


def test_only_the_owner_sets_a_list(here: Path) -> None:
    file = new_file(here / "f", mode=0o666)
    done = as_user(FRIEND, "setfacl", "-m", f"u:{FRIEND}:rwx", file, check=False)
    assert "Operation not permitted" in done.stderr
    as_user(OWNER, "setfacl", "-m", f"u:{FRIEND}:rwx", file)
    assert f"user:{FRIEND}:rwx" in getfacl(file)


# --- enforced ------------------------------------------------------------------------------------


def test_a_named_user_is_granted_what_others_are_not(here: Path) -> None:
    file = new_file(here / "f")
    assert not may(FRIEND, "r", file)
    run("setfacl", "-m", f"u:{FRIEND}:rw", file)
    assert may(FRIEND, "r", file)
    assert may(FRIEND, "w", file)
    assert not may(STRANGER, "r", file)


def test_a_named_user_is_denied_what_others_are_granted(here: Path) -> None:
    file = new_file(here / "f", mode=0o666)
    run("setfacl", "-m", f"u:{FRIEND}:-", file)
    assert not may(FRIEND, "r", file)
    assert may(STRANGER, "w", file)


def test_a_named_group_is_granted(here: Path) -> None:
    file = new_file(here / "f")
    run("setfacl", "-m", f"g:{OTHER_GROUP}:rw", file)
    assert may(STRANGER, "w", file, groups=str(OTHER_GROUP))
    assert not may(STRANGER, "r", file)


def test_the_mask_limits_what_is_granted(here: Path) -> None:
    file = new_file(here / "f")
    run("setfacl", "-m", f"u:{FRIEND}:rw,m:r", file)
    assert mode(file) == 0o640
    assert may(FRIEND, "r", file)
    assert not may(FRIEND, "w", file)


def test_lists_of_directories_are_enforced(here: Path) -> None:
    here.chmod(0o700)
    assert not may(FRIEND, "x", here)
    run("setfacl", "-m", f"u:{FRIEND}:rwx,u:{STRANGER}:x", here)
    assert may(FRIEND, "w", here)
    assert may(STRANGER, "x", here)
    assert not may(STRANGER, "r", here)
    assert not may(STRANGER, "w", here)


def test_what_is_taken_away_is_gone_at_once(here: Path) -> None:
    file = new_file(here / "f")
    run("setfacl", "-m", f"u:{FRIEND}:r", file)
    assert may(FRIEND, "r", file)
    run("setfacl", "-x", f"u:{FRIEND}", file)
    assert not may(FRIEND, "r", file)


def test_a_list_set_through_another_mount_is_enforced_here(
    acl_uri: str, here: Path, tmp_path: Path
) -> None:
    file = new_file(here / "f")
    assert not may(FRIEND, "r", file)
    with mounted(acl_uri, tmp_path) as there:
        run("setfacl", "-m", f"u:{FRIEND}:r", there.path / tmp_path.name / "d" / "f")
    # What the kernel was told of the file holds for a second.
    run("sleep", "1.1")
    assert may(FRIEND, "r", file)


def test_checks_of_files_without_a_list_ask_the_router_nothing(shared: Mount, here: Path) -> None:
    file = new_file(here / "f", mode=0o664)
    code = (
        "import json, os, sys\n"
        "def asked():\n"
        "    with open(sys.argv[2]) as stats:\n"
        "        return json.load(stats)['router_requests']\n"
        "before = asked()\n"
        "for _ in range(300):\n"
        "    assert os.access(sys.argv[1], os.R_OK)\n"
        "print(asked() - before)\n"
    )
    stats = shared.path / ".mictlanfs" / "stats"
    done = as_user(FRIEND, "/usr/bin/python3", "-c", code, file, stats)
    # Attributes are asked for once a second; lists would be 300 requests.
    assert int(done.stdout) < 60


# --- chmod ---------------------------------------------------------------------------------------


def test_chmod_sets_the_mask(here: Path) -> None:
    file = new_file(here / "f")
    run("setfacl", "-m", f"u:{FRIEND}:rw", file)
    file.chmod(0o604)
    assert getfacl(file) == [
        "user::rw-",
        f"user:{FRIEND}:rw-",
        "group::r--",
        "mask::---",
        "other::r--",
    ]
    assert not may(FRIEND, "w", file)
    file.chmod(0o660)
    assert may(FRIEND, "w", file)


def test_set_user_id_and_sticky_stay_when_a_list_is_set(here: Path) -> None:
    file = new_file(here / "f", mode=0o755)
    file.chmod(0o5755)
    run("setfacl", "-m", f"u:{FRIEND}:rx", file)
    assert mode(file) == 0o5755


def test_set_group_id_goes_when_who_is_not_in_the_group_sets_a_list(here: Path) -> None:
    file = new_file(here / "f")
    os.chown(file, OWNER, OTHER_GROUP)
    file.chmod(0o2755)
    as_user(OWNER, "setfacl", "-m", f"u:{FRIEND}:rx", file, groups=str(OTHER_GROUP))
    assert mode(file) == 0o2755
    as_user(OWNER, "setfacl", "-m", f"u:{STRANGER}:rx", file)
    assert mode(file) == 0o755


# --- inherited -----------------------------------------------------------------------------------


def create_with(folder: Path, mask: int) -> None:
    """A file, a directory and a FIFO made by OWNER under a umask."""
    code = (
        "import os, sys\n"
        f"os.umask({mask})\n"
        "os.chdir(sys.argv[1])\n"
        "os.close(os.open('f', os.O_CREAT | os.O_WRONLY, 0o666))\n"
        "os.mkdir('d', 0o777)\n"
        "os.mkfifo('p', 0o666)\n"
        "os.symlink('f', 'l')\n"
    )
    as_user(OWNER, "/usr/bin/python3", "-c", code, folder)


def test_new_nodes_inherit_the_default_list(here: Path) -> None:
    here.chmod(0o755)
    run("setfacl", "-m", f"d:u::rwx,d:u:{FRIEND}:rwx,d:g::rx,d:o::-", here)
    create_with(here, 0)
    expected = ["user::rw-", f"user:{FRIEND}:rwx", "group::r-x", "mask::rw-", "other::---"]
    assert getfacl(here / "f") == expected
    assert getfacl(here / "p") == expected
    assert mode(here / "f") == 0o660
    access = ["user::rwx", f"user:{FRIEND}:rwx", "group::r-x", "mask::rwx", "other::---"]
    assert getfacl(here / "d") == access + [f"default:{entry}" for entry in access]
    assert os.listxattr(here / "l", follow_symlinks=False) == []
    assert may(FRIEND, "w", here / "f")
    assert may(FRIEND, "w", here / "d")
    assert not may(STRANGER, "r", here / "f")


def test_a_default_list_takes_the_place_of_the_umask(here: Path) -> None:
    run("setfacl", "-m", f"d:u:{FRIEND}:rwx", here)
    create_with(here, 0o077)
    expected = ["user::rw-", f"user:{FRIEND}:rwx", "group::r-x", "mask::rw-", "other::r--"]
    assert getfacl(here / "f") == getfacl(here / "p") == expected
    assert "mask::rwx" in getfacl(here / "d")
    assert may(FRIEND, "w", here / "f")


def test_a_list_of_three_entries_takes_the_place_of_the_umask_too(here: Path) -> None:
    run("setfacl", "-m", "d:u::rwx,d:g::rx,d:o::x", here)
    create_with(here, 0o077)
    assert mode(here / "f") == mode(here / "p") == 0o640
    assert mode(here / "d") == 0o751


def test_the_umask_masks_all_nodes_where_there_is_no_default_list(here: Path) -> None:
    create_with(here, 0o027)
    assert mode(here / "f") == mode(here / "p") == 0o640
    assert mode(here / "d") == 0o750
    assert (here / "l").lstat().st_mode & 0o777 == 0o777


def test_without_a_default_list_nothing_is_inherited(here: Path) -> None:
    run("setfacl", "-m", f"u:{FRIEND}:rwx", here)
    create_with(here, 0o022)
    assert os.listxattr(here / "f") == []
    assert mode(here / "f") == 0o644


# --- programs ------------------------------------------------------------------------------------


def listed(path: Path) -> list[str]:
    return getfacl(path / "f") + getfacl(path)


@pytest.fixture
def tree(here: Path) -> Path:
    """A directory with lists of both kinds, and a file with one."""
    source = here / "source"
    source.mkdir()
    file = new_file(source / "f")
    run("setfacl", "-m", f"u:{FRIEND}:rw,g:{OTHER_GROUP}:r", file)
    run("setfacl", "-m", f"u:{FRIEND}:rwx,d:u:{STRANGER}:rx", source)
    os.utime(file, (1_000_000, 1_000_000))
    return source


def test_cp_keeps_lists(tree: Path) -> None:
    copy = tree.parent / "copy"
    run("cp", "-a", tree, copy)
    assert listed(copy) == listed(tree)
    assert (copy / "f").stat().st_mtime == 1_000_000


def test_rsync_keeps_lists_on_the_way_out_and_back(tree: Path, tmp_path: Path) -> None:
    outside, back = tmp_path / "outside", tree.parent / "back"
    run("rsync", "-aAX", f"{tree}/", f"{outside}/")
    run("rsync", "-aAX", f"{outside}/", f"{back}/")
    assert listed(outside) == listed(tree)
    assert listed(back) == listed(tree)


def test_tar_keeps_lists(tree: Path) -> None:
    archive, unpacked = tree.parent / "archive.tar", tree.parent / "unpacked"
    unpacked.mkdir()
    run("tar", "--acls", "-C", tree, "-cf", archive, ".")
    run("tar", "--acls", "-C", unpacked, "-xpf", archive)
    assert listed(unpacked) == listed(tree)


def test_sed_in_place_keeps_mode_and_list(tree: Path) -> None:
    before = getfacl(tree / "f")
    run("sed", "-i", "s/content/changed/", tree / "f")
    assert (tree / "f").read_text() == "changed\n"
    assert getfacl(tree / "f") == before


# --- shown otherwise -----------------------------------------------------------------------------


def test_where_modes_are_shown_otherwise_there_are_no_lists(acl_uri: str, tmp_path: Path) -> None:
    with mounted(acl_uri, tmp_path, "umask=022") as mount:
        folder = mount.path / tmp_path.name
        folder.mkdir()
        done = run("setfacl", "-m", f"u:{FRIEND}:rwx", folder, check=False)
        assert "Operation not supported" in done.stderr
        assert os.listxattr(folder) == []
        folder.chmod(0o700)
