"""Coded chunks as the space keeps them: fragments, each on a peer of its own.

Owns which peer gets which fragment, and when to stop waiting; `gathering` decides what is read.
Part of `chunks`, which offers the requests to peers. Invariants: `store` returns only when enough
fragments for the policy are durable; whole fragments are compared with their digests before any
byte of them is used, and a peer serves parts of the very fragment that is asked for only.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import trio

from mictlanfs import fragments, wire
from mictlanfs.client.gathering import HEDGE_S, Asked, Gathering, requests_of
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.errors import MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import BucketPolicy, Buffer, Chunk, ChunkId, Coding, PeerInfo, PeerNumber

log = logging.getLogger(__name__)

# For how long further fragments are waited for once one is stored: when these are enough, and when
# they are not. Or as many times as long as that one took: a slow network is slow for all.
STRAGGLER_S: Final = 2.0
SHORTAGE_S: Final = 5.0
# Chunks that are held as fragments at a time: up to 11 MB each of 4 MiB as 3+2, beside their bytes.
ENCODED_MAX: Final = 4
_STRAGGLER_RATIO: Final = 1
_SHORTAGE_RATIO: Final = 4

Put = Callable[[PeerInfo, wire.FrameChunk, Sequence[Buffer]], Awaitable[None]]
Get = Callable[[PeerInfo, wire.FrameChunk, int, int], Awaitable[Buffer]]


class CodedChunks:
    """Stores and fetches coded chunks. Never retries.

    Args:
        put: store bytes at a peer; raises `MictlanError`, having told the directory.
        get: bytes of what a peer holds; the same. A whole one is verified.
    """

    def __init__(self, directory: PeerDirectory, put: Put, get: Get) -> None:
        self._directory = directory
        self._put = put
        self._get = get
        self._turns = trio.Semaphore(ENCODED_MAX)

    # --- storing ---------------------------------------------------------------------------------

    async def store(
        self, pieces: Sequence[Buffer], length: int, policy: BucketPolicy
    ) -> Chunk | None:
        """Store `pieces`, joined, as fragments; None when too few peers take one.

        Good with all fragments stored, or with `policy.fragments_min` when the other peers fail or
        let wait. After None, peers may hold fragments that nothing refers to.

        Cancellation: as after None.
        """
        chunk_id = new_chunk_id()
        if len(self._directory.candidates(chunk_id)) < policy.fragments_min:
            return None
        async with self._turns:
            encoded = await _encoded(pieces, length, policy)
            framed = framed_of(chunk_id, encoded)
            placing = _Placing(self._directory, self._put, framed, encoded.fragments)
            await placing.run(policy.fragments_min)
            return placed(framed, encoded, policy, length, placing.held)

    # --- fetching --------------------------------------------------------------------------------

    async def fetch(self, chunk: Chunk, start: int, end: int) -> Buffer:
        """Bytes `[start, end)` of a coded chunk; 0 <= start < end <= length.

        Raises:
            MictlanError: too few fragments can be read: CORRUPT, UNAVAILABLE, TIMED_OUT.
        """
        requests = requests_of(chunk, start, end)
        if len(requests) == 1:
            found = await self._gather(chunk, *requests[0])
            return found[0] if len(found) == 1 else fragments.join(found, end - start)
        bodies: list[Sequence[Buffer]] = [()] * len(requests)
        errors: list[MictlanError] = []

        async def fetch_part(place: int) -> None:
            try:
                bodies[place] = await self._gather(chunk, *requests[place])
            except MictlanError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for place in range(len(requests)):
                nursery.start_soon(fetch_part, place)
        if errors:
            raise errors[0]
        return fragments.join([body for found in bodies for body in found], end - start)

    async def _gather(
        self, chunk: Chunk, wanted: Sequence[int], start: int, end: int
    ) -> Sequence[Buffer]:
        """Bytes `[start, end)` of the fragments `wanted`, read or decoded."""
        assert chunk.coding is not None
        gathering = Gathering(self._directory, chunk, chunk.coding, wanted, start, end)
        news = trio.Event()

        async def fetch(asked: Asked) -> None:
            index, peer = asked
            try:
                body = await self._get(peer, gathering.framed(index), start, end)
            except MictlanError as error:
                gathering.failed(index, error)
            else:
                gathering.came(index, body)
            news.set()

        async with trio.open_nursery() as nursery:
            for asked in gathering.first():
                nursery.start_soon(fetch, asked)
            while not gathering.is_over:
                with trio.move_on_after(HEDGE_S) as waiting:
                    await news.wait()
                news = trio.Event()
                if waiting.cancelled_caught:
                    gathering.waited()
                for asked in gathering.further():
                    nursery.start_soon(fetch, asked)
            gathering.end_well()
            nursery.cancel_scope.cancel()
        if gathering.is_cheap:
            return gathering.result()
        return await trio.to_thread.run_sync(gathering.result)


async def _encoded(
    pieces: Sequence[Buffer], length: int, policy: BucketPolicy
) -> fragments.Encoded:
    if length <= fragments.IN_LOOP_SIZE_BYTES_MAX:
        return fragments.encode(pieces, policy.data, policy.parity)
    return await trio.to_thread.run_sync(fragments.encode, pieces, policy.data, policy.parity)


def framed_of(chunk_id: ChunkId, encoded: fragments.Encoded) -> list[wire.FrameChunk]:
    """What the peers hold of each fragment."""
    digests = Coding(0, encoded.digests, ())
    return [
        wire.FrameChunk(chunk_id, len(fragment), digests.digest(index))
        for index, fragment in enumerate(encoded.fragments)
    ]


def placed(
    framed: Sequence[wire.FrameChunk],
    encoded: fragments.Encoded,
    policy: BucketPolicy,
    length: int,
    held: Mapping[int, PeerNumber],
) -> Chunk | None:
    """The chunk of `length` bytes whose fragments `held` have peers; None: these are too few."""
    chunk_id = framed[0].id
    if len(held) < policy.fragments_min:
        log.info("only %d fragments of a chunk could be stored of %d", len(held), len(framed))
        return None
    if len(held) < len(framed):
        log.info("stored %d fragments of %d of %s", len(held), len(framed), chunk_id.hex())
    in_order = dict(sorted(held.items()))
    coding = Coding(policy.data, encoded.digests, tuple(in_order))
    return Chunk(chunk_id, length, encoded.digest, tuple(in_order.values()), coding)


class _Placing:
    """The fragments of one chunk on their way to peers.

    Attributes:
        held: the peer of each fragment that is durable.
    """

    def __init__(
        self,
        directory: PeerDirectory,
        put: Put,
        framed: Sequence[wire.FrameChunk],
        bodies: Sequence[Buffer],
    ) -> None:
        self._directory = directory
        self._put = put
        self._framed = framed
        self._bodies = bodies
        self._is_good = False
        self._started_s = trio.current_time()
        self.held: dict[int, PeerNumber] = {}

    async def run(self, least: int) -> None:
        """Store them all, as far as there are peers; no longer than needed once `least` are."""
        # A peer is asked once: one that did not answer may hold the fragment, and can hold no
        # other one of this chunk.
        untried = self._directory.candidates(self._framed[0].id)
        with trio.CancelScope() as scope:
            while len(self.held) < len(self._framed) and untried:
                missing = [i for i in range(len(self._framed)) if i not in self.held]
                chosen, untried = untried[: len(missing)], untried[len(missing) :]
                async with trio.open_nursery() as nursery:
                    for index, peer in zip(missing, chosen, strict=False):
                        nursery.start_soon(self._place, index, peer, least, scope)

    async def _place(self, index: int, peer: PeerInfo, least: int, scope: trio.CancelScope) -> None:
        try:
            await self._put(peer, self._framed[index], [self._bodies[index]])
        except MictlanError:
            # `put` has told the directory and the log.
            return
        except trio.Cancelled:
            if scope.cancel_called:
                # It let the others wait: not again at once.
                self._directory.failed(peer.number)
            raise
        self.held[index] = peer.number
        now_s = trio.current_time()
        took_s = now_s - self._started_s
        if len(self.held) < least:
            scope.deadline = now_s + max(SHORTAGE_S, _SHORTAGE_RATIO * took_s)
        elif not self._is_good:
            self._is_good = True
            scope.deadline = now_s + max(STRAGGLER_S, _STRAGGLER_RATIO * took_s)
