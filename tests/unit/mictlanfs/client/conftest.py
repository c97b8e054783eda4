"""A space in memory with a bucket, for tests of the client library."""

import pytest

from mictlanfs.model import BucketPolicy, FileKind
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.client.making import CHUNK


@pytest.fixture
def space() -> FakeSpace:
    """A space with an empty bucket `b` of small chunks."""
    space = FakeSpace()
    space.router.make(FileKind.DIRECTORY, b"b")
    space.router.find(b"b").policy = BucketPolicy(chunk_size=CHUNK)
    return space
