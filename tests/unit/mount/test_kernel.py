"""Raising the kernel's limits, in a directory that looks like sysfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mictlanfs_mount.kernel import MAX_BACKGROUND, KernelLimits, raise_limits


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    return tmp_path / "sys"


def knobs(sysfs: Path, mountpoint: Path) -> tuple[Path, Path]:
    """The files of a mount's device, which are made with the kernel's defaults."""
    device = mountpoint.stat().st_dev
    major, minor = os.major(device), os.minor(device)
    read_ahead = sysfs / "class" / "bdi" / f"{major}:{minor}" / "read_ahead_kb"
    background = sysfs / "fs" / "fuse" / "connections" / f"{minor}" / "max_background"
    for knob, default in ((read_ahead, "128"), (background, "12")):
        knob.parent.mkdir(parents=True)
        knob.write_text(default + "\n")
    return read_ahead, background


def test_both_limits_are_raised(tmp_path: Path, sysfs: Path) -> None:
    read_ahead, background = knobs(sysfs, tmp_path)
    assert raise_limits(tmp_path, 4096, sysfs) == KernelLimits(4096, MAX_BACKGROUND)
    assert read_ahead.read_text() == "4096"
    assert background.read_text() == str(MAX_BACKGROUND)


def test_without_sysfs_the_defaults_stay(tmp_path: Path, sysfs: Path) -> None:
    assert raise_limits(tmp_path, 4096, sysfs) == KernelLimits(None, None)


def test_one_limit_that_cannot_be_written_does_not_keep_the_other(
    tmp_path: Path, sysfs: Path
) -> None:
    read_ahead, background = knobs(sysfs, tmp_path)
    # A directory in its place is refused even to root.
    read_ahead.unlink()
    read_ahead.mkdir()
    assert raise_limits(tmp_path, 4096, sysfs) == KernelLimits(None, MAX_BACKGROUND)
    assert background.read_text() == str(MAX_BACKGROUND)


def test_missing_mountpoint_is_an_error(tmp_path: Path, sysfs: Path) -> None:
    with pytest.raises(FileNotFoundError):
        raise_limits(tmp_path / "nothing", 4096, sysfs)
