"""Fragments made again: a peer fetches others of the chunk and computes the one that it shall have.

So the bytes travel between peers alone. Owns the bound on how many are made at a time; their bytes
are taken from the budget of uploads. Never decides which fragment goes where.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from mictlanfs import fragments, wire
from mictlanfs.checksums import DIGEST_SIZE_BYTES, digest_of
from mictlanfs.client.peers import PeerClient
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import CHUNK_ID_SIZE_BYTES, DATA_FRAGMENTS_MAX, PARITY_FRAGMENTS_MAX
from mictlanfs.wirefragments import FragmentMade, MakeFragment
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.store import ChunkStore, check_length

if TYPE_CHECKING:
    from mictlanfs.client.transport import HttpTransport
    from mictlanfs.model import Buffer

log = logging.getLogger(__name__)

URL_LENGTH_MAX: Final = 2048
MADE_AT_ONCE: Final = 2
# What a source says, or turns out to have, when it has not what it should.
_BAD: Final = frozenset({Kind.NOT_FOUND, Kind.CORRUPT})


class Rebuilder:
    """Makes fragments for a store.

    Args:
        store: that gets them.
        transport: to other peers; not closed here.
    """

    def __init__(self, store: ChunkStore, transport: HttpTransport) -> None:
        self._store = store
        self._peers = PeerClient(transport)
        self._turns = asyncio.Semaphore(MADE_AT_ONCE)

    async def make(self, request: MakeFragment) -> FragmentMade:
        """Make a fragment; returns when it is durable, or what is in the way.

        Cancellation: it is stored whole or not at all.

        Raises:
            MictlanError: INVALID (what is asked for cannot be).
        """
        check_request(request)
        bad: list[int] = []
        try:
            async with self._turns:
                await self._make(request, bad)
        except MictlanError as error:
            return FragmentMade(wire.WireError.of(error), tuple(sorted(bad)))
        return FragmentMade(None, tuple(sorted(bad)))

    async def _make(self, request: MakeFragment, bad: list[int]) -> None:
        coding = request.coding
        size = fragments.fragment_size(request.length, coding.data)
        chunk = StoredChunk(request.id, size, coding.digest(request.index))
        if await self._has(chunk):
            return
        # As many bytes as there may be of others.
        async with self._store.uploads.take(request.length):
            body = await self._fetch(request, request.index, bad)
            if body is None:
                body = await self._computed(request, bad)
            [error] = await self._store.put_many([(chunk, body)])
        if error is not None:
            raise error

    async def _has(self, chunk: StoredChunk) -> bool:
        try:
            return self._store.has(chunk)
        except MictlanError as error:
            if error.kind is not Kind.CONFLICT:
                raise
        # A fragment of before: whoever asks knows that nobody counts on it.
        [failure] = await self._store.delete([chunk.id])
        if failure is not None:
            raise failure
        return False

    async def _computed(self, request: MakeFragment, bad: list[int]) -> Buffer:
        """The fragment from others. Raises UNAVAILABLE when these are too few."""
        coding = request.coding
        have: dict[int, Buffer] = {}
        waiting = [index for index in coding.indices if index != request.index]
        while waiting and len(have) < coding.data:
            count = coding.data - len(have)
            asked, waiting = waiting[:count], waiting[count:]
            bodies = await asyncio.gather(*(self._fetch(request, i, bad) for i in asked))
            have.update((i, body) for i, body in zip(asked, bodies, strict=True) if body)
        if len(have) < coding.data:
            detail = f"only {len(have)} of {coding.data} fragments can be read"
            raise MictlanError(Kind.UNAVAILABLE, "make fragment", request.id.hex(), detail)
        [body] = await asyncio.to_thread(fragments.decode, have, coding, [request.index])
        return body

    async def _fetch(self, request: MakeFragment, index: int, bad: list[int]) -> Buffer | None:
        """A fragment that another peer has, verified; None when it cannot be had."""
        if index not in request.coding.indices:
            return None
        url = request.sources[request.coding.indices.index(index)]
        size = fragments.fragment_size(request.length, request.coding.data)
        digest = request.coding.digest(index)
        try:
            body = await self._peers.get(url, request.id, 0, size, digest)
            if await asyncio.to_thread(digest_of, [body]) != digest:
                raise MictlanError(Kind.CORRUPT, "get chunk", request.id.hex(), url)
        except MictlanError as error:
            log.info("fragment %d of %s not from %s: %s", index, request.id.hex(), url, error)
            if error.kind in _BAD:
                bad.append(index)
            return None
        return body


def check_request(request: MakeFragment) -> None:
    """Raises INVALID for what cannot be made."""

    def refuse(detail: str) -> MictlanError:
        return MictlanError(Kind.INVALID, "make fragment", detail=detail)

    coding = request.coding
    count_max = DATA_FRAGMENTS_MAX + PARITY_FRAGMENTS_MAX
    if len(request.id) != CHUNK_ID_SIZE_BYTES or len(coding.digests) % DIGEST_SIZE_BYTES:
        raise refuse("the id or a digest has another size")
    if not 1 <= coding.data < coding.count <= count_max:
        raise refuse("there cannot be so many fragments")
    check_length(request.length)
    if not all(0 <= index < coding.count for index in (*coding.indices, request.index)):
        raise refuse("there is no fragment of that number")
    if len(request.sources) != len(coding.indices):
        raise refuse("each source has one fragment")
    for url in request.sources:
        if not url.startswith(("http://", "https://")) or len(url) > URL_LENGTH_MAX:
            raise refuse("a source is an http or https URL")
