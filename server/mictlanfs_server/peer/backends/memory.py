"""A back end in memory, for tests: the protocol at its plainest."""

from __future__ import annotations

from collections.abc import AsyncIterable, Collection, Iterator
from dataclasses import dataclass

from mictlanfs.blocksums import BlockSummer
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer, ChunkId
from mictlanfs_server.peer.backends.base import Give, StoredChunk, Traits, corrupt


class MemoryBackend:
    """Chunks in a dictionary. `capacity` bounds their bytes when given."""

    traits = Traits(name="memory", is_persistent=False)

    def __init__(self, capacity: int | None = None) -> None:
        self._chunks: dict[tuple[ChunkId, bytes], tuple[StoredChunk, bytes]] = {}
        self._aside: dict[tuple[ChunkId, bytes], StoredChunk] = {}
        self._capacity = capacity

    async def stage(self, chunk: StoredChunk, pieces: AsyncIterable[Buffer]) -> _Staged:
        """Collect and verify the bytes; see `Backend`."""
        body = bytearray()
        async for piece in pieces:
            body += piece
            if len(body) > chunk.length:
                break
        if len(body) != chunk.length:
            raise corrupt(chunk, f"the length is not {chunk.length}")
        if digest_of([body]) != chunk.digest:
            raise corrupt(chunk, "the bytes do not match the digest")
        return _Staged(self, chunk, bytes(body))

    async def stage_file(self, chunk: StoredChunk, give: Give) -> _Staged:
        """There are no files; see `Backend`."""
        raise MictlanError(Kind.UNSUPPORTED, "write chunk", chunk.id.hex(), "there are no files")

    async def read(self, chunk: StoredChunk, start: int, end: int) -> Buffer:
        """A view of the bytes; see `Backend`."""
        found = self._chunks.get((chunk.id, chunk.digest))
        if found is None:
            raise MictlanError(Kind.NOT_FOUND, "read chunk", chunk.id.hex())
        return memoryview(found[1])[start:end]

    def open_file(self, chunk: StoredChunk) -> int | None:
        """There are no files; see `Backend`."""
        return None

    async def delete(self, chunk: StoredChunk) -> None:
        """Forget the chunk; see `Backend`."""
        self._chunks.pop((chunk.id, chunk.digest), None)

    async def check(self, chunk: StoredChunk) -> bytes:
        """Compare the bytes with the digest; see `Backend`."""
        body = await self.read(chunk, 0, chunk.length)
        if digest_of([body]) != chunk.digest:
            raise corrupt(chunk, "the bytes do not match the digest")
        summer = BlockSummer()
        summer.update(body)
        return summer.sums()

    async def set_aside(self, chunk: StoredChunk) -> bool:
        """Move the chunk to another dictionary; see `Backend`."""
        found = self._chunks.pop((chunk.id, chunk.digest), None)
        if found is not None:
            self._aside[found[0].id, found[0].digest] = found[0]
        return found is not None

    async def drop_aside(self, chunk: StoredChunk) -> None:
        """Forget it; see `Backend`."""
        self._aside.pop((chunk.id, chunk.digest), None)

    def chunks_aside(self) -> Iterator[StoredChunk]:
        """What was set aside; see `Backend`."""
        return iter(list(self._aside.values()))

    def sweep_aside(self, kept: Collection[StoredChunk]) -> None:
        """Forget the rest; see `Backend`."""
        self._aside = {key: chunk for key, chunk in self._aside.items() if chunk in kept}

    def chunks(self) -> Iterator[StoredChunk]:
        """Every chunk; see `Backend`."""
        return iter([chunk for chunk, _ in self._chunks.values()])

    def free_bytes(self) -> int | None:
        """What `capacity` leaves; see `Backend`."""
        if self._capacity is None:
            return None
        return self._capacity - sum(chunk.length for chunk in self.chunks())

    def close(self) -> None:
        """Nothing to let go of."""

    def put(self, chunk: StoredChunk, body: bytes) -> None:
        """Make `body` visible. Raises NO_SPACE when it does not fit."""
        key = (chunk.id, chunk.digest)
        free = self.free_bytes()
        if key not in self._chunks and free is not None and free < chunk.length:
            raise MictlanError(Kind.NO_SPACE, "publish chunk", chunk.id.hex())
        self._chunks[key] = (chunk, body)


@dataclass(slots=True)
class _Staged:
    backend: MemoryBackend
    chunk: StoredChunk
    body: bytes | None

    @property
    def sums(self) -> bytes:
        """None: nobody opens what is no file."""
        return b""

    async def publish(self) -> None:
        if self.body is not None:
            self.backend.put(self.chunk, self.body)
            self.body = None

    async def discard(self) -> None:
        self.body = None
