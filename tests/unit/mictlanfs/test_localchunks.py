import os
import socket
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.localchunks import (
    ANSWER_SIZE_BYTES_MAX,
    REQUEST_CHUNKS_MAX,
    REQUEST_SIZE_BYTES_MAX,
    SUMS_SIZE_BYTES_MAX,
    is_trusted,
    pack_answer,
    socket_name,
    split_ids,
    unpack_answer,
)
from mictlanfs.model import CHUNK_ID_SIZE_BYTES

SUMS = st.lists(st.none() | st.binary(max_size=300), min_size=1, max_size=REQUEST_CHUNKS_MAX)


class Credentials:
    """A socket at whose other end somebody is."""

    def __init__(self, uid: int) -> None:
        self.uid = uid

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes:
        assert (level, optname) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
        return struct.pack("3i", 1, self.uid, 1)[:buflen]


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=REQUEST_CHUNKS_MAX))
def test_ids_are_split_as_they_were_joined(ids: list[bytes]) -> None:
    assert split_ids(b"".join(ids)) == ids


@pytest.mark.parametrize("size", [0, 1, 15, 17, 31, REQUEST_SIZE_BYTES_MAX + CHUNK_ID_SIZE_BYTES])
def test_what_is_no_list_of_ids_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"^{size} bytes are no list"):
        split_ids(bytes(size))


@given(SUMS)
def test_an_answer_is_unpacked_as_it_was_packed(all_sums: list[bytes | None]) -> None:
    packet = pack_answer(all_sums)
    assert len(packet) <= ANSWER_SIZE_BYTES_MAX
    assert unpack_answer(packet, len(all_sums)) == all_sums


def test_sums_that_do_not_fit_are_left_out_and_the_chunk_is_not() -> None:
    half = bytes(SUMS_SIZE_BYTES_MAX // 2)
    all_sums = [half, bytes(SUMS_SIZE_BYTES_MAX), None, half, b"x"]
    packet = pack_answer(all_sums)
    assert unpack_answer(packet, 5) == [half, b"", None, half, b""]
    assert len(packet) <= ANSWER_SIZE_BYTES_MAX


@given(SUMS, st.integers(-3, 3))
def test_an_answer_for_another_number_of_chunks_is_not_taken(
    all_sums: list[bytes | None], more: int
) -> None:
    packet = pack_answer(all_sums)
    count = max(0, len(all_sums) + more)
    if count == len(all_sums):
        return
    try:
        found = unpack_answer(packet, count)
    except ValueError:
        return
    # By chance the bytes may be an answer; then it is one for as many.
    assert len(found) == count


@given(st.binary(max_size=200), st.integers(0, REQUEST_CHUNKS_MAX))
def test_any_bytes_are_an_answer_or_a_value_error(packet: bytes, count: int) -> None:
    with suppress(ValueError):
        assert len(unpack_answer(packet, count)) == count


@pytest.mark.parametrize("change", [-1, 1])
def test_an_answer_that_is_cut_or_goes_on_is_refused(change: int) -> None:
    packet = pack_answer([b"12345678", None])
    wrong = packet[:change] if change < 0 else packet + bytes(change)
    with pytest.raises(ValueError, match="bytes are not the"):
        unpack_answer(wrong, 2)
    with pytest.raises(ValueError, match="no answer for 2 chunks"):
        unpack_answer(packet[:9], 2)


def test_only_root_and_the_own_user_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert is_trusted(Credentials(0))
    assert is_trusted(Credentials(1000))
    assert not is_trusted(Credentials(1001))
    # As of a socket that is not connected.
    assert not is_trusted(Credentials(-1))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not is_trusted(Credentials(1000))


def test_a_connected_socket_tells_who_is_there() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        assert is_trusted(left)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as alone:
        assert not is_trusted(alone)


def test_names_of_sockets_are_abstract_and_differ() -> None:
    names = {socket_name(space, peer) for space in ("a", "b") for peer in ("c", "d")}
    assert len(names) == 4
    assert all(name.startswith("\0") for name in names)
