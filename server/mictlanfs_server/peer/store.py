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
bad copy set aside, row still there     `recovery.py` takes the row out of service: the copy is bad
======================================  ==========================================================

A bad copy goes out of service (`condemn`): the file aside, then the row to the bad ones, durably,
then a router is told, which drops its row. A row without a file comes from a crash between the
first two, or from somebody who removed files: it is out of service from the start.

Nothing is read in part without a comparison: a range is read in whole blocks, which are compared
with their checksums (`mictlanfs.blocksums`); a small chunk with its digest. Whole chunks their
readers compare, with the digest.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mictlanfs.blocksums import BLOCK_SIZE_BYTES, SUM_SIZE_BYTES, block_count, is_good_block
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import CHUNK_SIZE_BYTES_MAX, MIB, SMALL_CHUNK_SIZE_BYTES, Buffer, ChunkId
from mictlanfs_server.peer import badcopies
from mictlanfs_server.peer.backends.base import (
    Backend,
    Give,
    Staged,
    StoredChunk,
    corrupt,
    is_same,
)
from mictlanfs_server.peer.budget import ByteBudget
from mictlanfs_server.peer.index import Entry, Index, conflict

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Callable,
        Coroutine,
        Iterator,
        Sequence,
    )

    from mictlanfs_server.peer.capacity import Capacity

log = logging.getLogger(__name__)

T = TypeVar("T")

# Bytes of chunks in memory at a time: 16 uploads, and as many downloads, of the usual 4 MiB.
UPLOAD_BUDGET_BYTES: Final = 64 * MIB
DOWNLOAD_BUDGET_BYTES: Final = 64 * MIB
# Measured: a look into the index costs 8 us, going to a thread and back 140 us.
_INLINE_READS_MAX: Final = 16
# Below it a range is compared in the loop: 100 us at most.
_INLINE_VERIFY_SIZE_BYTES_MAX: Final = 1 * MIB


class ChunkStore:
    """Puts, gets and deletes of chunks. Used from one event loop. Everything is idempotent.

    Attributes:
        on_suspect: told of each chunk that a reader found not to be as it should be.
        index, backend: what it is made of.
    """

    on_suspect: Callable[[ChunkId], None] = staticmethod(lambda _: None)

    def __init__(self, index: Index, backend: Backend, capacity: Capacity) -> None:
        self.index = index
        self.backend = backend
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
        return self.index.totals.used_bytes

    @property
    def chunk_count(self) -> int:
        """Number of chunks."""
        return self.index.totals.chunk_count

    @property
    def capacity_bytes(self) -> int:
        """Bytes the peer may hold."""
        return self._capacity.total

    @property
    def is_full(self) -> bool:
        """Whether writers should look elsewhere."""
        return self._capacity.is_full

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
                [result] = await self.index.add_small([(chunk, body)])
        if isinstance(result, MictlanError):
            raise result
        return result

    async def put_file(self, chunk: StoredChunk, give: Give) -> bool:
        """Store a chunk durably that another process writes to a file. False when it was there.

        See `Backend.stage_file` for `give`. Holds no bytes in memory.

        Cancellation: the chunk is stored whole or not at all.

        Raises:
            MictlanError: as `put`; UNSUPPORTED for a small chunk, and where there are no files.
        """
        check_length(chunk.length)
        if chunk.length < SMALL_CHUNK_SIZE_BYTES:
            raise MictlanError(Kind.UNSUPPORTED, "put chunk", chunk.id.hex(), "it is small")
        if self._is_there(chunk):
            return False
        with self._claim([chunk]), self._capacity.promise(chunk.length):
            staged = await self.backend.stage_file(chunk, give)
            return await self._to_its_end(self._publish(chunk, staged))

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
                added = await self.index.add_small(chunks)
        except MictlanError as error:
            return [None if self._has(chunk) else error for chunk, _ in chunks]
        return [result if isinstance(result, MictlanError) else None for result in added]

    async def _put_large(self, chunk: StoredChunk, pieces: AsyncIterable[Buffer]) -> bool:
        staged = await self.backend.stage(chunk, pieces)
        return await self._to_its_end(self._publish(chunk, staged))

    async def _publish(self, chunk: StoredChunk, staged: Staged) -> bool:
        try:
            # A claim of its own: that of a caller who is cancelled ends before this does.
            with self._claim([chunk]):
                await staged.publish()
                return await self.index.add(chunk, staged.sums)
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
        known = self.index.find(chunk.id)
        return known is not None and is_same(known, chunk)

    def _is_there(self, chunk: StoredChunk) -> bool:
        """Whether the index has the chunk. Raises CONFLICT when the id stands for other bytes."""
        if chunk.id in self._deleting:
            raise _busy(chunk.id, "is being deleted")
        known = self.index.find(chunk.id) or self._writing.get(chunk.id)
        if known is None:
            return False
        if not is_same(known, chunk):
            raise conflict(chunk.id)
        return isinstance(known, Entry)

    # --- get -----------------------------------------------------------------------------------

    def find(self, chunk_id: ChunkId) -> StoredChunk:
        """What is known of a chunk. Raises NOT_FOUND."""
        entry = self.index.find(chunk_id)
        if entry is None:
            raise _not_found(chunk_id)
        return entry

    def open(self, chunk_id: ChunkId) -> tuple[StoredChunk, bytes | None]:
        """What is known of a chunk, and its bytes when it is small. Raises NOT_FOUND."""
        found = self.index.read(chunk_id)
        if found is None:
            raise _not_found(chunk_id)
        return found

    async def read(self, chunk: StoredChunk, start: int, end: int) -> Buffer:
        """Bytes `[start, end)` of a chunk that is not small; 0 <= start < end <= length.

        Those of a part are right. All of a chunk is for its reader to compare with the digest.
        The caller holds as many bytes of `downloads`.

        Raises:
            MictlanError: NOT_FOUND (deleted meanwhile), CORRUPT (the disk lost it), INTERNAL.
        """
        try:
            if end - start == chunk.length:
                return await self.backend.read(chunk, start, end)
            return await self._read_part(chunk, start, end)
        except MictlanError as error:
            if error.kind is Kind.NOT_FOUND:
                if self.index.find(chunk.id) is None:
                    raise _not_found(chunk.id) from None
                self.on_suspect(chunk.id)
                raise corrupt(chunk, "the index has it, the back end does not") from error
            if error.kind is Kind.CORRUPT:
                self.on_suspect(chunk.id)
            raise

    async def _read_part(self, chunk: StoredChunk, start: int, end: int) -> Buffer:
        sums = self.index.sums(chunk.id)
        if len(sums) != block_count(chunk.length) * SUM_SIZE_BYTES:
            # It came before there were checksums, or without its row.
            sums = await self.backend.check(chunk)
            await self.index.keep_sums(chunk, sums)
        first = start - start % BLOCK_SIZE_BYTES
        stop = min(chunk.length, block_count(end) * BLOCK_SIZE_BYTES)
        view = memoryview(await self.backend.read(chunk, first, stop))
        if len(view) <= _INLINE_VERIFY_SIZE_BYTES_MAX:
            is_good = _are_good_blocks(view, first, sums)
        else:
            is_good = await asyncio.to_thread(_are_good_blocks, view, first, sums)
        if not is_good:
            raise corrupt(chunk, "a block does not match its checksum")
        return view[start - first : end - first]

    def part_of(self, chunk: StoredChunk, body: Buffer, start: int, end: int) -> Buffer:
        """Bytes `[start, end)` of a small chunk, right unless they are all of it.

        Raises:
            MictlanError: CORRUPT.
        """
        if end - start != chunk.length or len(body) != chunk.length:
            try:
                _verify(chunk, body)
            except MictlanError:
                self.on_suspect(chunk.id)
                raise
        return memoryview(body)[start:end]

    def open_file(self, chunk_id: ChunkId) -> tuple[int, bytes] | None:
        """A new descriptor for reading a chunk that is a file; None in every other case.

        With it the checksums of the chunk's blocks, empty when they are not known.
        """
        entry = self.index.find(chunk_id)
        if entry is None or entry.is_small:
            return None
        # First, since an error here would leave a descriptor behind.
        sums = self.index.sums(chunk_id)
        descriptor = self.backend.open_file(entry)
        if descriptor is None:
            self.on_suspect(chunk_id)
            return None
        return descriptor, sums

    async def read_many(
        self, chunk_ids: Sequence[ChunkId], size_max: int
    ) -> list[Buffer | MictlanError]:
        """Whole chunks, or the error in the place of each that failed.

        Chunks that no longer fit into `size_max` bytes together are TOO_LARGE.
        """
        if len(chunk_ids) <= _INLINE_READS_MAX:
            found = [self.index.read(chunk_id) for chunk_id in chunk_ids]
        else:
            found = await asyncio.to_thread(self.index.read_many, chunk_ids)
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
            for entry in await self.index.remove(chunk_ids):
                if not entry.is_small:
                    try:
                        await self.backend.delete(entry)
                    except MictlanError as error:
                        # The row is gone: the file is found again at the next start.
                        log.warning("a deleted chunk leaves its file: %s", error)
                        failed[entry.id] = error
        except MictlanError as error:
            failed = dict.fromkeys(chunk_ids, error)
        finally:
            self._deleting -= Counter(chunk_ids)
        return failed

    # --- verification --------------------------------------------------------------------------

    async def page(self, after: ChunkId, count_max: int) -> list[tuple[Entry, int]]:
        """Chunks behind an id, in the order of ids, and when each came, in seconds since 1970."""
        return await asyncio.to_thread(self.index.page, after, count_max)

    async def check(self, chunk: StoredChunk) -> str:
        """What is wrong with a chunk as the index knows it; empty: nothing. Reads all of it.

        Raises:
            MictlanError: NOT_FOUND (it is not in service any more), UNAVAILABLE (it is being
                written or deleted), INTERNAL (it cannot be read now).
        """
        try:
            found = await asyncio.to_thread(self.index.read_many, [chunk.id])
            entry, body = found[0] or (None, None)
            if entry is None or not is_same(entry, chunk):
                raise _not_found(chunk.id)
            if entry.length >= SMALL_CHUNK_SIZE_BYTES:
                await self._check_file(entry)
            else:
                _verify(entry, body or b"")
        except MictlanError as error:
            if chunk.id in self._writers or chunk.id in self._deleting:
                raise _busy(chunk.id, "is being written or deleted") from error
            if error.kind is Kind.CORRUPT:
                return error.detail
            raise
        return ""

    async def _check_file(self, chunk: StoredChunk) -> None:
        try:
            sums = await self.backend.check(chunk)
        except MictlanError as error:
            if error.kind is Kind.NOT_FOUND and self.index.find(chunk.id) is not None:
                raise corrupt(chunk, badcopies.MISSING) from None
            raise
        if self.index.sums(chunk.id) != sums:
            await self.index.keep_sums(chunk, sums)

    async def condemn(self, chunk: StoredChunk, reason: str) -> bool:
        """Take a bad copy out of service, durably; False when it is not in service, or is in use.

        Cancellation: it goes on to its end.

        Raises:
            MictlanError: NO_SPACE, INTERNAL.
        """
        if chunk.id in self._writers or chunk.id in self._deleting:
            return False
        self._deleting[chunk.id] += 1
        return await self._to_its_end(self._condemn(chunk, reason))

    async def _condemn(self, chunk: StoredChunk, reason: str) -> bool:
        try:
            known = self.index.find(chunk.id)
            if known is None or not is_same(known, chunk):
                return False
            is_file = not known.is_small and await self.backend.set_aside(known)
            change = badcopies.condemn(known, reason, is_file=is_file)
            return await self.index.change(change) is not None
        finally:
            self._deleting -= Counter([chunk.id])

    # --- end -----------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Finish what must not be broken off, then let go of everything."""
        while self._unbroken:
            await asyncio.wait(self._unbroken)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Let go of everything, when the event loop is gone already. Blocks; twice is once."""
        self.backend.close()
        self.index.close()

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


def _are_good_blocks(view: memoryview, first: int, sums: bytes) -> bool:
    """Whether bytes from `first` on, the beginning of a block, are those of the checksums."""
    return all(
        is_good_block(view[at : at + BLOCK_SIZE_BYTES], (first + at) // BLOCK_SIZE_BYTES, sums)
        for at in range(0, len(view), BLOCK_SIZE_BYTES)
    )


def _not_found(chunk_id: ChunkId) -> MictlanError:
    return MictlanError(Kind.NOT_FOUND, "get chunk", chunk_id.hex())


def _busy(chunk_id: ChunkId, why: str) -> MictlanError:
    return MictlanError(Kind.UNAVAILABLE, "chunk", chunk_id.hex(), why)
