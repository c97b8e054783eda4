"""Directories of a user of its own, and mounts under leases, for tests of the mount."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.leased_space import (
    LeasedMount,
    LeasedSpace,
    open_leased_mount,
    open_leased_space,
)


@pytest.fixture
def user_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's records and logs lie: nobody else's are seen or touched."""
    folder = tmp_path / "user"
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        (folder / variable).mkdir(parents=True)
        monkeypatch.setenv(variable, str(folder / variable))
    monkeypatch.delenv("MICTLANX_CLIENT_URI", raising=False)
    return folder


@pytest.fixture
async def space() -> AsyncIterator[LeasedSpace]:
    """A space whose mounts hold leases."""
    async with open_leased_space() as space:
        yield space


@pytest.fixture
async def mount(space: LeasedSpace) -> AsyncIterator[LeasedMount]:
    """A mount of it."""
    async with open_leased_mount(space) as mount:
        yield mount


@pytest.fixture
async def other(space: LeasedSpace) -> AsyncIterator[LeasedMount]:
    """Another one."""
    async with open_leased_mount(space) as other:
        yield other
