"""Inline chunks: those whose bytes came inside the operation and are kept in the metadata.

Knows which bytes must come along, checks them, and says when they are kept. `removal` lets go of
them. Invariant: a live chunk has either bytes here or a replica on a peer, never both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind
from mictlanfs_server.metadata.checks import failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mictlanfs.model import Chunk, ChunkId
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


def keep_bodies(
    tx: Transaction,
    chunks: Sequence[Chunk],
    fresh: Mapping[ChunkId, Chunk],
    bodies: Mapping[ChunkId, bytes],
) -> None:
    """Keep the bytes of new chunks that are referred to; let go of those that peers hold now."""
    on_peers = {chunk.id for chunk in chunks if chunk.peers}
    for chunk_id in bodies.keys() & fresh.keys() - on_peers:
        known = tx.rows.chunk(chunk_id)
        if known is not None and not known.is_dead:
            tx.rows.insert_inline(chunk_id, bodies[chunk_id])
    for chunk_id in on_peers - fresh.keys():
        tx.rows.delete_inline(chunk_id)
