"""Finds chunks again that moved: copies go elsewhere while clients keep extents under a lease.

Owns what was found out, for as many chunks as it remembers. Asks a router for many chunks at once,
and only when nobody of the peers that were known served one.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from mictlanfs.client.lanes import Lane
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Chunk, ChunkId
from mictlanfs.wirecopies import LOCATE_COUNT_MAX

log = logging.getLogger(__name__)

FetchPlaces = Callable[[Sequence[ChunkId]], Awaitable[Sequence[Chunk | None]]]

# About 2 MB: the chunks of 64 GiB.
REMEMBERED_COUNT_MAX: Final = 16_384
# A router that is away must not hold up a reader that has other peers to try again.
TIMEOUT_S: Final = 5.0


class Locator:
    """Where chunks are that are not where they were.

    Args:
        nursery: for requests.
        fetch: asks a router.
    """

    def __init__(self, nursery: trio.Nursery, fetch: FetchPlaces) -> None:
        self._fetch = fetch
        self._moved: OrderedDict[ChunkId, Chunk] = OrderedDict()
        self._lane: Lane[ChunkId, Chunk | MictlanError] = Lane(
            nursery, self._send, LOCATE_COUNT_MAX, LOCATE_COUNT_MAX
        )

    def known(self, chunk: Chunk) -> Chunk:
        """The chunk with the peers that were found last, if they were looked for."""
        return self._moved.get(chunk.id, chunk) if self._moved else chunk

    async def locate(self, chunk: Chunk) -> Chunk | None:
        """The chunk with its peers now; None when there is no telling, or it is gone."""
        found: Chunk | MictlanError | None = None
        with trio.move_on_after(TIMEOUT_S):
            try:
                found = await self._lane.submit(chunk.id, 1)
            except MictlanError as error:
                log.info("chunk %s is not located: %s", chunk.id.hex(), error)
        if not isinstance(found, Chunk):
            return None
        self._moved[chunk.id] = found
        self._moved.move_to_end(chunk.id)
        if len(self._moved) > REMEMBERED_COUNT_MAX:
            self._moved.popitem(last=False)
        return found

    async def _send(self, ids: Sequence[ChunkId]) -> Sequence[Chunk | MictlanError]:
        return [
            MictlanError(Kind.NOT_FOUND, "locate", chunk_id.hex()) if chunk is None else chunk
            for chunk_id, chunk in zip(ids, await self._fetch(ids), strict=True)
        ]
