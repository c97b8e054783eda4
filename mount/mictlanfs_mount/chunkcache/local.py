"""The local level: chunks of peers on this machine, read from the peers' own files.

Owns descriptors that peers gave away, closed when they were not used for a while: an open one keeps
the space of a deleted chunk. Holds no bytes: the page cache does. Nothing here fails a read; what
cannot be had this way is had another way. Invariant: no byte is served before its block was
compared with its checksum or, where the peer has none, the whole chunk with its digest.

A block that was right is believed to be so while nothing can have become of it: the page cache had
it all the time (a read that waits for the disk makes all blocks of its chunk unknown again, since
it may have brought others along), nobody changed the file (its ctime is looked at behind each
read), and `BELIEVED_S_MAX` have not passed.

::

    (asked for) --(checksums, or digest right)--> open --(unused, or one too many)--> closed
         |                                          |
         +--------(digest wrong)--> damaged <-------+ (a block wrong)

A damaged chunk is read through the network, whole: that compares the digest, and turns to another
replica. Its peer is complained of.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from mictlanfs.blocksums import (
    BLOCK_SIZE_BYTES,
    SUM_SIZE_BYTES,
    BlockSummer,
    block_count,
    is_good_block,
)
from mictlanfs.checksums import new_hasher
from mictlanfs.client.localpeers import OpenChunk
from mictlanfs.clock import Clock, SystemClock
from mictlanfs.model import MIB, SMALL_CHUNK_SIZE_BYTES, Buffer, Chunk, ChunkId, PeerNumber

log = logging.getLogger(__name__)

DESCRIPTORS_MAX: Final = 4096
# Of the descriptors that this process may have; the rest is for everything else it does.
_DESCRIPTORS_SHARE: Final = 4
UNUSED_S_MAX: Final = 60.0
# How long a comparison is believed. Measured: comparing a block costs 6 us.
BELIEVED_S_MAX: Final = 30.0
_SWEEP_INTERVAL_S: Final = 15.0
_READ_THREADS_MAX: Final = 4
# Fits into the second-level cache of a core, so hashing what was just read costs no memory traffic.
_VERIFY_SIZE_BYTES: Final = MIB // 4

_DAMAGED_MAX: Final = 1024

# Chunks of a file that are opened before they are read, of 4 MiB each.
AHEAD_MAX: Final = 1024

Open = Callable[[Chunk], Awaitable[OpenChunk | None]]
OpenMany = Callable[[Sequence[Chunk]], Awaitable[Sequence[OpenChunk | None]]]


@dataclass(frozen=True, slots=True)
class LocalStats:
    """What the local level did since it was opened.

    Attributes:
        hits: reads answered, of which `slow_hits` had to wait for the disk.
        opened: descriptors that were taken into use.
        corrupt: chunks whose files were damaged.
        descriptors: open now.
    """

    hits: int
    slow_hits: int
    opened: int
    corrupt: int
    descriptors: int


@dataclass(slots=True)
class _Entry:
    """A descriptor in use.

    Attributes:
        peer: whose file it is.
        used_s: on the monotonic clock.
        sums: of all blocks.
        is_verified: by block.
        unknown_count: blocks that are to be compared.
        begun_s: when the oldest comparison that is still believed may have been.
        changed_ns: ctime of the file then.
        users: threads that use the descriptor now.
        is_over: the last of them closes it.
    """

    fd: int
    peer: PeerNumber
    sums: bytes
    is_verified: bytearray
    unknown_count: int
    begun_s: float
    changed_ns: int
    used_s: float = 0.0
    users: int = 0
    is_over: bool = False

    @contextmanager
    def in_use(self) -> Iterator[int]:
        """The descriptor, not closed before the block is left."""
        self.users += 1
        try:
            yield self.fd
        finally:
            self.users -= 1
            if self.is_over:
                self.end()

    def end(self) -> None:
        """Close the descriptor as soon as nobody uses it."""
        self.is_over = True
        if self.users == 0:
            os.close(self.fd)

    def doubt(self, now_s: float) -> None:
        """Have every block compared again."""
        self.is_verified = bytearray(len(self.is_verified))
        self.unknown_count = len(self.is_verified)
        self.begun_s = now_s

    def bounds(self, start: int, end: int, length: int) -> tuple[int, int]:
        """What to read for `[start, end)`: whole blocks where they are to be verified."""
        if not self.unknown_count:
            return start, end
        flags = self.is_verified
        index, stop = start // BLOCK_SIZE_BYTES, block_count(end)
        if flags[index] and (stop - index == 1 or 0 not in flags[index:stop]):
            return start, end
        first = start - start % BLOCK_SIZE_BYTES
        return first, min(length, block_count(end) * BLOCK_SIZE_BYTES)

    def verify(self, first: int, view: memoryview, *, is_new: bool) -> bool:
        """Whether all bytes from `first` on are verified, now or, unless `is_new`, before."""
        if not self.unknown_count and not is_new:
            return True
        flags = self.is_verified
        for start in range(0, len(view), BLOCK_SIZE_BYTES):
            index = (first + start) // BLOCK_SIZE_BYTES
            if is_new or not flags[index]:
                if not is_good_block(view[start : start + BLOCK_SIZE_BYTES], index, self.sums):
                    return False
                self.unknown_count -= not flags[index]
                flags[index] = 1
        return True


class LocalLevel:
    """Chunks by descriptor. `run` must run in a task for as long as the level is used.

    Args:
        nursery: for opening, which goes on when the reader that caused it is cancelled.
        may_open: whether asking for a chunk has any prospect; asked often, never waits.
        open_chunk: a new descriptor for a chunk, or None.
        open_many: the same for many, in the time of one.
        descriptors_max: open ones; at most, and by default, `DESCRIPTORS_MAX` or a quarter of what
            the process may have.
        on_damaged: told of each damaged file that is met, and whose it is.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        may_open: Callable[[Chunk], bool],
        open_chunk: Open,
        open_many: OpenMany,
        *,
        clock: Clock | None = None,
        descriptors_max: int = DESCRIPTORS_MAX,
        on_damaged: Callable[[ChunkId, PeerNumber], None] = lambda _chunk, _peer: None,
    ) -> None:
        self._on_damaged = on_damaged
        process_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._nursery = nursery
        self._may_open = may_open
        self._open_chunk = open_chunk
        self._open_many = open_many
        self._clock = clock or SystemClock()
        self._descriptors_max = min(descriptors_max, process_max // _DESCRIPTORS_SHARE)
        # The one used last comes last.
        self._entries: OrderedDict[ChunkId, _Entry] = OrderedDict()
        self._opening: dict[ChunkId, trio.Event] = {}
        self._damaged: OrderedDict[ChunkId, None] = OrderedDict()
        self._limiter = trio.CapacityLimiter(_READ_THREADS_MAX)
        self._reads_inline = True
        self._hits = self._slow_hits = self._opened = self._corrupt = 0

    # --- reading ---------------------------------------------------------------------------------

    def get(self, chunk: Chunk, start: int, end: int) -> memoryview | None:
        """Bytes `[start, end)` of an open chunk that the page cache has. Never waits."""
        entry = self._entries.get(chunk.id)
        if entry is None or not self._reads_inline:
            return None
        now_s = self._clock.monotonic_s()
        if now_s - entry.begun_s > BELIEVED_S_MAX:
            entry.doubt(now_s)
        while True:
            first, stop = entry.bounds(start, end, chunk.length)
            body = bytearray(stop - first)
            try:
                count = os.preadv(entry.fd, (body,), first, os.RWF_NOWAIT)
                # Behind the read: what was changed before it shows.
                changed_ns = os.fstat(entry.fd).st_ctime_ns
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    self._reads_inline = False
                elif error.errno != errno.EAGAIN:
                    self._note_damage(chunk.id, entry.peer, str(error))
                return None
            if count != len(body):
                # The rest may be on the disk only. Whether the file is too short, `read` finds out.
                return None
            if changed_ns == entry.changed_ns:
                return self._checked(entry, chunk, first, body, start, end)
            entry.changed_ns = changed_ns
            entry.doubt(now_s)

    async def read(self, chunk: Chunk, start: int, end: int) -> memoryview | None:
        """Bytes `[start, end)`, opening the chunk and waiting for the disk; None: not this way.

        Cancellation: the opening goes on.
        """
        if not await self.ensure(chunk):
            return None
        found = self.get(chunk, start, end)
        entry = self._entries.get(chunk.id)
        if found is not None or entry is None:
            return found
        # What comes from the disk now, with whatever the kernel reads ahead, nobody has compared.
        # Whoever else compares the same blocks meanwhile has read them by itself, so that counts
        # for the blocks and not for what is read here.
        entry.doubt(self._clock.monotonic_s())
        first, stop = entry.bounds(start, end, chunk.length)
        with entry.in_use() as fd:
            try:
                body = await trio.to_thread.run_sync(
                    os.pread, fd, stop - first, first, limiter=self._limiter
                )
            except OSError as error:
                self._note_damage(chunk.id, entry.peer, str(error))
                return None
        if len(body) != stop - first:
            self._note_damage(chunk.id, entry.peer, "it is too short")
            return None
        self._slow_hits += 1
        return self._checked(entry, chunk, first, body, start, end, is_new=True)

    def _checked(
        self,
        entry: _Entry,
        chunk: Chunk,
        first: int,
        body: Buffer,
        start: int,
        end: int,
        *,
        is_new: bool = False,
    ) -> memoryview | None:
        """Bytes `[start, end)` of what was read from `first` on, if its blocks are right.

        With `is_new` it does not count that other readers found them to be.
        """
        view = memoryview(body).toreadonly()
        if not entry.verify(first, view, is_new=is_new):
            self._note_damage(chunk.id, entry.peer, "a block does not match its checksum")
            return None
        self._hits += 1
        entry.used_s = self._clock.monotonic_s()
        if chunk.id in self._entries:
            self._entries.move_to_end(chunk.id)
        return view[start - first : end - first]

    def is_possible(self, chunk: Chunk) -> bool:
        """Whether the chunk is open here, or may be opened."""
        if chunk.id in self._entries:
            return True
        is_file = chunk.length >= SMALL_CHUNK_SIZE_BYTES and chunk.id not in self._damaged
        return is_file and self._may_open(chunk)

    def is_near(self, chunk: Chunk) -> bool:
        """Whether a peer on this machine holds the chunk, whether or not as a file of its own."""
        return self._may_open(chunk)

    def is_damaged(self, chunk_id: ChunkId) -> bool:
        """Whether the chunk must be read whole from elsewhere, since its file is damaged."""
        return chunk_id in self._damaged

    async def ensure(self, chunk: Chunk) -> bool:
        """Open and verify a chunk unless that was done; False: not this way.

        Several callers open it once. Cancellation: the opening goes on.
        """
        if chunk.id in self._entries:
            return True
        if not self.is_possible(chunk):
            return False
        done = self._opening.get(chunk.id)
        if done is None:
            done = self._opening[chunk.id] = trio.Event()
            self._nursery.start_soon(self._open, chunk)
        await done.wait()
        return chunk.id in self._entries

    async def warm(self, chunk: Chunk) -> bool:
        """Have the bytes of a chunk in the page cache soon; False: not this way."""
        if not await self.ensure(chunk):
            return False
        entry = self._entries.get(chunk.id)
        if entry is None:
            return False
        entry.doubt(self._clock.monotonic_s())
        with entry.in_use() as fd:
            try:
                await trio.to_thread.run_sync(_read_ahead, fd, limiter=self._limiter)
            except OSError as error:
                log.debug("chunk %s is not read ahead: %s", chunk.id.hex(), error)
        return True

    def open_ahead(self, chunks: Sequence[Chunk]) -> None:
        """Open chunks in the background, at most as many as leave room for those in use."""
        count_max = min(AHEAD_MAX, self._descriptors_max // 2)
        wanted = [
            chunk
            for chunk in chunks[:count_max]
            if chunk.id not in self._entries
            and chunk.id not in self._opening
            and self.is_possible(chunk)
        ]
        if wanted:
            for chunk in wanted:
                self._opening[chunk.id] = trio.Event()
            self._nursery.start_soon(self._open_all, wanted)

    async def _open(self, chunk: Chunk) -> None:
        try:
            opened = await self._open_chunk(chunk)
            if opened is not None:
                await self._take_into_use(chunk, opened)
        finally:
            self._opening.pop(chunk.id).set()

    async def _open_all(self, chunks: Sequence[Chunk]) -> None:
        left = list(reversed(chunks))
        unused: list[OpenChunk | None] = []
        try:
            unused = list(reversed(await self._open_many(chunks)))
            while unused:
                opened = unused.pop()
                if opened is not None:
                    # It closes what it does not keep.
                    await self._take_into_use(left[-1], opened)
                self._opening.pop(left.pop().id).set()
        finally:
            for opened in unused:
                if opened is not None:
                    os.close(opened.fd)
            for chunk in left:
                self._opening.pop(chunk.id).set()

    async def _take_into_use(self, chunk: Chunk, opened: OpenChunk) -> None:
        begun_s = self._clock.monotonic_s()
        sums: bytes | None = opened.sums
        count = block_count(chunk.length)
        is_compared = len(opened.sums) != count * SUM_SIZE_BYTES
        try:
            changed_ns = os.fstat(opened.fd).st_ctime_ns
            if is_compared:
                # The peer has none: all of it is compared now, and they are made.
                sums = await trio.to_thread.run_sync(
                    _sums_of_whole, opened.fd, chunk, limiter=self._limiter
                )
        except BaseException:
            os.close(opened.fd)
            raise
        if sums is None:
            os.close(opened.fd)
            self._note_damage(chunk.id, opened.peer, "it is not what the digest says")
            return
        flags = bytearray(b"\1" * count if is_compared else count)
        unknown_count = 0 if is_compared else count
        entry = _Entry(opened.fd, opened.peer, sums, flags, unknown_count, begun_s, changed_ns)
        self._keep(chunk.id, entry)

    def _keep(self, chunk_id: ChunkId, entry: _Entry) -> None:
        self._opened += 1
        entry.used_s = self._clock.monotonic_s()
        self._entries[chunk_id] = entry
        while len(self._entries) > self._descriptors_max:
            self._entries.popitem(last=False)[1].end()

    def _note_damage(self, chunk_id: ChunkId, peer: PeerNumber, reason: str) -> None:
        self.discard(chunk_id)
        self._on_damaged(chunk_id, peer)
        if chunk_id in self._damaged:
            # Another reader was first.
            return
        log.warning("the file of chunk %s is damaged: %s", chunk_id.hex(), reason)
        self._corrupt += 1
        self._damaged[chunk_id] = None
        if len(self._damaged) > _DAMAGED_MAX:
            self._damaged.popitem(last=False)

    # --- upkeep ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Close what is not used, until cancelled."""
        while True:
            await trio.sleep(_SWEEP_INTERVAL_S)
            self.sweep()

    def sweep(self) -> None:
        """Close descriptors that were not used for `UNUSED_S_MAX`."""
        before_s = self._clock.monotonic_s() - UNUSED_S_MAX
        for chunk_id, entry in list(self._entries.items()):
            if entry.used_s < before_s:
                self.discard(chunk_id)

    def discard(self, chunk_id: ChunkId) -> None:
        """Close a descriptor, if there is one."""
        entry = self._entries.pop(chunk_id, None)
        if entry is not None:
            entry.end()

    def close(self) -> None:
        """Close all descriptors."""
        for chunk_id in list(self._entries):
            self.discard(chunk_id)

    def stats(self) -> LocalStats:
        """The counters of now."""
        return LocalStats(
            self._hits, self._slow_hits, self._opened, self._corrupt, len(self._entries)
        )


def _read_ahead(fd: int) -> None:
    """Have a file read into the page cache. Raises OSError."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)


def _sums_of_whole(fd: int, chunk: Chunk) -> bytes | None:
    """The checksums of the blocks of a file that can be read and is exactly the chunk, else None.

    Reads all of it.
    """
    hasher, summer = new_hasher(), BlockSummer()
    buffer = bytearray(min(_VERIFY_SIZE_BYTES, chunk.length))
    position = 0
    try:
        with memoryview(buffer) as view:
            while count := os.preadv(fd, (buffer,), position):
                position += count
                hasher.update(view[:count])
                summer.update(view[:count])
                if position > chunk.length:
                    return None
    except OSError as error:
        log.info("the file of chunk %s cannot be read: %s", chunk.id.hex(), error)
        return None
    if position != chunk.length or hasher.digest() != chunk.digest:
        return None
    return summer.sums()
