"""A mount that a user without privileges makes, by fusermount3.

It is made in a mount namespace of its own, where `/dev/fuse` is open to all, as it is on most
machines. Where others may not run the interpreter of the tests, the system's runs the same code.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.spaces import Space, run

pytestmark = pytest.mark.fuse

NOBODY = 65534
CONTENT = random.Random(7).randbytes(2_000_003)
FUSE_MAJOR_MINOR = ("10", "229")
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


@pytest.fixture(scope="module")
def interpreter() -> str:
    """A command of Python that nobody may run, with all that a mount imports."""
    helper = shutil.which("fusermount3")
    if helper is None or not os.stat(helper).st_mode & stat.S_ISUID:
        pytest.skip("fusermount3 is not set-user-id")
    path = shlex.quote(":".join(entry for entry in sys.path if entry))
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, system):
        command = f"env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={path} {python}"
        words = [*AS_NOBODY, *shlex.split(command), "-c", "import mictlanfs_mount.session"]
        if subprocess.run(words, capture_output=True, check=False, cwd="/").returncode == 0:
            return command
    pytest.skip("users without privileges can run no Python that has what a mount imports")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of nobody's that nobody can reach, with an empty one in it to mount at."""
    base = Path("/tmp") / f"mictlanfs-nobody-{os.getpid()}"
    (base / "home" / "mnt").mkdir(parents=True)
    run("chown", "-R", f"{NOBODY}:{NOBODY}", base / "home")
    run("mknod", "--mode=666", base / "fuse", "c", *FUSE_MAJOR_MINOR)
    try:
        yield base / "home"
    finally:
        shutil.rmtree(base)


def as_nobody(home: Path, interpreter: str, lines: list[str]) -> str:
    """What a script prints that nobody runs where `/dev/fuse` is open to all.

    In it `mictlanfs` is our command and $PLACE the mountpoint.
    """
    command = f'mictlanfs() {{ {interpreter} -m mictlanfs.cli.main "$@"; }}'
    own = home.parent / "script"
    own.write_text("\n".join(["set -e", command, *lines]), encoding="utf-8")
    outer = (
        f"mount --bind {home.parent}/fuse /dev/fuse && cd / && exec env -u XDG_CONFIG_HOME "
        f"-u XDG_STATE_HOME -u XDG_CACHE_HOME -u XDG_RUNTIME_DIR HOME={home} "
        f"PLACE={home}/mnt {shlex.join(AS_NOBODY)} sh {own}"
    )
    return run("unshare", "--mount", "sh", "-c", outer).stdout


def test_nobody_mounts_works_and_unmounts(
    space: Space, work: Path, home: Path, interpreter: str
) -> None:
    os.chown(work, NOBODY, NOBODY)
    shown = as_nobody(
        home,
        interpreter,
        [
            f"mictlanfs mount -o suid,dev '{space.uri}' $PLACE",
            "grep \" $PLACE \" /proc/mounts | cut -d ' ' -f 3-4",
            f"cd $PLACE/{work.name}",
            "umask 027; echo hi > file; mkdir directory; stat -c '%a %u' file directory",
            "setfacl -m d:u:1:rwx directory",
            "touch directory/file; stat -c %a directory/file",
            "mkdir ../refused 2>&1 || echo refused; cd /",
            'mictlanfs umount $PLACE; grep " $PLACE " /proc/mounts || echo gone',
        ],
    ).splitlines()
    options = shown[0].split()
    assert options[0] == "fuse.mictlanfs"
    # fusermount3 lets nobody but root have `suid` and `dev`.
    assert {"nosuid", "nodev", f"user_id={NOBODY}"} <= set(options[1].split(","))
    assert shown[1:3] == [f"640 {NOBODY}", f"750 {NOBODY}"]
    # The kernel takes the umask off before it asks a mount that root did not make.
    assert shown[3] == "640"
    assert "Permission denied" in shown[4]
    assert shown[-1] == "gone"
    assert (work / "file").read_text() == "hi\n"
    assert (work / "file").stat().st_uid == NOBODY


def test_nobody_gets_no_files_of_peers_of_root_and_reads(
    space: Space, work: Path, home: Path, interpreter: str
) -> None:
    (work / "large").write_bytes(CONTENT)
    os.chmod(work, 0o755)
    os.chmod(work / "large", 0o644)
    run("sync", "-f", work)
    shown = as_nobody(
        home,
        interpreter,
        [
            f"mictlanfs mount '{space.uri}' $PLACE",
            f"sha256sum < $PLACE/{work.name}/large",
            "cat $PLACE/.mictlanfs/stats; echo",
            "mictlanfs umount $PLACE",
        ],
    )
    digest, _, told = shown.partition("\n")
    assert digest.split()[0] == hashlib.sha256(CONTENT).hexdigest()
    stats = json.JSONDecoder().raw_decode(told)[0]
    assert stats["cache"]["local"]["opened"] == 0
    assert stats["peer_requests"] > 0
