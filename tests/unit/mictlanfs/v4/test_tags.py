from typing import Any

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.tags import (
    Part,
    chunk_tags,
    decimal_tag,
    updated_at_ms,
)


def test_the_tags_of_a_chunk_are_texts_and_say_which_chunk_it_is() -> None:
    tags = chunk_tags(Part(3, 7), chunk_size=10, full_checksum="ab", group_id="a.b")
    assert tags == {
        "index": "3",
        "num_chunks": "7",
        "full_checksum": "ab",
        "chunk_size": "10",
        "group_id": "a.b",
    }


def test_tags_of_the_user_are_kept_and_replace_none_of_ours() -> None:
    extra = {"index": "9", "num_chunks": "1", "colour": "red"}
    tags = chunk_tags(Part(0, 2), chunk_size=1, full_checksum="", group_id="", extra=extra)
    assert tags["colour"] == "red"
    assert (tags["index"], tags["num_chunks"]) == ("0", "2")
    assert extra == {"index": "9", "num_chunks": "1", "colour": "red"}


@pytest.mark.parametrize("extra", [{"a": 1}, {1: "a"}, {"a": None}])
def test_a_tag_that_is_no_text_is_refused(extra: Any) -> None:
    with pytest.raises(MictlanError) as caught:
        chunk_tags(Part(0, 1), chunk_size=1, full_checksum="", group_id="", extra=extra)
    assert caught.value.kind is Kind.INVALID


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "\u0663", "9" * 5000])
def test_what_is_no_number_is_none(text: str) -> None:
    assert decimal_tag({"index": text}, "index") is None
    assert decimal_tag({}, "index") is None


def test_a_number_may_stand_between_blanks() -> None:
    assert decimal_tag({"index": " 7 "}, "index") == 7


def test_a_record_that_does_not_say_when_it_was_made_is_the_oldest() -> None:
    assert updated_at_ms({"updated_at": "1700000000000"}) == 1_700_000_000_000
    assert updated_at_ms({"updated_at": "soon"}) == 0
    assert updated_at_ms({}) == 0
