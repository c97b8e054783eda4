import subprocess
import sys

import pytest

import mictlanfs


def test_importing_the_package_loads_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules); import mictlanfs;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "mictlanfs" in loaded
    assert not loaded & {"trio", "httpx", "msgspec", "asyncio", "cachetools"}


@pytest.mark.parametrize("name", mictlanfs.__all__)
def test_every_name_is_there_when_it_is_asked_for(name: str) -> None:
    assert getattr(mictlanfs, name).__name__ == name
    assert name in dir(mictlanfs)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="SyncClient"):
        _ = mictlanfs.SyncClient  # type: ignore[attr-defined]
