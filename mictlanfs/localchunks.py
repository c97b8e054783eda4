"""Descriptors of chunks in the place of their bytes, between processes of one machine; both ends.

A peer listens at an abstract Unix socket whose name follows from its space and its id, so nobody
needs to be told. It speaks packets. A request is up to `REQUEST_CHUNKS_MAX` chunk ids one behind
the other. The answer has a head for each, in the same order: one byte, whether the chunk was
opened, and four bytes little-endian, the size of its checksums. All checksums follow (those of
`mictlanfs.blocksums`; none when the peer has none), and with the packet come the descriptors of
what was opened. A chunk that is not a file of its own, or not there, is not opened: it is asked for
by HTTP, which has the reasons.

Anybody may connect to such a socket and anybody may have bound its name, so both ends look at who
is at the other: only root and the own user count. A descriptor is for reading, and its reader
verifies what it reads: nobody is believed. Source: unix(7), SO_PEERCRED and SCM_RIGHTS.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from mictlanfs.model import CHUNK_ID_SIZE_BYTES, KIB, ChunkId

# The kernel passes at most 253 descriptors at a time: SCM_MAX_FD.
REQUEST_CHUNKS_MAX: Final = 64
REQUEST_SIZE_BYTES_MAX: Final = REQUEST_CHUNKS_MAX * CHUNK_ID_SIZE_BYTES

# Of all checksums of an answer. What does not fit is left out: its reader checks the digest.
SUMS_SIZE_BYTES_MAX: Final = 160 * KIB
_HEAD: Final = struct.Struct("<BI")
ANSWER_SIZE_BYTES_MAX: Final = REQUEST_CHUNKS_MAX * _HEAD.size + SUMS_SIZE_BYTES_MAX
# struct ucred: pid, uid, gid.
_CREDENTIALS: Final = struct.Struct("3i")


class _Socket(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def socket_name(space_id: str, peer_id: str) -> str:
    """The name of a peer's socket; it begins with NUL, which makes it abstract."""
    return f"\0mictlanfs/{space_id}/{peer_id}"


def is_trusted(connected: _Socket) -> bool:
    """Whether root or the own user is at the other end of a Unix socket."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return uid in {0, os.geteuid()}


def split_ids(packet: bytes) -> list[ChunkId]:
    """The ids of a request. Raises ValueError when it is none."""
    count, rest = divmod(len(packet), CHUNK_ID_SIZE_BYTES)
    if rest or not 1 <= count <= REQUEST_CHUNKS_MAX:
        raise ValueError(f"{len(packet)} bytes are no list of chunk ids")
    return list(_cut(packet))


def _cut(packet: bytes) -> Iterator[ChunkId]:
    for start in range(0, len(packet), CHUNK_ID_SIZE_BYTES):
        yield ChunkId(packet[start : start + CHUNK_ID_SIZE_BYTES])


def pack_answer(all_sums: Sequence[bytes | None]) -> bytes:
    """An answer: the checksums of each chunk that was opened, None for each that was not."""
    heads, bodies, room = [], [], SUMS_SIZE_BYTES_MAX
    for sums in all_sums:
        body = sums if sums is not None and len(sums) <= room else b""
        room -= len(body)
        heads.append(_HEAD.pack(sums is not None, len(body)))
        bodies.append(body)
    return b"".join(heads + bodies)


def unpack_answer(packet: bytes, count: int) -> list[bytes | None]:
    """What `pack_answer` packed for `count` chunks. Raises ValueError when it is not that."""
    position = count * _HEAD.size
    if len(packet) < position:
        raise ValueError(f"{len(packet)} bytes are no answer for {count} chunks")
    all_sums: list[bytes | None] = []
    for is_opened, size in _HEAD.iter_unpack(packet[:position]):
        all_sums.append(packet[position : position + size] if is_opened else None)
        position += size
    if position != len(packet):
        raise ValueError(f"{len(packet)} bytes are not the {position} that the heads announce")
    return all_sums
