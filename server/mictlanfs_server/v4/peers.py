"""The peers as a door uses them: to store chunks, to fetch them, to delete what came to nothing.

Owns a `PeerDirectory`, kept as new as the space knows, and the requests to peers. Never retries on
its own but by turning to the next peer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.client.peers import PeerClient
from mictlanfs.clock import Clock
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import reader_number
from mictlanfs.model import KIB, BucketPolicy, Buffer, Chunk, ChunkId, PeerInfo, PeerNumber
from mictlanfs.wirecopies import Locate, Located
from mictlanfs.wireverify import ReportCopy
from mictlanfs_server.v4.codedpeers import CodedPeers

if TYPE_CHECKING:
    from mictlanfs.client.transport import HttpTransport
    from mictlanfs_server.v4.space import SpaceAccess

log = logging.getLogger(__name__)

# Below this a digest costs less than handing it to a thread and back.
HASHED_AT_ONCE_SIZE_BYTES: Final = 128 * KIB
DELETE_TIMEOUT_S: Final = 10.0
STORE_ATTEMPTS_MAX: Final = 4
STORE_DELAY_S: Final = 0.2
COMPLAINT_TIMEOUT_S: Final = 0.5
# What a peer says, or does, when its copy is not as it should be.
_BAD_COPY: Final = frozenset({Kind.CORRUPT, Kind.NOT_FOUND})


class Peers:
    """Chunks on the peers of a space.

    Args:
        space: that tells the peer map.
        transport: not closed here.
        preferred: id of the peer that gets the first copy of each chunk; empty: the best one.
    """

    def __init__(
        self, space: SpaceAccess, transport: HttpTransport, clock: Clock, preferred: str = ""
    ) -> None:
        self._space = space
        self._transport = transport
        self._client = PeerClient(transport)
        self._directory = PeerDirectory(clock.monotonic_s, reader=reader_number())
        self._preferred = preferred
        self._coded = CodedPeers(self._directory, self._put, self._get)

    async def refresh(self) -> Sequence[PeerInfo]:
        """All peers, as new as the space knows."""
        peer_map = await self._space.peer_map()
        if peer_map.version != self._directory.version:
            self._directory.update(peer_map)
        return peer_map.peers

    async def candidates(self, chunk_id: ChunkId) -> list[PeerInfo]:
        """The peers that may store a chunk, best first; empty when there is none."""
        await self.refresh()
        ranked = self._directory.candidates(chunk_id)
        return sorted(ranked, key=lambda peer: peer.id != self._preferred)

    def ids_of(self, numbers: Iterable[PeerNumber]) -> list[str]:
        """The ids of peers by their numbers; those that are not known are left out."""
        known = (self._directory.get(number) for number in numbers)
        return [peer.id for peer in known if peer is not None]

    # --- storing ---------------------------------------------------------------------------------

    async def store(
        self,
        chunk: wire.FrameChunk,
        body: Buffer,
        copies: int,
        copies_min: int,
        tried: set[PeerNumber],
        code: BucketPolicy | None = None,
    ) -> Chunk:
        """Store a chunk durably on `copies` peers; fewer, down to `copies_min`, will do.

        Args:
            chunk: id, length and digest of `body`.
            body: all bytes of the chunk.
            copies: wanted.
            copies_min: that will do.
            code: when the chunk is to be coded, if there are peers enough for it.
            tried: gets the number of every peer that may hold the chunk afterwards, also when this
                fails or is cancelled.

        Raises:
            MictlanError: NO_SPACE, UNAVAILABLE, TIMED_OUT: too few peers took it.
        """
        if code is not None and code.is_coded(chunk.length):
            candidates = await self.candidates(chunk.id)
            coded = await self._coded.store(chunk.id, body, code, candidates, tried)
            if coded is not None:
                return coded
            if tried:
                # Peers that hold a fragment take nothing else by this id.
                await self.delete({chunk.id: tried})
        holders: list[PeerNumber] = []
        errors: list[MictlanError] = []
        for attempt in range(1, STORE_ATTEMPTS_MAX + 1):
            errors.clear()
            untried = [p for p in await self.candidates(chunk.id) if p.number not in holders]
            while len(holders) < copies and untried:
                missing_count = copies - len(holders)
                chosen, untried = untried[:missing_count], untried[missing_count:]
                tried.update(peer.number for peer in chosen)
                outcomes = await asyncio.gather(*(self._put(peer, chunk, body) for peer in chosen))
                for peer, error in zip(chosen, outcomes, strict=True):
                    if error is None:
                        holders.append(peer.number)
                    else:
                        errors.append(error)
            if len(holders) >= copies_min:
                return Chunk(chunk.id, chunk.length, chunk.digest, tuple(holders))
            if attempt < STORE_ATTEMPTS_MAX:
                await asyncio.sleep(STORE_DELAY_S * attempt)
        raise self._shortage(errors, chunk.id)

    async def _put(
        self, peer: PeerInfo, chunk: wire.FrameChunk, body: Buffer
    ) -> MictlanError | None:
        try:
            await self._client.put(peer.url, chunk.id, chunk.digest, [body])
        except MictlanError as error:
            self._note(peer, error)
            return error
        self._directory.answered(peer.number)
        return None

    def _note(self, peer: PeerInfo, error: MictlanError) -> None:
        if error.kind is Kind.NO_SPACE:
            self._directory.refused(peer.number)
        elif error.is_retryable:
            self._directory.failed(peer.number)
        log.info("peer %s failed: %s", peer.id, error)

    def _shortage(self, errors: Sequence[MictlanError], chunk_id: ChunkId) -> MictlanError:
        if errors:
            return errors[0]
        if self._directory.has_only_full_peers:
            kind, detail = Kind.NO_SPACE, "all peers are full"
        else:
            kind, detail = Kind.UNAVAILABLE, "no peer is up"
        return MictlanError(kind, "store chunk", chunk_id.hex(), detail)

    async def copy(self, chunk: Chunk, to: str) -> Chunk:
        """Store one more copy of a chunk that peers hold; the chunk with its new peer, if any.

        A coded chunk is given back as it is: it has no copies.

        Args:
            chunk: read from whoever holds it.
            to: id of the peer that gets the copy unless it has one; empty: the best other one.

        Raises:
            MictlanError: no copy could be read; UNAVAILABLE, NO_SPACE: no other peer took it.
        """
        if chunk.coding is not None:
            # It has all the fragments there are, or healing makes what is missing.
            return chunk
        others = [p for p in await self.candidates(chunk.id) if p.number not in chunk.peers]
        chosen = sorted(others, key=lambda peer: peer.id != to)
        if to and not any(peer.id == to for peer in chosen):
            return chunk
        body = await self.fetch(chunk, 0, chunk.length)
        framed = wire.FrameChunk(chunk.id, chunk.length, chunk.digest)
        for peer in chosen:
            if await self._put(peer, framed, body) is None:
                return Chunk(chunk.id, chunk.length, chunk.digest, (*chunk.peers, peer.number))
        raise self._shortage([], chunk.id)

    # --- fetching --------------------------------------------------------------------------------

    async def fetch(self, chunk: Chunk, start: int, end: int) -> Buffer:
        """Bytes `[start, end)` of a chunk from the best peer that has them; a whole one verified.

        Raises:
            MictlanError: CORRUPT, UNAVAILABLE or TIMED_OUT when no replica could be read.
        """
        await self.refresh()
        if chunk.coding is not None:
            return await self._fetch_coded(chunk, start, end)
        errors: list[MictlanError] = []
        body = await self._fetch_from_any(chunk, start, end, errors)
        if body is None and (moved := await self._moved(chunk)) is not None:
            body = await self._fetch_from_any(moved, start, end, errors)
        if body is not None:
            return body
        for failure in errors:
            if failure.is_retryable:
                raise failure
        detail = f"none of {len(errors)} copies can be read" if errors else "no peer holds it"
        kind = Kind.CORRUPT if errors else Kind.UNAVAILABLE
        raise MictlanError(kind, "get chunk", chunk.id.hex(), detail)

    async def _fetch_coded(self, chunk: Chunk, start: int, end: int) -> Buffer:
        try:
            return await self._coded.fetch(chunk, start, end)
        except MictlanError:
            moved = await self._moved(chunk)
            if moved is None:
                raise
        return await self._coded.fetch(moved, start, end)

    async def _fetch_from_any(
        self, chunk: Chunk, start: int, end: int, errors: list[MictlanError]
    ) -> Buffer | None:
        """The bytes from the first peer that serves them; None, and why in `errors`."""
        for peer in self._directory.holders(chunk):
            try:
                body = await self._client.get(peer.url, chunk.id, start, end)
                if len(body) == chunk.length and await digest(body) != chunk.digest:
                    log.error("peer %s sent a wrong copy of chunk %s", peer.id, chunk.id.hex())
                    raise MictlanError(Kind.CORRUPT, "get chunk", chunk.id.hex(), f"peer {peer.id}")
            except MictlanError as error:
                self._note(peer, error)
                if error.kind in _BAD_COPY:
                    await self._complain(chunk.id, peer.number)
                errors.append(error)
            else:
                self._directory.answered(peer.number)
                return body
        return None

    async def _moved(self, chunk: Chunk) -> Chunk | None:
        """The chunk with other peers than those that did not serve it, if it has them."""
        try:
            answer = await self._space.ask(wire.Path.LOCATE, Locate((chunk.id,)), Located)
        except MictlanError as error:
            log.info("chunk %s is not located: %s", chunk.id.hex(), error)
            return None
        [found] = answer.chunks
        if found is None or (set(found.peers) <= set(chunk.peers) and found.coding == chunk.coding):
            return None
        await self.refresh()
        return found

    async def _get(self, peer: PeerInfo, fragment: wire.FrameChunk, start: int, end: int) -> Buffer:
        """Bytes `[start, end)` of a fragment, verified when they are all of it."""
        try:
            body = await self._client.get(peer.url, fragment.id, start, end, fragment.digest)
            if len(body) == fragment.length and await digest(body) != fragment.digest:
                log.error("peer %s sent a wrong fragment of %s", peer.id, fragment.id.hex())
                raise MictlanError(Kind.CORRUPT, "get chunk", fragment.id.hex(), f"peer {peer.id}")
        except MictlanError as error:
            self._note(peer, error)
            raise
        self._directory.answered(peer.number)
        return body

    async def _complain(self, chunk_id: ChunkId, number: PeerNumber) -> None:
        """Have the router look at a copy. Never fails, and hardly waits: it is best effort."""
        try:
            async with asyncio.timeout(COMPLAINT_TIMEOUT_S):
                await self._space.ask(wire.Path.REPORT, ReportCopy(chunk_id, number), wire.Done)
        except (MictlanError, TimeoutError) as error:
            log.info("no router took note of a bad copy: %s", error)

    # --- deleting --------------------------------------------------------------------------------

    async def delete(self, tried: dict[ChunkId, set[PeerNumber]]) -> None:
        """Delete chunks that nothing refers to from all peers that may hold them. Never fails.

        A peer that does not answer keeps its copy: an orphan.
        """
        by_peer: defaultdict[PeerNumber, list[ChunkId]] = defaultdict(list)
        for chunk_id, numbers in tried.items():
            for number in numbers:
                by_peer[number].append(chunk_id)
        await asyncio.gather(*(self._delete(number, ids) for number, ids in by_peer.items()))

    async def _delete(self, number: PeerNumber, ids: list[ChunkId]) -> None:
        peer = self._directory.get(number)
        if peer is None:
            return
        for first in range(0, len(ids), wire.FRAME_CHUNKS_MAX):
            frame = wire.frame(wire.FrameDelete(tuple(ids[first : first + wire.FRAME_CHUNKS_MAX])))
            try:
                response = await self._transport.request(
                    "POST",
                    peer.url + wire.Path.FRAME_DELETE,
                    body=frame,
                    timeout_s=DELETE_TIMEOUT_S,
                )
                if response.status != 200:
                    raise wire.decode_error(response.status, response.body)
            except MictlanError as error:
                log.warning("chunks of a failed upload stay on %s: %s", peer.id, error)


async def digest(body: Buffer) -> bytes:
    """The digest of a chunk, worked out in a thread when it takes long."""
    if len(body) <= HASHED_AT_ONCE_SIZE_BYTES:
        return digest_of([body])
    return await asyncio.to_thread(digest_of, [body])
