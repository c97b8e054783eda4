"""A fresh space for each test; that it is sound at the end is part of every test."""

from collections.abc import Iterator

import pytest

from mictlanfs.model import InodeNumber
from tests.unit.server.metadata.space import Space, SpaceMaker, open_space


@pytest.fixture(scope="session")
def space_maker(tmp_path_factory: pytest.TempPathFactory) -> SpaceMaker:
    return SpaceMaker(tmp_path_factory.mktemp("spaces"))


@pytest.fixture
def space(space_maker: SpaceMaker) -> Iterator[Space]:
    with open_space(space_maker.new_database()) as space:
        yield space


@pytest.fixture
def bucket(space: Space) -> InodeNumber:
    return space.bucket()
