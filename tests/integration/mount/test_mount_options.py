"""Options of mounts that change what programs see, on real mounts as root."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mictlanfs import wire
from tests.docs.traced_mount import traced
from tests.support.spaces import Mount, Space, mounted, run

NOBODY = 65534


def errno_of(call: Callable[[], object]) -> int:
    """The errno that a call fails with; 0 when it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.fixture(scope="module")
def mount(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests here; `work` is a bucket of each test's own."""
    with mounted(space.uri, tmp_path_factory.mktemp("shared")) as started:
        yield started


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that other users reach: each start of pytest closes its own to them."""
    with tempfile.TemporaryDirectory(prefix="mictlanfs-options-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def folder_in(tmp_path: Path) -> Path:
    """A new directory, since that of the test has a mount in it already."""
    folder = tmp_path / "traced"
    folder.mkdir()
    return folder


# --- ro ------------------------------------------------------------------------------------------


def test_ro_refuses_every_change(space: Space, work: Path, tmp_path: Path) -> None:
    (work / "file").write_text("content")
    (work / "folder").mkdir()
    with mounted(space.uri, tmp_path / "ro", "ro") as mount:
        there = mount.path / work.name
        file = there / "file"
        assert file.read_text() == "content"
        calls: dict[str, Callable[[], object]] = {
            "open for writing": lambda: os.open(file, os.O_WRONLY),
            "open and truncate": lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
            "create": lambda: os.open(there / "new", os.O_CREAT | os.O_WRONLY),
            "truncate": lambda: os.truncate(file, 0),
            "chmod": lambda: file.chmod(0o600),
            "chown": lambda: os.chown(file, 1, 1),
            "utime": lambda: os.utime(file),
            "rename": lambda: os.rename(file, there / "new"),
            "unlink": lambda: os.unlink(file),
            "link": lambda: os.link(file, there / "new"),
            "symlink": lambda: os.symlink("x", there / "new"),
            "mkdir": lambda: os.mkdir(there / "new"),
            "make a bucket": lambda: os.mkdir(mount.path / "new"),
            "rmdir": lambda: os.rmdir(there / "folder"),
            "mkfifo": lambda: os.mkfifo(there / "new"),
            "mknod": lambda: os.mknod(there / "new", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
            "setxattr": lambda: os.setxattr(file, "user.x", b""),
            "removexattr": lambda: os.removexattr(file, "user.x"),
        }
        assert {name: errno_of(call) for name, call in calls.items()} == dict.fromkeys(
            calls, errno.EROFS
        )


# --- uid, gid, umask -----------------------------------------------------------------------------


def test_uid_gid_and_umask_show_others_and_store_nothing(
    space: Space, work: Path, tmp_path: Path
) -> None:
    file = work / "file"
    file.write_text("content")
    file.chmod(0o666)
    options = ("uid=12", "gid=34", "umask=027")
    with mounted(space.uri, tmp_path / "own", *options) as mount:
        for path, mode in ((mount.path / work.name / "file", 0o640), (mount.path, None)):
            shown = path.stat()
            assert (shown.st_uid, shown.st_gid) == (12, 34)
            assert mode is None or stat.S_IMODE(shown.st_mode) == mode
        made = mount.path / work.name / "made"
        made.write_text("")
        assert made.stat().st_uid == 12
    assert stat.S_IMODE(file.stat().st_mode) == 0o666
    assert (file.stat().st_uid, file.stat().st_gid) == (0, 0)
    assert (work / "made").stat().st_uid == 0


def test_the_kernel_checks_permissions_by_what_is_shown(
    space: Space, work: Path, shared: Path
) -> None:
    file = work / "file"
    file.write_text("content")
    file.chmod(0o604)
    options = ("allow_other", f"uid={NOBODY}", "umask=077")
    with mounted(space.uri, shared / "own", *options) as mount:
        seen = mount.path / work.name / "file"
        for user, is_allowed in ((NOBODY, True), (1234, False)):
            words: list[str | Path] = ["cat", seen]
            done = subprocess.run(words, user=user, group=user, capture_output=True, check=False)
            assert (done.stdout == b"content") is is_allowed


def test_other_users_are_kept_out_unless_allowed(space: Space, shared: Path) -> None:
    with mounted(space.uri, shared / "closed") as mount:
        command: list[str | Path] = ["ls", mount.path]
        done = subprocess.run(command, user=NOBODY, group=NOBODY, capture_output=True, check=False)
        assert b"Permission denied" in done.stderr
    with mounted(space.uri, shared / "open", "allow_other") as other:
        command = ["ls", other.path]
        done = subprocess.run(command, user=NOBODY, group=NOBODY, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


# --- suid, dev, exec -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_allowed", [False, True])
def test_device_nodes_and_set_uid_programs_work_only_when_allowed(
    space: Space, work: Path, shared: Path, *, is_allowed: bool
) -> None:
    null = work / "null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    null.chmod(0o666)
    program = work / "id"
    run("cp", "/usr/bin/id", program)
    program.chmod(0o4755)
    work.chmod(0o755)
    options = ("allow_other", *(("suid", "dev") if is_allowed else ()))
    with mounted(space.uri, shared / "m2", *options) as mount:
        there = mount.path / work.name
        opened = errno_of(lambda: os.close(os.open(there / "null", os.O_WRONLY)))
        assert opened == (0 if is_allowed else errno.EACCES)
        done = subprocess.run(
            [there / "id", "-u"], user=NOBODY, group=NOBODY, capture_output=True, check=True
        )  # fmt: skip
        assert done.stdout.strip() == (b"0" if is_allowed else b"%d" % NOBODY)


def test_noexec_keeps_programs_from_running(space: Space, work: Path, tmp_path: Path) -> None:
    run("cp", "/bin/true", work / "true")
    run(work / "true")
    with mounted(space.uri, tmp_path / "m2", "noexec") as mount:
        program = mount.path / work.name / "true"
        assert errno_of(lambda: subprocess.run([program], check=True)) == errno.EACCES


# --- sync, dirsync -------------------------------------------------------------------------------


def test_sync_makes_each_write_and_each_change_durable_before_it_returns(
    space: Space, work: Path, tmp_path: Path
) -> None:
    with traced(space.uri, folder_in(tmp_path), "sync", "noshort_circuit") as mount:
        file = mount.path / work.name / "file"
        fd = os.open(file, os.O_CREAT | os.O_WRONLY)
        try:
            mount.forget()
            os.write(fd, bytes(100_000))
            # Counted at once: what comes later does not matter to the program.
            written = mount.requests()
            mount.forget()
            os.fchmod(fd, 0o600)
            changed = mount.requests()
        finally:
            os.close(fd)
    assert written.peers >= 1
    assert written.paths[wire.Path.COMMIT] >= 1
    # The change and the barrier that makes it durable travel together.
    assert changed.paths[wire.Path.COMMIT] == 1


@pytest.mark.parametrize(("options", "commit_count"), [((), 0), (("dirsync",), 1)])
def test_dirsync_makes_each_change_of_names_durable_before_it_returns(
    space: Space, work: Path, tmp_path: Path, options: tuple[str, ...], commit_count: int
) -> None:
    with traced(space.uri, folder_in(tmp_path), *options) as mount:
        folder = mount.path / work.name / "folder"
        os.stat(folder.parent)
        changes: list[Callable[[], object]] = [
            lambda: os.mkdir(folder),
            lambda: os.symlink("x", folder / "link"),
            lambda: os.rename(folder / "link", folder / "moved"),
            lambda: os.unlink(folder / "moved"),
            lambda: os.rmdir(folder),
        ]
        for change in changes:
            mount.forget()
            change()
            assert mount.requests().paths[wire.Path.COMMIT] == commit_count


# --- access times --------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["noatime", "relatime", "strictatime"])
def test_reading_never_changes_access_times_and_utime_does(
    space: Space, work: Path, tmp_path: Path, option: str
) -> None:
    file = work / "file"
    file.write_text("content")
    os.utime(file, ns=(1_000_000_001, 2_000_000_002))
    with mounted(space.uri, tmp_path / "m2", option) as mount:
        seen = mount.path / work.name / "file"
        assert seen.read_text() == "content"
        list(seen.parent.iterdir())
        assert seen.stat().st_atime_ns == 1_000_000_001
        before = time.time_ns()
        os.utime(seen)
        assert seen.stat().st_atime_ns >= before - 1_000_000_000


# --- subdir, and two places ----------------------------------------------------------------------


def test_one_space_at_two_places_is_one_tree(space: Space, work: Path, tmp_path: Path) -> None:
    with mounted(space.uri, tmp_path / "second") as second:
        (work / "here").write_text("from the first")
        assert (second.path / work.name / "here").read_text() == "from the first"
        (second.path / work.name / "there").write_text("from the second")
        assert (work / "there").read_text() == "from the second"


@pytest.mark.parametrize("depth", [0, 2])
def test_subdir_mounts_a_bucket_or_a_directory_in_it(
    space: Space, work: Path, tmp_path: Path, depth: int
) -> None:
    folder = work.joinpath(*["a", "b"][:depth])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text("content")
    (folder / "inner").mkdir()
    subdir = "/".join([work.name, *["a", "b"][:depth]])
    with mounted(space.uri, tmp_path / "part", f"subdir={subdir}") as part:
        assert sorted(os.listdir(part.path)) == ["file", "inner"]
        assert (part.path / "file").read_text() == "content"
        assert part.path.stat().st_ino == 1
        assert (part.path / "inner" / "..").stat().st_ino == 1
        assert (part.path / "..").samefile(tmp_path / "part")
        (part.path / "inner" / "new").write_text("made below")
        os.rename(part.path / "inner" / "new", part.path / "new")
        assert (folder / "new").read_text() == "made below"
        # The names that every directory has, as readdir gives them, lead to no place outside.
        shown = run("ls", "-ai", part.path).stdout.split()
        assert shown[shown.index(".") - 1] == "1"
    assert errno_of(lambda: os.rmdir(work)) == errno.ENOTEMPTY


def test_two_subdirs_are_two_file_systems(space: Space, work: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (work / name).mkdir()
    with (
        mounted(space.uri, tmp_path / "1", f"subdir={work.name}/one") as one,
        mounted(space.uri, tmp_path / "2", f"subdir={work.name}/two") as two,
    ):
        file = one.path / "file"
        file.write_text("content")
        assert errno_of(lambda: os.rename(file, two.path / "file")) == errno.EXDEV
        assert errno_of(lambda: os.link(file, two.path / "file")) == errno.EXDEV
        run("mv", file, two.path / "file")
        assert one.path.stat().st_dev != two.path.stat().st_dev
    assert not (work / "one" / "file").exists()
    assert (work / "two" / "file").read_text() == "content"


@pytest.mark.parametrize(("name", "reason"), [("none", "not exist"), ("file", "not a directory")])
def test_a_subdir_that_is_none_is_refused(
    space: Space, work: Path, tmp_path: Path, name: str, reason: str
) -> None:
    (work / "file").write_text("")
    with (
        pytest.raises(AssertionError, match=reason),
        mounted(space.uri, tmp_path / "part", f"subdir={work.name}/{name}"),
    ):
        pass
