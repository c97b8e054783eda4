"""The requests per action that docs/architecture.md gives, counted again on a real mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mictlanfs.model import MIB
from tests.docs.generate import ROOT
from tests.docs.markdown import checked_table
from tests.docs.traced_mount import TracedMount
from tests.support import kernelcaches
from tests.support.spaces import Mount

LARGE_SIZE_BYTES = 64 * MIB
COUNT = 100

pytestmark = pytest.mark.fuse

BUDGETS = {
    action: (int(router), int(peers))
    for action, router, peers, _ in checked_table(
        (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), "budgets"
    )
}


@dataclass(frozen=True)
class Bench:
    """A bucket seen through two mounts.

    Attributes:
        bucket: through the mount that is measured.
        elsewhere: through the one that prepares what the other must not have cached.
        maker: the mount of `elsewhere`.
    """

    bucket: Path
    elsewhere: Path
    maker: Mount

    def known(self, name: str) -> Path:
        """A path whose names the kernel has looked up this moment."""
        path = self.bucket / name
        os.stat(path)
        return path

    def unknown(self, name: str) -> Path:
        """A path in the bucket, which alone is known."""
        os.stat(self.bucket)
        return self.bucket / name

    def leased(self) -> Path:
        """A directory that the measured mount has leased for writing; nothing is left to send."""
        path = self.bucket / "leased"
        os.mkdir(path)
        write(path / "first", os.O_CREAT, b"x", fsync=True)
        return path

    def prepared(self, size: int = 4096) -> Path:
        """A known file that the other mount made."""
        write(self.elsewhere / "prepared", os.O_CREAT, os.urandom(size))
        return self.known("prepared")


# An action as the page names it -> prepares it and returns it.
ACTIONS: dict[str, Callable[[Bench], Callable[[], object]]] = {}
Preparation = Callable[[Bench], Callable[[], object]]


def action(name: str) -> Callable[[Preparation], Preparation]:
    def register(preparation: Preparation) -> Preparation:
        ACTIONS[name] = preparation
        return preparation

    return register


def write(path: Path, flags: int, data: bytes, *, fsync: bool = False) -> None:
    fd = os.open(path, os.O_WRONLY | flags)
    os.write(fd, data)
    if fsync:
        os.fsync(fd)
    os.close(fd)


def make_files(directory: Path) -> Callable[[], None]:
    def make() -> None:
        for index in range(COUNT):
            write(directory / str(index), os.O_CREAT, bytes(4096))

    return make


def read(path: Path) -> int:
    with open(path, "rb", buffering=0) as file:
        return len(file.readall())


@action("create, write 4 KiB, close")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.unknown("new")
    return lambda: write(path, os.O_CREAT, bytes(4096))


@action("create, write 4 KiB, fsync, close")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.unknown("new")
    return lambda: write(path, os.O_CREAT, bytes(4096), fsync=True)


@action("create, write 4 KiB, close, 100 files in a leased directory")
def _(bench: Bench) -> Callable[[], object]:
    return make_files(bench.leased())


@action("make a directory with 100 files of 4 KiB in it")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.unknown("new")

    def make() -> None:
        os.mkdir(path)
        make_files(path)()

    return make


@action("unlink 100 files of a leased directory")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.leased()
    make_files(path)()

    def remove() -> None:
        for index in range(COUNT):
            os.unlink(path / str(index))

    return remove


@action("append 100 bytes and fsync, 100 times")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.leased() / "first"

    def append() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for _ in range(COUNT):
            os.write(fd, bytes(100))
            os.fsync(fd)
        os.close(fd)

    return append


@action("create an empty file")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.unknown("new")
    return lambda: os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


@action("overwrite a known 4 KiB file")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.prepared()
    return lambda: write(path, os.O_TRUNC, bytes(4096))


@action("append 100 bytes to a known file")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.prepared()
    return lambda: write(path, os.O_APPEND, bytes(100))


@action("stat a known file")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.prepared()
    return lambda: os.stat(path)


@action("stat a file that is not known, directory known")
def _(bench: Bench) -> Callable[[], object]:
    write(bench.elsewhere / "other", os.O_CREAT, b"")
    path = bench.unknown("other")
    return lambda: os.stat(path)


@action("stat 100 files that are not known, directory known")
def _(bench: Bench) -> Callable[[], object]:
    make_files(bench.elsewhere)()
    path = bench.unknown("")
    return lambda: [os.stat(path / str(index)) for index in range(COUNT)]


@action("stat a missing name, directory known")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.unknown("missing")
    return lambda: os.path.exists(path)


@action("stat it again")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.unknown("missing")
    os.path.exists(path)
    return lambda: os.path.exists(path)


@action("open, read, close a known 4 KiB file, not cached")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.prepared()
    return lambda: read(path)


@action("open, read, close it again")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.prepared()
    read(path)
    return lambda: read(path)


@action("list 1000 files with attributes, directory known")
def _(bench: Bench) -> Callable[[], object]:
    (bench.elsewhere / "many").mkdir()
    for index in range(1000):
        (bench.elsewhere / "many" / f"{index}").touch()
    path = bench.known("many")
    return lambda: subprocess.run(["ls", "-l", path], check=True, capture_output=True)


@action("list them again")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.leased()
    make_files(path)()
    list_files = ["ls", "-l", os.fspath(path)]
    subprocess.run(list_files, check=True, capture_output=True)
    return lambda: subprocess.run(list_files, check=True, capture_output=True)


@action("walk a tree of 100 directories with 5 files each")
def _(bench: Bench) -> Callable[[], object]:
    for index in range(COUNT):
        directory = bench.elsewhere / "tree" / f"{index % 10}" / f"{index}"
        directory.mkdir(parents=True)
        for file in range(5):
            (directory / f"{file}").touch()
    # What it may write is not listed ahead.
    bench.maker.umount()
    bench.maker.mount()
    path = bench.known("tree")
    return lambda: subprocess.run(["ls", "-lR", path], check=True, capture_output=True)


@action("read 100 files of 4 KiB in a listed directory")
def _(bench: Bench) -> Callable[[], object]:
    make_files(bench.elsewhere)()
    os.listdir(bench.bucket)
    return lambda: [read(bench.bucket / str(index)) for index in range(COUNT)]


@action("list another directory and read its 100 files of 4 KiB")
def _(bench: Bench) -> Callable[[], object]:
    for name in ("one", "other"):
        (bench.elsewhere / name).mkdir()
        make_files(bench.elsewhere / name)()

    def walk(path: Path) -> None:
        for name in os.listdir(path):
            read(path / name)

    one, other = bench.known("one"), bench.known("other")
    walk(one)
    return lambda: walk(other)


@action("read 64 MiB in order, file known")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.prepared(LARGE_SIZE_BYTES)
    return lambda: read(path)


@action("write 64 MiB in order, close")
def _(bench: Bench) -> Callable[[], object]:
    path, data = bench.unknown("new"), os.urandom(LARGE_SIZE_BYTES)
    return lambda: write(path, os.O_CREAT, data)


@action("rename within a known directory")
def _(bench: Bench) -> Callable[[], object]:
    path, target = bench.prepared(), bench.bucket / "new name"
    return lambda: os.rename(path, target)


@action("unlink a known file")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.prepared()
    return lambda: os.unlink(path)


@action("make a directory")
def _(bench: Bench) -> Callable[[], object]:
    path = bench.unknown("directory")
    return lambda: os.mkdir(path)


def test_the_page_and_this_file_have_the_same_actions() -> None:
    assert set(ACTIONS) == set(BUDGETS)


@pytest.mark.parametrize("name", BUDGETS)
def test_the_action_needs_no_more_requests_than_the_page_says(
    name: str, traced_mount: TracedMount, here: Mount, tmp_path: Path
) -> None:
    bench = Bench(traced_mount.path / tmp_path.name, here.path / tmp_path.name, here)
    bench.elsewhere.mkdir()
    with kernelcaches.kept():
        measured = ACTIONS[name](bench)
        traced_mount.requests_when_quiet()
        traced_mount.forget()
        measured()
        counted = traced_mount.requests_when_quiet()
    router, peers = BUDGETS[name]
    assert counted.router <= router, counted
    assert counted.peers <= peers, counted
