"""Identifiers that are made without asking anybody."""

from __future__ import annotations

import os
import time
from pathlib import Path

from mictlanfs.model import CHUNK_ID_SIZE_BYTES, ChunkId

_TIME_SIZE_BYTES = 6


def new_chunk_id() -> ChunkId:
    """A fresh chunk id: 48 bits of milliseconds since the epoch, then 80 random bits.

    Time-ordered, so that neighbours in time are neighbours in an index.
    """
    milliseconds = time.time_ns() // 1_000_000
    return ChunkId(
        milliseconds.to_bytes(_TIME_SIZE_BYTES, "big")
        + os.urandom(CHUNK_ID_SIZE_BYTES - _TIME_SIZE_BYTES)
    )


def made_at_ns(chunk_id: ChunkId) -> int:
    """When a chunk id was made, by the clock of its maker: nanoseconds since the epoch."""
    return int.from_bytes(chunk_id[:_TIME_SIZE_BYTES], "big") * 1_000_000


def chunk_id_from_hex(text: str) -> ChunkId:
    """The chunk id written as 32 hexadecimal digits. ValueError when it is not one."""
    raw = bytes.fromhex(text)
    if len(raw) != CHUNK_ID_SIZE_BYTES or len(text) != 2 * CHUNK_ID_SIZE_BYTES:
        raise ValueError(f"not a chunk id: {text!r}")
    return ChunkId(raw)


def new_token() -> str:
    """128 random bits as text: names of sessions and spaces."""
    return os.urandom(16).hex()


def reader_number() -> int:
    """A number by which clients prefer other copies than their neighbours do.

    Drawn by lot: in containers, where every mount may be process 1, process numbers are all the
    same.
    """
    return int.from_bytes(os.urandom(2), "big")


def boot_id() -> str:
    """Identifies this boot of this machine; empty where the kernel does not tell.

    Source: proc(5), /proc/sys/kernel/random/boot_id.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
