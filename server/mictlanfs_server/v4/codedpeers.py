"""Coded chunks for a door: the fragments of a chunk, each on a peer of its own.

`mictlanfs.client.coded` does the same for trio; both leave the decisions to `client.gathering`.
Never retries, and waits for every peer that was asked to store a fragment: what it may hold has to
be known when an upload is taken back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from mictlanfs import fragments, wire
from mictlanfs.client.coded import framed_of, placed
from mictlanfs.client.gathering import HEDGE_S, Asked, Gathering, requests_of
from mictlanfs.errors import MictlanError
from mictlanfs.model import BucketPolicy, Buffer, Chunk, ChunkId, PeerInfo, PeerNumber

if TYPE_CHECKING:
    from mictlanfs.client.peermap import PeerDirectory

Put = Callable[[PeerInfo, wire.FrameChunk, Buffer], Awaitable[MictlanError | None]]
Get = Callable[[PeerInfo, wire.FrameChunk, int, int], Awaitable[Buffer]]


class CodedPeers:
    """Stores and fetches coded chunks. Belongs to one event loop.

    Args:
        put: store bytes at a peer; gives the error, having told the directory.
        get: bytes of what a peer holds, a whole one verified; raises `MictlanError`, having told
            the directory.
    """

    def __init__(self, directory: PeerDirectory, put: Put, get: Get) -> None:
        self._directory = directory
        self._put = put
        self._get = get

    async def store(
        self,
        chunk_id: ChunkId,
        body: Buffer,
        policy: BucketPolicy,
        candidates: Sequence[PeerInfo],
        tried: set[PeerNumber],
    ) -> Chunk | None:
        """Store `body` as fragments on `candidates`, best first; None when too few take one.

        `tried` gets the number of every peer that may hold a fragment afterwards.
        """
        if len(candidates) < policy.fragments_min:
            return None
        encoded = await asyncio.to_thread(fragments.encode, [body], policy.data, policy.parity)
        framed = framed_of(chunk_id, encoded)
        held: dict[int, PeerNumber] = {}
        untried = list(candidates)
        while len(held) < len(framed) and untried:
            missing = [index for index in range(len(framed)) if index not in held]
            chosen, untried = untried[: len(missing)], untried[len(missing) :]
            tried.update(peer.number for peer in chosen)
            pairs = list(zip(missing, chosen, strict=False))
            outcomes = await asyncio.gather(
                *(self._put(peer, framed[i], encoded.fragments[i]) for i, peer in pairs)
            )
            for (index, peer), error in zip(pairs, outcomes, strict=True):
                if error is None:
                    held[index] = peer.number
        return placed(framed, encoded, policy, len(body), held)

    async def fetch(self, chunk: Chunk, start: int, end: int) -> Buffer:
        """Bytes `[start, end)` of a coded chunk.

        Raises:
            MictlanError: too few fragments can be read: CORRUPT, UNAVAILABLE, TIMED_OUT.
        """
        requests = requests_of(chunk, start, end)
        found = await asyncio.gather(*(self._gather(chunk, *request) for request in requests))
        bodies = [body for bodies in found for body in bodies]
        return bodies[0] if len(bodies) == 1 else fragments.join(bodies, end - start)

    async def _gather(
        self, chunk: Chunk, wanted: Sequence[int], start: int, end: int
    ) -> Sequence[Buffer]:
        assert chunk.coding is not None
        gathering = Gathering(self._directory, chunk, chunk.coding, wanted, start, end)

        async def fetch(asked: Asked) -> None:
            index, peer = asked
            try:
                body = await self._get(peer, gathering.framed(index), start, end)
            except MictlanError as error:
                gathering.failed(index, error)
            else:
                gathering.came(index, body)

        tasks = {asyncio.create_task(fetch(asked)) for asked in gathering.first()}
        try:
            while not gathering.is_over:
                done, tasks = await asyncio.wait(
                    tasks, timeout=HEDGE_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    # What is no `MictlanError` is a mistake of ours.
                    task.result()
                if not done:
                    gathering.waited()
                tasks |= {asyncio.create_task(fetch(asked)) for asked in gathering.further()}
            gathering.end_well()
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
        return (
            gathering.result() if gathering.is_cheap else await asyncio.to_thread(gathering.result)
        )
