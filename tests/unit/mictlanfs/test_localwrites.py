import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.localchunks import socket_name
from mictlanfs.localwrites import (
    ANSWER_SIZE_BYTES_MAX,
    GRANT_SIZE_BYTES,
    Grant,
    State,
    pack_failure,
    pack_grant,
    unpack_answer,
    unpack_grant,
    write_socket_name,
)


def test_a_grant_arrives_as_it_was_asked_for() -> None:
    grant = Grant(new_chunk_id(), bytes(range(32)), 4_000_000)
    packet = pack_grant(grant)
    assert len(packet) == GRANT_SIZE_BYTES
    assert unpack_grant(packet) == grant


@pytest.mark.parametrize("packet", [b"", b"w", bytes(GRANT_SIZE_BYTES - 1), bytes(100)])
def test_what_asks_for_no_file_is_refused(packet: bytes) -> None:
    with pytest.raises(ValueError, match="ask for a file"):
        unpack_grant(packet)


@pytest.mark.parametrize("state", [State.GRANTED, State.STORED])
def test_an_answer_says_one_thing(state: State) -> None:
    assert unpack_answer(bytes([state])) is state


def test_an_error_arrives_with_its_kind_and_in_a_small_packet() -> None:
    packet = pack_failure(MictlanError(Kind.NO_SPACE, "put chunk", "7f", "x" * 100_000))
    assert len(packet) < ANSWER_SIZE_BYTES_MAX
    with pytest.raises(MictlanError) as caught:
        unpack_answer(packet)
    assert caught.value.kind is Kind.NO_SPACE
    assert caught.value.target == "7f"


@pytest.mark.parametrize("packet", [b"", b"\0", b"\x09", bytes([State.FAILED]), b"\x03\xc1"])
def test_what_is_no_answer_is_refused(packet: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        unpack_answer(packet)


def test_the_two_sockets_of_a_peer_have_names_of_their_own() -> None:
    assert write_socket_name("space", "peer") != socket_name("space", "peer")
    assert write_socket_name("space", "peer").startswith("\0mictlanfs/space/peer")
