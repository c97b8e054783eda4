"""Bytes on their way in: a stream of any length becomes chunks of the space, and is verified.

::

    pieces as they come --> a full chunk --> SHA-256 and digest --> upload, several at a time
                                                                     |
    in the end: size and SHA-256 right --> extents for a commit      +-- else all is deleted again

A stream that ends small is kept inline (ADR 0012). Memory is bounded: a stream is not read on while
its chunks, or those of all streams together, are too many.

Invariant: when `Storing` fails, or what it gave is `discard`ed, no peer that answers keeps a chunk.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import KIB, MIB, BucketPolicy, Buffer, Chunk, ChunkId, Extent, PeerNumber
from mictlanfs_server.peer.budget import ByteBudget
from mictlanfs_server.v4.failures import invalid
from mictlanfs_server.v4.peers import HASHED_AT_ONCE_SIZE_BYTES

if TYPE_CHECKING:
    from mictlanfs_server.v4.peers import Peers

# As mounts and the client library do by default.
INLINE_SIZE_BYTES_MAX: Final = 8 * KIB
IN_FLIGHT_SIZE_BYTES_MAX: Final = 64 * MIB
# Of one stream.
IN_FLIGHT_COUNT_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a stream has to be, and how it is kept.

    Attributes:
        size: bytes that were announced.
        checksum: SHA-256 in hex; empty: it is not checked.
        copies: of each chunk.
        first_chunk: id of the first chunk.
        has_inline: whether a small stream may be kept in the metadata.
    """

    size: int
    checksum: str
    policy: BucketPolicy
    copies: int
    first_chunk: ChunkId
    has_inline: bool


@dataclass(slots=True)
class Stored:
    """What a stream became.

    Attributes:
        checksum: SHA-256 of all bytes.
        inline: one body for each chunk without peers.
        tried: the peers that may hold each chunk, also those whose answer was lost.
    """

    size: int = 0
    checksum: str = ""
    extents: list[Extent] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    inline: list[bytes] = field(default_factory=list)
    tried: dict[ChunkId, set[PeerNumber]] = field(default_factory=dict)

    def peer_numbers(self) -> list[PeerNumber]:
        """The peers that hold a chunk of it, each once."""
        return list(dict.fromkeys(number for chunk in self.chunks for number in chunk.peers))


class Storing:
    """Stores streams. Belongs to one event loop."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._budget = ByteBudget(IN_FLIGHT_SIZE_BYTES_MAX)
        self._cleaning: set[asyncio.Task[None]] = set()

    async def store(self, source: AsyncIterator[Buffer], wanted: Wanted) -> Stored:
        """Store all that `source` gives.

        Cancellation: as an error; nothing stays.

        Raises:
            DoorError: 400, the size or the checksum is not that announced.
            MictlanError: the peers do not take it.
        """
        stream = _Stream(self._peers, self._budget, wanted)
        try:
            return await stream.run(source)
        except BaseException:
            self._clean(stream.abandon())
            raise

    def discard(self, stored: Stored) -> None:
        """Delete chunks that will not be part of a file; goes on in the background."""
        if stored.tried:
            self._clean(self._peers.delete(stored.tried))

    def _clean(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="v4-discard")
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    async def close(self) -> None:
        """Wait until what is to be deleted is."""
        if self._cleaning:
            await asyncio.wait(self._cleaning)


class _Stream:
    """One stream on its way in."""

    def __init__(self, peers: Peers, budget: ByteBudget, wanted: Wanted) -> None:
        self._peers = peers
        self._budget = budget
        self._wanted = wanted
        self._hasher = hashlib.sha256()
        self._stored = Stored()
        self._uploads: list[asyncio.Task[Chunk]] = []
        self._slots = asyncio.Semaphore(IN_FLIGHT_COUNT_MAX)

    async def run(self, source: AsyncIterator[Buffer]) -> Stored:
        """Take all of it."""
        wanted, stored = self._wanted, self._stored
        held: list[Buffer] = []
        held_size = 0
        async for piece in source:
            stored.size += len(piece)
            if stored.size > wanted.size:
                raise invalid(f"the body is longer than the {wanted.size} bytes announced")
            held.append(piece)
            held_size += len(piece)
            while held_size >= wanted.policy.chunk_size:
                whole = memoryview(b"".join(held))
                await self._upload(whole[: wanted.policy.chunk_size])
                rest = whole[wanted.policy.chunk_size :]
                held, held_size = [rest], len(rest)
        if stored.size != wanted.size:
            raise invalid(f"the body has {stored.size} bytes, {wanted.size} were announced")
        await self._end(memoryview(b"".join(held)))
        stored.checksum = self._hasher.hexdigest()
        if wanted.checksum and stored.checksum != wanted.checksum.lower():
            raise invalid(f"the SHA-256 of the body is {stored.checksum}, not {wanted.checksum}")
        stored.chunks.extend([await upload for upload in self._uploads])
        offset = 0
        for chunk in stored.chunks:
            stored.extents.append(Extent(offset, chunk.length, chunk.id, 0))
            offset += chunk.length
        return stored

    async def _end(self, rest: memoryview) -> None:
        """Take what is less than a chunk."""
        is_all = len(rest) == self._stored.size
        if is_all and self._wanted.has_inline and len(rest) <= INLINE_SIZE_BYTES_MAX:
            self._hasher.update(rest)
            if rest:
                body = bytes(rest)
                chunk = Chunk(self._wanted.first_chunk, len(body), digest_of([body]), ())
                self._stored.chunks.append(chunk)
                self._stored.inline.append(body)
        elif rest:
            await self._upload(rest)

    async def _upload(self, body: memoryview) -> None:
        """Hash a chunk and begin to upload it, when there is room for it."""
        await self._slots.acquire()
        for earlier in self._uploads:
            if earlier.done():
                # Raises what it failed with.
                earlier.result()
        if len(body) <= HASHED_AT_ONCE_SIZE_BYTES:
            chunk_digest = self._hash(body)
        else:
            chunk_digest = await asyncio.to_thread(self._hash, body)
        chunk_id = new_chunk_id() if self._uploads else self._wanted.first_chunk
        tried = self._stored.tried[chunk_id] = set()
        chunk = wire.FrameChunk(chunk_id, len(body), chunk_digest)
        room = AsyncExitStack()
        room.callback(self._slots.release)
        await room.enter_async_context(self._budget.take(len(body)))

        async def upload() -> Chunk:
            async with room:
                policy, copies = self._wanted.policy, self._wanted.copies
                copies_min = min(policy.replicas_min, copies)
                # Who asks for more copies than survive what the code does gets copies.
                code = policy if copies <= policy.replicas else None
                return await self._peers.store(chunk, body, copies, copies_min, tried, code)

        self._uploads.append(asyncio.create_task(upload(), name="v4-upload"))

    def _hash(self, body: memoryview) -> bytes:
        self._hasher.update(body)
        return digest_of([body])

    async def abandon(self) -> None:
        """Delete what was uploaded, when it is known what that is."""
        # Not cancelled: a peer might store a chunk behind its deletion.
        if self._uploads:
            await asyncio.wait(self._uploads)
            for upload in self._uploads:
                # Nobody else asks for it.
                upload.exception()
        if self._stored.tried:
            await self._peers.delete(self._stored.tried)
