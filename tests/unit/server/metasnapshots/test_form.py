import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs_server.metasnapshots import form
from mictlanfs_server.metasnapshots.form import (
    DAY_NS,
    HOUR_NS,
    KEPT_DAYS,
    KEPT_HOURS,
    KEPT_NEWEST,
    Manifest,
    decode_manifest,
    encode_manifest,
    kept,
    manifest_name,
    pack,
    parse_manifest_name,
    unpack,
)

NOW_NS = 1_796_047_509 * 10**9
MOMENTS = st.lists(st.integers(NOW_NS - 20 * DAY_NS, NOW_NS), max_size=60)


def manifest(size: int = 10, piece_size: int = 4, pieces: int = 3, version: int = 1) -> Manifest:
    digests = b"".join(digest_of([bytes([n])]) for n in range(pieces))
    return Manifest(version, "space", NOW_NS, 5, size, piece_size, digests, "0.1")


def unpacked(body: bytes, digest: bytes, length: int) -> bytes | Kind:
    """The piece, or how it failed."""
    try:
        return unpack(body, digest, length)
    except MictlanError as error:
        return error.kind


def kind_of(name: str, body: bytes) -> Kind:
    parsed = parse_manifest_name(name)
    assert parsed is not None
    with pytest.raises(MictlanError) as raised:
        decode_manifest(parsed, body)
    return raised.value.kind


def test_a_manifest_is_read_back_and_tells_the_length_of_each_piece() -> None:
    body = encode_manifest(manifest())
    name = parse_manifest_name(manifest_name(NOW_NS, body))
    assert name is not None
    assert name.moment_ns == NOW_NS
    found = decode_manifest(name, body)
    assert found == manifest()
    assert [found.length_of(index) for index in range(3)] == [4, 4, 2]
    assert b"".join(found.pieces) == found.digests


def test_names_of_manifests_sort_by_their_moment() -> None:
    names = [manifest_name(moment, b"") for moment in (9, 10, NOW_NS)]
    assert names == sorted(names)


@pytest.mark.parametrize("name", ["piece-00", "meta-1-00", f"meta-{0:020d}-zz", ""])
def test_other_objects_are_no_manifests(name: str) -> None:
    assert parse_manifest_name(name) is None


def test_a_manifest_that_was_changed_is_damaged() -> None:
    body = encode_manifest(manifest())
    name = manifest_name(NOW_NS, body)
    for at in (0, len(body) // 2, len(body) - 1):
        flipped = bytearray(body)
        flipped[at] ^= 1
        assert kind_of(name, bytes(flipped)) is Kind.CORRUPT


@pytest.mark.parametrize("wrong", [manifest(size=13), manifest(pieces=2), manifest(piece_size=0)])
def test_a_manifest_that_contradicts_itself_is_damaged(wrong: Manifest) -> None:
    body = encode_manifest(wrong)
    assert kind_of(manifest_name(NOW_NS, body), body) is Kind.CORRUPT


def test_a_manifest_of_a_newer_program_is_not_read() -> None:
    body = encode_manifest(manifest(version=form.FORMAT + 1))
    assert kind_of(manifest_name(NOW_NS, body), body) is Kind.UNSUPPORTED


@pytest.mark.parametrize("length", [1, 4096, form.PIECE_SIZE_BYTES])
def test_a_piece_is_read_back_and_any_flipped_bit_is_seen(length: int) -> None:
    piece = random.Random(1).randbytes(length // 2) + bytes(length - length // 2)
    body = pack(piece)
    digest = digest_of([piece])
    assert unpack(body, digest, length) == piece
    for at in random.Random(2).sample(range(len(body)), min(40, len(body))):
        flipped = bytearray(body)
        flipped[at] ^= 0x10
        # A bit of the frame may say nothing; then the piece is whole.
        assert unpacked(bytes(flipped), digest, length) in {piece, Kind.CORRUPT}


def test_a_piece_of_another_length_is_damaged() -> None:
    piece = b"x" * 100
    with pytest.raises(MictlanError):
        unpack(pack(piece), digest_of([piece]), 99)


@given(MOMENTS)
def test_the_newest_ones_are_always_kept_and_nothing_is_made_up(moments: list[int]) -> None:
    chosen = kept(moments, NOW_NS)
    assert chosen <= set(moments)
    assert chosen >= set(sorted(set(moments))[-KEPT_NEWEST:])


@given(MOMENTS)
def test_few_are_kept_and_one_of_each_recent_hour_and_day(moments: list[int]) -> None:
    chosen = kept(moments, NOW_NS)
    assert len(chosen) <= KEPT_NEWEST + KEPT_HOURS + KEPT_DAYS
    for step, count in ((HOUR_NS, KEPT_HOURS), (DAY_NS, KEPT_DAYS)):
        recent = {m // step for m in moments if m // step > NOW_NS // step - count}
        assert recent <= {m // step for m in chosen}


@given(MOMENTS, MOMENTS)
def test_what_is_thinned_out_stays_so(first: list[int], later: list[int]) -> None:
    once = kept(first, NOW_NS)
    assert kept([*once, *later], NOW_NS) == kept([*first, *later], NOW_NS) & {*once, *later}
