"""One supervised space for all tests of the v4 interface, and a bucket for each test."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.spaces import Space, running_space
from tests.support.v4 import Server, peers_of, router_of

_numbers = count()


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """A space of two peers that lives as long as the test run."""
    with running_space(tmp_path_factory.mktemp("space") / "data", 2) as started:
        yield started


@pytest.fixture(scope="session")
def router(space: Space) -> Iterator[Server]:
    """Its router."""
    server = router_of(space.uri)
    with server.client:
        yield server


@pytest.fixture(scope="session")
def peer(router: Server) -> Iterator[Server]:
    """One of its peers."""
    first, *others = peers_of(router)
    for other in others:
        other.client.close()
    with first.client:
        yield first


@pytest.fixture
def bucket() -> str:
    """A bucket of this test's own."""
    return f"bucket{next(_numbers)}"
