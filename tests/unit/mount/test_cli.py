import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mictlanfs.config import MOUNT_OPTIONS
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs_mount import cli, daemon, helperlinks, logfile
from mictlanfs_mount.settings import MountSettings

URI = "mictlanx://r@127.0.0.1:60666/?protocol=http"

pytestmark = pytest.mark.usefixtures("user_directories")


class Calls:
    """What the commands asked the daemon for."""

    def __init__(self) -> None:
        self.launched: list[tuple[str, Path, str]] = []
        self.served: list[MountSettings] = []
        self.ended: list[tuple[Path, bool, float]] = []
        self.changed: list[tuple[Path, str]] = []
        self.error: MictlanError | None = None

    def launch(self, uri: str, where: Path, options: str) -> None:
        self.launched.append((uri, where, options))
        if self.error is not None:
            raise self.error

    def serve(self, settings: MountSettings, notify_ready: object) -> None:
        self.served.append(settings)

    def change_mount(self, path: Path, options: str) -> None:
        self.changed.append((path, options))

    def end_mount(self, path: Path, *, is_lazy: bool, timeout_s: float, say: object) -> None:
        self.ended.append((path, is_lazy, timeout_s))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(daemon, "launch", calls.launch)
    monkeypatch.setattr(daemon, "serve", calls.serve)
    monkeypatch.setattr(daemon, "end_mount", calls.end_mount)
    monkeypatch.setattr(daemon, "change_mount", calls.change_mount)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(logfile, "log_to_stderr", lambda: None)
    monkeypatch.setattr(cli, "check_ability", lambda *, allow_other: None)
    return calls


@pytest.fixture
def where(tmp_path: Path) -> Path:
    where = tmp_path / "m"
    where.mkdir()
    return where


def run_mount(*arguments: object) -> Result:
    return CliRunner().invoke(cli.mount, [str(argument) for argument in arguments])


# --- mount ---------------------------------------------------------------------------------------


def test_a_space_is_mounted_in_the_background(calls: Calls, where: Path) -> None:
    result = run_mount(URI, where)
    assert result.exit_code == 0
    assert result.output == ""
    assert calls.launched == [(URI, where, "")]


def test_options_may_be_given_more_than_once(calls: Calls, where: Path) -> None:
    run_mount("-o", "ro,memory=64M", URI, where, "-o", "uid=5")
    assert calls.launched == [(URI, where, "ro,memory=64M,uid=5")]


def test_a_space_is_mounted_in_the_foreground(calls: Calls, where: Path) -> None:
    run_mount(URI, where, "-f", "-o", "ro,uid=7")
    (settings,) = calls.served
    assert (settings.uri, settings.mountpoint) == (URI, where)
    assert settings.options.read_only
    assert settings.options.uid == 7
    assert calls.launched == []


def test_a_relative_mountpoint_becomes_absolute(
    calls: Calls, where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(where.parent)
    run_mount(URI, "m")
    assert calls.launched[0][1] == where


def test_the_space_may_come_from_the_environment(
    calls: Calls, where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICTLANX_CLIENT_URI", URI)
    run_mount(where)
    assert calls.launched[0][0] == URI


def test_the_space_may_be_the_last_one(calls: Calls, where: Path, tmp_path: Path) -> None:
    from mictlanfs.paths import record_last_space

    record_last_space(URI, tmp_path)
    run_mount(where)
    assert calls.launched[0][0] == URI


def error_of(result: Result) -> str:
    assert isinstance(result.exception, MictlanError)
    return str(result.exception)


def test_without_any_space_the_remedies_are_named(calls: Calls, where: Path) -> None:
    assert "MICTLANX_CLIENT_URI" in error_of(run_mount(where))


def test_a_space_without_a_mountpoint_is_noticed(calls: Calls) -> None:
    assert "Give a directory" in error_of(run_mount(URI))


def test_too_many_arguments_are_noticed(calls: Calls, where: Path) -> None:
    assert isinstance(run_mount(URI, where, where).exception, UsageError)


@pytest.mark.parametrize(
    ("uri", "options", "text"),
    [
        ("http://x", "", "mictlanx://"),
        (URI, "colour=red", "colour"),
        (URI, "memory=lots", "memory=lots"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(
    calls: Calls, where: Path, uri: str, options: str, text: str
) -> None:
    assert text in error_of(run_mount(uri, where, "-o", options))
    assert calls.launched == []


def test_a_bad_mountpoint_is_noticed_before_anything_is_started(
    calls: Calls, tmp_path: Path
) -> None:
    assert "mkdir -p" in error_of(run_mount(URI, tmp_path / "none"))
    assert calls.launched == []


def test_help_names_every_option(calls: Calls) -> None:
    result = run_mount("--help")
    assert result.exit_code == 0
    for option in MOUNT_OPTIONS:
        if not option.is_ignored:
            assert option.name in result.output


# --- umount --------------------------------------------------------------------------------------


def test_umount_waits_by_default(calls: Calls, where: Path) -> None:
    assert CliRunner().invoke(cli.umount, [str(where)]).exit_code == 0
    assert calls.ended == [(where, False, cli.UMOUNT_TIMEOUT_S)]


def test_umount_takes_its_options(calls: Calls, where: Path) -> None:
    CliRunner().invoke(cli.umount, ["--lazy", "--timeout", "5", str(where)])
    assert calls.ended == [(where, True, 5.0)]


# --- the process of a mount ----------------------------------------------------------------------


def test_what_launch_passes_is_what_the_mount_process_reads(
    monkeypatch: pytest.MonkeyPatch, where: Path, tmp_path: Path
) -> None:
    served: list[tuple[MountSettings, int, Path]] = []

    def serve_and_report(settings: MountSettings, report_fd: int, log_path: Path) -> None:
        served.append((settings, report_fd, log_path))

    monkeypatch.setattr(daemon, "serve_and_report", serve_and_report)
    log = tmp_path / "log"
    arguments = ["--report-fd", "7", "--log", str(log), "-o", "ro", "--", URI, "-strange"]
    result = CliRunner().invoke(cli.serve, arguments)
    assert result.exit_code == 0, result.output
    ((settings, report_fd, log_path),) = served
    assert (settings.uri, settings.mountpoint) == (URI, Path("-strange"))
    assert settings.options.read_only
    assert (report_fd, log_path) == (7, log)


# --- mount(8) ------------------------------------------------------------------------------------


def test_mount_helper_mounts_as_mount_8_asks(calls: Calls, where: Path) -> None:
    code = cli.run_helper([URI, str(where), "-o", "rw,_netdev,uid=5"])
    assert code == 0
    # What mount(8) has by default it does not name.
    assert calls.launched == [(URI, where, "suid,dev,exec,rw,_netdev,uid=5")]


def test_mount_helper_of_another_user_has_the_defaults_of_fuse(
    calls: Calls, where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.run_helper([URI, str(where), "-o", "rw,user=nobody"]) == 0
    assert calls.launched == [(URI, where, "rw,user=nobody")]


@pytest.fixture
def attic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that knows the space by a short name."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "conf"))
    file = tmp_path / "conf" / "mictlanfs" / "spaces.conf"
    file.parent.mkdir(parents=True)
    file.write_text(f'[spaces]\nattic = "{URI}"\n')


@pytest.mark.usefixtures("attic")
def test_a_short_name_is_the_source_unless_another_is_named(calls: Calls, where: Path) -> None:
    run_mount("attic", where, "-o", "ro")
    run_mount("attic", where, "-o", "fsname=mine")
    run_mount("attic", where)
    assert calls.launched == [
        (URI, where, "fsname=attic,ro"),
        (URI, where, "fsname=attic,fsname=mine"),
        (URI, where, "fsname=attic"),
    ]


def test_a_remount_changes_the_mount_that_is_there(calls: Calls, where: Path) -> None:
    words = r"ro,relatime,remount,user_id=0,group_id=0,fsname=a\,b"
    assert cli.run_helper([URI, str(where), "-o", words]) == 0
    assert calls.changed == [(where, r"suid,dev,exec,ro,relatime,fsname=a\,b")]
    assert calls.launched == []


def test_a_remount_can_be_pretended(calls: Calls, where: Path) -> None:
    assert cli.run_helper([URI, str(where), "-f", "-o", "remount,ro"]) == 0
    assert calls.changed == []


def test_the_helper_is_installed_and_nothing_is_mounted(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to("/there")
    monkeypatch.setattr(helperlinks, "install", lambda: [link])
    result = run_mount("--install-helper")
    assert (result.exit_code, result.output) == (0, f"{link} -> /there\n")
    assert calls.launched == []


def test_mount_helper_takes_its_flags_in_any_order(
    calls: Calls, where: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-n", "-v", URI, str(where), "-t", "mictlanfs", "-o", "ro", "-N", "/proc/1/ns/mnt"]
    assert cli.run_helper(arguments) == 0
    assert calls.launched == [(URI, where, "suid,dev,exec,ro")]
    assert str(where) in capsys.readouterr().out


def test_mount_helper_can_pretend(calls: Calls, where: Path) -> None:
    assert cli.run_helper([URI, str(where), "-f"]) == 0
    assert calls.launched == []
    assert cli.run_helper([URI, str(where / "none"), "-f"]) != 0


def test_mount_helper_may_be_sloppy(calls: Calls, where: Path) -> None:
    options = r"colour=red\,blue,uid=5,x-systemd.automount,ro"
    assert cli.run_helper([URI, str(where), "-o", options]) == 1
    assert cli.run_helper([URI, str(where), "-s", "-o", options]) == 0
    assert calls.launched == [(URI, where, "suid,dev,exec,uid=5,ro")]


@pytest.mark.parametrize(
    "arguments", [[], [URI], [URI, "/a", "/b"], [URI, "/a", "-x"], [URI, "/a", "-o"]]
)
def test_a_bad_command_line_of_mount_helper_is_code_1(
    calls: Calls, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_helper(arguments) == 1
    error = capsys.readouterr().err
    assert "mount.mictlanfs" in error
    assert error.count("\n") == 1


def test_a_mount_that_fails_is_code_32(
    calls: Calls, where: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.error = MictlanError(Kind.UNAVAILABLE, detail="no router answers")
    assert cli.run_helper([URI, str(where)]) == 32
    assert capsys.readouterr().err == "mictlanfs: no router answers\n"


def test_a_mount_that_is_not_allowed_is_code_1(calls: Calls, where: Path) -> None:
    calls.error = MictlanError(Kind.ACCESS_DENIED)
    assert cli.run_helper([URI, str(where)]) == 1


def test_nothing_is_left_open(calls: Calls, where: Path) -> None:
    before = os.listdir("/proc/self/fd")
    run_mount(URI, where)
    assert os.listdir("/proc/self/fd") == before
