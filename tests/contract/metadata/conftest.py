"""Each test of the contract runs over each form of the metadata store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.metadata.forms import FORMS, Form
from tests.support.memoryfolders import folder_in_memory


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: what is stored here is metadata."""
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Form:
    return Form(request.param, tmp_path)
