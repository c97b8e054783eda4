import os
from pathlib import Path

import pytest

from mictlanfs.durable import make_folder, replace_file, sync_folder, write_all


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


@pytest.mark.parametrize("is_durable", [False, True])
def test_a_file_is_made_and_replaced(tmp_path: Path, *, is_durable: bool) -> None:
    path = tmp_path / "note"
    for content in (b"old and longer", b"new"):
        replace_file(path, content, is_durable=is_durable)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_that_has_the_old_file_open_keeps_it_whole(tmp_path: Path) -> None:
    replace_file(tmp_path / "note", b"old")
    with (tmp_path / "note").open("rb") as reader:
        replace_file(tmp_path / "note", b"new")
        assert reader.read() == b"old"


def test_a_durable_file_is_synced_before_it_has_its_name_and_its_name_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    path = tmp_path / "note"

    def fsync(descriptor: int) -> None:
        seen.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(path, b"x", is_durable=True)
    (synced_file, had_name), synced_folder = seen
    assert Path(synced_file).parent == tmp_path
    assert not had_name
    assert synced_folder == (str(tmp_path), True)


def test_a_replacement_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    replace_file(tmp_path / "note", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "note", b"new", is_durable=True)
    assert (tmp_path / "note").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["note"]


def test_writing_goes_on_when_the_system_call_stops_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [bytes([n]) * (n + 1) for n in range(20)]

    def short(fd: int, buffers: list[memoryview]) -> int:
        return os.write(fd, b"".join(buffers)[:7])

    monkeypatch.setattr(os, "writev", short)
    with (tmp_path / "x").open("wb") as file:
        write_all(file.fileno(), list(pieces))
    assert (tmp_path / "x").read_bytes() == b"".join(pieces)
