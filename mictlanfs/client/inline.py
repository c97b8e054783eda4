"""Inline chunks at the writing and the reading end: small bytes that live in the metadata.

A writer makes them here, sends them in its commit, and no peer is asked. A reader mostly gets their
bytes with the extents; what did not come along is fetched from a router, many chunks in a request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final

import trio

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.client.lanes import Lane
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import KIB, Chunk, ChunkId, inline_bodies

# Bytes that a writer keeps in the metadata rather than give them to peers.
INLINE_SIZE_BYTES_DEFAULT: Final = 8 * KIB
# Bytes that a reader wants along with one file: a few files written in parts have more.
INLINE_WITH_NODE_SIZE_BYTES: Final = 64 * KIB

FetchInline = Callable[[Sequence[ChunkId]], Awaitable[Sequence[bytes]]]


def inline_chunk(body: bytes) -> Chunk:
    """A new chunk of these bytes that no peer holds."""
    return Chunk(new_chunk_id(), len(body), digest_of([body]), ())


def bodies_along(chunks: Iterable[Chunk], bodies: Iterable[bytes]) -> Iterator[tuple[Chunk, bytes]]:
    """The inline chunks whose bytes came along with extents, with these.

    What is not as the digest says is left out: asking for it again tells why.
    """
    for chunk, body in inline_bodies(chunks, bodies):
        if len(body) == chunk.length and digest_of([body]) == chunk.digest:
            yield chunk, body


class InlineChunks:
    """Fetches the bytes of inline chunks that did not come along with their extents."""

    def __init__(self, nursery: trio.Nursery, fetch: FetchInline) -> None:
        self._fetch = fetch
        self._lane: Lane[ChunkId, bytes] = Lane(
            nursery, self._send, wire.FRAME_CHUNKS_MAX, wire.INLINE_ANSWER_SIZE_BYTES_MAX
        )

    async def _send(self, ids: Sequence[ChunkId]) -> Sequence[bytes | MictlanError]:
        return await self._fetch(ids)

    async def fetch(self, chunk: Chunk) -> bytes:
        """The bytes of a chunk.

        Raises:
            MictlanError: CORRUPT when the router has them no more, or not as they were: the extent
                was replaced, or the chunk moved to peers. As a router answers, else.
        """
        body = await self._lane.submit(chunk.id, chunk.length)
        if len(body) != chunk.length or digest_of([body]) != chunk.digest:
            detail = "the metadata does not hold its bytes"
            raise MictlanError(Kind.CORRUPT, "get chunk", chunk.id.hex(), detail)
        return body
