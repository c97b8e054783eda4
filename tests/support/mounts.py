"""Mounts for tests: a table of mounts that a test writes, and a real mount of an empty space."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mictlanfs.mounts import table
from mictlanfs.mounts.table import MOUNT_TYPE, find_mount
from mictlanfs.mounts.unmounting import unmount

FAKE_MOUNT = str(Path(__file__).with_name("fakemount.py"))
URI = "mictlanx://r@127.0.0.1:60666/?protocol=http"


class MountTable:
    """Stands in for the kernel's table, with a root only at first."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = file
        file.write_text("22 1 254:0 / / rw - ext4 /dev/root rw\n")
        monkeypatch.setattr(table, "MOUNT_TABLE", file)

    def add(self, at: Path | str, kind: str = MOUNT_TYPE, source: str = URI) -> None:
        """Mount something upon whatever is there; names as the kernel escapes them."""
        line = f"36 35 0:40 / {at} rw,nosuid shared:1 master:2 - {kind} {source} rw,user_id=0\n"
        self._file.write_text(self._file.read_text() + line)


class FakeMount:
    """An empty file system that looks like ours, at `where` and in a process of its own.

    `folder` takes the log and the records of that process.
    """

    def __init__(self, where: Path, folder: Path) -> None:
        self.where = where
        log = folder / "log"
        own = {f"XDG_{name}_HOME": str(folder) for name in ("STATE", "CACHE")}
        report, child = os.pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, FAKE_MOUNT, "mounted"),
                *("--report-fd", str(child), "--log", str(log), "--", URI, str(where)),
            ],
            env={**os.environ, **own, "XDG_RUNTIME_DIR": str(folder)},
            pass_fds=(child,),
        )
        os.close(child)
        with os.fdopen(report) as file:
            line = file.readline()
        assert '"error": null' in line, f"{line}{log.read_text()}"

    def kill(self) -> None:
        """kill -9: the mount stays, and is dead."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)
        if find_mount(self.where) is not None:
            unmount(self.where, lazy=True)
