import string
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.names import (
    chunk_key,
    combined_key,
    path_of,
    sanitize_str,
    stripped_name,
)


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("a", "a"),
        ("Photos-2026_11", "Photos-2026_11"),
        ("a.b", "ab"),
        ("a/b c", "abc"),
        ("a__b", "a-b"),
        ("a-_-b", "a-b"),
        ("_a", ""),
        ("a_", ""),
        ("-a-", "a"),
        ("--a--", "a"),
        ("__a__", "a"),
        ("-", ""),
        ("", ""),
        ("żółw", "w"),
        ("日本", ""),
        ("a\n", "a"),
        ("-_a", "a"),
    ],
)
def test_a_name_is_stripped_as_the_public_client_does(text: str, stripped: str) -> None:
    assert sanitize_str(text) == stripped


@given(st.text(max_size=30) | st.text("ab-_.", max_size=12))
def test_a_stripped_name_stays_as_it_is_and_needs_no_quoting(text: str) -> None:
    stripped = sanitize_str(text)
    assert sanitize_str(stripped) == stripped
    assert set(stripped) <= set(string.ascii_letters + string.digits + "-_")
    assert path_of(stripped) == "/" + stripped
    if stripped:
        assert stripped_name(text, "ball") == stripped


@pytest.mark.parametrize("text", ["", "_a", "日本"])
def test_a_name_of_which_nothing_is_left_is_refused(text: str) -> None:
    with pytest.raises(MictlanError, match="cannot be a ball") as caught:
        stripped_name(text, "ball")
    assert caught.value.kind is Kind.INVALID


def test_the_key_of_a_chunk_is_its_ball_and_its_number() -> None:
    assert chunk_key("cat", 12) == "cat_12"


def test_a_bucket_and_a_key_are_combined() -> None:
    assert combined_key("photos", "cat_0") == "photos@cat_0"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_the_parts_of_a_path_arrive_as_they_were(parts: list[str]) -> None:
    path = path_of(*parts)
    assert [unquote(part) for part in path.split("/")[1:]] == parts
    assert path.isascii()
    assert "?" not in path
    assert "#" not in path
