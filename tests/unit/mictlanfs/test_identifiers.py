import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.identifiers import (
    boot_id,
    chunk_id_from_hex,
    new_chunk_id,
    new_token,
    reader_number,
)
from mictlanfs.model import CHUNK_ID_SIZE_BYTES, ChunkId
from tests.support.strategies import chunk_ids


def test_chunk_ids_have_their_size_and_never_repeat() -> None:
    ids = {new_chunk_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(chunk_id) for chunk_id in ids} == {CHUNK_ID_SIZE_BYTES}


def test_chunk_ids_of_a_later_millisecond_sort_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for now_ms in (1, 2, 255, 256, 1_700_000_000_000, 1_700_000_000_001):
        monkeypatch.setattr(time, "time_ns", lambda now=now_ms: now * 1_000_000)
        ids.append(new_chunk_id())
    assert ids == sorted(ids)


@given(chunk_ids)
def test_a_chunk_id_survives_as_text(chunk_id: ChunkId) -> None:
    assert chunk_id_from_hex(chunk_id.hex()) == chunk_id


@given(st.text(max_size=40).filter(lambda text: len(text) != 32))
def test_text_of_another_length_is_no_chunk_id(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        chunk_id_from_hex(text)


@pytest.mark.parametrize("text", ["g" * 32, "00 " * 10 + "00", " " * 32, "\u0660" * 32])
def test_text_that_is_not_hexadecimal_is_no_chunk_id(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        chunk_id_from_hex(text)


def test_tokens_are_128_bits_of_text_and_never_repeat() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(bytes.fromhex(token)) == 16 for token in tokens)


def test_the_boot_id_stays_the_same() -> None:
    assert boot_id() == boot_id()


def test_there_is_no_boot_id_where_the_kernel_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> str:
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert boot_id() == ""


def test_readers_draw_different_numbers() -> None:
    assert len({reader_number() for _ in range(32)}) > 8
