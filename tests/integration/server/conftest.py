"""A space per test, ended whatever happened."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.localspaces import LocalSpace, local_space


@pytest.fixture
def space(tmp_path: Path) -> Iterator[LocalSpace]:
    with local_space(tmp_path) as space:
        yield space
