import os
from pathlib import Path

import pytest

from mictlanfs_server.peer.durable import make_folder, sync_folder, write_text


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that were synced, in order."""
    paths: list[str] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    return paths


def test_a_folder_is_synced_itself(tmp_path: Path, synced: list[str]) -> None:
    sync_folder(tmp_path)
    assert synced == [str(tmp_path)]


def test_every_name_of_a_new_path_is_made_durable(tmp_path: Path, synced: list[str]) -> None:
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert set(synced) == {str(tmp_path / "a"), str(tmp_path)}


def test_a_folder_that_is_there_costs_nothing(tmp_path: Path, synced: list[str]) -> None:
    make_folder(tmp_path)
    assert synced == []


def test_content_is_durable_before_its_name(tmp_path: Path, synced: list[str]) -> None:
    write_text(tmp_path / "x", "hello")
    assert synced == [str(tmp_path / "x.new"), str(tmp_path)]


def test_a_write_replaces_the_whole_content(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "a long content")
    write_text(tmp_path / "x", "short")
    assert (tmp_path / "x").read_text() == "short\n"
    assert os.listdir(tmp_path) == ["x"]


def test_a_write_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "x", "old")

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old\n"
