from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mictlanfs.checksums import digest_of
from mictlanfs.fragments import decode, encode, fragment_size, join, parts_of
from mictlanfs.model import Buffer, Coding

codes = st.tuples(st.integers(2, 16), st.integers(1, 4))


def coding_of(data: int, digests: bytes) -> Coding:
    return Coding(data, digests, ())


@given(st.binary(min_size=16, max_size=4000), codes, st.integers(0, 4000))
def test_data_fragments_are_slices_of_the_chunk_and_all_digests_are_right(
    body: bytes, code: tuple[int, int], cut: int
) -> None:
    data, parity = code
    encoded = encode([body[:cut], memoryview(body)[cut:]], data, parity)
    size = fragment_size(len(body), data)
    assert [len(fragment) for fragment in encoded.fragments] == [size] * (data + parity)
    assert b"".join(encoded.fragments[:data]) == body + bytes(size * data - len(body))
    assert join(encoded.fragments[:data], len(body)) == body
    assert encoded.digest == digest_of([body])
    coding = coding_of(data, encoded.digests)
    assert coding.count == data + parity
    for index, fragment in enumerate(encoded.fragments):
        assert coding.digest(index) == digest_of([fragment])


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=600), st.integers(2, 5), st.integers(1, 4))
def test_any_fragments_that_are_enough_give_all_the_others(
    body: bytes, data: int, parity: int
) -> None:
    encoded = encode([body], data, parity)
    coding = coding_of(data, encoded.digests)
    everything = range(data + parity)
    for kept in combinations(everything, data):
        have: dict[int, Buffer] = {index: encoded.fragments[index] for index in kept}
        found = decode(have, coding, everything)
        assert [bytes(one) for one in found] == [bytes(one) for one in encoded.fragments]


@given(st.binary(min_size=64, max_size=900), codes, st.data())
def test_a_range_of_some_fragments_gives_that_range_of_the_others(
    body: bytes, code: tuple[int, int], draw: st.DataObject
) -> None:
    data, parity = code
    encoded = encode([body], data, parity)
    size = fragment_size(len(body), data)
    start = draw.draw(st.integers(0, size - 1))
    end = draw.draw(st.integers(start + 1, size))
    kept = draw.draw(st.permutations(range(data + parity)))[:data]
    have: dict[int, Buffer] = {
        index: memoryview(encoded.fragments[index])[start:end] for index in kept
    }
    found = decode(have, coding_of(data, encoded.digests), range(data))
    assert [bytes(one) for one in found] == [bytes(f[start:end]) for f in encoded.fragments[:data]]


@given(st.binary(min_size=16, max_size=900), st.integers(2, 16), st.data())
def test_the_parts_of_a_range_are_its_bytes_in_order(
    body: bytes, data: int, draw: st.DataObject
) -> None:
    start = draw.draw(st.integers(0, len(body) - 1))
    end = draw.draw(st.integers(start + 1, len(body)))
    fragments = encode([body], data, 1).fragments
    parts = parts_of(start, end, len(body), data)
    found = b"".join(bytes(fragments[part.index][part.start : part.end]) for part in parts)
    assert found == body[start:end]
    assert [part.index for part in parts] == sorted({part.index for part in parts})


def test_too_few_fragments_are_an_error_and_no_wrong_bytes() -> None:
    encoded = encode([b"0123456789abcdef"], 3, 2)
    have: dict[int, Buffer] = {4: encoded.fragments[4], 0: encoded.fragments[0]}
    coding = coding_of(3, encoded.digests)
    assert decode(have, coding, [0]) == [encoded.fragments[0]]
    with pytest.raises(ValueError, match="2 fragments are less than 3"):
        decode(have, coding, [0, 1])
