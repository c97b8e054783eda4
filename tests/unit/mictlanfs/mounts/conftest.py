"""Mounts for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import FakeMount, MountTable


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MountTable:
    """A table of mounts that the test writes."""
    return MountTable(tmp_path / "mountinfo", monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with nothing in it."""
    folder = tmp_path / "vss"
    folder.mkdir()
    return folder


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeMount]:
    """A real mount of an empty space, at a path with a blank in it."""
    (tmp_path / "a b").mkdir()
    fake = FakeMount(tmp_path / "a b", tmp_path)
    yield fake
    fake.end()
