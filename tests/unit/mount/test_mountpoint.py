import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs_mount import mountpoint
from mictlanfs_mount.daemon import Report
from mictlanfs_mount.mountpoint import (
    MOUNT_TYPE,
    Mount,
    Pulse,
    check_ability,
    find_mount,
    mount_around,
    parse_mount_table,
    prepare,
    pulse_of,
    resolved,
    serving_process,
    unmount,
    users_of,
)

FAKE = str(Path(__file__).with_name("fakemount.py"))
URI = "mictlanx://r@127.0.0.1:60666/?protocol=http"

TABLE = f"""\
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw
40 27 0:38 / /mnt/a\\040b\\134c rw,nosuid - {MOUNT_TYPE} mictlanx://r@h:1/?x=\\040y rw,user_id=0
41 27 0:39 / /mnt/t rw - tmpfs none rw
42 27 0:40 / /mnt/t rw - fuse.sshfs host: rw
"""


def silent(_: str) -> None:
    """Nobody is to be told anything."""
    pytest.fail(f"said {_!r}")


# --- the table -----------------------------------------------------------------------------------


def test_the_table_is_read_with_its_escapes_and_optional_fields() -> None:
    assert parse_mount_table(TABLE) == [
        Mount(Path("/"), "ext4", "/dev/vda", (254, 0)),
        Mount(Path("/mnt/a b\\c"), MOUNT_TYPE, "mictlanx://r@h:1/?x= y", (0, 38)),
        Mount(Path("/mnt/t"), "tmpfs", "none", (0, 39)),
        Mount(Path("/mnt/t"), "fuse.sshfs", "host:", (0, 40)),
    ]


def test_only_a_space_is_ours() -> None:
    assert [mount.is_ours for mount in parse_mount_table(TABLE)] == [False, True, False, False]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "mountinfo"
    file.write_text(TABLE)
    monkeypatch.setattr(mountpoint, "MOUNT_TABLE", file)
    return file


@pytest.mark.usefixtures("table")
def test_the_topmost_mount_is_found() -> None:
    found = find_mount(Path("/mnt/t"))
    assert found is not None
    assert found.type == "fuse.sshfs"
    assert find_mount(Path("/mnt")) is None


@pytest.mark.usefixtures("table")
def test_a_path_inside_a_space_is_told_from_its_mountpoint() -> None:
    around = mount_around(Path("/mnt/a b\\c/x/y"))
    assert around is not None
    assert around.mountpoint == Path("/mnt/a b\\c")
    assert mount_around(Path("/mnt/a b\\c")) is None
    assert mount_around(Path("/mnt/t/x")) is None


def test_the_real_table_has_the_root() -> None:
    assert find_mount(Path("/")) is not None


def test_a_path_is_resolved_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert resolved(Path("link/../real/.")) == tmp_path / "real"
    assert resolved(Path("link")) == tmp_path / "real"
    assert resolved(Path("not there")) == tmp_path / "not there"


# --- before mounting -----------------------------------------------------------------------------


def test_an_empty_directory_is_prepared_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert prepare(tmp_path / "m", silent) == tmp_path / "m"


def test_a_missing_mountpoint_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"mkdir -p {tmp_path}/m"):
        prepare(tmp_path / "m", silent)


def test_a_file_is_no_mountpoint(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(UsageError, match="is not a directory"):
        prepare(tmp_path / "f", silent)
    with pytest.raises(UsageError, match="not a directory"):
        prepare(tmp_path / "f" / "m", silent)


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("")
    with pytest.raises(UsageError, match=f"ls -A {tmp_path}"):
        prepare(tmp_path, silent)


def test_a_directory_that_cannot_be_entered_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    (tmp_path / "m").mkdir()
    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(UsageError, match="may not enter"):
        prepare(tmp_path / "m", silent)


def test_a_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda *_: False)
    (tmp_path / "m").mkdir()
    with pytest.raises(UsageError, match="may not write"):
        prepare(tmp_path / "m", silent)


@pytest.mark.parametrize("text", ["it is", "not there", "a file"])
def test_every_refusal_is_one_line_that_names_the_path(tmp_path: Path, text: str) -> None:
    if text == "it is":
        (tmp_path / text).mkdir()
        (tmp_path / text / "x").write_text("")
    elif text == "a file":
        (tmp_path / text).write_text("")
    with pytest.raises(UsageError) as caught:
        prepare(tmp_path / text, silent)
    assert str(tmp_path / text) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- ability -------------------------------------------------------------------------------------


@pytest.fixture
def able(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ordinary user who may mount; the folder has the device and the configuration."""
    (tmp_path / "fuse").write_text("")
    (tmp_path / "fuse.conf").write_text("# user_allow_other\n")
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "fuse")
    monkeypatch.setattr(mountpoint, "FUSE_CONFIGURATION", tmp_path / "fuse.conf")
    monkeypatch.setattr(mountpoint, "FUSERMOUNT", "true")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


def test_an_ordinary_user_may_mount(able: Path) -> None:
    check_ability(allow_other=False)


def test_a_missing_device_is_reported(able: Path) -> None:
    (able / "fuse").unlink()
    with pytest.raises(MictlanError, match="modprobe fuse") as caught:
        check_ability(allow_other=False)
    assert caught.value.kind is Kind.UNSUPPORTED


def test_a_device_that_may_not_be_opened_is_reported(
    able: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(MictlanError, match="may not open") as caught:
        check_ability(allow_other=False)
    assert caught.value.kind is Kind.ACCESS_DENIED


def test_only_root_mounts_without_fusermount(able: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "FUSERMOUNT", "no-such-program")
    with pytest.raises(MictlanError, match="install fuse3"):
        check_ability(allow_other=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check_ability(allow_other=True)


def test_letting_others_in_has_to_be_allowed_by_root(able: Path) -> None:
    with pytest.raises(UsageError, match="user_allow_other"):
        check_ability(allow_other=True)
    (able / "fuse.conf").write_text("mount_max = 5\nuser_allow_other\n")
    check_ability(allow_other=True)
    (able / "fuse.conf").unlink()
    with pytest.raises(UsageError, match="user_allow_other"):
        check_ability(allow_other=True)


# --- with a kernel -------------------------------------------------------------------------------


class FakeMount:
    """An empty file system that looks like ours, in a process of its own."""

    def __init__(self, where: Path, log: Path, behaviour: str = "mounted") -> None:
        self.where = where
        report, child = os.pipe()
        command = [sys.executable, FAKE, behaviour, "--report-fd", str(child), "--log", str(log)]
        self.process = subprocess.Popen([*command, "--", URI, str(where)], pass_fds=(child,))
        os.close(child)
        with os.fdopen(report) as file:
            assert file.readline() == Report().to_line().decode(), log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)
        if find_mount(self.where) is not None:
            unmount(self.where, lazy=True)


@pytest.fixture
def fake(tmp_path: Path, user_directories: Path) -> Iterator[FakeMount]:
    (tmp_path / "a b").mkdir()
    fake = FakeMount(tmp_path / "a b", tmp_path / "log")
    yield fake
    fake.end()


@pytest.mark.fuse
def test_a_living_mount_is_seen(fake: FakeMount) -> None:
    mount = find_mount(fake.where)
    assert mount is not None
    assert mount.is_ours
    assert mount.source == URI
    assert pulse_of(fake.where) is Pulse.ALIVE
    process = serving_process(mount)
    assert process is not None
    assert process.pid == fake.process.pid


@pytest.mark.fuse
def test_a_living_mount_is_not_mounted_over(fake: FakeMount) -> None:
    with pytest.raises(UsageError, match="mictlanfs umount") as caught:
        prepare(fake.where, silent)
    assert URI in str(caught.value)


@pytest.mark.fuse
def test_a_dead_mount_is_unmounted_first(fake: FakeMount) -> None:
    os.stat(fake.where)
    fake.kill()
    assert pulse_of(fake.where) is Pulse.DEAD
    said: list[str] = []
    assert prepare(fake.where, said.append) == fake.where
    assert find_mount(fake.where) is None
    assert len(said) == 1
    assert str(fake.where) in said[0]


@pytest.mark.fuse
def test_a_mount_that_hangs_is_not_waited_for(
    fake: FakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mountpoint, "PROBE_TIMEOUT_S", 0.2)
    fake.process.send_signal(signal.SIGSTOP)
    try:
        assert pulse_of(fake.where, 0.2) is Pulse.HANGS
    finally:
        fake.process.send_signal(signal.SIGCONT)


@pytest.mark.fuse
def test_unmounting_ends_the_mount(fake: FakeMount) -> None:
    unmount(fake.where)
    assert find_mount(fake.where) is None
    assert fake.process.wait(10) == 0


@pytest.mark.fuse
def test_a_mount_in_use_is_not_unmounted_and_its_user_named(fake: FakeMount) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=fake.where) as user:
        try:
            with pytest.raises(MictlanError, match=rf"sleep \(pid {user.pid}\)") as caught:
                unmount(fake.where)
            assert caught.value.kind is Kind.BUSY
            assert "--lazy" in str(caught.value)
            unmount(fake.where, lazy=True)
            assert find_mount(fake.where) is None
        finally:
            user.kill()


@pytest.mark.fuse
def test_fusermount_does_as_well(fake: FakeMount) -> None:
    mountpoint._run_fusermount(fake.where, lazy=False)
    assert find_mount(fake.where) is None


@pytest.mark.fuse
def test_fusermount_tells_that_a_mount_is_in_use(fake: FakeMount) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=fake.where) as user:
        try:
            with pytest.raises(OSError, match="busy") as caught:
                mountpoint._run_fusermount(fake.where, lazy=False)
            assert caught.value.errno == errno.EBUSY
            mountpoint._run_fusermount(fake.where, lazy=True)
        finally:
            user.kill()


def test_what_is_not_mounted_cannot_be_unmounted(tmp_path: Path) -> None:
    with pytest.raises(MictlanError, match=str(tmp_path)):
        unmount(tmp_path)


def test_users_of_a_directory_are_found_by_cwd_and_by_open_files(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("")
    (tmp_path / "dd").mkdir()
    with (
        open(tmp_path / "d" / "f") as file,
        subprocess.Popen(["sleep", "61"], cwd=tmp_path / "d") as by_cwd,
        subprocess.Popen(["sleep", "62"], stdin=file) as by_file,
        subprocess.Popen(["sleep", "63"], cwd=tmp_path / "dd") as neighbour,
    ):
        found = users_of(tmp_path / "d")
        for process in (by_cwd, by_file, neighbour):
            process.kill()
    assert sorted(found) == sorted(f"sleep (pid {p.pid})" for p in (by_cwd, by_file))
