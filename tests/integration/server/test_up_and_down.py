"""`up` and `down` with a real mount: what is promised on the screen, and bad luck."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mictlanfs.mounts.table import is_mounted
from mictlanfs.processes import wait_ended
from tests.support.localspaces import DEADLINE_S, LocalSpace

pytestmark = pytest.mark.fuse

FOREGROUND = ("up", "vss", "--data", "data", "--port", "0", "--peer-port", "0", "--peers", "1")


@pytest.fixture
def mountpoint(space: LocalSpace) -> Path:
    return space.folder / "vss"


def commands_in(text: str) -> list[str]:
    """The commands that `up` tells one to try."""
    _, _, tail = text.partition("Try")
    return [line.strip() for line in tail.splitlines() if line.startswith("  ")]


def said_when_up(process: subprocess.Popen[str]) -> str:
    """What a foreground `up` says until it waits for its end."""
    assert process.stdout is not None
    text = ""
    while "stops everything" not in text:
        line = process.stdout.readline()
        assert line, f"it ended: {text}"
        text += line
    return text


def test_what_up_tells_one_to_try_works_as_printed(space: LocalSpace, mountpoint: Path) -> None:
    text = space.up()
    assert f"mounted at  {mountpoint}\n" in text
    assert f"data in     {space.data}\n" in text
    made, copied, listed = commands_in(text)
    for _ in range(2):
        # The second time all is there already, as when the space is started again.
        space.shell(made)
        space.shell(copied)
    (name,) = os.listdir(mountpoint / "photos")
    assert name in space.shell(listed)
    assert space.is_healthy()
    assert [process["name"] for process in space.status()["processes"]][-1] == "mount"
    space.run("down", "--data", "data")
    assert not is_mounted(mountpoint)
    assert not mountpoint.exists(), "it was made by up"
    assert space.left() == []
    space.up()
    assert os.listdir(mountpoint / "photos") == [name]


def test_a_directory_that_was_there_stays_and_one_left_behind_is_used_again(
    space: LocalSpace, mountpoint: Path
) -> None:
    mountpoint.mkdir()
    space.up("--peers", "1")
    space.run("down", "--data", "data")
    assert mountpoint.is_dir()


def test_ctrl_c_stops_everything_and_keeps_what_was_written(
    space: LocalSpace, mountpoint: Path
) -> None:
    with space.popen(*FOREGROUND) as process:
        said_when_up(process)
        (mountpoint / "bucket").mkdir()
        (mountpoint / "bucket" / "file").write_bytes(b"x" * 3_000_000)
        assert space.left()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors) == (0, "")
    assert not mountpoint.exists()
    assert space.left() == []
    space.up()
    assert (mountpoint / "bucket" / "file").read_bytes() == b"x" * 3_000_000


def test_open_files_hold_up_the_end_until_the_second_ctrl_c(
    space: LocalSpace, mountpoint: Path
) -> None:
    with space.popen(*FOREGROUND) as process:
        said_when_up(process)
        space.look()
        (mountpoint / "bucket").mkdir()
        file = os.open(mountpoint / "bucket" / "file", os.O_CREAT | os.O_WRONLY)
        started_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        me = Path("/proc/self/comm").read_text().strip()
        assert f"is in use by {me} (pid {os.getpid()})" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
        assert time.monotonic() - started_s < 9.0
        assert not is_mounted(mountpoint)
    with pytest.raises(OSError, match="not connected"):
        os.close(file)


def test_a_mount_that_is_killed_comes_back(space: LocalSpace, mountpoint: Path) -> None:
    space.up("--peers", "1")
    (mountpoint / "bucket").mkdir()
    (mountpoint / "bucket" / "file").write_text("stays")
    os.sync()
    with (mountpoint / "bucket" / "file").open("rb") as file:
        os.fsync(file.fileno())
    killed = space.kill("mount")
    space.wait_until_replaced("mount", killed)
    space.wait_until_healthy()
    assert (mountpoint / "bucket" / "file").read_text() == "stays"


def test_nothing_outlives_a_killed_supervisor_and_up_works_again(
    space: LocalSpace, mountpoint: Path
) -> None:
    space.up("--peers", "1")
    (mountpoint / "bucket").mkdir()
    children = list(space.record().children.values())
    space.kill("supervisor")
    assert wait_ended(children, DEADLINE_S) == []
    space.up()
    assert os.listdir(mountpoint) == ["bucket"]
    space.run("down", "--data", "data")
    assert not mountpoint.exists(), "the first one had made it"


def test_up_works_at_once_after_everything_was_killed(space: LocalSpace, mountpoint: Path) -> None:
    space.up("--peers", "1")
    for name in ("supervisor", "mount", "router", "peer-0"):
        os.kill(space.process(name).pid, signal.SIGKILL)
    assert is_mounted(mountpoint), "nobody is left to unmount it"
    space.up()
    assert os.listdir(mountpoint) == []


def test_who_unmounts_keeps_the_servers(space: LocalSpace, mountpoint: Path) -> None:
    space.up("--peers", "1")
    space.run("umount", mountpoint)
    found = {p["name"]: p["health"] for p in space.status()["processes"]}
    assert found == {
        "supervisor": "healthy",
        "router": "healthy",
        "peer-0": "healthy",
        "mount": "not running",
    }
    time.sleep(0.5)
    assert not is_mounted(mountpoint)


@pytest.mark.parametrize("trouble", ["a file", "not empty"])
def test_a_bad_mountpoint_is_told_before_anything_is_made(
    space: LocalSpace, mountpoint: Path, trouble: str
) -> None:
    if trouble == "a file":
        mountpoint.touch()
    else:
        (mountpoint / "mine").mkdir(parents=True)
    (line,) = space.run("up", "vss", "--data", "data", "--detach", status=2).splitlines()
    assert str(mountpoint) in line
    assert not space.data.exists()


def test_a_mountpoint_in_use_is_told_before_anything_is_made(
    space: LocalSpace, mountpoint: Path
) -> None:
    space.up("--peers", "1")
    (line,) = space.run("up", "vss", "--data", "other", status=2).splitlines()
    assert f"{mountpoint} is mounted already" in line
    assert not (space.folder / "other").exists()
