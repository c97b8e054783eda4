import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.client.names import check_name, parse_path, show_path
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import NAME_SIZE_BYTES_MAX
from tests.support.strategies import names


@given(st.lists(names, max_size=5).map(tuple))
def test_a_path_shown_is_parsed_as_the_same_names(path: tuple[bytes, ...]) -> None:
    assert parse_path(show_path(path)) == path
    assert parse_path(b"/".join(path)) == path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("/", ()),
        ("b", (b"b",)),
        ("/b//a/./c/", (b"b", b"a", b"c")),
        ("b/ ", (b"b", b" ")),
        ("b/…", (b"b", "…".encode())),
        ("b/\udcff", (b"b", b"\xff")),
        ("b/..a", (b"b", b"..a")),
    ],
)
def test_empty_names_and_dots_are_skipped(text: str, expected: tuple[bytes, ...]) -> None:
    assert parse_path(text) == expected


@pytest.mark.parametrize("path", ["..", "b/../c", b"b/\0", "b/\ud800"])
def test_what_can_be_no_file_name_is_refused(path: str | bytes) -> None:
    with pytest.raises(MictlanError) as caught:
        parse_path(path)
    assert caught.value.kind is Kind.INVALID


def test_a_name_has_at_most_255_bytes() -> None:
    parse_path("b/" + "n" * NAME_SIZE_BYTES_MAX)
    with pytest.raises(MictlanError) as caught:
        parse_path("b/" + "é" * (NAME_SIZE_BYTES_MAX // 2 + 1))
    assert caught.value.kind is Kind.NAME_TOO_LONG


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0"])
def test_a_name_from_elsewhere_that_leads_out_of_a_directory_is_refused(name: bytes) -> None:
    with pytest.raises(MictlanError) as caught:
        check_name(name)
    assert caught.value.kind is Kind.INVALID


def test_the_root_is_shown_as_a_slash() -> None:
    assert show_path(()) == "/"
