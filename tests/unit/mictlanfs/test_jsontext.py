import msgspec
import pytest

from mictlanfs.jsontext import from_json, to_json


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
