"""Each test of the contract runs over each form of the metadata store."""

from pathlib import Path

import pytest

from tests.contract.metadata.forms import FORMS, Form


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Form:
    return Form(request.param, tmp_path)
