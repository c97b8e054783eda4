"""Content of files: reading and writing, between the kernel's requests and chunks.

Owns how a read is put together (committed extents below, dirty bytes on top), when data is flushed,
and how a size change keeps its place among writes. Concurrency: what is read between two awaits
is one state of the file; `docs/concurrency.md` tells the races one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from mictlanfs import wire
from mictlanfs.client.chunks import ChunkStore
from mictlanfs.client.inline import INLINE_WITH_NODE_SIZE_BYTES, bodies_along
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session
from mictlanfs.clock import Clock
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.intervals import merge
from mictlanfs.model import (
    CHUNK_SIZE_BYTES_DEFAULT,
    FILE_SIZE_BYTES_MAX,
    KIB,
    Attributes,
    BucketPolicy,
    Buffer,
    Chunk,
    InodeNumber,
    Node,
)
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs.wire import LeaseMode
from mictlanfs_mount.budget import Budget
from mictlanfs_mount.chunkparts import ChunkPart, parts_of
from mictlanfs_mount.compaction import OWED_SIZE_BYTES_MAX, QUIET_S, TICK_S, Compactor
from mictlanfs_mount.defragment import Defragmenter
from mictlanfs_mount.extentlimit import keep_extents_few
from mictlanfs_mount.extents import Segment
from mictlanfs_mount.gone import stale_when_gone
from mictlanfs_mount.handles import FileHandle
from mictlanfs_mount.inodes import Inode, InodeTable
from mictlanfs_mount.quotas import Quotas
from mictlanfs_mount.readahead import Advice
from mictlanfs_mount.writeback import FileWriter, WriteBack

log = logging.getLogger(__name__)

# Chunks up to this size are fetched whole, whatever part of them is read.
WHOLE_SIZE_BYTES_MAX = 256 * KIB
# Just written chunks up to this size are kept in the cache: small files are often read back.
KEEP_WRITTEN_SIZE_BYTES_MAX = 128 * KIB
# Bytes of a window that are sent in the commit while an fsync waits for them: one disk sync, not
# one on a peer after another at the router.
SYNCED_INLINE_SIZE_BYTES_MAX = 64 * KIB
_FOR_EVER_S = float("inf")
# Between two attempts to get a lease for what is to be committed.
COVER_RETRY_S = 0.1
# Answers about extents that one read may need: as many as 1 MiB of single bytes here and there.
EXTENT_PAGES_MAX = 4096
# What a page of extents covers of a file that was written in order, by the default.
PAGE_STRIDE_SIZE_BYTES = wire.EXTENTS_PAGE_MAX * CHUNK_SIZE_BYTES_DEFAULT
EXTENTS_MAX_DEFAULT = 100_000
# How long a read that failed waits for another answer about where its bytes are.
RENEWAL_S_MAX = 5.0
# Failures that asking anew where the bytes are may mend.
_MOVED = frozenset({Kind.CORRUPT, Kind.UNAVAILABLE, Kind.TIMED_OUT})


@dataclass(frozen=True, slots=True)
class _State:
    """Bytes `[offset, end)` of a file at one moment.

    Attributes:
        segments: what is committed; empty when everything is dirty.
        dirty: what is not, with offsets, oldest first.
    """

    offset: int
    end: int
    segments: Sequence[Segment]
    dirty: Sequence[tuple[int, bytes]]


class Cache(Protocol):
    """The chunk cache, as reading and writing see it."""

    def get_now(self, chunk: Chunk, start: int, end: int) -> Buffer | None:
        """Bytes `[start, end)` of a chunk when they are at hand; never suspends."""
        ...

    async def read(self, chunk: Chunk, start: int, end: int, *, whole: bool) -> Buffer:
        """Bytes `[start, end)` of a chunk, fetched when they are not at hand."""
        ...

    def prefetch(self, chunk: Chunk) -> bool:
        """Fetch a chunk in the background; False when too much is under way already."""
        ...

    def prefetch_together(self, chunks: Sequence[Chunk]) -> None:
        """The same for many small chunks, as far as there is room."""
        ...

    def open_ahead(self, chunks: Sequence[Chunk]) -> None:
        """Have chunks that are files of this machine open soon."""
        ...

    def insert(self, chunk: Chunk, pieces: Sequence[Buffer]) -> None:
        """Keep a chunk that was just written."""
        ...


class SpaceStorage:
    """Where write-back puts data: the peers, then the router.

    Args:
        is_covered: whether a lease for writing covers a file.
        cover: gets such a lease, where there are leases.
    """

    def __init__(
        self,
        chunks: ChunkStore,
        session: Session,
        is_covered: Callable[[InodeNumber], bool],
        cover: Callable[[InodeNumber], Awaitable[None]],
    ) -> None:
        self._chunks = chunks
        self._session = session
        self._is_covered = is_covered
        self._cover = cover

    async def store(self, pieces: Sequence[Buffer], policy: BucketPolicy) -> Chunk:
        """Make the bytes durable as a chunk on the peers."""
        return await self._chunks.store(pieces, policy)

    async def commit(self, op: wire.WriteExtents, *, sync: bool) -> Attributes:
        """Apply the operation at the router, however long it takes."""
        if not self._is_covered(op.ino):
            # The log is in order: an operation that waits at the router for what others hold would
            # hold up those that they wait for. So it is waited for outside of the log.
            await self._cover(op.ino)
        # No deadline: an operation given up here might still be applied later, over a newer one.
        touched = await self._session.apply(
            op, sync=sync, deadline_s=_FOR_EVER_S, is_covered=self._is_covered(op.ino)
        )
        return touched[0]

    def post(
        self,
        op: wire.WriteExtents,
        on_result: Callable[[Attributes | MictlanError], None],
        *,
        sync: bool,
    ) -> bool:
        """Have the operation applied with what else leaves soon, if a lease covers the file."""
        if not self._is_covered(op.ino):
            return False

        def on_answer(_: wire.Operation, result: wire.OpResult) -> None:
            error = result.error
            on_result(error.to_error() if error is not None else result.touched[0])

        self._session.post(op, on_answer, sync=sync)
        return True

    def hurry(self) -> None:
        """Let what was posted leave now."""
        self._session.hurry()


class Content:
    """Reads and writes of all files of a mount.

    Args:
        deadline_s: how long a request may wait for the space.
        inline_size_max: see `WriteBack`.
        extents_max: extents of large files that are remembered; see `extentlimit`.

    Attributes:
        defragmenter: puts together what was written in pieces.
        own: gets a lease for writing on what covers a file; None: there are no leases.
    """

    own: Callable[[InodeNumber], Awaitable[object]] | None = None

    def __init__(
        self,
        nursery: trio.Nursery,
        router: RouterClient,
        session: Session,
        chunks: ChunkStore,
        cache: Cache,
        inodes: InodeTable,
        clock: Clock,
        *,
        dirty_size_bytes_max: int,
        deadline_s: float,
        inline_size_max: int = 0,
        extents_max: int = EXTENTS_MAX_DEFAULT,
    ) -> None:
        self._extents_max = extents_max
        self._nursery = nursery
        self._router = router
        self._session = session
        self._cache = cache
        self._inodes = inodes
        self._clock = clock
        self._deadline_s = deadline_s
        # Files of which a page of extents is on its way that nobody waits for yet.
        self._pages_ahead: set[InodeNumber] = set()
        storage = SpaceStorage(chunks, session, self._is_covered, self._cover)
        self._compactor = Compactor(storage, self._read_committed, self._note_committed)
        self.writeback = WriteBack(
            nursery,
            storage,
            Budget(dirty_size_bytes_max),
            self._keep_written,
            inline_size_max,
        )
        self.writeback.may_inline = self._may_inline
        self.defragmenter = Defragmenter(
            storage,
            self.writeback.budget,
            changeable=self._changeable,
            is_dirty=lambda ino: self.writeback.get(ino) is not None,
            know=self.know_extents,
            read=self._read_range,
            on_committed=self._note_moved,
        )
        self.quotas = Quotas(router, self.writeback, self.know_extents, deadline_s)

    # --- reading ---------------------------------------------------------------------------------

    def read_now(self, handle: FileHandle, offset: int, length: int) -> Buffer | None:
        """What `read` would return, if it is all of `length` bytes and at hand in one chunk.

        The way of almost every read of what is cached: it must cost little. Never suspends.
        """
        inode = handle.inode
        end = offset + length
        if end > inode.attributes.size or self.writeback.get(inode.ino) is not None:
            return None
        segment = inode.extents.around(offset, end)
        if segment is None or segment.chunk is None:
            return None
        start = segment.chunk_offset + offset - segment.offset
        body = self._cache.get_now(segment.chunk, start, start + length)
        if body is not None:
            self._follow(inode, handle.readahead.on_read(offset, length))
        return body

    async def read(self, handle: FileHandle, offset: int, length: int) -> Buffer:
        """Bytes of a file as it is now; fewer than `length` only at its end.

        Raises:
            MictlanError: CORRUPT, UNAVAILABLE or TIMED_OUT when the bytes cannot be had.
        """
        inode = handle.inode
        # Before anything is awaited: reads come in order, and may not go on in order.
        advice = handle.readahead.on_read(offset, length)
        state = await self._state(inode, offset, length)
        if state.offset == state.end:
            return b""
        self._follow(inode, advice)
        try:
            return await self._put_together(state, whole=advice.is_sequential)
        except MictlanError as error:
            if error.kind not in _MOVED:
                raise
            renewed = await self._renewed_state(inode, offset, length)
            if renewed is None or renewed.segments == state.segments:
                raise
            return await self._put_together(renewed, whole=advice.is_sequential)

    def at_hand(self, inode: Inode, size: int) -> Buffer | None:
        """The first `size` bytes of a file without dirty bytes, if they are at hand.

        Never suspends; None also when it is not known where they are.
        """
        extents = inode.extents
        if (
            self.writeback.get(inode.ino) is not None
            or extents.content_version != inode.attributes.content_version
            or extents.first_unknown(0, size) is not None
        ):
            return None
        bodies: list[Buffer] = []
        for segment in extents.segments(0, size):
            if segment.chunk is None:
                return None
            body = self._cache.get_now(segment.chunk, *_chunk_range(segment))
            if body is None:
                return None
            bodies.append(body)
        return bodies[0] if len(bodies) == 1 else b"".join(bodies)

    def is_untold(self, inode: Inode, size: int) -> bool:
        """Whether the router must be asked for the first `size` bytes of a file, or their place.

        Not of one with dirty bytes, whose content is ahead of the router's.
        """
        if self.writeback.get(inode.ino) is not None:
            return False
        extents = inode.extents
        version = inode.attributes.content_version
        if extents.content_version != version or extents.first_unknown(0, size) is not None:
            return True
        return any(
            segment.is_inline
            and segment.chunk is not None
            and self._cache.get_now(segment.chunk, *_chunk_range(segment)) is None
            for segment in extents.segments(0, size)
        )

    def prefetch(self, files: Iterable[Inode], size_max: int) -> None:
        """Fetch files of at most `size_max` bytes in the background, as far as peers have them.

        What the router has comes by pages.
        """
        self._cache.prefetch_together(
            [
                segment.chunk
                for inode in files
                if 0 < (size := inode.attributes.size) <= size_max
                and self.writeback.get(inode.ino) is None
                and inode.extents.first_unknown(0, size) is None
                for segment in inode.extents.segments(0, size)
                if segment.chunk is not None and segment.chunk.peers
            ]
        )

    async def _renewed_state(self, inode: Inode, offset: int, length: int) -> _State | None:
        """The state with what the router says now; None when it does not answer soon.

        Another mount may have replaced the content and its chunks be deleted, or the chunks be on
        other peers by now.
        """
        inode.extents.reset(inode.extents.content_version)
        with trio.move_on_after(RENEWAL_S_MAX):
            return await self._state(inode, offset, length)
        return None

    async def _state(self, inode: Inode, offset: int, length: int) -> _State:
        """The state of a range of a file at one moment; ends where the file does."""
        for attempt in range(EXTENT_PAGES_MAX):
            # No await from here to the state: size, extents and dirty bytes belong together.
            writer = self.writeback.get(inode.ino)
            size = max(inode.attributes.size, writer.end if writer is not None else 0)
            end = max(offset, min(offset + length, size))
            dirty = writer.collect(offset, end) if writer is not None and offset < end else []
            if offset == end or _covers(dirty, offset, end):
                return _State(offset, end, (), dirty)
            unknown = inode.extents.first_unknown(offset, end)
            if unknown is None:
                return _State(offset, end, inode.extents.segments(offset, end), dirty)
            # Of a file in many pieces the page that begins before may end before, too.
            start = _page_start(inode, unknown) if attempt == 0 else unknown
            await self._load_page(inode, start)
        raise MictlanError(Kind.BUSY, "read", str(inode.ino), "its extents keep changing")

    async def _load_page(self, inode: Inode, offset: int) -> None:
        """Make extents from `offset` on known, unless the file changes meanwhile."""
        # Whoever goes on where something is known will go on again.
        goes_on = offset > 0 and inode.extents.first_unknown(offset - 1, offset) is None
        count_max = wire.EXTENTS_LONG_PAGE_MAX if goes_on else wire.EXTENTS_PAGE_MAX
        with stale_when_gone("read", inode.ino):
            page = await self._router.extents(
                wire.GetExtents(inode.ino, offset, count_max, INLINE_WITH_NODE_SIZE_BYTES)
            )
            self.keep_inline(page)
            if page.content_version > inode.attributes.content_version:
                # The file was changed elsewhere, or a commit of ours is not answered yet: the size
                # must be that of the same content.
                node = await self._router.node(wire.GetNode(inode.ino))
                inode.learn(node.attributes, inode.valid_until_s)
        version = inode.attributes.content_version
        if page.content_version != version:
            # Overtaken by a change.
            return
        if inode.extents.content_version < version:
            inode.extents.reset(version)
        inode.extents.learn(offset, page.end, page.extents, page.chunks)

    async def know_extents(self, inode: Inode, start: int, end: int) -> None:
        """Ask for the extents of a range, as far as they can be known of a file that changes."""
        for _ in range(EXTENT_PAGES_MAX):
            unknown = inode.extents.first_unknown(start, end)
            if unknown is None:
                return
            await self._load_page(inode, unknown)

    async def _put_together(self, state: _State, *, whole: bool) -> Buffer:
        """The bytes of a state: committed extents below, dirty bytes on top."""
        if not state.dirty and len(state.segments) == 1:
            return await self._read_segment(state.segments[0], whole=whole)
        buffer = bytearray(state.end - state.offset)
        await self._fill(buffer, state.offset, state.segments, whole=whole)
        for start, data in state.dirty:
            buffer[start - state.offset : start - state.offset + len(data)] = data
        return buffer

    async def _fill(
        self, buffer: bytearray, offset: int, segments: Sequence[Segment], *, whole: bool
    ) -> None:
        view = memoryview(buffer)

        async def fetch(part: ChunkPart) -> None:
            body = await self._read_chunk(part.chunk, part.start, part.end, whole=whole)
            part.copy(body, view, offset)

        missing: list[ChunkPart] = []
        for part in parts_of(segments):
            body = self._cache.get_now(part.chunk, part.start, part.end)
            if body is None:
                missing.append(part)
            else:
                part.copy(body, view, offset)
        if len(missing) == 1:
            await fetch(missing[0])
        elif missing:
            with raising_single_errors():
                async with trio.open_nursery() as nursery:
                    for part in missing:
                        nursery.start_soon(fetch, part)

    async def _read_segment(self, segment: Segment, *, whole: bool) -> Buffer:
        if segment.chunk is None:
            return bytes(segment.end - segment.offset)
        return await self._read_chunk(segment.chunk, *_chunk_range(segment), whole=whole)

    async def _read_chunk(self, chunk: Chunk, start: int, end: int, *, whole: bool) -> Buffer:
        body = self._cache.get_now(chunk, start, end)
        if body is None:
            whole = whole or chunk.length <= WHOLE_SIZE_BYTES_MAX
            body = await self._cache.read(chunk, start, end, whole=whole)
        return body

    async def _read_committed(self, segment: Segment) -> Buffer:
        return await self._read_segment(segment, whole=True)

    async def _read_range(self, start: int, end: int, segments: Sequence[Segment]) -> Buffer:
        """The committed bytes of a range of a file; zeros where no segment is."""
        buffer = bytearray(end - start)
        await self._fill(buffer, start, segments, whole=True)
        return buffer

    def _follow(self, inode: Inode, advice: Advice) -> None:
        if advice.prefetch_start < advice.prefetch_end:
            self._prefetch(inode, advice.prefetch_start, advice.prefetch_end)
        elif advice.is_scattered:
            self._open_ahead(inode)

    def _open_ahead(self, inode: Inode) -> None:
        size = inode.attributes.size
        unknown = inode.extents.first_unknown(0, size)
        known_end = size if unknown is None else unknown
        chunks = {s.chunk.id: s.chunk for s in inode.extents.segments(0, known_end) if s.chunk}
        self._cache.open_ahead(list(chunks.values()))

    def _prefetch(self, inode: Inode, start: int, end: int) -> None:
        end = min(end, inode.attributes.size)
        if start >= end:
            return
        unknown = inode.extents.first_unknown(start, end)
        known_end = end if unknown is None else unknown
        chunks = {s.chunk.id: s.chunk for s in inode.extents.segments(start, known_end) if s.chunk}
        for chunk in chunks.values():
            self._cache.prefetch(chunk)
        if unknown is not None and inode.ino not in self._pages_ahead:
            self._pages_ahead.add(inode.ino)
            self._nursery.start_soon(self._prefetch_page, inode, unknown, end)

    async def _prefetch_page(self, inode: Inode, start: int, end: int) -> None:
        """Learn where the bytes from `start` on are, then fetch those in front of `end`."""
        try:
            await self._load_page(inode, start)
        except MictlanError as error:
            # Who reads there will meet it.
            log.debug("extents of inode %d were not fetched ahead: %s", inode.ino, error)
        finally:
            self._pages_ahead.discard(inode.ino)
        if inode.extents.first_unknown(start, end) != start:
            self._prefetch(inode, start, end)

    # --- writing ---------------------------------------------------------------------------------

    async def write(self, handle: FileHandle, offset: int, data: bytes) -> None:
        """Take `data` at `offset`; it is on its way to the space when the file is flushed.

        Waits and raises as `admit`.
        """
        await self.admit(handle, offset, len(data))
        self.take(handle, offset, data)

    def take(self, handle: FileHandle, offset: int, data: bytes) -> None:
        """Take what was just admitted."""
        if data:
            self._writer(handle.inode).write(offset, data, self._clock.wall_ns())

    async def admit(self, handle: FileHandle, offset: int, length: int) -> None:
        """See that so many bytes may be taken, without a suspension in between.

        Waits while the budget of dirty bytes is used up.

        Raises:
            MictlanError: TOO_LARGE beyond the largest offset; QUOTA_EXCEEDED; when the budget
                stays used up, the error that keeps data from leaving.
        """
        if offset + length > FILE_SIZE_BYTES_MAX:
            raise MictlanError(Kind.TOO_LARGE, "write", str(handle.inode.ino))
        if not length:
            return
        await self.wait_for_room()
        if handle.inode.policy.quota:
            await self.quotas.admit(handle.inode, offset, length)

    async def wait_for_room(self) -> None:
        """Wait while the budget of dirty bytes is used up. Suspends only then."""
        if self.writeback.budget.is_exhausted:
            await self.writeback.wait_for_room(self._deadline_s)

    def _is_covered(self, ino: InodeNumber) -> bool:
        """Whether a lease for writing covers the file, also one that is being given up."""
        inode = self._inodes.get(ino)
        lease = None if inode is None else inode.lease
        return lease is not None and lease.mode == LeaseMode.WRITE

    async def _cover(self, ino: InodeNumber) -> None:
        """Get a lease for writing on a file, however long it takes, where there are leases."""
        while self.own is not None:
            try:
                await self.own(ino)
                return
            except MictlanError as error:
                if not error.is_retryable and error.kind is not Kind.BUSY:
                    raise
                await trio.sleep(COVER_RETRY_S)

    def _changeable(self, ino: InodeNumber) -> Inode | None:
        """The inode of a file under a lease for writing that nobody else waits for."""
        inode = self._inodes.get(ino) if self._is_covered(ino) else None
        lease = None if inode is None else inode.lease
        return None if lease is not None and lease.is_recalled else inode

    def _may_inline(self, ino: InodeNumber, size: int) -> bool:
        """Whether the commit may carry bytes that are only later given to the peers.

        Without a lease another mount's reads would meet chunks that move soon.
        """
        return (
            self.writeback.inline_size_max > 0
            and size <= SYNCED_INLINE_SIZE_BYTES_MAX
            and self._is_covered(ino)
            and self._compactor.owed_bytes < OWED_SIZE_BYTES_MAX
        )

    @property
    def owed_bytes(self) -> int:
        """Bytes in the metadata that are to be given to the peers."""
        return self._compactor.owed_bytes

    def start_upkeep(self) -> None:
        """Begin what goes on in the background for as long as the mount lives."""
        self._nursery.start_soon(self.writeback.seal_aged_windows)
        self._nursery.start_soon(self._move_owed_bytes)
        self._nursery.start_soon(self.defragmenter.run)
        self._nursery.start_soon(
            keep_extents_few, self._inodes, self._extents_max, self._may_forget_extents
        )

    def _may_forget_extents(self, inode: Inode) -> bool:
        """Whether the router knows them all, and nobody here counts on them."""
        is_ahead = inode.is_dirty or inode.pending_count
        return not is_ahead and not self._compactor.owes(inode.ino)

    async def _move_owed_bytes(self) -> None:
        """Give the peers what only an fsync kept from them."""
        while True:
            await trio.sleep(TICK_S)
            await self.move_owed(QUIET_S)

    async def move_owed(self, quiet_s: float) -> None:
        """Give the peers what is owed of files to which nobody has written for so long."""
        for ino in await self._compactor.move_owed(quiet_s):
            self.writeback.tails.forget(ino)

    def _writer(self, inode: Inode) -> FileWriter:
        ino = inode.ino
        # Kept in the table for as long as there are dirty bytes: they belong to its lease.
        inode.is_dirty = True
        self._inodes.keep(inode)

        def on_committed(segments: list[Segment], attributes: Attributes) -> None:
            self._note_committed(ino, segments, attributes)
            self._compactor.note(inode, segments, self.writeback.inline_size_max)
            self.defragmenter.note(inode, segments)

        def on_forgotten() -> None:
            inode.is_dirty = False
            self._inodes.drop_unused(inode)

        return self.writeback.writer(ino, inode.policy, on_committed, on_forgotten)

    def _note_committed(
        self, ino: InodeNumber, segments: list[Segment], attributes: Attributes
    ) -> None:
        inode = self._inodes.get(ino)
        if inode is not None:
            inode.note_own_change(attributes)
            inode.extents.replace(segments, attributes.content_version)

    def _note_moved(
        self, ino: InodeNumber, segments: list[Segment], attributes: Attributes
    ) -> None:
        self._note_committed(ino, segments, attributes)
        self.writeback.tails.forget(ino)

    def keep_inline(self, node: Node | wire.ExtentPage) -> None:
        """Keep bytes that came along with extents."""
        for chunk, body in bodies_along(node.chunks, node.inline):
            self._cache.insert(chunk, [body])

    def _keep_written(self, chunk: Chunk, pieces: Sequence[Buffer]) -> None:
        if chunk.length <= KEEP_WRITTEN_SIZE_BYTES_MAX:
            self._cache.insert(chunk, pieces)

    async def flush(self, ino: InodeNumber, *, sync: bool = False) -> None:
        """Wait until what was written to the file before is committed.

        Raises:
            MictlanError: the failure since the last report, or TIMED_OUT; the data is kept.
        """
        writer = self.writeback.get(ino)
        if writer is not None:
            await writer.flush(self._deadline_s, sync=sync)
        inode = self._inodes.get(ino)
        if inode is not None and await self._compactor.compact_when_due(inode):
            self.writeback.tails.forget(ino)

    def drop_refused(self, ino: InodeNumber) -> None:
        """The file is cut to nothing: what a quota keeps from being stored must not prevent it."""
        writer = self.writeback.get(ino)
        if writer is not None:
            writer.drop_refused()

    def raise_loss(self, ino: InodeNumber) -> None:
        """Report, once, that bytes of a file did not reach the space and never will."""
        writer = self.writeback.get(ino)
        if writer is not None and writer.is_clean:
            writer.raise_error()

    def is_clean(self, ino: InodeNumber) -> bool:
        """Whether every byte of a file is committed."""
        writer = self.writeback.get(ino)
        return writer is None or writer.is_clean

    def discard(self, ino: InodeNumber) -> None:
        """Drop what is dirty of a file that nobody can reach any more."""
        writer = self.writeback.get(ino)
        if writer is not None:
            writer.discard()

    async def fsync(self, ino: InodeNumber) -> None:
        """Wait until what was written to the file, and every change of names, is durable."""
        await self.flush(ino, sync=True)
        await self._session.sync()

    def end_of(self, inode: Inode) -> int:
        """Where a file ends, with what is dirty here."""
        writer = self.writeback.get(inode.ino)
        return inode.attributes.size if writer is None else max(inode.attributes.size, writer.end)

    def effective(self, attributes: Attributes) -> Attributes:
        """Attributes as the application must see them: with what is dirty here."""
        writer = self.writeback.get(attributes.ino)
        if writer is None or writer.is_clean:
            return attributes
        return Attributes(
            attributes.ino,
            attributes.kind,
            attributes.mode,
            attributes.uid,
            attributes.gid,
            max(attributes.size, writer.end),
            attributes.atime_ns,
            writer.mtime_ns,
            max(writer.mtime_ns, attributes.ctime_ns),
            attributes.nlink,
            attributes.rdev,
            attributes.allocated + writer.dirty_bytes,
            attributes.version,
            attributes.content_version,
            attributes.has_xattrs,
        )


def _page_start(inode: Inode, offset: int) -> int:
    """Where to ask from for the extent at `offset`, of which nothing is known.

    A page of a file that was written in order has 1 GiB: beginning where such pages do, few of them
    are enough for a file that is read here and there.
    """
    start = offset - offset % PAGE_STRIDE_SIZE_BYTES
    unknown = inode.extents.first_unknown(start, offset + 1)
    return offset if unknown is None else unknown


def _covers(dirty: Sequence[tuple[int, bytes]], offset: int, end: int) -> bool:
    """Whether dirty bytes are all there is in `[offset, end)`."""
    ranges = [(start, start + len(data)) for start, data in dirty]
    return bool(ranges) and merge(ranges) == [(offset, end)]


def _chunk_range(segment: Segment) -> tuple[int, int]:
    return segment.chunk_offset, segment.chunk_offset + segment.end - segment.offset
