"""What every test gets: `fuse` tests skipped where they cannot run, no mount left behind."""

import inspect
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import thoroughness

pytest_plugins = ["tests.support.scheduling"]

# How long an example takes tells more about the tests that run at the same time than about ours.
settings.register_profile("in company", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("in company")
# As many examples of the long models as `tests.support.thoroughness` says, by --hypothesis-profile.
settings.register_profile(thoroughness.LONG, settings.get_profile("in company"))

# A shell has what it starts in the background ignore Ctrl-C, and programs under test inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FUSE_DEVICE = "/dev/fuse"
MOUNT_TYPE = "fuse.mictlanfs"
# The fixtures of pytest-trio that take the place of real time.
CLOCKS = {"autojump_clock", "mock_clock"}


def reason_not_to_mount() -> str | None:
    """Why this process cannot mount, or None when it can."""
    if not os.path.exists(FUSE_DEVICE):
        return f"{FUSE_DEVICE} is missing"
    if os.geteuid() != 0:
        return "mounting needs root"
    return None


def refuse_clocks_that_do_nothing(items: list[pytest.Item]) -> None:
    """Fail when a clock is asked for by a fixture alone.

    pytest-trio runs a test by a clock among its own arguments only. With any other it would wait
    for what it means to jump over.
    """
    for item in items:
        for clock in CLOCKS.intersection(getattr(item, "fixturenames", ())):
            assert isinstance(item, pytest.Function)
            if clock not in inspect.signature(item.obj).parameters:
                raise pytest.UsageError(f"{item.nodeid} must take {clock} itself")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    refuse_clocks_that_do_nothing(items)
    reason = reason_not_to_mount()
    if reason is None:
        return
    for item in items:
        if item.get_closest_marker("fuse"):
            item.add_marker(pytest.mark.skip(reason=reason))


def mounts_below(folder: Path) -> list[str]:
    """Mountpoints of MictlanFS at or below `folder`, innermost first.

    Reads the kernel's table only: looking at a mountpoint itself hangs when its mount is dead.
    """
    found = []
    with open("/proc/mounts") as table:
        for line in table:
            _, mountpoint, kind, *_ = line.split(" ")
            # The kernel writes blanks and backslashes as octal escapes, such as \040.
            mountpoint = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mountpoint)
            if kind == MOUNT_TYPE and Path(mountpoint).is_relative_to(folder):
                found.append(mountpoint)
    return found[::-1]


@pytest.fixture(autouse=True)
def no_mount_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something mounted below its `tmp_path`, and unmount it."""
    if "tmp_path" not in request.fixturenames:
        yield
        return
    # Asked for here so that this fixture ends before tmp_path does: pytest may then remove the
    # folder, and must not walk into a mount.
    folder = request.getfixturevalue("tmp_path")
    yield
    left = mounts_below(folder)
    for mountpoint in left:
        # Lazily, since whatever forgot the mount may still use it.
        subprocess.run(["umount", "--lazy", mountpoint], check=False)
    if left:
        pytest.fail(f"left mounted, now unmounted lazily: {', '.join(left)}", pytrace=False)
