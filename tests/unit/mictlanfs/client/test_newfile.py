import os
from pathlib import Path

import pytest

from mictlanfs.client.newfile import INLINE_WRITE_SIZE_BYTES_MAX, NewFile
from mictlanfs.errors import Kind, MictlanError


async def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    file = NewFile(path)
    large = b"x" * (INLINE_WRITE_SIZE_BYTES_MAX + 1)
    await file.write(2, large)
    await file.write(0, memoryview(b"ab"))
    assert path.read_bytes() == b"old"
    file.appear()
    assert path.read_bytes() == b"ab" + large
    file.abandon()
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


async def test_what_is_skipped_is_a_hole(tmp_path: Path) -> None:
    file = NewFile(tmp_path / "f")
    await file.write(5, b"!")
    file.appear()
    assert (tmp_path / "f").read_bytes() == b"\0\0\0\0\0!"


def test_an_abandoned_file_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    file = NewFile(tmp_path / "f")
    file.abandon()
    file.abandon()
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


def test_a_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        NewFile(tmp_path / "a").appear()
        NewFile(tmp_path / "b", 0o600).appear()
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"]
    assert modes == [0o640, 0o600]


def test_a_place_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(MictlanError) as caught:
        NewFile(tmp_path / "nowhere" / "f")
    assert caught.value.kind is Kind.NOT_FOUND
