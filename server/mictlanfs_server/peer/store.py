"""The chunks of one peer: small ones in the index, larger ones on the back end.

Owns which of the two a chunk goes to, the claims on ids that are being written or deleted, and the
bounds of memory and space. Never knows HTTP or the router.

Order on a put: the bytes durable (back end), then the row, then the answer. Order on a delete: the
row gone durably, then the bytes, then the answer. What a crash leaves between two steps:

======================================  ==========================================================
during an upload                        a temporary file; the back end sweeps it at start
file published, no row                  `recovery.py` adds the row: the chunk is there, unasked
row gone, file still there              the same; a delete after that removes it
small chunk, transaction not synced     nothing
======================================  ==========================================================

A row without a file cannot come from a crash. Where one is found at start (somebody removed files),
it is dropped and logged as ERROR, so that the peer answers NOT_FOUND and another replica is used.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import CHUNK_SIZE_BYTES_MAX, MIB, SMALL_CHUNK_SIZE_BYTES, Buffer, ChunkId
from mictlanfs.wireobjects import HOLDINGS_PAGE_MAX
from mictlanfs_server.peer.backends.base import Backend, Staged, StoredChunk, corrupt, is_same
from mictlanfs_server.peer.budget import ByteBudget
from mictlanfs_server.peer.index import Entry, Index, conflict

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterator, Sequence

    from mictlanfs_server.peer.capacity import Capacity

log = logging.getLogger(__name__)

T = TypeVar("T")

# Bytes of chunks in memory at a time: 16 uploads, and as many downloads, of the usual 4 MiB.
UPLOAD_BUDGET_BYTES: Final = 64 * MIB
DOWNLOAD_BUDGET_BYTES: Final = 64 * MIB
# Measured: a look into the index costs 8 us, going to a thread and back 140 us.
_INLINE_READS_MAX: Final = 16


class ChunkStore:
    """Puts, gets and deletes of chunks. Used from one event loop. Everything is idempotent."""

    def __init__(self, index: Index, backend: Backend, capacity: Capacity) -> None:
        self._index = index
        self._backend = backend
        self._capacity = capacity
        self._writing: dict[ChunkId, StoredChunk] = {}
        self._writers: Counter[ChunkId] = Counter()
        self._deleting: Counter[ChunkId] = Counter()
        self._unbroken: set[asyncio.Task[Any]] = set()
        self.uploads = ByteBudget(UPLOAD_BUDGET_BYTES)
        self.downloads = ByteBudget(DOWNLOAD_BUDGET_BYTES)

    # --- what is there -------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Bytes of all chunks."""
        return self._index.totals.used_bytes

    @property
    def chunk_count(self) -> int:
        """Number of chunks."""
        return self._index.totals.chunk_count

    @property
    def capacity_bytes(self) -> int:
        """Bytes the peer may hold."""
        return self._capacity.total

    @property
    def is_full(self) -> bool:
        """Whether writers should look elsewhere."""
        return self._capacity.is_full

    async def list_behind(self, after: ChunkId) -> list[StoredChunk]:
        """A page of chunks in order of ids, behind `after`; empty behind the last one."""
        return await asyncio.to_thread(self._index.list_behind, after, HOLDINGS_PAGE_MAX)

    # --- put -----------------------------------------------------------------------------------

    async def put(self, chunk: StoredChunk, pieces: AsyncIterable[Buffer]) -> bool:
        """Store a chunk durably. False when the same chunk was there; `pieces` is not read then.

        What `pieces` raises is passed on, and nothing is left behind.

        Cancellation: the chunk is stored whole or not at all.

        Raises:
            MictlanError: INVALID and TOO_LARGE (length), CONFLICT (the id stands for other bytes),
                CORRUPT (the bytes do not match), NO_SPACE, UNAVAILABLE (it is being deleted).
        """
        check_length(chunk.length)
        if self._is_there(chunk):
            return False
        with self._claim([chunk]), self._capacity.promise(chunk.length):
            async with self.uploads.take(chunk.length):
                if chunk.length >= SMALL_CHUNK_SIZE_BYTES:
                    return await self._put_large(chunk, pieces)
                body = await _collect(chunk, pieces)
                [result] = await self._index.add_small([(chunk, body)])
        if isinstance(result, MictlanError):
            raise result
        return result

    async def put_many(
        self, chunks: Sequence[tuple[StoredChunk, Buffer]]
    ) -> list[MictlanError | None]:
        """Store chunks that are in memory already; one result each, None when it is stored.

        The caller holds as many bytes of `uploads`. Small chunks share one transaction.

        Cancellation: each is stored whole or not at all.
        """
        results: list[MictlanError | None] = [None] * len(chunks)
        small: list[int] = []
        for number, (chunk, body) in enumerate(chunks):
            try:
                check_length(chunk.length)
                _verify(chunk, body)
                if chunk.length < SMALL_CHUNK_SIZE_BYTES:
                    small.append(number)
                elif not self._is_there(chunk):
                    with self._claim([chunk]), self._capacity.promise(chunk.length):
                        await self._put_large(chunk, _one(body))
            except MictlanError as error:
                results[number] = error
        if small:
            stored = await self._put_small([chunks[number] for number in small])
            for number, result in zip(small, stored, strict=True):
                results[number] = result
        return results

    async def _put_small(
        self, chunks: list[tuple[StoredChunk, Buffer]]
    ) -> list[MictlanError | None]:
        size = sum(chunk.length for chunk, _ in chunks)
        try:
            with self._claim([chunk for chunk, _ in chunks]), self._capacity.promise(size):
                added = await self._index.add_small(chunks)
        except MictlanError as error:
            return [None if self._has(chunk) else error for chunk, _ in chunks]
        return [result if isinstance(result, MictlanError) else None for result in added]

    async def _put_large(self, chunk: StoredChunk, pieces: AsyncIterable[Buffer]) -> bool:
        staged = await self._backend.stage(chunk, pieces)
        return await self._to_its_end(self._publish(chunk, staged))

    async def _publish(self, chunk: StoredChunk, staged: Staged) -> bool:
        try:
            # A claim of its own: that of a caller who is cancelled ends before this does.
            with self._claim([chunk]):
                await staged.publish()
                return await self._index.add(chunk, staged.sums)
        except BaseException:
            await staged.discard()
            raise

    def has(self, chunk: StoredChunk) -> bool:
        """Whether a chunk is stored.

        Raises:
            MictlanError: CONFLICT (the id stands for other bytes), UNAVAILABLE (it is being
                deleted).
        """
        return self._is_there(chunk)

    def _has(self, chunk: StoredChunk) -> bool:
        known = self._index.find(chunk.id)
        return known is not None and is_same(known, chunk)

    def _is_there(self, chunk: StoredChunk) -> bool:
        """Whether the index has the chunk. Raises CONFLICT when the id stands for other bytes."""
        if chunk.id in self._deleting:
            raise _busy(chunk.id, "is being deleted")
        known = self._index.find(chunk.id) or self._writing.get(chunk.id)
        if known is None:
            return False
        if not is_same(known, chunk):
            raise conflict(chunk.id)
        return isinstance(known, Entry)

    # --- get -----------------------------------------------------------------------------------

    def find(self, chunk_id: ChunkId) -> StoredChunk:
        """What is known of a chunk. Raises NOT_FOUND."""
        entry = self._index.find(chunk_id)
        if entry is None:
            raise _not_found(chunk_id)
        return entry

    def open(self, chunk_id: ChunkId) -> tuple[StoredChunk, bytes | None]:
        """What is known of a chunk, and its bytes when it is small. Raises NOT_FOUND."""
        found = self._index.read(chunk_id)
        if found is None:
            raise _not_found(chunk_id)
        return found

    async def read(self, chunk: StoredChunk, start: int, end: int) -> Buffer:
        """Bytes `[start, end)` of a chunk that is not small; 0 <= start < end <= length.

        The caller holds as many bytes of `downloads`.

        Raises:
            MictlanError: NOT_FOUND (deleted meanwhile), CORRUPT (the disk lost it), INTERNAL.
        """
        try:
            return await self._backend.read(chunk, start, end)
        except MictlanError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            if self._index.find(chunk.id) is None:
                raise _not_found(chunk.id) from None
            raise corrupt(chunk, "the index has it, the back end does not") from error

    def open_file(self, chunk_id: ChunkId) -> tuple[int, bytes] | None:
        """A new descriptor for reading a chunk that is a file; None in every other case.

        With it the checksums of the chunk's blocks, empty when they are not known.
        """
        entry = self._index.find(chunk_id)
        if entry is None or entry.is_small:
            return None
        # First, since an error here would leave a descriptor behind.
        sums = self._index.sums(chunk_id)
        descriptor = self._backend.open_file(entry)
        return None if descriptor is None else (descriptor, sums)

    async def read_many(
        self, chunk_ids: Sequence[ChunkId], size_max: int
    ) -> list[Buffer | MictlanError]:
        """Whole chunks, or the error in the place of each that failed.

        Chunks that no longer fit into `size_max` bytes together are TOO_LARGE.
        """
        if len(chunk_ids) <= _INLINE_READS_MAX:
            found = [self._index.read(chunk_id) for chunk_id in chunk_ids]
        else:
            found = await asyncio.to_thread(self._index.read_many, chunk_ids)
        results: list[Buffer | MictlanError] = []
        size = 0
        for chunk_id, entry_and_body in zip(chunk_ids, found, strict=True):
            try:
                body = await self._one_of_many(chunk_id, entry_and_body, size_max - size)
                size += len(body)
                results.append(body)
            except MictlanError as error:
                results.append(error)
        return results

    async def _one_of_many(
        self, chunk_id: ChunkId, found: tuple[Entry, bytes | None] | None, size_left: int
    ) -> Buffer:
        if found is None:
            raise _not_found(chunk_id)
        entry, body = found
        if entry.length > size_left:
            detail = "the frame has no room for it: ask for it alone"
            raise MictlanError(Kind.TOO_LARGE, "get chunk", chunk_id.hex(), detail)
        return body if body is not None else await self.read(entry, 0, entry.length)

    # --- delete --------------------------------------------------------------------------------

    async def delete(self, chunk_ids: Sequence[ChunkId]) -> list[MictlanError | None]:
        """Remove chunks; one result each. One that is not there counts as removed.

        UNAVAILABLE stands for a chunk that is being written at this moment.
        """
        results: list[MictlanError | None] = [
            _busy(chunk_id, "is being written") if chunk_id in self._writers else None
            for chunk_id in chunk_ids
        ]
        free = [
            chunk_id for chunk_id, error in zip(chunk_ids, results, strict=True) if error is None
        ]
        if not free:
            return results
        self._deleting.update(free)
        failed = await self._to_its_end(self._delete(free))
        return [
            error or failed.get(chunk_id)
            for chunk_id, error in zip(chunk_ids, results, strict=True)
        ]

    async def _delete(self, chunk_ids: list[ChunkId]) -> dict[ChunkId, MictlanError]:
        """Remove rows, then files. The errors by id."""
        failed = {}
        try:
            for entry in await self._index.remove(chunk_ids):
                if not entry.is_small:
                    try:
                        await self._backend.delete(entry)
                    except MictlanError as error:
                        # The row is gone: the file is found again at the next start.
                        log.warning("a deleted chunk leaves its file: %s", error)
                        failed[entry.id] = error
        except MictlanError as error:
            failed = dict.fromkeys(chunk_ids, error)
        finally:
            self._deleting -= Counter(chunk_ids)
        return failed

    # --- end -----------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Finish what must not be broken off, then let go of everything."""
        while self._unbroken:
            await asyncio.wait(self._unbroken)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Let go of everything, when the event loop is gone already. Blocks; twice is once."""
        self._backend.close()
        self._index.close()

    # --- claims --------------------------------------------------------------------------------

    @contextmanager
    def _claim(self, chunks: Sequence[StoredChunk]) -> Iterator[None]:
        """Keep ids from being deleted, or given to other bytes, while they are written.

        The same chunk may be written twice at a time: a client that lost its connection tries
        again while the first attempt still waits for its bytes.
        """
        for chunk in chunks:
            if chunk.id in self._deleting:
                raise _busy(chunk.id, "is being deleted")
        for chunk in chunks:
            self._writing.setdefault(chunk.id, chunk)
            self._writers[chunk.id] += 1
        try:
            yield
        finally:
            for chunk in chunks:
                self._writers[chunk.id] -= 1
                if not self._writers[chunk.id]:
                    del self._writers[chunk.id]
                    del self._writing[chunk.id]

    async def _to_its_end(self, steps: Coroutine[Any, Any, T]) -> T:
        """Await `steps`, which go on when the caller is cancelled: the chunk and its row agree."""
        task = asyncio.ensure_future(steps)
        self._unbroken.add(task)
        task.add_done_callback(self._unbroken.discard)
        return await asyncio.shield(task)


def check_length(length: int) -> None:
    """Raises INVALID or TOO_LARGE for what cannot be the length of a chunk."""
    if length < 1:
        raise MictlanError(Kind.INVALID, "put chunk", detail="a chunk has at least one byte")
    if length > CHUNK_SIZE_BYTES_MAX:
        detail = f"{length} bytes are more than {CHUNK_SIZE_BYTES_MAX}"
        raise MictlanError(Kind.TOO_LARGE, "put chunk", detail=detail)


async def _collect(chunk: StoredChunk, pieces: AsyncIterable[Buffer]) -> Buffer:
    """The bytes of a small chunk, verified."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > chunk.length:
            break
    _verify(chunk, body)
    return body


def _verify(chunk: StoredChunk, body: Buffer) -> None:
    if len(body) != chunk.length:
        raise corrupt(chunk, f"{len(body)} bytes came, not {chunk.length}")
    if digest_of([body]) != chunk.digest:
        raise corrupt(chunk, "the bytes do not match the digest")


async def _one(body: Buffer) -> AsyncIterator[Buffer]:
    yield body


def _not_found(chunk_id: ChunkId) -> MictlanError:
    return MictlanError(Kind.NOT_FOUND, "get chunk", chunk_id.hex())


def _busy(chunk_id: ChunkId, why: str) -> MictlanError:
    return MictlanError(Kind.UNAVAILABLE, "chunk", chunk_id.hex(), why)
