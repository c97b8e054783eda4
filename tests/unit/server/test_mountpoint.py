import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs_server import mountpoint
from mictlanfs_server.mountpoint import (
    Mount,
    User,
    check_ability,
    check_free,
    is_answering,
    is_dead,
    is_mounted,
    mount_at,
    names_of,
    resolved,
    unmount_lazily,
    users_of,
)

LINE = "36 35 0:40 / {} rw,nosuid shared:1 master:2 - {} {} rw,user_id=0\n"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of mounts that the test writes."""
    path = tmp_path / "mountinfo"
    path.write_text("22 1 254:0 / / rw - ext4 /dev/root rw\n")
    monkeypatch.setattr(mountpoint, "MOUNT_TABLE", path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "vss"
    folder.mkdir()
    return folder


def add_mount(table: Path, at: str, kind: str = "fuse.mictlanfs", source: str = "x") -> None:
    table.write_text(table.read_text() + LINE.format(at, kind, source))


# --- the table ----------------------------------------------------------------------------------


def test_a_mount_is_found_by_its_exact_place(table: Path) -> None:
    add_mount(table, "/mnt/vss", source="mictlanx://a:1")
    assert mount_at(Path("/mnt/vss")) == Mount(Path("/mnt/vss"), "fuse.mictlanfs", "mictlanx://a:1")
    assert mount_at(Path("/mnt/vs")) is None
    assert mount_at(Path("/mnt/vss/a")) is None


def test_blanks_in_the_table_are_escaped(table: Path) -> None:
    add_mount(table, r"/mnt/my\040files", source=r"a\134b")
    found = mount_at(Path("/mnt/my files"))
    assert found is not None
    assert found.source == r"a\b"


def test_of_mounts_upon_each_other_the_last_one_counts(table: Path) -> None:
    add_mount(table, "/mnt")
    add_mount(table, "/mnt", kind="ext4")
    assert not is_mounted(Path("/mnt"))


def test_the_table_of_this_machine_is_understood() -> None:
    root = mount_at(Path("/proc"))
    assert root is not None
    assert root.type == "proc"


# --- paths --------------------------------------------------------------------------------------


def test_a_path_is_resolved_as_the_kernel_will_tell_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    assert resolved(Path(".")) == folder
    assert resolved(Path("../link/new")) == folder / "new"
    assert resolved(folder.parent / "link") == folder


def test_a_mountpoint_itself_is_not_looked_into(
    table: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    add_mount(table, str(link))
    # A link that is a mountpoint cannot be; it stands for a mount that must not be asked.
    assert resolved(link) == link


# --- checks -------------------------------------------------------------------------------------


def test_nothing_or_an_empty_directory_can_be_mounted_at(folder: Path) -> None:
    check_free(folder)
    check_free(folder / "new" / "deep")


def test_a_file_is_refused(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(UsageError, match="file is not a directory"):
        check_free(folder / "file")


def test_a_directory_with_something_in_it_is_refused(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(UsageError, match="vss is not empty: choose"):
        check_free(folder)


def test_a_place_that_is_mounted_is_refused_with_the_remedy(table: Path, folder: Path) -> None:
    add_mount(table, str(folder), source="mictlanx://a:1")
    with pytest.raises(UsageError, match=rf"\(mictlanx://a:1\): .*`mictlanfs umount {folder}`"):
        check_free(folder)


def test_the_empty_root_of_a_disk_can_be_mounted_at(table: Path, folder: Path) -> None:
    add_mount(table, str(folder), kind="ext4")
    check_free(folder)


def test_a_machine_without_fuse_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "fuse")
    with pytest.raises(MictlanError, match="modprobe fuse") as caught:
        check_ability()
    assert caught.value.kind is Kind.UNSUPPORTED


def test_a_user_who_may_not_open_the_device_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "fuse"
    device.touch()
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", device)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(MictlanError, match="run as root") as caught:
        check_ability()
    assert caught.value.kind is Kind.ACCESS_DENIED


@pytest.mark.parametrize(("uid", "is_able"), [(0, True), (1000, False)])
def test_only_root_can_do_without_fusermount3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, *, is_able: bool
) -> None:
    device = tmp_path / "fuse"
    device.touch()
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", device)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("PATH", str(tmp_path))
    if is_able:
        check_ability()
    else:
        with pytest.raises(MictlanError, match="install the package fuse3"):
            check_ability()


def test_a_missing_pyfuse3_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MictlanError, match=r"pip install 'mictlanfs\[mount\]'"):
        check_ability()


# --- state --------------------------------------------------------------------------------------


async def test_a_directory_that_is_not_mounted_does_not_answer(folder: Path) -> None:
    assert not await is_answering(folder)


async def test_a_mount_answers_when_it_lists_its_root(table: Path, folder: Path) -> None:
    add_mount(table, str(folder))
    assert await is_answering(folder)
    assert not await is_answering(folder.parent)


async def test_a_mount_that_fails_or_hangs_does_not_answer(
    table: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    add_mount(table, str(folder))

    async def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    async def hang(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    for behaviour in (fail, hang):
        monkeypatch.setattr(trio.to_thread, "run_sync", behaviour)
        assert not await is_answering(folder)


def test_a_mount_is_dead_when_its_connection_is(
    table: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    add_mount(table, str(folder))
    assert not is_dead(folder)
    monkeypatch.setattr(os, "statvfs", fail)
    assert is_dead(folder)
    assert not is_dead(folder.parent), "nothing is mounted there"


def test_a_mount_that_hangs_is_not_dead(
    table: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    add_mount(table, str(folder))
    monkeypatch.setattr(mountpoint, "PROBE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(os, "statvfs", lambda _: hanging.wait(30.0))
    assert not is_dead(folder)
    hanging.set()


def test_what_is_not_our_mount_is_never_unmounted(
    table: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be run")

    monkeypatch.setattr(subprocess, "run", forbidden)
    unmount_lazily(folder)
    add_mount(table, str(folder), kind="ext4")
    unmount_lazily(folder)


def test_our_mount_is_unmounted_lazily(
    table: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        table.write_text("")

    monkeypatch.setattr(subprocess, "run", run)
    add_mount(table, str(folder))
    unmount_lazily(folder)
    ((_, *options, path),) = commands
    assert path == str(folder)
    assert "-z" in options or "-l" in options


# --- users --------------------------------------------------------------------------------------


@pytest.fixture
def user(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that works in the folder."""
    program = "print('there', flush=True); import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        yield process
        process.kill()


def test_a_process_that_works_in_a_directory_uses_it(
    folder: Path, user: subprocess.Popen[bytes]
) -> None:
    assert [found.pid for found in users_of(folder)] == [user.pid]
    assert users_of(folder.parent / "vs") == []


def test_an_open_file_is_a_use(folder: Path) -> None:
    assert users_of(folder) == []
    with (folder / "file").open("w"):
        assert [found.pid for found in users_of(folder)] == [os.getpid()]


def test_users_are_named_but_not_all_of_many() -> None:
    users = [User(number, "bash") for number in range(1, 8)]
    assert names_of(users[:2]) == "bash (pid 1), bash (pid 2)"
    assert names_of(users).endswith("bash (pid 5) and 2 more")
