"""Chunks as the space keeps them: stored on several peers, fetched from whichever answers.

Owns placement, replacement of peers that fail or are slow, verification of what is read, and the
batching of small chunks. Invariants: `store` returns only when every replica it names is durable;
`fetch` never returns bytes of a whole chunk whose digest is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

import trio

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.client.alarms import Alarms
from mictlanfs.client.coded import CodedChunks
from mictlanfs.client.complaints import Complaints, Send
from mictlanfs.client.copying import Copying
from mictlanfs.client.inline import FetchInline, InlineChunks
from mictlanfs.client.lanes import Lane
from mictlanfs.client.lateness import Lateness, Timing
from mictlanfs.client.locating import FetchPlaces, Locator
from mictlanfs.client.paces import Allowance, Paces
from mictlanfs.client.peermap import SLOW_S_FIRST, PeerDirectory
from mictlanfs.client.peers import PeerClient
from mictlanfs.client.races import EXTRA_COUNT_MAX, EXTRA_SHARE, Races, RaceStats
from mictlanfs.client.reception import Reception
from mictlanfs.client.retry import RetryPolicy, retrying
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import (
    KIB,
    SMALL_CHUNK_SIZE_BYTES,
    BucketPolicy,
    Buffer,
    Chunk,
    ChunkId,
    PeerInfo,
    PeerMap,
    PeerNumber,
)

log = logging.getLogger(__name__)

# Below this a digest costs less than handing it to a thread and back.
INLINE_DIGEST_SIZE_BYTES_MAX = 128 * KIB

# Chunks of one frame that are verified in the loop, of at most 64 KiB each.
FETCH_TOGETHER_MAX = 64

# From this size on, what one peer sent before it failed is not asked of the next one again. Below,
# a request costs more than the bytes.
CONTINUED_SIZE_BYTES_MIN = 512 * KIB

# A peer that takes longer than this to store a chunk, beyond what others need, is slow. Disks that
# are told to sync stop now and then.
STORE_ALLOWANCE_S_MIN = 0.5

# A map that is slow to come must not hold up chunks whose peers may be known well enough.
PEER_MAP_TIMEOUT_S = 2.0

# What a peer says, or does, when its copy is not as it should be.
_BAD_COPY = frozenset({Kind.CORRUPT, Kind.NOT_FOUND})

T = TypeVar("T")
PutLocally = Callable[[PeerInfo, wire.FrameChunk, Sequence[Buffer]], Awaitable[bool]]
_SmallPut = tuple[wire.FrameChunk, Sequence[Buffer]]


class _Begun:
    """What arrived of a part of a chunk before peers failed; the longest beginning so far."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._reception: Reception | None = None

    def take(self) -> Reception:
        """The reception to go on with. Who asks besides begins anew."""
        reception, self._reception = self._reception, None
        return reception or Reception(self._size)

    def give_back(self, reception: Reception) -> None:
        """A peer failed; somebody else may go on."""
        if self._reception is None or reception.count > self._reception.count:
            self._reception = reception


@asynccontextmanager
async def open_chunk_store(
    peers: PeerClient,
    directory: PeerDirectory,
    fetch_peer_map: Callable[[], Awaitable[PeerMap]],
    retry: RetryPolicy,
    fetch_inline: FetchInline | None = None,
    fetch_places: FetchPlaces | None = None,
    send_complaint: Send | None = None,
    put_locally: PutLocally | None = None,
) -> AsyncIterator[ChunkStore]:
    """A chunk store, with a nursery for the lanes of small chunks.

    Leaving the block cancels what is still under way. `fetch_inline` asks a router for the bytes
    of inline chunks, without it there are none; `fetch_places` where chunks are now, without it
    they do not move. `send_complaint` tells a router of a bad copy. `put_locally` is asked to store
    a chunk that is not small before HTTP is; False: not this way.
    """
    async with trio.open_nursery() as nursery:
        yield ChunkStore(
            nursery,
            peers,
            directory,
            fetch_peer_map,
            retry,
            fetch_inline,
            fetch_places,
            Complaints(nursery, send_complaint),
            put_locally,
        )
        nursery.cancel_scope.cancel()


class ChunkStore:
    """Stores and fetches chunks; made by `open_chunk_store`.

    Attributes:
        complaints: where copies are told that are not as they should be.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        peers: PeerClient,
        directory: PeerDirectory,
        fetch_peer_map: Callable[[], Awaitable[PeerMap]],
        retry: RetryPolicy,
        fetch_inline: FetchInline | None = None,
        fetch_places: FetchPlaces | None = None,
        complaints: Complaints | None = None,
        put_locally: PutLocally | None = None,
    ) -> None:
        self._put_locally = put_locally
        self.complaints = complaints or Complaints(nursery, None)
        self._nursery = nursery
        self._locator = Locator(nursery, fetch_places) if fetch_places is not None else None
        self._peers = peers
        self._directory = directory
        self._fetch_peer_map = fetch_peer_map
        self._retry = retry
        self._inline = InlineChunks(nursery, fetch_inline) if fetch_inline is not None else None
        self._coded = CodedChunks(directory, self._put, self._get_fragment)
        self._put_lanes: dict[PeerNumber, Lane[_SmallPut, wire.FrameResult]] = {}
        self._get_lanes: dict[PeerNumber, Lane[ChunkId, memoryview]] = {}
        alarms = Alarms(nursery)
        self._gets = Lateness(alarms, Paces())
        self._puts = Lateness(alarms, Paces(STORE_ALLOWANCE_S_MIN))
        self._races = Races(nursery, self._gets, self._note_slow)
        self._more_puts = Allowance(EXTRA_SHARE, EXTRA_COUNT_MAX)

    # --- storing ---------------------------------------------------------------------------------

    async def store(
        self, pieces: Sequence[Buffer], policy: BucketPolicy, retry: RetryPolicy | None = None
    ) -> Chunk:
        """Store `pieces`, joined, as a new chunk on as many peers as `policy` wants.

        With peers down or full, fewer copies down to `policy.replicas_min` are accepted; the
        chunk then names only the peers that have it. With a code, a chunk that is not small is
        stored as fragments, and as copies when there are too few peers for these. `pieces` must
        not change meanwhile.

        Cancellation: some peers may hold the chunk; nothing refers to it.

        Raises:
            MictlanError: NO_SPACE when the peers are full, UNAVAILABLE or TIMED_OUT when too few
                answered until the retry policy was exhausted.
        """
        length = sum(len(piece) for piece in pieces)
        if policy.is_coded(length):
            with suppress(MictlanError):
                await self._refresh_peer_map()
            coded = await self._coded.store(pieces, length, policy)
            if coded is not None:
                return coded
        if length <= INLINE_DIGEST_SIZE_BYTES_MAX:
            digest = digest_of(pieces)
        else:
            digest = await trio.to_thread.run_sync(digest_of, pieces)
        frame_chunk = wire.FrameChunk(new_chunk_id(), length, digest)
        holders: list[PeerNumber] = []

        async def attempt() -> None:
            await self._place(frame_chunk, pieces, policy, holders)

        await self._retrying(retry or self._retry, attempt)
        return Chunk(frame_chunk.id, length, digest, tuple(holders))

    async def _place(
        self,
        chunk: wire.FrameChunk,
        pieces: Sequence[Buffer],
        policy: BucketPolicy,
        holders: list[PeerNumber],
    ) -> None:
        """Add peers to `holders` until there are enough; raise when there are too few."""
        untried = [p for p in self._directory.candidates(chunk.id) if p.number not in holders]
        put = partial(self._put, chunk=chunk, pieces=pieces)
        copying = Copying(put, self._more_puts, untried, holders)
        await copying.make(policy.replicas)
        if len(holders) < policy.replicas_min:
            raise self._shortage(copying.errors, chunk.id)
        if len(holders) < policy.replicas:
            log.info(
                "stored chunk %s on %d peers of %d wanted",
                chunk.id.hex(),
                len(holders),
                policy.replicas,
            )

    def _shortage(self, errors: Sequence[MictlanError], chunk_id: ChunkId) -> MictlanError:
        """What to tell a writer whose chunk found too few peers.

        Anything that a later attempt can mend comes first, so that it is made.
        """
        for error in errors:
            if error.is_retryable:
                return error
        if errors:
            return errors[0]
        if self._directory.has_only_full_peers:
            kind, detail = Kind.NO_SPACE, "all peers are full"
        else:
            kind, detail = Kind.UNAVAILABLE, "no peer is up"
        return MictlanError(kind, "store chunk", chunk_id.hex(), detail)

    async def _put(
        self,
        peer: PeerInfo,
        chunk: wire.FrameChunk,
        pieces: Sequence[Buffer],
        on_late: Callable[[], None] | None = None,
    ) -> None:
        """Store at one peer; `on_late` is called when, and as long as, that takes too long."""

        def late() -> None:
            # Other chunks go elsewhere from now on.
            self._note_slow(peer.number)
            if on_late is not None:
                on_late()

        timed = self._puts.timing(peer.number, chunk.length, self._numbers(), late, SLOW_S_FIRST)
        try:
            with timed as timing:
                await self._put_once(peer, chunk, pieces)
                timing.answered()
            if timing.is_late:
                self._note_slow(peer.number)
        except MictlanError as error:
            self._note_failure(peer, error)
            raise
        self._directory.answered(peer.number)

    async def _put_once(
        self, peer: PeerInfo, chunk: wire.FrameChunk, pieces: Sequence[Buffer]
    ) -> None:
        if chunk.length < SMALL_CHUNK_SIZE_BYTES:
            lane = self._put_lane(peer.number)
            result = await lane.submit((chunk, pieces), chunk.length)
            if result.error is not None:
                raise result.error.to_error()
        elif self._put_locally is None or not await self._put_locally(peer, chunk, pieces):
            await self._peers.put(peer.url, chunk.id, chunk.digest, pieces)

    def _put_lane(self, number: PeerNumber) -> Lane[_SmallPut, wire.FrameResult]:
        lane = self._put_lanes.get(number)
        if lane is None:
            lane = self._put_lanes[number] = Lane(
                self._nursery,
                partial(self._send_puts, number),
                wire.FRAME_CHUNKS_MAX,
                wire.FRAME_SIZE_BYTES_MAX,
            )
        return lane

    async def _send_puts(
        self, number: PeerNumber, items: Sequence[_SmallPut]
    ) -> Sequence[wire.FrameResult]:
        bodies = [piece for _, pieces in items for piece in pieces]
        return await self._peers.put_frame(
            self._url_of(number), [chunk for chunk, _ in items], bodies
        )

    # --- fetching --------------------------------------------------------------------------------

    async def fetch(self, chunk: Chunk, start: int, end: int) -> Buffer:
        """Bytes `[start, end)` of a chunk from the best peer that has them, or from a router.

        A peer that takes longer than it should is raced against the next; see `races`. A whole
        chunk is verified against its digest here, a part by the peer that sends it. Whoever has it
        wrong, or not at all, is complained of, and the next replica is read. When none of the peers
        that are known serves it, the router is asked where it is now.

        Raises:
            MictlanError: CORRUPT when no replica is whole, UNAVAILABLE or TIMED_OUT when no peer
                answered until the retry policy was exhausted.
        """
        if not 0 <= start < end <= chunk.length:
            raise ValueError(f"[{start}, {end}) is not within a chunk of {chunk.length} bytes")
        if not chunk.peers and self._inline is not None:
            return memoryview(await self._inline.fetch(chunk))[start:end]
        if chunk.coding is not None:
            return await self._retrying(self._retry, lambda: self._fetch_coded(chunk, start, end))

        async def attempt() -> Buffer:
            errors: list[MictlanError] = []
            begun = _Begun(end - start)
            known = self._known(chunk)
            body = await self._fetch_from_any(known, start, end, errors, begun)
            if body is None and (found := await self._moved(known)) is not None:
                body = await self._fetch_from_any(found, start, end, errors, begun)
            if body is None:
                raise _best_of(errors, chunk)
            return body

        return await self._retrying(self._retry, attempt)

    async def _fetch_coded(self, chunk: Chunk, start: int, end: int) -> Buffer:
        known = self._known(chunk)
        try:
            return await self._coded.fetch(known, start, end)
        except MictlanError:
            found = await self._moved(known)
            if found is None:
                raise
        return await self._coded.fetch(found, start, end)

    def _known(self, chunk: Chunk) -> Chunk:
        """The chunk with the peers that were told last."""
        return chunk if self._locator is None else self._locator.known(chunk)

    async def _moved(self, chunk: Chunk) -> Chunk | None:
        """The chunk with other peers than those that did not serve it, if it has them."""
        if self._locator is None:
            return None
        found = await self._locator.locate(chunk)
        if found is None or (set(found.peers) <= set(chunk.peers) and found.coding == chunk.coding):
            return None
        log.info("chunk %s is elsewhere now: %s", chunk.id.hex(), found.peers)
        # One of them may have joined since.
        if any(self._directory.get(number) is None for number in found.peers):
            self._directory.doubt()
            await self._refresh_peer_map()
        return found

    async def _fetch_from_any(
        self,
        chunk: Chunk,
        start: int,
        end: int,
        errors: list[MictlanError],
        begun: _Begun,
    ) -> Buffer | None:
        """The bytes from the first peer that serves them; None, and why in `errors`."""

        async def ask(peer: PeerInfo, timing: Timing) -> Buffer | None:
            try:
                body = await self._fetch_from(peer, chunk, start, end, begun, timing)
            except MictlanError as error:
                self._note_failure(peer, error)
                if error.kind in _BAD_COPY:
                    self.complaints.note(chunk.id, peer.number)
                errors.append(error)
                return None
            self._directory.answered(peer.number)
            return body

        found: Buffer | None = await self._races.first(
            self._directory.holders(chunk), ask, end - start
        )
        return found

    async def fetch_many(self, chunks: Sequence[Chunk]) -> list[Buffer | None]:
        """Whole small chunks, each from its best peer, in few requests and without repetition.

        None in the place of each that did not come or is not as it should be: `fetch` finds out
        why, or another replica.
        """
        by_peer: dict[PeerNumber, list[int]] = {}
        for index, chunk in enumerate(chunks):
            holders = self._directory.holders(self._known(chunk))
            if holders and chunk.length < SMALL_CHUNK_SIZE_BYTES and chunk.coding is None:
                by_peer.setdefault(holders[0].number, []).append(index)
        found: list[Buffer | None] = [None] * len(chunks)

        async def fetch_part(number: PeerNumber, indices: Sequence[int]) -> None:
            ids = [chunks[index].id for index in indices]
            size = sum(chunks[index].length for index in indices)
            try:
                bodies = await self._send_gets_in_time(number, ids, size)
            except MictlanError as error:
                log.debug("chunks did not come together: %s", error)
                return
            for index, body in zip(indices, bodies, strict=True):
                if isinstance(body, MictlanError):
                    continue
                if digest_of([body]) == chunks[index].digest:
                    found[index] = body
                else:
                    self.complaints.note(chunks[index].id, number)

        async with trio.open_nursery() as nursery:
            for number, indices in by_peer.items():
                for start in range(0, len(indices), FETCH_TOGETHER_MAX):
                    part = indices[start : start + FETCH_TOGETHER_MAX]
                    nursery.start_soon(fetch_part, number, part)
        return found

    async def _send_gets_in_time(
        self, number: PeerNumber, ids: Sequence[ChunkId], size: int
    ) -> Sequence[memoryview | MictlanError]:
        """As `_send_gets`, given up when another peer should have been asked by then."""
        scope = trio.CancelScope()

        def on_late() -> None:
            if self._races.may_ask_again():
                scope.cancel()

        timed = self._gets.timing(number, size, self._numbers(), on_late)
        with scope, timed as timing:
            bodies = await self._send_gets(number, ids)
            timing.answered()
            return bodies
        self._note_slow(number)
        raise MictlanError(Kind.TIMED_OUT, "get chunks", str(number), "the peer is slow")

    async def _fetch_from(
        self,
        peer: PeerInfo,
        chunk: Chunk,
        start: int,
        end: int,
        begun: _Begun,
        timing: Timing,
    ) -> Buffer:
        is_whole = start == 0 and end == chunk.length
        is_continued = False
        body: Buffer
        if is_whole and chunk.length < SMALL_CHUNK_SIZE_BYTES:
            body = await self._get_lane(peer.number).submit(chunk.id, chunk.length)
        elif end - start < CONTINUED_SIZE_BYTES_MIN:
            body = await self._peers.get(peer.url, chunk.id, start, end)
        else:
            body, is_continued = await self._go_on(peer, chunk, start, end, begun)
        timing.answered()
        if is_continued and is_whole and await self._digest(body) != chunk.digest:
            # One of two peers sent wrong bytes: this one shall say all of it.
            body = await self._peers.get(peer.url, chunk.id, start, end)
        if is_whole and await self._digest(body) != chunk.digest:
            log.error("peer %s sent a wrong copy of chunk %s", peer.id, chunk.id.hex())
            raise MictlanError(Kind.CORRUPT, "get chunk", chunk.id.hex(), f"peer {peer.id}")
        return body

    async def _get_fragment(
        self, peer: PeerInfo, fragment: wire.FrameChunk, start: int, end: int
    ) -> Buffer:
        """Bytes `[start, end)` of a fragment, verified when they are all of it."""
        try:
            body = await self._peers.get(peer.url, fragment.id, start, end, fragment.digest)
            is_whole = end - start == fragment.length
            if is_whole and await self._digest(body) != fragment.digest:
                log.error("peer %s sent a wrong fragment of %s", peer.id, fragment.id.hex())
                raise MictlanError(Kind.CORRUPT, "get chunk", fragment.id.hex(), f"peer {peer.id}")
        except MictlanError as error:
            self._note_failure(peer, error)
            raise
        self._directory.answered(peer.number)
        return body

    async def _go_on(
        self, peer: PeerInfo, chunk: Chunk, start: int, end: int, begun: _Begun
    ) -> tuple[Buffer, bool]:
        """The bytes, and whether some of them are from another peer that failed half way."""
        reception = begun.take()
        is_continued = reception.count > 0
        if not reception.is_complete:
            try:
                await self._peers.get(
                    peer.url, chunk.id, start + reception.count, end, into=reception
                )
            except MictlanError:
                begun.give_back(reception)
                raise
        return reception.buffer, is_continued

    async def _digest(self, body: Buffer) -> bytes:
        if len(body) <= INLINE_DIGEST_SIZE_BYTES_MAX:
            return digest_of([body])
        return await trio.to_thread.run_sync(digest_of, [body])

    def _get_lane(self, number: PeerNumber) -> Lane[ChunkId, memoryview]:
        lane = self._get_lanes.get(number)
        if lane is None:
            lane = self._get_lanes[number] = Lane(
                self._nursery,
                partial(self._send_gets, number),
                wire.FRAME_CHUNKS_MAX,
                wire.FRAME_SIZE_BYTES_MAX,
            )
        return lane

    async def _send_gets(
        self, number: PeerNumber, ids: Sequence[ChunkId]
    ) -> Sequence[memoryview | MictlanError]:
        return await self._peers.get_frame(self._url_of(number), ids)

    # --- peers -----------------------------------------------------------------------------------

    async def _retrying(self, policy: RetryPolicy, attempt: Callable[[], Awaitable[T]]) -> T:
        """Follow `policy`, each attempt with a peer map as new as can be had."""

        async def with_fresh_map() -> T:
            await self._refresh_peer_map()
            try:
                return await attempt()
            except MictlanError as error:
                if error.is_retryable:
                    # Peers may have moved, and only a router tells.
                    self._directory.doubt()
                raise

        return await retrying(policy, with_fresh_map)

    async def _refresh_peer_map(self) -> None:
        """Fetch a newer map, if there may be one.

        Without a router the map that is held has to do: its peers need no router to serve chunks.
        """
        if not self._directory.is_stale:
            return
        try:
            with trio.fail_after(PEER_MAP_TIMEOUT_S):
                self._directory.update(await self._fetch_peer_map())
        except (MictlanError, trio.TooSlowError) as error:
            if self._directory.version < 0:
                detail = "the router does not tell where the peers are"
                raise MictlanError(Kind.UNAVAILABLE, "read peer map", "", detail) from error
            log.info("no newer peer map: %s", error)

    def _numbers(self) -> list[PeerNumber]:
        return [peer.number for peer in self._directory.all()]

    def _url_of(self, number: PeerNumber) -> str:
        peer = self._directory.get(number)
        if peer is None:
            raise MictlanError(Kind.UNAVAILABLE, "reach peer", str(number), "it left the space")
        return peer.url

    def _note_slow(self, number: PeerNumber) -> None:
        if not self._directory.is_slow(number):
            self._directory.slow(number)
            log.info("peer %d is slow: others are asked first", number)

    def race_stats(self) -> RaceStats:
        """What became of second requests since the store was opened."""
        return self._races.stats()

    def _note_failure(self, peer: PeerInfo, error: MictlanError) -> None:
        if error.kind is Kind.NO_SPACE:
            self._directory.refused(peer.number)
        elif error.is_retryable:
            self._directory.failed(peer.number)
        log.info("peer %s failed: %s", peer.id, error)


def _best_of(errors: Sequence[MictlanError], chunk: Chunk) -> MictlanError:
    """What to tell a reader whom no replica served."""
    for error in errors:
        if error.is_retryable:
            return error
    if errors:
        detail = f"none of {len(errors)} copies can be read: {errors[0]}"
        return MictlanError(Kind.CORRUPT, "get chunk", chunk.id.hex(), detail)
    detail = "no peer of the space holds it"
    return MictlanError(Kind.UNAVAILABLE, "get chunk", chunk.id.hex(), detail)
