"""One space for the documents that are run: two mounts of it, and one that tells its requests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.traced_mount import TracedMount, traced
from tests.support.spaces import Mount, Space, mounted, running_space


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    with running_space(tmp_path_factory.mktemp("space") / "data") as started:
        yield started


@pytest.fixture(scope="module")
def here(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(space.uri, tmp_path_factory.mktemp("here")) as mount:
        yield mount


@pytest.fixture(scope="module")
def there(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(space.uri, tmp_path_factory.mktemp("there")) as mount:
        yield mount


@pytest.fixture(scope="module")
def traced_mount(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedMount]:
    with traced(space.uri, tmp_path_factory.mktemp("traced")) as mount:
        yield mount


@pytest.fixture(scope="module")
def environment(space: Space) -> dict[str, str]:
    """What a shell of the documents sees: our programs, the space, messages in English."""
    from tests.support.spaces import MICTLANFS

    return {
        **os.environ,
        "LC_ALL": "C",
        "MICTLANX_CLIENT_URI": space.uri,
        "PATH": f"{Path(MICTLANFS).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
