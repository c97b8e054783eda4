import pytest

from mictlanfs.mounts.cachewords import (
    CLEAR,
    HELD,
    Cleared,
    Held,
    Warmed,
    decode,
    encode,
    is_request,
    offset_of,
    warm_from,
)

# What Python offers for the value of an attribute at first; a longer one is asked for twice.
FIRST_BUFFER_SIZE_BYTES = 128
FILE_SIZE_MAX = 2**63 - 1


@pytest.mark.parametrize(
    "answer", [Held(9, 1, 2, 3, 4, 5), Warmed(FILE_SIZE_MAX, 1, 2, 3, 4, 5, 6), Cleared(7)]
)
def test_answers_are_decoded_as_they_were(answer: Held | Warmed | Cleared) -> None:
    assert decode(encode(answer), type(answer)) == answer


def test_a_request_that_does_something_is_answered_at_the_first_attempt() -> None:
    longest = Warmed(FILE_SIZE_MAX, *[32 << 20] * 6)
    assert len(encode(longest)) < FIRST_BUFFER_SIZE_BYTES
    assert len(encode(Cleared(FILE_SIZE_MAX))) < FIRST_BUFFER_SIZE_BYTES


def test_a_later_mount_may_say_more() -> None:
    assert decode(b"7 8 9", Cleared) == Cleared(7)


@pytest.mark.parametrize("value", [b"", b"1 2", b"1 2 3 4 5 x"])
def test_anything_else_is_no_answer(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"too short|invalid literal"):
        decode(value, Held)


def test_requests_are_told_from_attributes() -> None:
    assert all(is_request(name) for name in (HELD, CLEAR, warm_from(0)))
    others = (b"user.mictlanx.cached", b"user.mictlanx.tag.cache", b"user.a", b"security.x")
    assert not any(is_request(name) for name in others)


def test_the_offset_of_a_request_is_a_number() -> None:
    assert [offset_of(warm_from(n)) for n in (0, 1 << 40)] == [0, 1 << 40]
    wrong = (HELD, CLEAR, HELD + b".warm.", HELD + b".warm.-1", HELD + b".warm.9x")
    assert [offset_of(name) for name in (*wrong, HELD + b".warm." + b"9" * 20)] == [None] * 6
