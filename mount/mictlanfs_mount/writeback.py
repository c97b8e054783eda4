"""Write-back: from bytes an application wrote to extents the router knows.

Each dirty byte goes one way, and is readable from here until it is committed::

    active ----(window full, fsync, close, 1 s of age, memory short)----> sealed
    sealed ----(chunk durable on the peers)----> stored ----(router applied it)----> committed

A sealed window of few bytes becomes an *inline* chunk: the commit carries it, so it is stored at
once, and it is durable when the commit is. See `tails` for small writes that continue each other.

A *window* is one chunk's worth of a file, aligned. Active bytes are merged in their window; a
sealed window never changes. Windows are uploaded in parallel and committed strictly in the order
they were sealed, so a later write is never overtaken by an earlier one and a file never grows
beyond data that is there. The order on crash: data durable on peers, then metadata committed, then
the buffer freed.

Errors never drop data: a failed upload or commit is tried again until it works or the file is
gone (STALE). The failure is kept and reported by the next `flush`, once for each time it happens.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import trio

from mictlanfs import wire
from mictlanfs.client.inline import inline_chunk
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.intervals import split_at
from mictlanfs.model import (
    MIB,
    SMALL_CHUNK_SIZE_BYTES,
    Attributes,
    BucketPolicy,
    Buffer,
    Chunk,
    Extent,
    InodeNumber,
)
from mictlanfs.taskerrors import single_error
from mictlanfs_mount.budget import Budget
from mictlanfs_mount.extents import Segment
from mictlanfs_mount.pieces import Pieces
from mictlanfs_mount.tails import Tail, Tails

log = logging.getLogger(__name__)

# Written data waits at most this long before it is sent, as on a local file system.
AGE_S_MAX = 1.0
TICK_S = 0.25
UPLOADS_MAX = 8
# Small chunks that nobody waits for leave together, in few requests to each peer.
SMALL_UPLOADS_MAX = 256
GATHER_COUNT_MAX = 64
GATHER_S_MAX = 0.05
RETRY_S_FIRST = 0.5
RETRY_S_MAX = 10.0
# Bounds of what one operation carries, about 40 bytes for each extent: a window of short writes
# here and there is sealed before it is full.
PIECES_PER_WINDOW_MAX = 2048
EXTENTS_PER_COMMIT_MAX = 4096
INLINE_PER_COMMIT_SIZE_BYTES_MAX = 4 * MIB
# The file was removed for good: nobody can ever read what is still dirty.
_GONE = frozenset({Kind.NOT_FOUND, Kind.STALE})


class Storage(Protocol):
    """Where windows go: chunks to the peers, operations to the router."""

    async def store(self, pieces: Sequence[Buffer], policy: BucketPolicy) -> Chunk:
        """Make the bytes durable as a chunk."""
        ...

    async def commit(self, op: wire.WriteExtents, *, sync: bool) -> Attributes:
        """Apply the operation, however long it takes; returns the file's attributes.

        With `sync` it is durable on return.
        """
        ...

    def post(
        self,
        op: wire.WriteExtents,
        on_result: Callable[[Attributes | MictlanError], None],
        *,
        sync: bool,
    ) -> bool:
        """Have the operation applied within a while. False: it must be committed.

        `on_result` is told what became of it. With `sync` it leaves now, and is durable then.
        """
        ...

    def hurry(self) -> None:
        """Somebody waits for what was posted."""
        ...


@dataclass(eq=False, slots=True)
class _Sealed:
    """A window on its way.

    Attributes:
        body: the bytes of an inline chunk: those of `tail`, if any, then the dirty ones.
        tail: committed bytes right in front, which the chunk holds once more.
    """

    sequence: int
    pieces: Pieces
    mtime_ns: int
    chunk: Chunk | None = None
    is_dropped: bool = False
    body: bytes = b""
    tail: Tail | None = None

    def make_inline(self, tail: Tail | None) -> None:
        """Let the commit carry the bytes."""
        self.tail = tail
        self.body = b"".join([tail.body if tail else b"", *self.pieces.buffers()])
        self.chunk = inline_chunk(self.body)


@dataclass(eq=False)
class FileWriter:
    """The dirty bytes of one file.

    Attributes:
        end: offset behind the last dirty byte, 0 when clean.
        mtime_ns: time of the last write.
        error: the last failure that nobody was told of.
        failure: the last failure since something was committed.
        on_committed: told the segments committed and the file's new attributes.
        on_forgotten: told when there is nothing left to store or to report.
    """

    ino: InodeNumber
    policy: BucketPolicy
    pool: WriteBack
    on_committed: Callable[[list[Segment], Attributes], None]
    on_forgotten: Callable[[], None]
    end: int = 0
    mtime_ns: int = 0
    error: MictlanError | None = None
    failure: MictlanError | None = None
    _windows: dict[int, Pieces] = field(default_factory=dict)
    _oldest_s: float = 0.0
    _sealed: deque[_Sealed] = field(default_factory=deque)
    _sealed_count: int = 0
    _committed_count: int = 0
    _changed: trio.Event = field(default_factory=trio.Event)
    _is_committing: bool = False
    _hurried: trio.Event = field(default_factory=trio.Event)
    # Somebody waits for the bytes to be durable, so that no barrier has to follow the commit.
    _is_sync_wanted: bool = False
    # Who waits for bytes to be committed, durably or not.
    _waiting_count: int = 0
    # What is to be done when so many windows are committed.
    _afterwards: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)
    # What has its place behind all windows that are active now, once they are sealed.
    _behind_active: list[Callable[[], None]] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether every byte is committed."""
        return not self._windows and not self._sealed

    @property
    def is_leaving(self) -> bool:
        """Whether some bytes are on their way, and nothing keeps them."""
        return bool(self._sealed) and self.failure is None

    @property
    def dirty_bytes(self) -> int:
        """Bytes not committed yet."""
        active = sum(pieces.size for pieces in self._windows.values())
        return active + sum(sealed.pieces.size for sealed in self._sealed)

    # --- bytes in, bytes out: no await ------------------------------------------------------------

    def write(self, offset: int, data: Buffer, mtime_ns: int) -> None:
        """Take `data`, which must not be empty, nor change afterwards."""
        assert data, "an empty write dirties nothing"
        if self._behind_active:
            # These bytes come behind it, and so may not join those in front.
            self.seal_all()
        if not self._windows:
            self._oldest_s = trio.current_time()
        size = self.policy.chunk_size
        end = offset + len(data)
        # Before a window is sealed, which takes the time of its last write along.
        self.end = max(self.end, end)
        self.mtime_ns = mtime_ns
        view = data if offset // size == (end - 1) // size else memoryview(data)
        for start, stop in split_at(offset, end, size):
            index = start // size
            pieces = self._windows.get(index)
            if pieces is None:
                pieces = self._windows[index] = Pieces()
            part = view if stop - start == len(data) else view[start - offset : stop - offset]
            self.pool.budget.charge(pieces.write(start, part))
            is_full = pieces.size == size or pieces.count >= PIECES_PER_WINDOW_MAX
            if is_full and self._seal(index):
                self._commit_soon()

    def collect(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """Copies of the dirty bytes within `[start, end)` with their offsets, oldest first."""
        found: list[tuple[int, bytes]] = []
        for sealed in self._sealed:
            found += sealed.pieces.collect(start, end)
        for pieces in self._windows_of(start, end):
            found += pieces.collect(start, end)
        return found

    def _windows_of(self, start: int, end: int) -> list[Pieces]:
        size = self.policy.chunk_size
        indices = range(start // size, (end - 1) // size + 1)
        return [self._windows[index] for index in indices if index in self._windows]

    # --- out to the space -------------------------------------------------------------------------

    def seal_all(self) -> None:
        """Send everything written so far on its way."""
        has_stored = False
        for index in sorted(self._windows):
            has_stored |= self._seal(index)
        self._afterwards.extend((self._sealed_count, act) for act in self._behind_active)
        self._behind_active.clear()
        if has_stored:
            # All that is inline goes in one commit.
            self._commit_soon()

    def seal_aged(self, now_s: float) -> None:
        """Send everything on its way when some of it is old enough."""
        if self._windows and now_s - self._oldest_s >= AGE_S_MAX:
            self.seal_all()

    def _seal(self, index: int) -> bool:
        """Send a window on its way; whether it is stored already, and has to be committed."""
        pieces = self._windows.pop(index)
        inline = [pieces] if pieces.size <= self.pool.inline_size_max else []
        if not inline and self._is_sync_wanted and self.pool.may_inline(self.ino, pieces.size):
            inline = pieces.split(wire.INLINE_CHUNK_SIZE_BYTES_MAX)
        for part in inline:
            tail = None if self._sealed else self.pool.tails.before(self.ino, part)
            self._append(part).make_inline(tail)
        if not inline:
            self._upload_soon(self._append(pieces))
        return bool(inline)

    def _append(self, pieces: Pieces) -> _Sealed:
        sealed = _Sealed(self._sealed_count, pieces, self.mtime_ns)
        self._sealed_count += 1
        self._sealed.append(sealed)
        return sealed

    def _upload_soon(self, sealed: _Sealed) -> None:
        if sealed.pieces.size < SMALL_CHUNK_SIZE_BYTES:
            self.pool.upload_soon(partial(self._upload, sealed, self.pool.small_upload_limiter))
        else:
            self.pool.nursery.start_soon(self._upload, sealed, self.pool.upload_limiter)

    async def _upload(self, sealed: _Sealed, limiter: trio.CapacityLimiter) -> None:
        delay_s = RETRY_S_FIRST
        while not sealed.is_dropped:
            try:
                async with limiter:
                    sealed.chunk = await self.pool.storage.store(
                        sealed.pieces.buffers(), self.policy
                    )
            except Exception as error:  # noqa: BLE001 - no defect may lose what is dirty.
                if sealed.sequence < self._committed_count:
                    # Discarded meanwhile, so it is nobody's error.
                    return
                self._fail(_reportable(error))
                await trio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_S_MAX)
            else:
                self.pool.note_progress()
                self.pool.on_stored(sealed.chunk, sealed.pieces.buffers())
                self._commit_soon()
                return

    async def _commit_stored(self) -> None:
        """Commit what is stored, in order, unless another task is at it already."""
        if self._is_committing:
            return
        self._is_committing = True
        delay_s = RETRY_S_FIRST
        count_max: int | None = None
        try:
            while batch := self._stored_prefix()[:count_max]:
                try:
                    await self._commit(batch)
                    delay_s, count_max = RETRY_S_FIRST, None
                except Exception as error:  # noqa: BLE001 - no defect may lose what is dirty.
                    if batch[0][0].is_dropped:
                        continue
                    reported = _reportable(error)
                    first, tail = batch[0][0], batch[0][0].tail
                    if reported.kind is Kind.CONFLICT and tail is not None:
                        # Somebody else changed the file: only what was written here is ours.
                        first.make_inline(None)
                        continue
                    if reported.kind is Kind.NO_DATA:
                        # The peers that had it lost it before it was committed, or it was removed
                        # as an orphan.
                        self._store_again(batch)
                        return
                    if reported.kind in _GONE:
                        self._give_up(reported)
                        return
                    if reported.kind is Kind.QUOTA_EXCEEDED and len(batch) > 1:
                        # The bucket may have room for some of it.
                        count_max = 1
                        continue
                    self._fail(reported)
                    with trio.move_on_after(delay_s):
                        await self._hurried.wait()
                    delay_s = min(2 * delay_s, RETRY_S_MAX)
        finally:
            self._is_committing = False

    def _store_again(self, batch: Sequence[tuple[_Sealed, Chunk]]) -> None:
        for sealed, chunk in batch:
            if chunk.peers:
                sealed.chunk = None
                self._upload_soon(sealed)

    def _stored_prefix(self) -> list[tuple[_Sealed, Chunk]]:
        batch: list[tuple[_Sealed, Chunk]] = []
        count = inline_size = 0
        for sealed in self._sealed:
            if self._afterwards and sealed.sequence >= self._afterwards[0][0]:
                # What was written later must not come before what waits for what is in front.
                break
            count += sealed.pieces.count
            inline_size += len(sealed.body)
            is_too_much = (
                count > EXTENTS_PER_COMMIT_MAX or inline_size > INLINE_PER_COMMIT_SIZE_BYTES_MAX
            )
            if sealed.chunk is None or (batch and is_too_much):
                break
            batch.append((sealed, sealed.chunk))
        return batch

    def _operation(
        self, batch: Sequence[tuple[_Sealed, Chunk]]
    ) -> tuple[wire.WriteExtents, list[Segment]]:
        """The operation that commits some windows, and the segments that they become."""
        segments = [s for sealed, chunk in batch for s in _segments(sealed, chunk)]
        tail = batch[0][0].tail
        op = wire.WriteExtents(
            self.ino,
            tuple(
                Extent(s.offset, s.end - s.offset, s.chunk.id, s.chunk_offset)
                for s in segments
                if s.chunk is not None
            ),
            tuple(chunk for _, chunk in batch),
            max(segment.end for segment in segments),
            batch[-1][0].mtime_ns,
            tuple(sealed.body for sealed, _ in batch if sealed.body),
            -1 if tail is None else tail.content_version,
        )
        return op, segments

    def _commit_soon(self) -> None:
        """Commit what is stored: with what else leaves soon, if that will do, without a task."""
        batch = [] if self._is_committing else self._stored_prefix()
        if not batch:
            self.pool.nursery.start_soon(self._commit_stored)
            return
        op, segments = self._operation(batch)

        def on_result(result: Attributes | MictlanError) -> None:
            self._is_committing = False
            if isinstance(result, MictlanError):
                # Meets the error again, and deals with it.
                self.pool.nursery.start_soon(self._commit_stored)
                return
            self._note_committed(batch, segments, result)
            if self._stored_prefix():
                self._commit_soon()

        if self.pool.storage.post(op, on_result, sync=self._is_sync_wanted):
            self._is_committing = True
            if self._waiting_count or self.pool.budget.is_filling:
                self.pool.storage.hurry()
        else:
            self.pool.nursery.start_soon(self._commit_stored)

    async def _commit(self, batch: list[tuple[_Sealed, Chunk]]) -> None:
        op, segments = self._operation(batch)
        attributes = await self.pool.storage.commit(op, sync=self._is_sync_wanted)
        self._note_committed(batch, segments, attributes)

    def _note_committed(
        self,
        batch: Sequence[tuple[_Sealed, Chunk]],
        segments: list[Segment],
        attributes: Attributes,
    ) -> None:
        self.pool.note_progress()
        if batch[0][0].is_dropped:
            return
        # No await until the bytes are known as committed and gone from here: a reader in between
        # would miss them.
        self.failure = None
        for sealed, chunk in batch:
            assert self._sealed.popleft() is sealed
            if sealed.body:
                self.pool.on_stored(chunk, [sealed.body])
            self.pool.budget.release(sealed.pieces.size)
        self._committed_count = batch[-1][0].sequence + 1
        if self.is_clean:
            # Whatever went wrong on the way, everything has arrived.
            self.error = None
            self._is_sync_wanted = False
        last = segments[-1]
        body = batch[-1][0].body[last.chunk_offset :]
        self.pool.tails.note(self.ino, last.offset, body, attributes.content_version)
        self.on_committed(segments, attributes)
        self._do_afterwards()
        self._note_change()

    def post_after(self, act: Callable[[], None]) -> None:
        """Do something once all that was written before is committed, or dropped.

        What is not on its way yet leaves as if nothing was to follow: programs that set the times
        of each file they wrote (tar, cp, rsync) would else have each leave alone.
        """
        self._behind_active.append(act)
        if not self._windows:
            self.seal_all()
            self._do_afterwards()

    def _do_afterwards(self) -> None:
        while self._afterwards and self._afterwards[0][0] <= self._committed_count:
            self._afterwards.popleft()[1]()

    def _fail(self, error: MictlanError) -> None:
        log.warning("write-back of inode %d failed, will be tried again: %s", self.ino, error)
        self.error = self.failure = error
        self._note_change()
        self.pool.budget.note_change()

    def _give_up(self, error: MictlanError) -> None:
        """The file is gone: nobody can ever read what is dirty."""
        if self.pool.on_given_up(self):
            return
        log.warning("%d bytes of inode %d are dropped: %s", self.dirty_bytes, self.ino, error)
        detail = "it was removed; what was not stored yet is dropped"
        self.error = MictlanError(Kind.STALE, "write back", str(self.ino), detail)
        self.discard()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        if self.is_clean:
            self.end = 0
            self.pool.forget(self)

    # --- waiting ----------------------------------------------------------------------------------

    async def flush(self, deadline_s: float, *, sync: bool = False) -> None:
        """Wait until all that was written before is committed, with `sync` durably.

        What was on its way before may not be durable yet, so a barrier is still due after that.

        Cancellation: nothing is lost; write-back goes on.

        Raises:
            MictlanError: the failure met since the last report; TIMED_OUT when nothing has left
                the mount for `deadline_s`. The data is kept and tried again.
        """
        self._is_sync_wanted = sync or self._is_sync_wanted
        self._hurry_refused()
        self._send_now()
        target_count = self._sealed_count
        started_s = trio.current_time()
        while self._committed_count < target_count:
            self.raise_error()
            give_up_at = self.pool.gives_up_at(started_s, deadline_s)
            if trio.current_time() >= give_up_at:
                detail = f"{self.dirty_bytes} bytes are not stored yet; they are tried again"
                raise MictlanError(Kind.TIMED_OUT, "flush", str(self.ino), detail)
            with trio.move_on_at(give_up_at):
                await self._wait_changed()
        self.raise_error()

    async def _wait_changed(self) -> None:
        """Wait until something becomes of dirty bytes, which nothing holds up meanwhile."""
        self._waiting_count += 1
        try:
            await self._changed.wait()
        finally:
            self._waiting_count -= 1

    def _send_now(self) -> None:
        """Send all that was written before on its way without delay."""
        self.seal_all()
        self.pool.start_uploads()
        self.pool.storage.hurry()

    def _hurry_refused(self) -> None:
        """Try again now what a quota refused: there may be room, so that is not an error yet."""
        if self.is_refused:
            self.error = None
            self._hurried.set()
            self._hurried = trio.Event()

    async def settle(self, deadline_s: float) -> None:
        """Wait until all that was written before is committed or some of it failed.

        Reports nothing. Gives up after `deadline_s`.
        """
        self._send_now()
        target_count = self._sealed_count
        with trio.move_on_after(deadline_s):
            while self._committed_count < target_count and self.failure is None:
                await self._wait_changed()

    @property
    def is_refused(self) -> bool:
        """Whether the quota of its bucket keeps the file from being stored."""
        return self.failure is not None and self.failure.kind is Kind.QUOTA_EXCEEDED

    def drop_refused(self) -> None:
        """The file is about to lose all its bytes: those that the quota refused are let go."""
        if self.is_refused:
            self.error = None
            self.discard()

    async def store(self) -> None:
        """Wait, however long it takes, until all that was written before is committed or dropped.

        What a quota refuses stays dirty and is not waited for: it may be refused for ever. Reports
        nothing: a failure on the way stays for those who flush.
        """
        self._send_now()
        target_count = self._sealed_count
        while self._committed_count < target_count and not self.is_refused:
            await self._wait_changed()

    def raise_error(self) -> None:
        """Report the last failure, once."""
        error, self.error = self.error, None
        if error is not None:
            if self.is_clean:
                self.pool.forget(self)
            raise error

    def take(self, error: MictlanError | None) -> list[Pieces]:
        """Hand over all dirty bytes, oldest first: they will not be committed.

        `error` is what the next one who flushes is told.
        """
        taken = [sealed.pieces for sealed in self._sealed]
        taken += [self._windows[index] for index in sorted(self._windows)]
        self.error = error
        self.discard()
        return taken

    def discard(self) -> None:
        """Drop all dirty bytes: the file is gone."""
        self.failure = None
        self.pool.budget.release(self.dirty_bytes)
        self._windows.clear()
        for sealed in self._sealed:
            sealed.is_dropped = True
        self._sealed.clear()
        self.seal_all()
        self._committed_count = self._sealed_count
        self._do_afterwards()
        self._note_change()


class WriteBack:
    """All dirty files of a mount, under one budget of memory.

    Args:
        nursery: of the mount; uploads live in it.
        on_stored: told each chunk stored and its bytes, to keep them in a cache.
        inline_size_max: windows of at most so many bytes become inline chunks; 0 for none.

    Attributes:
        on_given_up: asked before the bytes of a file that is gone are dropped; whether it has
            taken them.
        may_inline: asked whether so many bytes of a file, for which somebody waits to be durable,
            may become inline chunks although they are more than that.
    """

    may_inline: Callable[[InodeNumber, int], bool] = staticmethod(lambda _ino, _size: False)
    on_given_up: Callable[[FileWriter], bool] = staticmethod(lambda _: False)

    def __init__(
        self,
        nursery: trio.Nursery,
        storage: Storage,
        budget: Budget,
        on_stored: Callable[[Chunk, Sequence[Buffer]], None],
        inline_size_max: int = 0,
    ) -> None:
        self.inline_size_max = min(inline_size_max, wire.INLINE_CHUNK_SIZE_BYTES_MAX)
        self.tails = Tails(self.inline_size_max)
        self.nursery = nursery
        self.storage = storage
        self.budget = budget
        self.on_stored = on_stored
        self.upload_limiter = trio.CapacityLimiter(UPLOADS_MAX)
        self.small_upload_limiter = trio.CapacityLimiter(SMALL_UPLOADS_MAX)
        self._gathered: list[Callable[[], Awaitable[None]]] = []
        self._writers: dict[InodeNumber, FileWriter] = {}
        self._progressed_s = -math.inf

    def writer(
        self,
        ino: InodeNumber,
        policy: BucketPolicy,
        on_committed: Callable[[list[Segment], Attributes], None],
        on_forgotten: Callable[[], None],
    ) -> FileWriter:
        """The writer of a file, made when the file is clean."""
        writer = self._writers.get(ino)
        if writer is None:
            writer = FileWriter(ino, policy, self, on_committed, on_forgotten)
            self._writers[ino] = writer
        return writer

    def __iter__(self) -> Iterator[FileWriter]:
        return iter(list(self._writers.values()))

    def get(self, ino: InodeNumber) -> FileWriter | None:
        """The writer of a dirty file; None when it is clean."""
        return self._writers.get(ino)

    def forget(self, writer: FileWriter) -> None:
        """The writer is clean. One with an unreported error stays to report it."""
        if writer.error is None and self._writers.get(writer.ino) is writer:
            del self._writers[writer.ino]
            writer.on_forgotten()

    def upload_soon(self, upload: Callable[[], Awaitable[None]]) -> None:
        """Start an upload together with others that come soon."""
        self._gathered.append(upload)
        if len(self._gathered) >= GATHER_COUNT_MAX:
            self.start_uploads()
        elif len(self._gathered) == 1:
            self.nursery.start_soon(self._start_uploads_in_a_while)

    async def _start_uploads_in_a_while(self) -> None:
        await trio.sleep(GATHER_S_MAX)
        self.start_uploads()

    def start_uploads(self) -> None:
        """Start the uploads that wait for others."""
        gathered, self._gathered = self._gathered, []
        for upload in gathered:
            self.nursery.start_soon(upload)

    def note_progress(self) -> None:
        """Bytes have left the mount."""
        self._progressed_s = trio.current_time()

    def gives_up_at(self, started_s: float, deadline_s: float) -> float:
        """When a wait that began at `started_s` ends: `deadline_s` after anything was stored.

        A slow space is no reason to fail while it works.
        """
        return max(started_s, self._progressed_s) + deadline_s

    async def wait_for_room(self, deadline_s: float) -> None:
        """Wait until the budget allows another write.

        Raises:
            MictlanError: NO_SPACE when the peers are full; TIMED_OUT when nothing has left the
                mount for `deadline_s`.
        """
        started_s = trio.current_time()
        while self.budget.is_exhausted:
            self.start_uploads()
            self.storage.hurry()
            writers = list(self._writers.values())
            if not any(writer.is_leaving for writer in writers):
                # Not before: a window that is sealed before it is full is a chunk too many.
                for writer in writers:
                    writer.seal_all()
            for writer in writers:
                if writer.failure is not None and writer.failure.kind is Kind.NO_SPACE:
                    raise MictlanError(Kind.NO_SPACE, "write", "", writer.failure.detail)
            give_up_at = self.gives_up_at(started_s, deadline_s)
            if trio.current_time() >= give_up_at:
                raise MictlanError(Kind.TIMED_OUT, "write", "", "dirty data cannot be stored")
            with trio.move_on_at(give_up_at):
                await self.budget.wait_changed()

    def dirty_bytes_with_quota(self) -> int:
        """The dirty bytes of files in buckets that have a quota."""
        return sum(w.dirty_bytes for w in self._writers.values() if w.policy.quota)

    def refused_bytes(self) -> int:
        """The dirty bytes of files that a quota keeps from being stored."""
        return sum(w.dirty_bytes for w in self._writers.values() if w.is_refused)

    async def settle_with_quota(self, deadline_s: float) -> None:
        """Commit what is dirty in buckets that have a quota, as far as that works."""
        writers = [writer for writer in self._writers.values() if writer.policy.quota]
        for writer in writers:
            writer.seal_all()
        with trio.move_on_after(deadline_s):
            for writer in writers:
                await writer.settle(deadline_s)

    async def seal_aged_windows(self) -> None:
        """Send what was written a while ago on its way, for as long as the mount lives."""
        while True:
            await trio.sleep(TICK_S)
            now_s = trio.current_time()
            for writer in list(self._writers.values()):
                writer.seal_aged(now_s)

    async def flush_all(self, deadline_s: float) -> int:
        """Store what was written to any file before; returns how many bytes are dirty afterwards.

        Goes on for as long as anything leaves the mount; gives up after `deadline_s` without.
        """
        started_s = trio.current_time()
        for writer in list(self._writers.values()):
            writer.seal_all()
        for writer in list(self._writers.values()):
            while (
                not writer.is_clean
                and (left_s := self.gives_up_at(started_s, deadline_s) - trio.current_time()) > 0
            ):
                try:
                    await writer.flush(left_s)
                    break
                except MictlanError as error:
                    log.warning("flush of inode %d failed: %s", writer.ino, error)
                    await trio.sleep(RETRY_S_FIRST)
        return sum(writer.dirty_bytes for writer in self._writers.values())


def _reportable(error: Exception) -> MictlanError:
    """What an application is told of a failure. A defect of ours is logged where it is met."""
    cause = single_error(error)
    if isinstance(cause, MictlanError):
        return cause
    log.error("write-back met a defect", exc_info=cause)
    return MictlanError(Kind.INTERNAL, "write back", "", str(cause))


def _segments(sealed: _Sealed, chunk: Chunk) -> list[Segment]:
    """Where the runs of a window lie in the chunk that its pieces became."""
    segments: list[Segment] = []
    position = 0
    for run_start, end in sealed.pieces.runs():
        # The tail ends where the first run begins, and both are one.
        start = sealed.tail.start if sealed.tail is not None and not segments else run_start
        segments.append(Segment(start, end, chunk, position))
        position += end - start
    return segments
