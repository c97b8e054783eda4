"""The disk level: whole chunks as files, least recently used first out; survives a remount.

Owns the index of the files, the descriptors that reads go through and the queue of what is to be
written. The files themselves are `files.ChunkFiles`. A file goes through these states::

    found at start-up --(first use: digest right)--> trusted --(space needed)--> evicted
            |                                           ^
            +--(digest or length wrong)--> deleted      |
    put_whole --(queued)--> written --------------------+

Invariants: bytes of a file that is not trusted are never served; the files never take more than
the limits say, nor leave the file system less free space than they say; no error of the disk ever
fails a read: one that is not about a single file switches the level off, with one warning.

Everything here runs on the trio loop except the calls of `ChunkFiles`, which run in threads.
"""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import trio
from cachetools import LRUCache

from mictlanfs.clock import Clock, SystemClock
from mictlanfs.model import GIB, KIB, MIB, Chunk, ChunkId
from mictlanfs_mount.chunkcache.base import LevelStats
from mictlanfs_mount.chunkcache.files import ChunkFiles, Space

log = logging.getLogger(__name__)

T = TypeVar("T")
_Write: TypeAlias = tuple[Chunk, memoryview]

# Smaller chunks are not kept on disk. Measured: a file costs 16 us to write, 5 us to unlink, and
# on its first use after a remount a thread (50 us), about what its share of a frame of many small
# chunks costs. It also takes an index entry of 0.5 KiB, which 4 KiB of content do not pay for.
CHUNK_SIZE_BYTES_MIN = 16 * KIB
DESCRIPTORS_MAX = 256
# What one thread call writes; leaving the cache may have to wait for one.
_BATCH_SIZE_BYTES_MAX = 8 * MIB
_BATCH_DELETES_MAX = 1024
# Order of use is kept across remounts in the files' times, no finer than this.
_TOUCH_INTERVAL_S = 600.0
_TOUCHES_MAX = 256
_READ_THREADS_MAX = 4
_FILE_SYSTEM_BLOCK_BYTES = 4 * KIB

_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """How much the disk level may take.

    Attributes:
        size_max: bytes of all files.
        files_max: number of files; bounds the memory of the index (about 0.5 KiB a file).
        free_ratio_min: part of the file system that stays free, 0 to 1.
        free_min: bytes of the file system that stay free.
        queue_size_max: bytes that may wait to be written; what comes then is not kept.
    """

    size_max: int = 10 * GIB
    files_max: int = 131_072
    free_ratio_min: float = 0.10
    free_min: int = 512 * MIB
    queue_size_max: int = 64 * MIB

    def free_wanted(self, space: Space) -> int:
        """Bytes that must stay free on a file system."""
        return max(self.free_min, int(space.total * self.free_ratio_min))


@dataclass(frozen=True, slots=True)
class DiskStats(LevelStats):
    """A `LevelStats` of the disk.

    Attributes:
        corrupt: files found damaged and deleted.
        dropped: chunks not written, because the disk was too slow or too full.
        written_bytes: bytes written.
        is_enabled: False after an error of the disk.
    """

    corrupt: int
    dropped: int
    written_bytes: int
    is_enabled: bool


@dataclass(slots=True)
class _Entry:
    """A file of the index. `used_s` is when its time was last set, on the monotonic clock."""

    length: int
    is_trusted: bool
    used_s: float
    verification: trio.Event | None = None


def _rounded(length: int) -> int:
    """What a file of `length` bytes takes on the disk."""
    return length + -length % _FILE_SYSTEM_BLOCK_BYTES


def _counted_size(entry: _Entry) -> int:
    return _rounded(entry.length)


def _new_index() -> LRUCache[ChunkId, _Entry]:
    # Unbounded, since room is made before a file is written, not after.
    return LRUCache(math.inf, _counted_size)


class DiskLevel:
    """Chunks on disk. `run` must run in a task for as long as the level is used.

    Args:
        files: of the level; closed by whoever opened them, after `run` has ended.
        space_of: tells the space of the file system; may block.
    """

    def __init__(
        self,
        files: ChunkFiles,
        limits: DiskLimits,
        *,
        clock: Clock | None = None,
        space_of: Callable[[], Space] | None = None,
    ) -> None:
        self._files = files
        self._limits = limits
        self._clock = clock or SystemClock()
        self._space_of = space_of or files.space
        self._index = _new_index()
        self._descriptors: LRUCache[ChunkId, int] = LRUCache(math.inf)
        self._queue: dict[ChunkId, _Write] = {}
        self._queued_bytes = 0
        self._deletes: list[ChunkId] = []
        self._touches: dict[ChunkId, None] = {}
        self._is_enabled = True
        self._reads_inline = True
        self._is_draining = False
        self._wakeup = trio.Event()
        self._idle = trio.Event()
        # Set and replaced when a batch is done.
        self._progress = trio.Event()
        self._read_limiter = trio.CapacityLimiter(_READ_THREADS_MAX)
        self._write_limiter = trio.CapacityLimiter(1)
        self._hits = self._misses = self._evictions = 0
        self._corrupt = self._dropped = self._written_bytes = 0

    # --- reading ---------------------------------------------------------------------------------

    def get(self, chunk: Chunk, start: int, end: int) -> memoryview | None:
        """See `ChunkLevel`. Only what a trusted file has in the page cache is at hand.

        So the loop never waits for the disk: RWF_NOWAIT of preadv2(2). Where the file system
        cannot do that, nothing is ever at hand and `read` is the way.
        """
        entry = self._index.get(chunk.id)
        if entry is None or not entry.is_trusted or not self._reads_inline:
            self._misses += 1
            return None
        body = bytearray(end - start)
        try:
            count = os.preadv(self._descriptor(chunk.id), (body,), start, os.RWF_NOWAIT)
        except OSError as error:
            self._misses += 1
            self._note_read_error(chunk.id, error)
            return None
        if count != len(body):
            # The rest may be on the disk only. Whether the file is too short, `read` finds out.
            self._misses += 1
            return None
        self._hits += 1
        self._note_use(chunk.id, entry)
        return memoryview(body).toreadonly()

    def _descriptor(self, chunk_id: ChunkId) -> int:
        fd = self._descriptors.get(chunk_id)
        if fd is None:
            fd = self._files.open(chunk_id)
            self._descriptors[chunk_id] = fd
            if len(self._descriptors) > DESCRIPTORS_MAX:
                os.close(self._descriptors.popitem()[1])
        return fd

    def _note_read_error(self, chunk_id: ChunkId, error: OSError) -> None:
        if error.errno == errno.EAGAIN or error.errno in _OUT_OF_DESCRIPTORS:
            return
        if error.errno == errno.EOPNOTSUPP:
            self._reads_inline = False
            log.info("%s cannot be read without waiting: using threads", self._files.directory)
        elif error.errno == errno.ENOENT:
            self._drop(chunk_id)
        else:
            self._disable(error)

    async def read(self, chunk: Chunk, start: int, end: int) -> memoryview | None:
        """Bytes `[start, end)` of `chunk`, waiting for the disk; None when it is not there.

        The first use of a file after start-up verifies it as a whole.

        Cancellation: nothing has happened, or only the verification.
        """
        if not await self._ensure_trusted(chunk):
            return None
        try:
            body = await self._in_thread(self._files.read, chunk.id, start, end)
        except OSError as error:
            self._note_read_error(chunk.id, error)
            return None
        if len(body) != end - start:
            self._drop_corrupt(chunk.id)
            return None
        self._hits += 1
        entry = self._index.get(chunk.id)
        if entry is not None:
            self._note_use(chunk.id, entry)
        return memoryview(body)

    async def warm(self, chunk: Chunk) -> bool:
        """Prepare for reading a chunk soon; False when it is not there."""
        entry = self._index.get(chunk.id)
        if entry is None:
            return False
        if not entry.is_trusted:
            # Verifying reads it all, after which the page cache has it.
            return await self._ensure_trusted(chunk)
        try:
            await self._in_thread(self._files.read_ahead, chunk.id)
        except OSError as error:
            self._note_read_error(chunk.id, error)
        return chunk.id in self._index

    async def _ensure_trusted(self, chunk: Chunk) -> bool:
        """Whether the chunk's file exists and is right. Several callers verify it once."""
        while (entry := self._index.get(chunk.id)) is not None and not entry.is_trusted:
            if entry.verification is not None:
                await entry.verification.wait()
                continue
            entry.verification = trio.Event()
            try:
                await self._verify(chunk, entry)
            finally:
                entry.verification.set()
                entry.verification = None
        return entry is not None

    async def _verify(self, chunk: Chunk, entry: _Entry) -> None:
        try:
            is_good = await self._in_thread(self._files.is_good, chunk)
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                self._drop(chunk.id)
            else:
                self._note_read_error(chunk.id, error)
            return
        if self._index.get(chunk.id) is not entry:
            return
        if is_good:
            entry.is_trusted = True
        else:
            self._drop_corrupt(chunk.id)

    def _note_use(self, chunk_id: ChunkId, entry: _Entry) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - entry.used_s >= _TOUCH_INTERVAL_S:
            entry.used_s = now_s
            self._touches[chunk_id] = None
            if len(self._touches) >= _TOUCHES_MAX:
                self._wake()

    def has_whole(self, chunk_id: ChunkId) -> bool:
        """See `ChunkLevel`. A file that will turn out damaged counts, too."""
        return chunk_id in self._index

    def could_keep(self, length: int) -> bool:
        """Whether a chunk of `length` bytes is one that the level keeps."""
        return self._is_enabled and CHUNK_SIZE_BYTES_MIN <= length <= self._limits.size_max

    # --- changing --------------------------------------------------------------------------------

    def put_whole(self, chunk: Chunk, body: memoryview) -> None:
        """See `ChunkLevel`. The file is written later; until then the chunk is not held."""
        if not self.could_keep(chunk.length):
            return
        if chunk.id in self._index or chunk.id in self._queue:
            return
        assert body.nbytes == chunk.length
        if self._queued_bytes + body.nbytes > self._limits.queue_size_max:
            self._dropped += 1
            return
        self._queue[chunk.id] = (chunk, body)
        self._queued_bytes += body.nbytes
        self._wake()

    async def keep(self, chunk: Chunk, body: memoryview) -> bool:
        """As `put_whole`, but wait for room in the queue, and until the file is there.

        False when it is not, since the disk is full or off or the chunk is not one to keep.

        Cancellation: the file is written, unless it still waited for room.
        """
        while (
            chunk.id not in self._index
            and chunk.id not in self._queue
            and self._queue
            and self._queued_bytes + body.nbytes > self._limits.queue_size_max
        ):
            await self._progress.wait()
        self.put_whole(chunk, body)
        while chunk.id in self._queue:
            await self._progress.wait()
        return chunk.id in self._index

    def discard_all(self) -> int:
        """Forget every chunk; returns their bytes. The files are deleted later."""
        size = int(self._index.currsize)
        for chunk_id in [*self._index, *self._queue]:
            self.discard(chunk_id)
        return size

    def discard(self, chunk_id: ChunkId) -> None:
        """See `ChunkLevel`. The file is deleted later."""
        if self._unqueue(chunk_id) or chunk_id in self._index:
            self._drop(chunk_id)

    def _drop(self, chunk_id: ChunkId) -> None:
        """Forget a file and have it deleted."""
        self._forget(chunk_id)
        self._deletes.append(chunk_id)
        self._wake()

    def _drop_corrupt(self, chunk_id: ChunkId) -> None:
        self._corrupt += 1
        log.warning("the cached copy of chunk %s is damaged: deleted", chunk_id.hex())
        self._drop(chunk_id)

    def _forget(self, chunk_id: ChunkId) -> None:
        self._index.pop(chunk_id, None)
        self._touches.pop(chunk_id, None)
        # An open descriptor would keep the space of a deleted file.
        fd = self._descriptors.pop(chunk_id, None)
        if fd is not None:
            os.close(fd)

    def _disable(self, error: OSError) -> None:
        """Stop using the disk. The mount goes on without it."""
        if not self._is_enabled:
            return
        self._is_enabled = False
        log.warning("the disk cache in %s is off: %s", self._files.directory, error)
        self.forget_all()

    def forget_all(self) -> None:
        """Forget every file and descriptor; the files stay."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
        self._index.clear()
        self._queue.clear()
        self._queued_bytes = 0
        self._deletes.clear()
        self._touches.clear()
        self._note_progress()

    # --- writing ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Load the index, then write what is put. Never returns; ends by being cancelled.

        Cancellation: takes effect when the batch that is being written is done.
        """
        await self._load()
        while True:
            while self._has_work():
                await self._work()
                self._note_progress()
            self._idle.set()
            await self._wakeup.wait()
            self._wakeup = trio.Event()

    async def settle(self) -> None:
        """Wait until the index is loaded and all that was put is written, or given up."""
        await self._idle.wait()

    async def drain(self) -> None:
        """As `settle`, and until the order of use is written, too."""
        self._is_draining = True
        self._wake()
        await self._idle.wait()

    def _note_progress(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    def _wake(self) -> None:
        if self._idle.is_set():
            self._idle = trio.Event()
        self._wakeup.set()

    def _has_work(self) -> bool:
        touches_min = 1 if self._is_draining else _TOUCHES_MAX
        return bool(self._queue or self._deletes or len(self._touches) >= touches_min)

    async def _load(self) -> None:
        try:
            self._index = await self._in_thread(self._load_index)
        except OSError as error:
            self._disable(error)
            return
        self._make_room(0, 0, 0)
        log.debug("%s holds %d chunks", self._files.directory, len(self._index))

    def _load_index(self) -> LRUCache[ChunkId, _Entry]:
        """The files of earlier processes, in order of use. Runs in a thread."""
        index = _new_index()
        now_ns, now_s = self._clock.wall_ns(), self._clock.monotonic_s()
        for file in self._files.listing():
            # A time in the future, from a clock that was wrong, counts as now.
            age_s = max(0, now_ns - file.mtime_ns) / 1e9
            index[file.chunk_id] = _Entry(file.length, is_trusted=False, used_s=now_s - age_s)
        return index

    async def _work(self) -> None:
        """Write, delete and touch one batch of files."""
        try:
            writes = await self._with_room(self._next_writes()) if self._queue else []
            deletes = self._deletes[:_BATCH_DELETES_MAX]
            del self._deletes[:_BATCH_DELETES_MAX]
            if self._deletes:
                # The room that the writes need is not made yet: they come with a later batch.
                writes = []
            touches = list(self._touches)
            self._touches.clear()
            await trio.to_thread.run_sync(
                self._apply, deletes, writes, touches, limiter=self._write_limiter
            )
        except OSError as error:
            self._disable(error)
            return
        now_s = self._clock.monotonic_s()
        for chunk, body in writes:
            # What was discarded meanwhile is on the list of deletes.
            if self._unqueue(chunk.id):
                self._index[chunk.id] = _Entry(chunk.length, is_trusted=True, used_s=now_s)
                self._written_bytes += body.nbytes

    def _apply(
        self,
        deletes: Sequence[ChunkId],
        writes: Sequence[_Write],
        touches: Sequence[ChunkId],
    ) -> None:
        """Change the files: deletes first, to have the room. Runs in a thread."""
        self._files.delete(deletes)
        for chunk, body in writes:
            self._files.write(chunk.id, body)
        self._files.touch(touches)

    def _next_writes(self) -> list[_Write]:
        """What to write next. It stays in the queue, so that `discard` can still stop it."""
        writes: list[_Write] = []
        size, size_max = 0, min(_BATCH_SIZE_BYTES_MAX, self._limits.size_max)
        for chunk, body in self._queue.values():
            size += _rounded(body.nbytes)
            if writes and size > size_max:
                break
            writes.append((chunk, body))
        return writes

    async def _with_room(self, writes: list[_Write]) -> list[_Write]:
        """`writes` once room for them is made; nothing when there cannot be enough."""
        space = await trio.to_thread.run_sync(self._space_of, limiter=self._write_limiter)
        size = sum(_rounded(body.nbytes) for _, body in writes)
        missing = self._limits.free_wanted(space) + size - space.free
        if self._make_room(size, len(writes), missing):
            return writes
        self._dropped += sum(self._unqueue(chunk.id) for chunk, _ in writes)
        return []

    def _make_room(self, size: int, count: int, missing: int) -> bool:
        """Evict until `count` files of `size` bytes in all fit and `missing` bytes are freed.

        False when even an empty cache is not enough.
        """
        freed = 0
        while self._index and (
            self._index.currsize + size > self._limits.size_max
            or len(self._index) + count > self._limits.files_max
            or freed < missing
        ):
            chunk_id, entry = self._index.popitem()
            freed += _counted_size(entry)
            self._evictions += 1
            self._drop(chunk_id)
        return freed >= missing and size <= self._limits.size_max

    def _unqueue(self, chunk_id: ChunkId) -> bool:
        """Take a chunk out of the queue; whether it was in it."""
        queued = self._queue.pop(chunk_id, None)
        if queued is not None:
            self._queued_bytes -= queued[1].nbytes
        return queued is not None

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(call, *args, limiter=self._read_limiter)

    def stats(self) -> DiskStats:
        """See `ChunkLevel`."""
        return DiskStats(
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            entries=len(self._index),
            size_bytes=int(self._index.currsize),
            budget_bytes=self._limits.size_max,
            corrupt=self._corrupt,
            dropped=self._dropped,
            written_bytes=self._written_bytes,
            is_enabled=self._is_enabled,
        )
