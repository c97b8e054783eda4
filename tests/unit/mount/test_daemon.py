import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from mictlanfs.config import MountOptions
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.mounts.table import find_mount
from mictlanfs.mounts.unmounting import unmount
from mictlanfs.processes import (
    ProcessIdentity,
    current_process,
    identify,
    is_running,
    send_signal,
    wait_ended,
)
from mictlanfs.wire import WireError
from mictlanfs_mount import daemon, logfile
from mictlanfs_mount.record import (
    MountRecord,
    read_record,
    record_of_this_process,
    write_record,
)
from mictlanfs_mount.settings import MountSettings
from tests.support.mounts import FAKE_MOUNT, URI, MountTable


@pytest.fixture
def where(tmp_path: Path, user_directories: Path) -> Iterator[Path]:
    """A mountpoint; whatever mount process is left at the end is ended."""
    where = tmp_path / "m"
    where.mkdir()
    yield where
    left = processes_of(where)
    for process in left:
        send_signal(process, signal.SIGKILL)
    assert wait_ended(left, 10) == []
    if find_mount(where) is not None:
        unmount(where, lazy=True)


def processes_of(where: Path) -> list[ProcessIdentity]:
    """The fake mount processes for a mountpoint that run now."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal():
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
                if FAKE_MOUNT.encode() in arguments and os.fsencode(where) in arguments:
                    process = identify(int(folder.name))
                    found += [process] if process is not None else []
    return found


def launch(where: Path, behaviour: str, timeout_s: float = 20.0) -> None:
    program = (sys.executable, FAKE_MOUNT, behaviour)
    daemon.launch(URI, where, "ro,memory=64M", program=program, timeout_s=timeout_s)


def recorded(where: Path) -> MountRecord:
    record = read_record(where)
    assert record is not None
    return record


def stale(record: MountRecord) -> MountRecord:
    """The record of an earlier process of the same number."""
    return replace(record, process=replace(record.process, started_ticks=1))


# --- starting ------------------------------------------------------------------------------------


def test_launch_returns_when_the_mount_is_ready(where: Path) -> None:
    launch(where, "ready")
    (process,) = processes_of(where)
    record = recorded(where)
    assert record.process == process
    assert record.uri == URI
    assert record.log_path == str(logfile.log_path_of(where))


def test_the_mount_process_has_let_go_of_its_surroundings(where: Path) -> None:
    launch(where, "ready")
    (process,) = processes_of(where)
    assert os.getsid(process.pid) == process.pid
    assert os.readlink(f"/proc/{process.pid}/cwd") == "/"
    for fd, target in (
        (0, os.devnull),
        (1, recorded(where).log_path),
        (2, recorded(where).log_path),
    ):
        assert os.readlink(f"/proc/{process.pid}/fd/{fd}") == target


def test_a_mount_process_that_ends_well_removes_its_record(where: Path) -> None:
    launch(where, "ready")
    (process,) = processes_of(where)
    send_signal(process, signal.SIGTERM)
    assert wait_ended([process], 10) == []
    assert read_record(where) is None


@pytest.mark.parametrize(
    "report",
    [
        daemon.Report(),
        daemon.Report(WireError("busy", "use", "/mnt/\udcff", "in\nuse")),
        daemon.Report(WireError("invalid", detail="no"), is_usage=True),
    ],
)
def test_a_report_arrives_as_it_was_sent(report: daemon.Report) -> None:
    line = report.to_line()
    assert line.count(b"\n") == 1
    assert daemon.Report.of_line(line) == report


@pytest.mark.parametrize(
    ("behaviour", "kind", "text"),
    [
        ("refused", Kind.UNAVAILABLE, f"open session {URI}: no router answers"),
        ("misused", Kind.INVALID, "subdir 'x' does not exist in the space"),
        ("defect", Kind.INTERNAL, "internal error: ZeroDivisionError: a defect"),
    ],
)
def test_the_reason_of_a_mount_that_failed_is_passed_on(
    where: Path, behaviour: str, kind: Kind, text: str
) -> None:
    with pytest.raises(MictlanError) as caught:
        launch(where, behaviour)
    assert caught.value.kind is kind
    assert str(caught.value) == text
    assert isinstance(caught.value, UsageError) == (behaviour == "misused")
    assert processes_of(where) == []
    assert read_record(where) is None


def test_a_defect_leaves_its_traceback_in_the_log(where: Path) -> None:
    with pytest.raises(MictlanError):
        launch(where, "defect")
    assert "Traceback" in logfile.log_path_of(where).read_text()


@pytest.mark.parametrize(
    ("behaviour", "how"),
    [
        ("dies", "ended (exit status 3) before it was ready: terminate called"),
        ("killed", "ended (killed by SIGKILL) before it was ready: no reason given"),
    ],
)
def test_a_mount_process_that_dies_is_reported_with_its_last_words(
    where: Path, behaviour: str, how: str
) -> None:
    with pytest.raises(MictlanError) as caught:
        launch(where, behaviour)
    assert how in str(caught.value)
    assert str(logfile.log_path_of(where)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_old_lines_of_the_log_are_no_reason(where: Path) -> None:
    with pytest.raises(MictlanError, match="terminate called"):
        launch(where, "dies")
    with pytest.raises(MictlanError, match="no reason given"):
        launch(where, "killed")


def test_a_mount_that_never_answers_is_ended(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_END_TIMEOUT_S", 0.2)
    with pytest.raises(MictlanError, match="not ready within") as caught:
        launch(where, "never", timeout_s=1.0)
    assert caught.value.kind is Kind.TIMED_OUT
    assert processes_of(where) == []


def test_a_program_that_cannot_be_started_leaves_no_descriptor(where: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        daemon.launch(URI, where, "", program=("/no/such/program",))
    assert os.listdir("/proc/self/fd") == before


def test_a_mount_whose_launcher_is_gone_ends(where: Path, tmp_path: Path) -> None:
    report, child = os.pipe()
    log = tmp_path / "log"
    command = [sys.executable, FAKE_MOUNT, "late", "--report-fd", str(child), "--log", str(log)]
    with subprocess.Popen([*command, "--", URI, str(where)], pass_fds=(child,)) as process:
        os.close(child)
        os.close(report)
        assert process.wait(10) != 0
    assert read_record(where) is None
    assert "is gone" in log.read_text()


@pytest.mark.fuse
def test_a_mount_whose_process_died_before_it_answered_is_removed(where: Path) -> None:
    with pytest.raises(MictlanError, match="SIGKILL"):
        launch(where, "mounted_then_killed")
    assert find_mount(where) is None


@pytest.mark.fuse
def test_a_mount_is_there_when_launch_returns(where: Path) -> None:
    launch(where, "mounted")
    assert find_mount(where) is not None
    assert os.listdir(where) == []


# --- serving in the foreground -------------------------------------------------------------------


def settings_of(where: Path) -> MountSettings:
    return MountSettings(URI, where, MountOptions())


def test_the_record_is_there_before_the_mount_says_that_it_is_ready(where: Path) -> None:
    seen: list[MountRecord | None] = []

    def run_mount(settings: MountSettings, notify_ready: Callable[[], None]) -> None:
        assert read_record(where) is None
        notify_ready()

    daemon.serve(settings_of(where), lambda: seen.append(read_record(where)), run_mount=run_mount)
    assert seen[0] is not None
    assert seen[0].process == current_process()
    assert read_record(where) is None


def test_a_mount_that_lost_something_leaves_the_reason_in_its_record(where: Path) -> None:
    def run_mount(settings: MountSettings, notify_ready: Callable[[], None]) -> None:
        notify_ready()
        raise MictlanError(Kind.UNAVAILABLE, detail="4096 bytes could not be stored")

    with pytest.raises(MictlanError):
        daemon.serve(settings_of(where), lambda: None, run_mount=run_mount)
    assert recorded(where).error == "4096 bytes could not be stored"


def test_a_runtime_directory_that_cannot_be_written_does_not_stop_a_mount(
    where: Path, user_directories: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (user_directories / "XDG_RUNTIME_DIR" / "mictlanfs").write_text("not a directory")
    notified: list[bool] = []

    def run_mount(settings: MountSettings, notify_ready: Callable[[], None]) -> None:
        notify_ready()

    daemon.serve(settings_of(where), lambda: notified.append(True), run_mount=run_mount)
    assert notified == [True]
    assert "no record" in caplog.text


# --- ending --------------------------------------------------------------------------------------


def end(where: Path, *, is_lazy: bool = False, timeout_s: float = 20.0) -> list[str]:
    said: list[str] = []
    daemon.end_mount(where, is_lazy=is_lazy, timeout_s=timeout_s, say=said.append)
    return said


def test_what_is_not_mounted_is_not_unmounted(where: Path) -> None:
    with pytest.raises(MictlanError, match="nothing is mounted there") as caught:
        end(where)
    assert caught.value.kind is Kind.NOT_FOUND
    assert str(where) in str(caught.value)


def test_a_mount_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="use 'umount /proc'"):
        end(Path("/proc"))


@pytest.mark.fuse
def test_a_mount_is_ended_with_its_process(where: Path) -> None:
    launch(where, "mounted")
    assert end(where) == []
    assert find_mount(where) is None
    assert processes_of(where) == []
    assert read_record(where) is None


@pytest.mark.fuse
def test_umount_waits_until_everything_is_stored(where: Path) -> None:
    launch(where, "mounted_slow_to_end")
    started_s = time.monotonic()
    end(where)
    assert time.monotonic() - started_s >= 0.4
    assert processes_of(where) == []


@pytest.mark.fuse
def test_umount_says_that_data_is_still_being_stored(where: Path) -> None:
    launch(where, "mounted_slow_to_end")
    (process,) = processes_of(where)
    with pytest.raises(MictlanError, match=f"pid {process.pid}") as caught:
        end(where, timeout_s=0.0)
    assert caught.value.kind is Kind.TIMED_OUT
    assert str(logfile.log_path_of(where)) in str(caught.value)
    # Called again, it waits on.
    end(where)
    assert not is_running(process)


@pytest.mark.fuse
def test_umount_tells_what_was_lost(where: Path) -> None:
    launch(where, "mounted_loses")
    with pytest.raises(MictlanError, match="4096 bytes could not be stored"):
        end(where)
    assert read_record(where) is None


@pytest.mark.fuse
def test_what_was_lost_without_umount_is_told_once(where: Path) -> None:
    launch(where, "mounted_loses")
    (process,) = processes_of(where)
    unmount(where)
    assert wait_ended([process], 10) == []
    with pytest.raises(MictlanError, match="4096 bytes could not be stored"):
        end(where)
    with pytest.raises(MictlanError) as caught:
        end(where)
    assert "4096" not in str(caught.value)


@pytest.mark.fuse
def test_a_mount_without_a_record_is_waited_for_all_the_same(where: Path) -> None:
    launch(where, "mounted_slow_to_end")
    write_record(stale(recorded(where)))
    assert end(where) == []
    assert processes_of(where) == []


@pytest.mark.fuse
def test_a_mount_whose_process_cannot_be_found_is_unmounted_with_a_word(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(where, "mounted")
    write_record(stale(recorded(where)))
    monkeypatch.setattr(daemon, "serving_process", lambda _: None)
    said = end(where)
    assert len(said) == 1
    assert "not known" in said[0]
    assert find_mount(where) is None


@pytest.mark.fuse
def test_a_dead_mount_is_unmounted_with_a_word(where: Path) -> None:
    launch(where, "mounted")
    (process,) = processes_of(where)
    send_signal(process, signal.SIGKILL)
    assert wait_ended([process], 10) == []
    said = end(where)
    assert len(said) == 1
    assert "lost" in said[0]
    assert find_mount(where) is None
    assert read_record(where) is None


@pytest.mark.fuse
def test_a_mount_in_use_stays(where: Path) -> None:
    launch(where, "mounted")
    with subprocess.Popen(["sleep", "60"], cwd=where) as user:
        with pytest.raises(MictlanError, match=f"pid {user.pid}") as caught:
            end(where)
        assert caught.value.kind is Kind.BUSY
        assert os.listdir(where) == []
        assert end(where, is_lazy=True) == []
        assert find_mount(where) is None
        assert len(processes_of(where)) == 1, "it serves its user on"
        user.kill()
    for process in processes_of(where):
        assert wait_ended([process], 10) == []


@pytest.mark.fuse
def test_a_path_inside_the_mount_is_not_its_mountpoint(where: Path) -> None:
    launch(where, "mounted")
    with pytest.raises(MictlanError, match=f"mounted at {where}"):
        end(where / "sub")
    end(where)


@pytest.mark.fuse
def test_a_link_to_the_mountpoint_will_do(where: Path, tmp_path: Path) -> None:
    launch(where, "mounted")
    (tmp_path / "link").symlink_to(where)
    end(tmp_path / "link")
    assert find_mount(where) is None


def test_a_stale_record_is_harmless(where: Path) -> None:
    write_record(stale(record_of_this_process(where, URI, None)))
    with pytest.raises(MictlanError, match="nothing is mounted"):
        end(where)


# --- changing ------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, user_directories: Path) -> Path:
    """Where the table says that something is mounted."""
    return tmp_path / "m"


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was asked of the kernel, which does nothing."""
    asked: list[list[str]] = []
    monkeypatch.setattr(daemon, "remount", lambda _, changes: asked.append(list(changes)))
    return asked


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MountTable:
    return MountTable(tmp_path / "mountinfo", monkeypatch)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ("ro", ["ro"]),
        ("rw,suid,nodev,relatime", ["rw", "suid", "nodev"]),
        ("uid=5", []),
        ("", []),
    ],
)
def test_a_change_of_a_mount_goes_to_the_kernel(
    place: Path, table: MountTable, changes: list[list[str]], options: str, asked: list[str]
) -> None:
    table.add(place)
    running = MountOptions(uid=5)
    write_record(record_of_this_process(place, URI, None, running))
    daemon.change_mount(place, options)
    assert changes == [asked]


@pytest.mark.parametrize("options", ["uid=6", "ro,umask=0", "sync", "allow_other"])
def test_what_is_fixed_while_mounted_is_not_changed(
    place: Path, table: MountTable, changes: list[list[str]], options: str
) -> None:
    table.add(place)
    write_record(record_of_this_process(place, URI, None, MountOptions(uid=5)))
    with pytest.raises(UsageError, match="cannot be changed"):
        daemon.change_mount(place, options)
    assert changes == []


@pytest.mark.parametrize("kind", [None, "ext4"])
def test_only_a_space_is_changed(
    place: Path, table: MountTable, changes: list[list[str]], kind: str | None
) -> None:
    if kind is not None:
        table.add(place, kind)
    with pytest.raises(UsageError, match="no space is mounted"):
        daemon.change_mount(place, "ro")
    assert changes == []


# --- after another -------------------------------------------------------------------------------


def test_a_mount_waits_for_the_process_of_the_last_one(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[ProcessIdentity] = []
    monkeypatch.setattr(daemon, "wait_ended", lambda processes, _: waited.extend(processes))
    record = record_of_this_process(where, URI, None)
    write_record(record)
    launch(where, "ready")
    assert waited == [record.process]
