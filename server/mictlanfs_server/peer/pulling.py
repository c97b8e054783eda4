"""Copies between peers: a peer fetches chunks from another one, verifies them and stores them.

So the bytes of a copy travel once, and no router carries them. Owns the bound on how many chunks
are under way at a time; their bytes are taken from the budget of uploads, as those that clients
send. Never decides which chunk goes where.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.client.peers import PeerClient
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import SMALL_CHUNK_SIZE_BYTES
from mictlanfs.wirecopies import PULL_SIZE_BYTES_MAX, PullChunks
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.store import ChunkStore, check_length

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mictlanfs.client.transport import HttpTransport
    from mictlanfs.model import Buffer

log = logging.getLogger(__name__)

URL_LENGTH_MAX: Final = 2048
# Large chunks fetched at a time, of all pulls together: two keep a disk and a link busy, and leave
# most of the budget of uploads to clients.
LARGE_AT_ONCE: Final = 2

Outcome = MictlanError | None


class Puller:
    """Fetches chunks into a store.

    Args:
        store: that gets them.
        transport: to other peers; not closed here.
    """

    def __init__(self, store: ChunkStore, transport: HttpTransport) -> None:
        self._store = store
        self._peers = PeerClient(transport)
        self._turns = asyncio.Semaphore(LARGE_AT_ONCE)

    async def pull(self, request: PullChunks) -> list[Outcome]:
        """Fetch chunks; what became of each, None: it is here, durably.

        Cancellation: each is stored whole or not at all.

        Raises:
            MictlanError: INVALID (what is asked for cannot be).
        """
        check_pull(request)
        outcomes: list[Outcome] = [None] * len(request.chunks)
        small: list[int] = []
        large: list[int] = []
        for index, chunk in enumerate(request.chunks):
            stored = _stored(chunk)
            try:
                if not self._store.has(stored):
                    (small if chunk.length < SMALL_CHUNK_SIZE_BYTES else large).append(index)
            except MictlanError as error:
                outcomes[index] = error
        for part in _parts(request.chunks, small):
            chunks = [request.chunks[index] for index in part]
            for index, outcome in zip(
                part, await self._pull_small(request.source, chunks), strict=True
            ):
                outcomes[index] = outcome

        async def pull_one(index: int) -> None:
            outcomes[index] = await self._pull_large(request.source, request.chunks[index])

        async with asyncio.TaskGroup() as tasks:
            for index in large:
                tasks.create_task(pull_one(index))
        return outcomes

    async def _pull_small(self, source: str, chunks: Sequence[wire.FrameChunk]) -> list[Outcome]:
        async with self._store.uploads.take(sum(chunk.length for chunk in chunks)):
            try:
                found = await self._peers.get_frame(source, [chunk.id for chunk in chunks])
            except MictlanError as error:
                return [error] * len(chunks)
            outcomes: list[Outcome] = [
                body if isinstance(body, MictlanError) else None for body in found
            ]
            bodies: list[tuple[StoredChunk, Buffer]] = [
                (_stored(chunk), body)
                for chunk, body in zip(chunks, found, strict=True)
                if not isinstance(body, MictlanError)
            ]
            stored = iter(await self._store.put_many(bodies))
            return [outcome if outcome is not None else next(stored) for outcome in outcomes]

    async def _pull_large(self, source: str, chunk: wire.FrameChunk) -> Outcome:
        async with self._turns, self._store.uploads.take(chunk.length):
            try:
                body = await self._peers.get(source, chunk.id, 0, chunk.length)
                [outcome] = await self._store.put_many([(_stored(chunk), body)])
            except MictlanError as error:
                return error
            return outcome


def check_pull(request: PullChunks) -> None:
    """Raises INVALID for what cannot be pulled."""

    def refuse(detail: str) -> MictlanError:
        return MictlanError(Kind.INVALID, "pull", detail=detail)

    if not request.source.startswith(("http://", "https://")):
        raise refuse("the source is an http or https URL")
    if len(request.source) > URL_LENGTH_MAX:
        raise refuse("the URL of the source is too long")
    if not 0 < len(request.chunks) <= wire.FRAME_CHUNKS_MAX:
        raise refuse(f"1 to {wire.FRAME_CHUNKS_MAX} chunks can be pulled at once")
    size = sum(chunk.length for chunk in request.chunks)
    if size > PULL_SIZE_BYTES_MAX and len(request.chunks) > 1:
        raise refuse(f"{size} bytes are more than {PULL_SIZE_BYTES_MAX}")
    for chunk in request.chunks:
        check_length(chunk.length)


def _stored(chunk: wire.FrameChunk) -> StoredChunk:
    return StoredChunk(chunk.id, chunk.length, chunk.digest)


def _parts(chunks: Sequence[wire.FrameChunk], indices: Sequence[int]) -> Iterator[list[int]]:
    """`indices` in parts whose chunks fit into a frame."""
    part: list[int] = []
    size = 0
    for index in indices:
        if part and size + chunks[index].length > wire.FRAME_SIZE_BYTES_MAX:
            yield part
            part, size = [], 0
        part.append(index)
        size += chunks[index].length
    if part:
        yield part
