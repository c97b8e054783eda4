r"""The chunk cache as the mount uses it: memory, then files of this machine, then the space.

Owns the order of the levels, what is fetched on a miss, and the fetches themselves. Invariants:
of a byte that several readers miss at the same time, one copy is fetched (*single-flight*); a
fetch belongs to the cache, not to the reader that caused it, so cancelling a reader never fails
another; an error goes to every reader that waited for it and is not remembered; a hit in memory
never suspends and never uses a thread.

What one read goes through::

    memory --> page cache --> disk, in a thread --> fetch under way --> new fetch
    \_____ at once _____/    \____________________ waits ____________________/

The files are those of peers on this machine (`local`), of which nothing is copied, and those of the
disk cache. What is in neither is fetched. A sequential reader asks for whole chunks. A random one
asks for blocks of 128 KiB, until it has missed a few of one chunk: then the whole chunk is fetched
besides.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeAlias

import trio
from cachetools import LRUCache

from mictlanfs.client.localpeers import LocalPeers
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.intervals import merge
from mictlanfs.model import (
    CHUNK_SIZE_BYTES_DEFAULT,
    MIB,
    SMALL_CHUNK_SIZE_BYTES,
    Buffer,
    Chunk,
    ChunkId,
    PeerNumber,
)
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs_mount.chunkcache.base import (
    BLOCK_SIZE_BYTES,
    LevelStats,
    block_bounds,
    block_indices,
    owned,
)
from mictlanfs_mount.chunkcache.disk import (
    CHUNK_SIZE_BYTES_MIN,
    DiskLevel,
    DiskLimits,
    DiskStats,
)
from mictlanfs_mount.chunkcache.files import ChunkFiles
from mictlanfs_mount.chunkcache.local import LocalLevel, LocalStats
from mictlanfs_mount.chunkcache.memory import MemoryLevel

log = logging.getLogger(__name__)

Fetch: TypeAlias = Callable[[Chunk, int, int], Awaitable[Buffer]]
FetchMany: TypeAlias = Callable[[Sequence[Chunk]], Awaitable[Sequence[Buffer | None]]]

# A random read of more than this part of a chunk fetches it whole: the request costs about as much
# as the bytes, and a whole chunk can be verified and kept on disk. JuiceFS draws the same line.
_WHOLE_RATIO = 4
# So many missed blocks of one chunk say that more of it will be read.
_BLOCK_MISSES_MAX = 4
_HISTORY_COUNT_MIN, _HISTORY_COUNT_MAX = 16, 1024
# Fetches nobody waits for yet. The bytes bound memory; the count lets the small files of a whole
# directory travel together.
_PREFETCH_SIZE_BYTES_MAX = 64 * MIB
_PREFETCHES_MAX = 256
_DRAIN_S_MAX = 2.0
# How long whoever has things forgotten waits until their files are gone.
_DELETE_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What the cache did since it was opened.

    Attributes:
        memory_hits, disk_hits: reads answered by a level. Unlike the levels' own counters these
            count a read once, however often it looked. Those of the local level are in `local`.
        misses: reads that had to wait for the space.
        joined: of these, how many waited for a fetch that was under way already.
        fetches, fetched_bytes: requests to the space that succeeded.
        fetch_errors: requests that failed.
        prefetches_refused: because too many were under way.
        disk, local: None when there is no such level.
    """

    memory_hits: int
    disk_hits: int
    misses: int
    joined: int
    fetches: int
    fetched_bytes: int
    fetch_errors: int
    prefetches_refused: int
    memory: LevelStats
    disk: DiskStats | None
    local: LocalStats | None = None


class Warmth(Enum):
    """Where a chunk is after it was warmed; see `mictlanfs.mounts.cachewords.Warmed`."""

    STORED = "stored"
    KEPT = "kept"
    NEAR = "near"
    INLINE = "inline"
    SMALL = "small"
    REFUSED = "refused"


class Places(NamedTuple):
    """Where a whole chunk can be had from without the network."""

    memory: bool
    disk: bool
    near: bool


class _Flight:
    """A fetch of `[start, end)` of a chunk that is under way, and afterwards what it brought."""

    __slots__ = ("body", "done", "end", "error", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.done = trio.Event()
        self.body: memoryview | None = None
        self.error: Exception | None = None

    async def result(self) -> memoryview:
        """The bytes, once they are there. Every caller gets an error object of its own."""
        await self.done.wait()
        if self.body is not None:
            return self.body
        if self.error is None:
            raise MictlanError(Kind.UNAVAILABLE, "read chunk", detail="the cache is being closed")
        raise copy.copy(self.error) from self.error


@asynccontextmanager
async def open_chunk_cache(
    fetch: Fetch,
    *,
    memory_budget: int,
    directory: Path | None = None,
    limits: DiskLimits | None = None,
    fetch_many: FetchMany | None = None,
    local_peers: LocalPeers | None = None,
    on_damaged: Callable[[ChunkId, PeerNumber], None] = lambda _chunk, _peer: None,
) -> AsyncIterator[ChunkCache]:
    """A chunk cache, with a nursery for its fetches and its disk writer.

    Leaving the block cancels fetches and waits for disk writes, at most for about 2 s.

    Args:
        fetch: gives bytes `[start, end)` of a chunk from the space, as `ChunkStore.fetch` does.
        memory_budget: bytes of the memory level.
        directory: of the disk level; None for none.
        limits: of the disk level.
        fetch_many: gives whole small chunks, as `ChunkStore.fetch_many` does; None: each is fetched
            for itself.
        local_peers: give descriptors of chunks; None: every chunk is fetched.
        on_damaged: told of each damaged file of theirs.

    Raises:
        MictlanError: BUSY when another mount owns the directory; else what the system says of it.
        UsageError: the directory holds something else.
    """
    with contextlib.ExitStack() as cleanup:
        disk = None
        if directory is not None:
            files = await trio.to_thread.run_sync(ChunkFiles, directory)
            cleanup.callback(files.close)
            disk = DiskLevel(files, limits or DiskLimits())
            cleanup.callback(disk.forget_all)
        with raising_single_errors():
            async with trio.open_nursery() as nursery:
                if disk is not None:
                    nursery.start_soon(disk.run)
                local = None
                if local_peers is not None:
                    local = LocalLevel(
                        nursery,
                        local_peers.may_open,
                        local_peers.open,
                        local_peers.open_many,
                        on_damaged=on_damaged,
                    )
                    cleanup.callback(local.close)
                    nursery.start_soon(local.run)
                try:
                    memory = MemoryLevel(memory_budget)
                    yield ChunkCache(nursery, fetch, memory, disk, local, fetch_many)
                finally:
                    if disk is not None:
                        with trio.move_on_after(_DRAIN_S_MAX, shield=True):
                            await disk.drain()
                    nursery.cancel_scope.cancel()


class ChunkCache:
    """Chunks, cached; made by `open_chunk_cache`. For one trio loop.

    Every range must satisfy `0 <= start < end <= chunk.length`. Buffers given out are read-only
    or must be treated so.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        fetch: Fetch,
        memory: MemoryLevel,
        disk: DiskLevel | None,
        local: LocalLevel | None = None,
        fetch_many: FetchMany | None = None,
    ) -> None:
        self._nursery = nursery
        self._fetch = fetch
        self._fetch_many = fetch_many
        self._memory = memory
        self._disk = disk
        self._local = local
        self._whole_flights: dict[ChunkId, _Flight] = {}
        self._block_flights: dict[tuple[ChunkId, int], _Flight] = {}
        self._prefetching: set[ChunkId] = set()
        self._prefetching_bytes = 0
        self._block_misses: LRUCache[ChunkId, int] = LRUCache(self._history_count())
        self._memory_hits = self._disk_hits = self._misses = self._joined = 0
        self._fetches = self._fetched_bytes = self._fetch_errors = self._refused = 0

    def _history_count(self) -> int:
        """Chunks whose missed blocks are remembered: as many as the levels could hold.

        When the file that is read at random is larger than the cache, a chunk is forgotten before
        it has missed often enough: fetching it whole would only push out another one.
        """
        capacity = self._memory.budget
        if self._disk is not None:
            capacity += self._disk.stats().budget_bytes
        count = capacity // CHUNK_SIZE_BYTES_DEFAULT
        return max(_HISTORY_COUNT_MIN, min(count, _HISTORY_COUNT_MAX))

    # --- reading ---------------------------------------------------------------------------------

    def get_now(self, chunk: Chunk, start: int, end: int) -> Buffer | None:
        """Bytes `[start, end)` of `chunk` when they are at hand, else None. Never waits."""
        found = self._memory.get(chunk, start, end)
        if found is not None:
            self._memory_hits += 1
            return found
        if self._local is not None:
            found = self._local.get(chunk, start, end)
            if found is not None:
                return found
        if self._disk is None:
            return None
        found = self._disk.get(chunk, start, end)
        if found is not None:
            self._disk_hits += 1
        return found

    async def read(self, chunk: Chunk, start: int, end: int, *, whole: bool) -> Buffer:
        """Bytes `[start, end)` of `chunk`. Does not suspend when they are at hand.

        On a miss, `whole` fetches the whole chunk and keeps it in both levels; without it only the
        blocks that the range touches are fetched, and kept in memory. Chunks of one block, and
        ranges of more than a quarter of a chunk, are always fetched whole.

        Cancellation: what is being fetched goes on, for others and for the cache.

        Raises:
            MictlanError: as `fetch`.
        """
        found = self.get_now(chunk, start, end)
        if found is None:
            found = await self._read_file(chunk, start, end)
        if found is not None:
            return found
        self._misses += 1
        flight = self._whole_flights.get(chunk.id)
        if flight is not None:
            # Even a small range waits: it is on its way, and another request would delay it.
            self._joined += 1
            return (await flight.result())[start:end]
        if self._is_worth_whole(chunk, end - start, whole=whole):
            return (await self._start_whole(chunk).result())[start:end]
        return await self._read_blocks(chunk, start, end)

    async def _read_file(self, chunk: Chunk, start: int, end: int) -> memoryview | None:
        """The bytes from a file of this machine, of the disk cache or of a peer; None without."""
        if self._disk is not None and self._disk.has_whole(chunk.id):
            found = await self._disk.read(chunk, start, end)
            if found is not None:
                self._disk_hits += 1
                return found
        if self._local is not None and chunk.id not in self._whole_flights:
            return await self._local.read(chunk, start, end)
        return None

    def _is_worth_whole(self, chunk: Chunk, length: int, *, whole: bool) -> bool:
        if chunk.length <= BLOCK_SIZE_BYTES:
            return True
        if self._local is not None and self._local.is_damaged(chunk.id):
            # Only a whole chunk is compared with its digest.
            return True
        if not self._is_kept(chunk):
            # The next range would fetch it all again.
            return False
        return whole or length * _WHOLE_RATIO > chunk.length

    async def _read_blocks(self, chunk: Chunk, start: int, end: int) -> memoryview:
        bodies: list[memoryview] = []
        blocks = self._blocks_or_flights(chunk, start, end)
        for index, found in blocks.items():
            if isinstance(found, _Flight):
                block_start, block_end = block_bounds(index, chunk.length)
                body = await found.result()
                bodies.append(body[block_start - found.start : block_end - found.start])
            else:
                bodies.append(found)
        # Only now, so that a whole chunk that is fetched besides does not delay these blocks.
        self._note_block_miss(chunk)
        offset = start - min(blocks) * BLOCK_SIZE_BYTES
        joined = bodies[0] if len(bodies) == 1 else memoryview(b"".join(bodies))
        return joined[offset : offset + end - start]

    def _blocks_or_flights(
        self, chunk: Chunk, start: int, end: int
    ) -> dict[int, memoryview | _Flight]:
        """Each block of a range, in order: its bytes, or the fetch that will bring them.

        Neighbouring blocks that are missing are fetched by one request. Nothing here waits: what
        is at hand now could be evicted while the rest is waited for.
        """
        blocks: dict[int, memoryview | _Flight] = {}
        missing: list[int] = []
        for index in block_indices(start, end):
            flight = self._block_flights.get((chunk.id, index))
            found = flight or self._memory.get_block(chunk.id, index)
            if found is None:
                missing.append(index)
            else:
                blocks[index] = found
        if not missing:
            self._joined += 1
        for first, stop in merge((index, index + 1) for index in missing):
            blocks.update(dict.fromkeys(range(first, stop), self._start_blocks(chunk, first, stop)))
        return dict(sorted(blocks.items()))

    def _note_block_miss(self, chunk: Chunk) -> None:
        count = self._block_misses.pop(chunk.id, 0) + 1
        if count < _BLOCK_MISSES_MAX:
            self._block_misses[chunk.id] = count
        else:
            self.prefetch(chunk)

    # --- fetching --------------------------------------------------------------------------------

    def prefetch(self, chunk: Chunk) -> bool:
        """Have a whole chunk ready soon. Returns at once.

        False when it is not even under way: too many prefetches are, or nothing could keep it.
        An error of the fetch is not reported; whoever reads the chunk will meet it.
        """
        if self._is_under_way(chunk):
            return True
        if not self._begin_prefetch(chunk):
            return False
        if self._is_in_a_file(chunk):
            self._nursery.start_soon(self._warm_or_fetch, chunk)
        else:
            self._start_whole(chunk)
        return True

    def open_ahead(self, chunks: Sequence[Chunk]) -> None:
        """Have chunks of peers on this machine open soon, as far as that helps. Returns at once."""
        if self._local is not None:
            self._local.open_ahead(chunks)

    def prefetch_together(self, chunks: Sequence[Chunk]) -> None:
        """As `prefetch` for many small chunks, which are fetched in few requests by one task."""
        flights: list[tuple[Chunk, _Flight]] = []
        for chunk in chunks:
            if chunk.length >= SMALL_CHUNK_SIZE_BYTES or self._is_in_a_file(chunk):
                self.prefetch(chunk)
            elif not self._is_under_way(chunk) and self._begin_prefetch(chunk):
                flight = self._whole_flights[chunk.id] = _Flight(0, chunk.length)
                flights.append((chunk, flight))
        if not flights:
            return
        if self._fetch_many is not None:
            self._nursery.start_soon(self._fly_together, flights, self._fetch_many)
        else:
            for chunk, flight in flights:
                self._nursery.start_soon(self._fly_whole, chunk, flight)

    def _is_under_way(self, chunk: Chunk) -> bool:
        """Whether a whole chunk is in memory, or will be ready soon."""
        return (
            self._memory.has_whole(chunk.id)
            or chunk.id in self._whole_flights
            or chunk.id in self._prefetching
        )

    def _is_in_a_file(self, chunk: Chunk) -> bool:
        """Whether a whole chunk may be had from a file of this machine."""
        if self._disk is not None and self._disk.has_whole(chunk.id):
            return True
        return self._local is not None and self._local.is_possible(chunk)

    def _begin_prefetch(self, chunk: Chunk) -> bool:
        """Count a chunk as being prefetched, unless it is one too many."""
        size_max = min(_PREFETCH_SIZE_BYTES_MAX, max(self._memory.budget // 2, chunk.length))
        if (
            not self._is_kept(chunk)
            or len(self._prefetching) >= _PREFETCHES_MAX
            or self._prefetching_bytes + chunk.length > size_max
        ):
            self._refused += 1
            return False
        self._prefetching.add(chunk.id)
        self._prefetching_bytes += chunk.length
        return True

    async def _warm_or_fetch(self, chunk: Chunk) -> None:
        is_ready = (
            (self._disk is not None and await self._disk.warm(chunk))
            or (self._local is not None and await self._local.warm(chunk))
            or self._memory.has_whole(chunk.id)
        )
        if is_ready or chunk.id in self._whole_flights:
            self._end_prefetch(chunk)
        else:
            self._start_whole(chunk)

    def _end_prefetch(self, chunk: Chunk) -> None:
        if chunk.id in self._prefetching:
            self._prefetching.discard(chunk.id)
            self._prefetching_bytes -= chunk.length

    def _start_whole(self, chunk: Chunk) -> _Flight:
        flight = self._whole_flights[chunk.id] = _Flight(0, chunk.length)
        self._nursery.start_soon(self._fly_whole, chunk, flight)
        return flight

    def _start_to_disk(self, chunk: Chunk) -> _Flight:
        """As `_start_whole`, for who keeps the chunk himself: nothing else has to make room."""
        flight = self._whole_flights[chunk.id] = _Flight(0, chunk.length)
        self._nursery.start_soon(self._fly_whole, chunk, flight, False)
        return flight

    async def _fly_whole(self, chunk: Chunk, flight: _Flight, is_kept: bool = True) -> None:
        try:
            body = await self._fly(chunk, flight)
            if body is not None and is_kept:
                self._keep(chunk, body)
        finally:
            self._land(chunk, flight)

    async def _fly_together(
        self, flights: Sequence[tuple[Chunk, _Flight]], fetch_many: FetchMany
    ) -> None:
        """Fetch whole chunks; those that do not come so are fetched one by one."""
        left = dict(flights)
        try:
            bodies: Sequence[Buffer | None] = [None] * len(flights)
            try:
                bodies = await fetch_many([chunk for chunk, _ in flights])
            except Exception as error:  # noqa: BLE001 - who reads a chunk will meet it.
                log.debug("chunks did not come together: %s", error)
            for (chunk, flight), body in zip(flights, bodies, strict=True):
                if body is not None:
                    own = owned(body)
                    self._note_fetched(flight, own)
                    self._keep(chunk, own)
                    self._land(chunk, left.pop(chunk))
            while left:
                self._nursery.start_soon(self._fly_whole, *left.popitem())
        finally:
            for chunk, flight in left.items():
                self._land(chunk, flight)

    def _keep(self, chunk: Chunk, body: memoryview) -> None:
        """Keep a whole chunk: in memory and, unless a peer here has it in a file, on the disk."""
        self._memory.put_whole(chunk, body)
        if self._disk is not None and not (self._local is not None and self._local.is_near(chunk)):
            self._disk.put_whole(chunk, body)

    def _land(self, chunk: Chunk, flight: _Flight) -> None:
        del self._whole_flights[chunk.id]
        self._end_prefetch(chunk)
        flight.done.set()

    def _start_blocks(self, chunk: Chunk, first: int, stop: int) -> _Flight:
        start, _ = block_bounds(first, chunk.length)
        _, end = block_bounds(stop - 1, chunk.length)
        flight = _Flight(start, end)
        for index in range(first, stop):
            self._block_flights[chunk.id, index] = flight
        self._nursery.start_soon(self._fly_blocks, chunk, flight)
        return flight

    async def _fly_blocks(self, chunk: Chunk, flight: _Flight) -> None:
        indices = block_indices(flight.start, flight.end)
        try:
            body = await self._fly(chunk, flight)
            if body is not None:
                for index in indices:
                    start, end = block_bounds(index, chunk.length)
                    block = body[start - flight.start : end - flight.start]
                    self._memory.put_block(chunk, start, block)
        finally:
            for index in indices:
                del self._block_flights[chunk.id, index]
            flight.done.set()

    async def _fly(self, chunk: Chunk, flight: _Flight) -> memoryview | None:
        """Fetch what the flight is for and note in it what came of that."""
        try:
            body = owned(await self._fetch(chunk, flight.start, flight.end))
            if body.nbytes != flight.end - flight.start:
                detail = f"{body.nbytes} bytes in the place of {flight.end - flight.start}"
                raise MictlanError(Kind.CORRUPT, "get chunk", chunk.id.hex(), detail)
        except Exception as error:  # noqa: BLE001 - it is the readers' error, not the nursery's.
            self._fetch_errors += 1
            flight.error = error
            log.debug("fetch of chunk %s failed: %s", chunk.id.hex(), error)
            return None
        self._note_fetched(flight, body)
        return body

    def _note_fetched(self, flight: _Flight, body: memoryview) -> None:
        self._fetches += 1
        self._fetched_bytes += body.nbytes
        flight.body = body

    # --- on demand -------------------------------------------------------------------------------

    def places(self, chunk: Chunk) -> Places:
        """Where a chunk is now. Counts as no use of it."""
        return Places(
            self._memory.has_whole(chunk.id),
            self._disk is not None and self._disk.has_whole(chunk.id),
            self._local is not None and self._local.is_near(chunk),
        )

    async def warm(self, chunk: Chunk) -> Warmth:
        """Have a chunk in the disk cache, verified, when it is worth that; tells what was done.

        A chunk that a peer on this machine has is not copied: its file is read ahead. What is put
        on the disk does not push anything out of the memory.

        Raises:
            MictlanError: as `fetch`.
        """
        if not chunk.peers:
            return Warmth.INLINE
        if self._local is not None and self._local.is_near(chunk):
            await self._local.warm(chunk)
            if not self._local.is_damaged(chunk.id):
                return Warmth.NEAR
        if chunk.length < CHUNK_SIZE_BYTES_MIN:
            return Warmth.SMALL
        if self._disk is None or not self._disk.could_keep(chunk.length):
            return Warmth.REFUSED
        if await self._disk.warm(chunk):
            return Warmth.KEPT
        flight = self._whole_flights.get(chunk.id) or self._start_to_disk(chunk)
        is_kept = await self._disk.keep(chunk, await flight.result())
        return Warmth.STORED if is_kept else Warmth.REFUSED

    async def forget(self, chunks: Sequence[Chunk]) -> int:
        """Forget chunks in all levels, their files too; returns the bytes that were on the disk."""
        size = sum(chunk.length for chunk in chunks if self.places(chunk).disk)
        for chunk in chunks:
            self.discard(chunk.id)
        await self._deleted()
        return size

    async def clear(self) -> int:
        """Forget everything in all levels; returns the bytes that were on the disk.

        What is being fetched is kept when it comes.
        """
        self._memory.clear()
        if self._local is not None:
            self._local.close()
        if self._disk is None:
            return 0
        size = self._disk.discard_all()
        await self._deleted()
        return size

    async def _deleted(self) -> None:
        if self._disk is not None:
            with trio.move_on_after(_DELETE_S_MAX):
                await self._disk.settle()

    # --- the rest --------------------------------------------------------------------------------

    def insert(self, chunk: Chunk, pieces: Sequence[Buffer], *, keep_on_disk: bool = False) -> None:
        """Keep what this mount has just written: `pieces`, joined, are the whole chunk.

        The bytes are copied, so the caller may reuse its buffers at once. Not on disk unless
        asked: that would write every byte once more on a machine that is busy writing.
        """
        if self._memory.has_whole(chunk.id) or not self._is_kept(chunk):
            return
        body = memoryview(b"".join(pieces))
        self._memory.put_whole(chunk, body)
        if keep_on_disk and self._disk is not None:
            self._disk.put_whole(chunk, body)

    def discard(self, chunk_id: ChunkId) -> None:
        """Forget a chunk in all levels. A fetch under way still brings it."""
        self._memory.discard(chunk_id)
        if self._local is not None:
            self._local.discard(chunk_id)
        if self._disk is not None:
            self._disk.discard(chunk_id)

    async def settle(self) -> None:
        """Wait until the disk level is ready and has written all that was put. For tests."""
        if self._disk is not None:
            await self._disk.settle()

    def resize(self, memory_budget: int) -> None:
        """Change the budget of the memory level; what no longer fits is evicted at once."""
        self._memory.resize(memory_budget)

    def stats(self) -> CacheStats:
        """The counters of now."""
        return CacheStats(
            memory_hits=self._memory_hits,
            disk_hits=self._disk_hits,
            misses=self._misses,
            joined=self._joined,
            fetches=self._fetches,
            fetched_bytes=self._fetched_bytes,
            fetch_errors=self._fetch_errors,
            prefetches_refused=self._refused,
            memory=self._memory.stats(),
            disk=self._disk.stats() if self._disk is not None else None,
            local=self._local.stats() if self._local is not None else None,
        )

    def _is_kept(self, chunk: Chunk) -> bool:
        """Whether any level could keep the whole chunk."""
        return self._memory.could_keep(chunk.length) or (
            self._disk is not None and self._disk.could_keep(chunk.length)
        )
