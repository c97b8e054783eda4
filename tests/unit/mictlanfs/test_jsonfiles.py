import os
from pathlib import Path

import msgspec
import pytest

from mictlanfs.jsonfiles import from_json, replace_file, to_json


class Note(msgspec.Struct, frozen=True):
    name: str
    numbers: tuple[int, ...] = ()


@pytest.mark.parametrize("name", ["plain", "two\nlines", "odd \udcff byte", "\u2713"])
def test_a_value_is_one_line_and_reads_back_whatever_names_are_in_it(name: str) -> None:
    line = to_json(Note(name, (1, 2)))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert from_json(line, Note) == Note(name, (1, 2))


def test_a_value_for_people_to_read_is_indented() -> None:
    assert to_json(Note("a"), indent=2) == b'{\n  "name": "a",\n  "numbers": []\n}\n'


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"name": 1}', b"\xff", b'{"name": "a'])
def test_what_is_damaged_or_of_another_form_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_json(text, Note)


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
