"""Notifications to the kernel on a real mount whose answers the kernel trusts for an hour."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mictlanfs.mounts.table import find_mount
from mictlanfs.mounts.unmounting import unmount
from tests.support import kernelcaches
from tests.support.spaces import wait_until

pytestmark = pytest.mark.fuse

PROGRAM = Path(__file__).parents[2] / "support" / "notified_mount.py"
ROOT, DIRECTORY, FILE = 1, 2, 10
UNKNOWN = 999


class Notified:
    """The mount, in a process of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = subprocess.Popen(
            [sys.executable, PROGRAM, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        assert self._output.readline() == "mounted\n"

    def __call__(self, name: str, *arguments: object) -> Any:
        """Have it do something."""
        self._input.write(json.dumps([name, *arguments]) + "\n")
        self._input.flush()
        return json.loads(self._output.readline())

    def requests_of(self, *path: str) -> dict[str, int]:
        """What the kernel asks of the mount while it stats a path."""
        self("requests")
        self.path.joinpath(*path).stat()
        counts: dict[str, int] = self("requests")
        return counts

    def end(self) -> None:
        self._input.close()
        self._process.wait(20)
        self._output.close()
        if find_mount(self.path) is not None:
            unmount(self.path, lazy=True)


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[Notified]:
    """A mount with the file `d/f`, of which the kernel knows everything."""
    path = tmp_path / "mnt"
    path.mkdir()
    mount = Notified(path)
    try:
        with kernelcaches.kept():
            mount("put", DIRECTORY, "f", FILE, "old")
            (path / "d" / "f").stat()
            assert mount.requests_of("d", "f") == {}
            yield mount
    finally:
        mount.end()


@pytest.fixture
def epoch(notified: Notified) -> Notified:
    if not notified("has_epoch"):
        pytest.skip("the kernel knows no epochs (6.16 does)")
    return notified


@pytest.fixture
def pruned(notified: Notified) -> Notified:
    if not notified("has_prune"):
        pytest.skip("the kernel cannot be told to prune (6.18 can)")
    return notified


def test_an_inode_is_pruned_with_the_directory_that_nothing_uses_any_more(
    pruned: Notified,
) -> None:
    assert pruned("prune", DIRECTORY) is None
    assert pruned.requests_of("d", "f") == {}
    assert pruned("prune", UNKNOWN, FILE) is None
    wait_until(lambda: sorted(pruned("forgotten")) == [DIRECTORY, FILE], "the kernel forgets")
    assert pruned.requests_of("d", "f") == {"lookup": 2}


def test_what_is_used_is_not_pruned(pruned: Notified) -> None:
    with (pruned.path / "d" / "f").open("rb") as file:
        pruned("prune", FILE, DIRECTORY, ROOT)
        assert pruned.requests_of("d", "f") == {}
        assert file.read() == b"old"
    assert pruned("forgotten") == []


def test_a_new_epoch_has_every_name_looked_up_once_more(epoch: Notified) -> None:
    assert epoch("increment_epoch") is None
    assert epoch.requests_of("d", "f") == {"lookup": 2}
    assert epoch.requests_of("d", "f") == {}


def test_a_new_epoch_ends_negative_names(epoch: Notified) -> None:
    late = epoch.path / "d" / "late"
    assert not late.exists()
    epoch("put", DIRECTORY, "late", 11, "here")
    assert not late.exists()
    epoch("increment_epoch")
    assert late.read_text() == "here"


def test_a_new_epoch_shows_another_inode_under_a_name(epoch: Notified) -> None:
    epoch("put", DIRECTORY, "f", 12, "other")
    epoch("increment_epoch")
    assert (epoch.path / "d" / "f").stat().st_ino == 12


def test_a_process_inside_goes_on_working_in_a_new_epoch(epoch: Notified) -> None:
    program = (
        "import os, sys\n"
        "for line in sys.stdin:\n"
        "    print(os.getcwd(), open('f').read(), os.listdir('.'), flush=True)\n"
    )
    inside = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=epoch.path / "d",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with inside:
        assert inside.stdin
        assert inside.stdout
        # Also when another process has looked the names up anew in between.
        for is_looked_up in (False, True, False):
            epoch("increment_epoch")
            if is_looked_up:
                (epoch.path / "d" / "f").stat()
            inside.stdin.write("\n")
            inside.stdin.flush()
            assert inside.stdout.readline() == f"{epoch.path}/d old ['f']\n"
        inside.stdin.close()


def test_descriptors_go_on_working_in_a_new_epoch(epoch: Notified) -> None:
    directory = os.open(epoch.path / "d", os.O_RDONLY)
    file = os.open("f", os.O_RDONLY, dir_fd=directory)
    try:
        epoch("increment_epoch")
        assert os.read(file, 10) == b"old"
        assert os.stat("f", dir_fd=directory).st_ino == FILE
        assert os.listdir(directory) == ["f"]
        (epoch.path / "d").stat()
        assert os.readlink(f"/proc/self/fd/{directory}") == f"{epoch.path}/d"
    finally:
        os.close(file)
        os.close(directory)


def test_an_expired_name_is_looked_up_again_and_no_other(notified: Notified) -> None:
    assert notified("expire_entry", DIRECTORY, "f") is True
    assert notified.requests_of("d", "f") == {"lookup": 1}
    assert notified.requests_of("d", "f") == {}


def test_an_expired_negative_name_may_appear(notified: Notified) -> None:
    late = notified.path / "d" / "late"
    assert not late.exists()
    notified("put", DIRECTORY, "late", 11, "here")
    notified("expire_entry", DIRECTORY, "late")
    assert late.read_text() == "here"


def test_what_the_kernel_does_not_know_is_no_error(notified: Notified) -> None:
    assert notified("expire_entry", DIRECTORY, "never") is False
    assert notified("expire_entry", UNKNOWN, "f") is False
    assert notified("invalidate_attributes", UNKNOWN) is False
    assert notified("invalidate_pages", UNKNOWN) is False
    assert notified("store", UNKNOWN, 0, "bytes") is False


def test_dropped_attributes_are_asked_for_by_an_open_file(notified: Notified) -> None:
    with (notified.path / "d" / "f").open("rb") as file:
        notified("put", DIRECTORY, "f", FILE, "longer")
        assert os.fstat(file.fileno()).st_size == 3
        assert notified("invalidate_attributes", FILE) is True
        assert os.fstat(file.fileno()).st_size == 6


def test_dropped_attributes_leave_pages_and_names_alone(notified: Notified) -> None:
    path = notified.path / "d" / "f"
    assert path.read_text() == "old"
    notified("invalidate_attributes", FILE)
    assert notified.requests_of("d", "f") == {"getattr": 1}
    assert path.read_text() == "old"
    assert "read" not in notified("requests")


def test_dropped_pages_are_read_again_by_an_open_file(notified: Notified) -> None:
    with (notified.path / "d" / "f").open("rb", buffering=0) as file:
        assert file.read() == b"old"
        notified("put", DIRECTORY, "f", FILE, "new and longer")
        assert os.pread(file.fileno(), 100, 0) == b"old"
        assert notified("invalidate_pages", FILE) is True
        assert os.pread(file.fileno(), 100, 0) == b"new and longer"


def test_stored_bytes_are_read_without_a_request(notified: Notified) -> None:
    assert notified("store", FILE, 0, "old") is True
    notified("requests")
    assert (notified.path / "d" / "f").read_text() == "old"
    assert "read" not in notified("requests")


def test_stored_bytes_behind_the_end_have_the_size_asked_for(notified: Notified) -> None:
    with (notified.path / "d" / "f").open("rb") as file:
        notified("put", DIRECTORY, "f", FILE, "longer")
        assert notified("store", FILE, 0, "longer") is True
        assert os.fstat(file.fileno()).st_size == 6


def test_the_loop_may_notify_while_a_request_waits_for_it(epoch: Notified) -> None:
    epoch("increment_epoch")
    epoch("notify_before_answers", FILE)
    assert epoch.requests_of("d", "f") == {"lookup": 2}
    # The answers were under way when the epoch began, so the kernel trusts none of them.
    assert epoch.requests_of("d", "f")["lookup"] == 2
