from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.memoryfolders import folder_in_memory
from tests.support.objectpeers import ObjectPeers, object_peers


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: what is stored here is metadata."""
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[ObjectPeers]:
    """Three peers below `peers`."""
    folder = tmp_path / "peers"
    folder.mkdir()
    with object_peers(folder) as made:
        yield made
