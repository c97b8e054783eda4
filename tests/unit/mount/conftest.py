"""Directories of a user of its own for every test of the mount."""

from pathlib import Path

import pytest


@pytest.fixture
def user_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's records and logs lie: nobody else's are seen or touched."""
    folder = tmp_path / "user"
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        (folder / variable).mkdir(parents=True)
        monkeypatch.setenv(variable, str(folder / variable))
    monkeypatch.delenv("MICTLANX_CLIENT_URI", raising=False)
    return folder
