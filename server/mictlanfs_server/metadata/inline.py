"""Inline chunks: those whose bytes came inside the operation and are kept in the metadata.

Knows which bytes must come along, checks them, and says where they are kept. `removal` tells which
are not needed any more. Invariant: a live chunk has either bytes here or a replica on a peer, never
both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind
from mictlanfs_server.metadata.checks import failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mictlanfs.model import ChunkId
    from mictlanfs_server.metadata.transaction import Transaction


def checked_bodies(op: wire.WriteExtents) -> dict[ChunkId, bytes]:
    """The bytes that came along, by chunk. Raises INVALID when they are not what they should be."""
    inline = [chunk for chunk in op.chunks if not chunk.peers]
    if len(inline) != len(op.inline):
        detail = f"{len(op.inline)} bodies came for {len(inline)} chunks without a peer"
        raise failure(Kind.INVALID, "write", op.ino, detail)
    bodies = {}
    for chunk, body in zip(inline, op.inline, strict=True):
        if not body:
            continue
        if len(body) > wire.INLINE_CHUNK_SIZE_BYTES_MAX:
            detail = f"chunk {chunk.id.hex()} is too large to be kept in the metadata"
            raise failure(Kind.INVALID, "write", op.ino, detail)
        if len(body) != chunk.length or digest_of([body]) != chunk.digest:
            detail = f"the bytes of chunk {chunk.id.hex()} are not those of its digest"
            raise failure(Kind.INVALID, "write", op.ino, detail)
        bodies[chunk.id] = body
    return bodies


def keep_bodies(tx: Transaction, bodies: Mapping[ChunkId, bytes], gone: Sequence[ChunkId]) -> None:
    """Keep the bytes of new chunks, in the places of those of chunks that are gone."""
    places = list(gone)
    for chunk_id, body in bodies.items():
        if places:
            tx.rows.replace_inline(places.pop(0), chunk_id, body)
        else:
            tx.rows.insert_inline(chunk_id, body)
    for chunk_id in places:
        tx.rows.delete_inline(chunk_id)
