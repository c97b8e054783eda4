import pytest

from mictlanfs.client.reception import Reception


def test_parts_join_in_order() -> None:
    reception = Reception(6)
    seen = [(reception.count, reception.missing_size, reception.is_complete)]
    for part in (b"ab", memoryview(b"cde"), bytearray(b"f")):
        reception.add(part)
        seen.append((reception.count, reception.missing_size, reception.is_complete))
    assert seen == [(0, 6, False), (2, 4, False), (5, 1, False), (6, 0, True)]
    assert reception.buffer == b"abcdef"


def test_what_is_written_into_the_rest_is_in_the_buffer() -> None:
    reception = Reception(4)
    reception.add(b"a")
    rest = reception.rest()
    assert len(rest) == 3
    rest[:] = b"bcd"
    assert reception.buffer == b"abcd"


def test_more_than_is_missing_is_refused() -> None:
    reception = Reception(3)
    reception.add(b"ab")
    with pytest.raises(ValueError, match="2 bytes are too many: 1 are missing"):
        reception.add(b"cd")
    assert reception.count == 2
