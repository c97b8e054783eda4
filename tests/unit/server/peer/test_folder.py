import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mictlanfs.errors import UsageError
from mictlanfs_server.peer.folder import DataFolder, PeerIdentity, read_identity


@contextmanager
def opened(path: Path) -> Iterator[DataFolder]:
    folder = DataFolder(path)
    try:
        yield folder
    finally:
        folder.close()


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "b") as folder:
        assert folder.space_id == ""
    assert (tmp_path / "a" / "b" / "format").read_text() == "mictlanfs-peer 1\n"


def test_a_folder_opens_again(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with opened(tmp_path):
        pass


def test_the_space_is_remembered(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.remember_space("abc")
        assert folder.space_id == "abc"
    with opened(tmp_path) as folder:
        assert folder.space_id == "abc"


def test_who_the_peer_is_can_be_read_without_opening_the_folder(tmp_path: Path) -> None:
    assert read_identity(tmp_path) is None
    identity = PeerIdentity("p", 7, "http://127.0.0.1:1", "rack")
    with opened(tmp_path) as folder:
        folder.remember_peer(identity)
        written = (tmp_path / "peer.json").stat().st_mtime_ns
        folder.remember_peer(identity)
        assert (tmp_path / "peer.json").stat().st_mtime_ns == written
    assert read_identity(tmp_path) == identity
    (tmp_path / "peer.json").write_bytes(b"{")
    assert read_identity(tmp_path) is None


def test_a_second_owner_is_refused_with_folder_process_and_remedy(tmp_path: Path) -> None:
    with opened(tmp_path):
        before = snapshot(tmp_path)
        with pytest.raises(UsageError) as caught:
            DataFolder(tmp_path)
        assert snapshot(tmp_path) == before
    message = str(caught.value)
    assert str(tmp_path) in message
    assert f"process {os.getpid()}" in message
    assert "--data" in message


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib; from mictlanfs_server.peer.folder import DataFolder;"
        "DataFolder(pathlib.Path(sys.argv[1])); os._exit(9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment)
    assert ended.returncode == 9
    with opened(tmp_path):
        pass


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("mictlanfs-peer 2\n")
    with pytest.raises(UsageError, match=r"newer.*format 2.*upgrade"):
        DataFolder(tmp_path)
    assert (tmp_path / "format").read_text() == "mictlanfs-peer 2\n"


@pytest.mark.parametrize("text", ["", "something else", "mictlanfs-peer", "mictlanfs-peer x"])
def test_a_format_of_somebody_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "format").write_text(text)
    with pytest.raises(UsageError, match="not the data of a peer"):
        DataFolder(tmp_path)


def test_a_refused_folder_is_unlocked_again(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("mictlanfs-peer 2\n")
    with pytest.raises(UsageError):
        DataFolder(tmp_path)
    (tmp_path / "format").write_text("mictlanfs-peer 1\n")
    with opened(tmp_path):
        pass


@pytest.mark.parametrize("name", ["chunks", "temporary", "index.sqlite"])
def test_files_of_somebody_else_with_our_names_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=name):
        DataFolder(tmp_path)
    assert os.listdir(tmp_path) == [name]


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "peer.log").write_text("hello")
    with opened(tmp_path):
        pass
    assert (tmp_path / "peer.log").read_text() == "hello"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(UsageError, match="cannot hold the data"):
        DataFolder(tmp_path / "data")


def test_token_belongs_to_the_store_and_stays(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as one, opened(tmp_path / "b") as other:
        token = one.store_id
        assert token
        assert other.store_id != token
    with opened(tmp_path / "a") as again:
        assert again.store_id == token
