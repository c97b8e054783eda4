"""One supervised space for all tests of mounts, and a fresh mount of it for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.spaces import Mount, Space, mounted, running_space


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """A space of three peers that lives as long as the test run."""
    with running_space(tmp_path_factory.mktemp("space") / "data") as started:
        yield started


@pytest.fixture
def mount(space: Space, tmp_path: Path) -> Iterator[Mount]:
    """A mount of the space with a cache of its own.

    A module whose tests do nothing to their mount as such takes one for all of them by the same
    name: to mount and unmount takes two seconds of a processor.
    """
    with mounted(space.uri, tmp_path) as started:
        yield started


@pytest.fixture
def work(mount: Mount, tmp_path: Path) -> Path:
    """An empty bucket of this test's own on the mount."""
    bucket = mount.path / tmp_path.name
    bucket.mkdir()
    return bucket
