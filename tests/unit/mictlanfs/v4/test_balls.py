import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.balls import ball_of, balls_in
from mictlanfs.v4.models import Metadata
from tests.unit.mictlanfs.v4.making import record


def part(index: int, count: int, data: bytes = b"x", *, whole: str = "w", at: int = 0) -> Metadata:
    tags = {"index": str(index), "num_chunks": str(count), "full_checksum": whole}
    return record(f"cat_{index}", data, **tags, updated_at=str(at))


@given(st.permutations([part(i, 6, bytes(i)) for i in range(6)] * 2))
def test_chunks_are_put_in_order_each_once(records: list[Metadata]) -> None:
    ball = ball_of("photos", "cat", records)
    assert [chunk.key for chunk in ball.chunks] == [f"cat_{index}" for index in range(6)]
    assert (ball.size, ball.checksum, ball.is_complete) == (15, "w", True)
    ball.check_complete("get")


def test_chunks_with_the_same_bytes_are_all_counted() -> None:
    ball = ball_of("photos", "zeros", [part(i, 20, bytes(1000)) for i in range(20)])
    assert ball.size == 20_000


def test_a_ball_with_a_gap_says_so() -> None:
    ball = ball_of("photos", "cat", [part(0, 3), part(2, 3)])
    assert (ball.is_complete, ball.chunk_count, ball.size) == (False, 3, 2)
    with pytest.raises(MictlanError, match="2 of its 3 chunks") as caught:
        ball.check_complete("get")
    assert (caught.value.kind, caught.value.target) == (Kind.NOT_FOUND, "photos@cat")


def test_of_two_puts_the_newer_complete_one_counts() -> None:
    old = [part(i, 2, whole="old", at=1) for i in range(2)]
    new = [part(i, 3, whole="new", at=2) for i in range(3)]
    assert ball_of("photos", "cat", [*new, *old]).checksum == "new"
    assert ball_of("photos", "cat", [*old, *new]).checksum == "new"
    assert ball_of("photos", "cat", [*old, *new[:2]]).checksum == "old"
    assert ball_of("photos", "cat", [old[0], *new[:2]]).checksum == "new"


def test_of_two_copies_the_newer_one_counts() -> None:
    copies = [part(0, 1, b"old", at=1), part(0, 1, b"new!", at=2), part(0, 1, b"older", at=0)]
    ball = ball_of("photos", "cat", copies)
    assert (ball.size, ball.updated_at_ms) == (4, 2)


def test_a_single_record_without_numbers_is_a_ball() -> None:
    raw = record("raw", b"meow", colour="red")
    ball = ball_of("photos", "raw", [raw, raw])
    assert (ball.chunks, ball.is_complete, ball.checksum) == ((raw,), True, raw.checksum)
    assert ball.tags == {"colour": "red"}


def test_several_records_without_numbers_are_in_the_order_of_their_keys() -> None:
    ball = ball_of("photos", "cat", [record("b", b"1"), record("a", b"2")])
    assert [chunk.key for chunk in ball.chunks] == ["a", "b"]
    assert ball.checksum == ""


def test_a_record_whose_number_cannot_be_is_left_out() -> None:
    ball = ball_of("photos", "cat", [part(0, 1), part(7, 1), record("cat_x", b"", index="x")])
    assert [chunk.key for chunk in ball.chunks] == ["cat_0"]


def test_a_bucket_is_sorted_into_balls() -> None:
    rows = [part(1, 2), record("dog_0", b"", ball="dog", index="0", num_chunks="1"), part(0, 2)]
    balls = balls_in("photos", rows)
    assert [(ball.ball_id, len(ball.chunks)) for ball in balls] == [("cat", 2), ("dog", 1)]
    assert balls_in("photos", []) == []
