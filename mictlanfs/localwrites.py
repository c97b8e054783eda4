"""Chunks that mounts write into files of peers on their machine themselves; both ends.

Beside the socket of `mictlanfs.localchunks` a peer has a second one, at the same name with
`/write` behind it, that speaks packets too. A connection stores one chunk after the other::

    client                                     peer
    grant: id, digest, length         ->       makes a temporary file
                                      <-       GRANTED, and a descriptor for writing to it
    writes the bytes, closes the
    descriptor, and sends: WRITTEN    ->       compares, syncs, publishes
                                      <-       STORED

In the place of both answers there may be FAILED, with the error behind it: the same that a put by
HTTP would meet. STORED comes at once for a chunk that the peer has. A peer whose connection ends
before WRITTEN forgets the file.

The peer believes nothing of this: it sees to it that nobody can write to the file any more (by a
lease, fcntl(2)), reads all of it, and compares it with the digest, as it does with bytes that come
by HTTP. Who may connect is decided as in `mictlanfs.localchunks`. Source: unix(7), fcntl(2).
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

import msgspec

from mictlanfs.errors import MictlanError
from mictlanfs.localchunks import socket_name
from mictlanfs.model import CHUNK_ID_SIZE_BYTES, DIGEST_SIZE_BYTES, KIB, ChunkId
from mictlanfs.wire import WireError

_GRANT: Final = struct.Struct(f"<{CHUNK_ID_SIZE_BYTES}s{DIGEST_SIZE_BYTES}sI")
GRANT_SIZE_BYTES: Final = _GRANT.size
WRITTEN: Final = b"w"
ANSWER_SIZE_BYTES_MAX: Final = 64 * KIB
# Of the text in an error, so that its packet is small.
_DETAIL_LENGTH_MAX: Final = 1000


class State(enum.IntEnum):
    """What an answer says; its first byte."""

    GRANTED = 1
    STORED = 2
    FAILED = 3


class Grant(NamedTuple):
    """A request to write a chunk."""

    id: ChunkId
    digest: bytes
    length: int


def write_socket_name(space_id: str, peer_id: str) -> str:
    """The name of a peer's socket for writing."""
    return socket_name(space_id, peer_id) + "/write"


def pack_grant(grant: Grant) -> bytes:
    """The packet that asks for a file."""
    return _GRANT.pack(*grant)


def unpack_grant(packet: bytes) -> Grant:
    """What `pack_grant` packed. Raises ValueError when it is not that."""
    if len(packet) != _GRANT.size:
        raise ValueError(f"{len(packet)} bytes do not ask for a file")
    chunk_id, digest, length = _GRANT.unpack(packet)
    return Grant(ChunkId(chunk_id), digest, length)


def pack_failure(error: MictlanError) -> bytes:
    """The answer that tells of an error."""
    told = WireError.of(error)
    told = msgspec.structs.replace(told, detail=told.detail[:_DETAIL_LENGTH_MAX])
    return bytes([State.FAILED]) + msgspec.msgpack.encode(told)


def unpack_answer(packet: bytes) -> State:
    """What an answer says.

    Raises:
        MictlanError: the one that FAILED came with.
        ValueError: it is no answer, or there is none.
    """
    if not packet:
        raise ValueError("the peer has hung up")
    state = State(packet[0])
    if state is State.FAILED:
        try:
            told = msgspec.msgpack.decode(packet[1:], type=WireError)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from error
        raise told.to_error()
    return state
