from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.checksums import DIGEST_SIZE_BYTES, digest_of, new_hasher


def test_the_digest_is_blake3() -> None:
    # The test vector of the BLAKE3 paper for the empty input.
    assert digest_of([]).hex().startswith("af1349b9f5f9a1a6a0404dea36dcc949")
    assert len(digest_of([])) == DIGEST_SIZE_BYTES


@given(st.lists(st.binary(max_size=50)))
def test_pieces_have_the_digest_of_the_whole_whatever_their_type(pieces: list[bytes]) -> None:
    whole = digest_of([b"".join(pieces)])
    assert digest_of(pieces) == whole
    assert digest_of([memoryview(piece) for piece in pieces]) == whole
    assert digest_of([bytearray(piece) for piece in pieces]) == whole


@given(st.lists(st.binary(max_size=50)))
def test_a_hasher_that_is_fed_comes_to_the_same(pieces: list[bytes]) -> None:
    hasher = new_hasher()
    for piece in pieces:
        hasher.update(piece)
    assert hasher.digest() == digest_of(pieces)


def test_one_changed_bit_changes_the_digest() -> None:
    assert digest_of([b"\x00" * 100]) != digest_of([b"\x00" * 99 + b"\x01"])
