from pathlib import Path

import pytest

from mictlanfs_server.peer.sharers import Sharers, write_sharers


def test_without_a_file_the_number_stays() -> None:
    assert Sharers(3, None)() == 3


def test_what_the_file_tells_now_counts(tmp_path: Path) -> None:
    sharers = Sharers(3, tmp_path / "sharers")
    assert sharers() == 3
    write_sharers(tmp_path / "sharers", 5)
    assert sharers() == 5
    write_sharers(tmp_path / "sharers", 2)
    assert sharers() == 2


@pytest.mark.parametrize("text", [b"", b"many", b"2.5"])
def test_a_file_that_tells_nothing_changes_nothing(tmp_path: Path, text: bytes) -> None:
    write_sharers(tmp_path / "sharers", 5)
    sharers = Sharers(1, tmp_path / "sharers")
    assert sharers() == 5
    (tmp_path / "sharers").write_bytes(text)
    assert sharers() == 5
    (tmp_path / "sharers").unlink()
    assert sharers() == 5


def test_there_is_always_one(tmp_path: Path) -> None:
    write_sharers(tmp_path / "sharers", 0)
    assert Sharers(4, tmp_path / "sharers")() == 1
