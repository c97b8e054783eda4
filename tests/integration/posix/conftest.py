"""One mount that other users may use, for the whole folder; a bucket of its own for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.spaces import Mount, Space, mounted, running_space

_numbers = itertools.count()
READ_ONLY_BUCKET = "read-only"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.fuse)
            # Children that only make calls; the other thread is the one that ends a stuck test.
            item.add_marker(pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork"))


@pytest.fixture(scope="session")
def posix_space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    with running_space(tmp_path_factory.mktemp("posix-space") / "data", peer_count=2) as started:
        yield started


@pytest.fixture(scope="session")
def posix_mount(posix_space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    base = tmp_path_factory.mktemp("posix")
    with mounted(posix_space.uri, base, "allow_other", "dev", "suid") as mount:
        yield mount


@pytest.fixture
def bucket(posix_mount: Mount, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bucket that all may write, as the working directory; no bit is masked from new nodes."""
    path = posix_mount.path / f"b{next(_numbers)}"
    umask = os.umask(0)
    path.mkdir(0o777)
    monkeypatch.chdir(path)
    yield path
    os.umask(umask)


@pytest.fixture(scope="session")
def read_only_mount(
    posix_space: Space, posix_mount: Mount, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A bucket with `file`, `directory` and `link`, on a mount that refuses changes."""
    bucket = posix_mount.path / READ_ONLY_BUCKET
    (bucket / "directory").mkdir(parents=True)
    (bucket / "file").write_bytes(b"content")
    (bucket / "link").symlink_to("file")
    os.setxattr(bucket / "file", "user.colour", b"blue")
    with mounted(posix_space.uri, tmp_path_factory.mktemp("ro"), "ro") as mount:
        yield mount.path / READ_ONLY_BUCKET


@pytest.fixture
def read_only(read_only_mount: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That bucket as the working directory."""
    monkeypatch.chdir(read_only_mount)
    return read_only_mount
