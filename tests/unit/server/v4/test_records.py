from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.v4.names import sanitize_str
from mictlanfs.wirerecords import RecordPiece
from mictlanfs_server.v4 import records
from mictlanfs_server.v4.records import Place, RecordBody


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ab", "ab"),
        ("a.b", "ab"),
        ("a__b", "a-b"),
        ("a-_-b", "a-b"),
        ("_a", ""),
        ("-a", "a"),
        ("a_", ""),
        ("a-", "a"),
        ("a_b-c_1", "a_b-c_1"),
        ("a..b_0", "ab_0"),
        ("äöü", ""),
        ("...", ""),
        ("", ""),
    ],
)
def test_names_are_stripped_as_the_client_does(name: str, expected: str) -> None:
    assert sanitize_str(name) == expected


@given(st.text())
def test_stripping_twice_is_stripping_once(name: str) -> None:
    once = sanitize_str(name)
    assert sanitize_str(once) == once


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("a", (b"a",)),
        ("a/b", (b"a", b"b")),
        ("ä", ("ä".encode(),)),
        ("", None),
        ("/", None),
        ("a//b", None),
        ("..", None),
        ("a/.", None),
        ("a\0", None),
        ("\ud800", None),
        ("x" * 255, (b"x" * 255,)),
        ("x" * 256, None),
    ],
)
def test_keys_are_paths(key: str, names: tuple[bytes, ...] | None) -> None:
    assert records.names_of(key) == names


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=3))
def test_every_path_can_be_shown(names: list[bytes]) -> None:
    records.shown(names).encode("utf-8")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a_0", ("a", 0)),
        ("a_b_12", ("a_b", 12)),
        ("a/b_3", ("a/b", 3)),
        ("a_01", None),
        ("a_", None),
        ("_1", None),
        ("a", None),
        ("a_-1", None),
    ],
)
def test_part_keys_are_taken_apart(key: str, expected: tuple[str, int] | None) -> None:
    assert records.split_part_key(key) == expected


def test_place_in_a_ball_comes_from_the_tags() -> None:
    tags = {"index": "1", "num_chunks": "3"}
    assert records.place_of("b_1", "b", tags) == Place(1, 3)
    assert records.place_of("d/b_1", "d/b", tags) == Place(1, 3)
    assert records.place_of("any", "b", tags) == Place(1, 3)
    assert records.place_of("b_1", "d/b", tags) is None
    for wrong in (
        {},
        {"index": "1"},
        {"index": "3", "num_chunks": "3"},
        {"index": "0", "num_chunks": "0"},
        {"index": "-1", "num_chunks": "3"},
        {"index": "x", "num_chunks": "3"},
        {"index": "0", "num_chunks": "65537"},
        {"index": "1.0", "num_chunks": "3"},
    ):
        assert records.place_of("b_1", "b", wrong) is None


def piece_of(body: RecordBody, size: int = 10) -> RecordPiece:
    return RecordPiece(size, records.encode_body(body))


def part(index: int, count: int, key: str = "") -> RecordBody:
    tags = {"index": str(index), "num_chunks": str(count)}
    key = key or f"ball_{index}"
    return RecordBody(key, "ball", "sum", tags, "t", "p", count=count, index=index)


def named(path: str, *bodies: RecordBody) -> list[tuple[str, str]]:
    pieces = records.pieces_of(path, [piece_of(body) for body in bodies])
    return [(piece.key, piece.ball_id) for piece in pieces]


def test_single_record_is_as_sent_until_it_is_renamed() -> None:
    body = RecordBody("k", "some ball", "sum", {"a": "b"}, "t", "p", is_disabled=True)
    [piece] = records.pieces_of("k", [piece_of(body)])
    assert (piece.key, piece.ball_id, piece.tags) == ("k", "some ball", {"a": "b"})
    assert (piece.checksum, piece.content_type, piece.producer_id) == ("sum", "t", "p")
    assert (piece.is_disabled, piece.offset, piece.size) == (True, 0, 10)
    assert named("d/l", body) == [("d/l", "d/l")]


def test_parts_keep_their_keys_until_the_ball_is_renamed() -> None:
    assert named("ball_1", part(1, 2)) == [("ball_1", "ball")]
    whole = (part(0, 2), part(1, 2, "odd"))
    assert named("ball", *whole) == [("ball_0", "ball"), ("odd", "ball")]
    assert named("new", *whole) == [("new_0", "new"), ("new_1", "new")]


def test_part_that_is_renamed_alone_is_a_record_like_any_other() -> None:
    assert named("new", part(1, 2)) == [("new", "new")]
    assert named("new", part(0, 1)) == [("new_0", "new")]


def test_pieces_lie_one_behind_the_other() -> None:
    stored = [piece_of(part(i, 3), size) for i, size in enumerate((5, 0, 7))]
    pieces = records.pieces_of("ball", stored)
    assert [(piece.index, piece.offset, piece.size) for piece in pieces] == [
        (0, 0, 5),
        (1, 5, 0),
        (2, 5, 7),
    ]


def test_file_that_nobody_put_is_told_like_a_ball() -> None:
    stored = records.made_pieces([4, 2], ["a", "b"], "whole", 1_500_000_000)
    first, second = records.pieces_of("d/name.tar.gz", stored)
    assert (first.key, second.key, first.ball_id) == (
        "d/name.tar.gz_0",
        "d/name.tar.gz_1",
        "d/name.tar.gz",
    )
    assert second.tags == {
        "index": "1",
        "num_chunks": "2",
        "chunk_size": "2",
        "full_checksum": "whole",
        "group_id": "d/name.tar.gz",
        "fullname": "name.tar.gz",
        "extension": "gz",
        "updated_at": "1500",
    }
    assert second.checksum == "b"
    [renamed] = records.pieces_of(".profile", records.made_pieces([0], ["a"], "a", -5))
    assert "extension" not in renamed.tags
    assert renamed.tags["fullname"] == ".profile"
    assert renamed.tags["updated_at"] == "0"


@given(st.integers(0, 10**6), st.integers(1, 10**5))
def test_pieces_of_a_file_make_the_file(size: int, piece_size: int) -> None:
    sizes = records.cut(size, piece_size)
    assert sum(sizes) == size
    assert sizes
    assert all(piece == piece_size for piece in sizes[:-1])
    assert size == 0 or 0 < sizes[-1] <= piece_size
