import os
import sys
from pathlib import Path

import pytest

from mictlanfs.errors import MictlanError, UsageError
from mictlanfs_mount import helperlinks

PROGRAM = Path(sys.executable).parent / "mount.mictlanfs"


def test_both_names_that_mount_8_looks_for_lead_to_the_program(tmp_path: Path) -> None:
    links = helperlinks.install(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["mount.fuse.mictlanfs", "mount.mictlanfs"]
    assert {link.readlink() for link in links} == {PROGRAM}


def test_links_of_another_installation_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "mount.mictlanfs").symlink_to("/nowhere")
    helperlinks.install(tmp_path)
    assert (tmp_path / "mount.mictlanfs").readlink() == PROGRAM
    helperlinks.install(tmp_path)
    assert (tmp_path / "mount.mictlanfs").readlink() == PROGRAM


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mount.fuse.mictlanfs"
    file.write_text("theirs")
    with pytest.raises(UsageError, match="is no link"):
        helperlinks.install(tmp_path)
    assert file.read_text() == "theirs"
    assert os.listdir(tmp_path) == [file.name]


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MictlanError, match="none"):
        helperlinks.install(tmp_path / "none")


def test_without_the_program_nothing_is_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UsageError, match="pip"):
        helperlinks.install(tmp_path)
    assert os.listdir(tmp_path) == []
