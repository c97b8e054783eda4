"""Bytes on their way out: a range of a file, from inline chunks and peers, piece by piece.

A stream shows one content version of its file: when the file changes before its last extents are
known the stream breaks off. Memory is bounded: a few chunks a stream, and a budget for all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB, Buffer, Chunk, ChunkId, Extent, InodeNumber, Node, inline_bodies
from mictlanfs_server.peer.budget import ByteBudget

if TYPE_CHECKING:
    from mictlanfs_server.v4.peers import Peers
    from mictlanfs_server.v4.space import SpaceAccess

IN_FLIGHT_SIZE_BYTES_MAX: Final = 128 * MIB
# The piece that is being sent and the one behind it.
AHEAD_COUNT_MAX: Final = 2
INLINE_SIZE_BYTES_MAX: Final = 64 * 1024
# Most often a chunk of a ball is asked for, which has few.
FIRST_EXTENTS_MAX: Final = 8
_ZEROS: Final = bytes(MIB)


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes that come from one place: of a chunk from `start` to `end`; a hole without one."""

    start: int
    end: int
    chunk: Chunk | None = None
    body: bytes | None = None


class Fetching:
    """Reads files. Belongs to one event loop."""

    def __init__(self, space: SpaceAccess, peers: Peers) -> None:
        self._space = space
        self._peers = peers
        self._budget = ByteBudget(IN_FLIGHT_SIZE_BYTES_MAX)

    async def read(self, node: Node, start: int, end: int) -> AsyncGenerator[Buffer, None]:
        """Bytes `[start, end)` of the file as it was when `node` was read.

        A piece may be used until the next is asked for. To be closed when not read to its end.

        Raises:
            MictlanError: as `Peers.fetch`; STALE when the file changed meanwhile.
        """
        pending: deque[asyncio.Task[Buffer]] = deque()
        runs = self._runs(node, start, end)
        try:
            async for run in runs:
                if run.chunk is None:
                    while pending:
                        yield await pending.popleft()
                    for at in range(run.start, run.end, len(_ZEROS)):
                        yield memoryview(_ZEROS)[: min(len(_ZEROS), run.end - at)]
                    continue
                pending.append(asyncio.create_task(self._fetch(run, run.chunk), name="v4-fetch"))
                if len(pending) > AHEAD_COUNT_MAX:
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            await runs.aclose()
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)

    async def _fetch(self, run: _Run, chunk: Chunk) -> Buffer:
        if run.body is not None:
            return _right(chunk, run.body)[run.start : run.end]
        if not chunk.peers:
            request = wire.GetInline((chunk.id,))
            answer = await self._space.ask(wire.Path.INLINE, request, wire.InlineBodies)
            if not answer.bodies[0]:
                raise MictlanError(Kind.STALE, "read", detail="the file changed meanwhile")
            return _right(chunk, answer.bodies[0])[run.start : run.end]
        async with self._budget.take(run.end - run.start):
            return await self._peers.fetch(chunk, run.start, run.end)

    async def _runs(self, node: Node, start: int, end: int) -> AsyncGenerator[_Run, None]:
        """The range in pieces, in order, holes between them."""
        at = start
        async for extent, chunk, body in self._extents(node, start, end):
            first, last = max(extent.offset, start), min(extent.end, end)
            if first >= last:
                continue
            if first > at:
                yield _Run(at, first)
            shift = extent.chunk_offset - extent.offset
            yield _Run(first + shift, last + shift, chunk, body)
            at = last
        if at < end:
            yield _Run(at, end)

    async def _extents(
        self, node: Node, start: int, end: int
    ) -> AsyncGenerator[tuple[Extent, Chunk, bytes | None], None]:
        """The extents that `node` brought, or those that pages bring."""
        if node.has_all_extents:
            for found in _joined(node.extents, node.chunks, node.inline):
                yield found
            return
        ino, version = node.attributes.ino, node.attributes.content_version
        at: int | None = start
        extents_max = FIRST_EXTENTS_MAX
        while at is not None and at < end:
            page = await self._page(ino, at, extents_max)
            extents_max = wire.EXTENTS_PAGE_MAX
            if page.content_version != version:
                raise MictlanError(Kind.STALE, "read", detail="the file changed meanwhile")
            for found in _joined(page.extents, page.chunks, page.inline):
                yield found
            at = page.end

    async def _page(self, ino: InodeNumber, offset: int, extents_max: int) -> wire.ExtentPage:
        request = wire.GetExtents(ino, offset, extents_max, inline_max=INLINE_SIZE_BYTES_MAX)
        return await self._space.ask(wire.Path.EXTENTS, request, wire.ExtentPage)


def _right(chunk: Chunk, body: bytes) -> memoryview:
    """The bytes of an inline chunk. Raises CORRUPT when they are not those of its digest."""
    if digest_of([body]) != chunk.digest:
        raise MictlanError(Kind.CORRUPT, "get chunk", chunk.id.hex(), "the metadata is damaged")
    return memoryview(body)


def _joined(
    extents: Sequence[Extent], chunks: Sequence[Chunk], inline: Sequence[bytes]
) -> Iterator[tuple[Extent, Chunk, bytes | None]]:
    """Each extent with its chunk, and its bytes if they came along."""
    by_id: dict[ChunkId, Chunk] = {chunk.id: chunk for chunk in chunks}
    bodies = {chunk.id: body for chunk, body in inline_bodies(chunks, inline)}
    for extent in extents:
        yield extent, by_id[extent.chunk_id], bodies.get(extent.chunk_id)
