"""One more copy of a record's bytes, on demand.

The copy is made first and recorded afterwards, on condition that the file is as it was. Its times
stay, and so does its record.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Chunk, Extent
from mictlanfs.wirecopies import LOCATE_COUNT_MAX, Locate, Located
from mictlanfs_server.v4.failures import DoorError
from mictlanfs_server.v4.records import Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mictlanfs_server.v4.catalog import File, Target
    from mictlanfs_server.v4.peers import Peers
    from mictlanfs_server.v4.space import Changes, SpaceAccess

log = logging.getLogger(__name__)


class Replicating:
    """Copies records to further peers."""

    def __init__(self, space: SpaceAccess, changes: Changes, peers: Peers) -> None:
        self._space = space
        self._changes = changes
        self._peers = peers

    async def replicate(self, target: Target, to: str = "") -> str:
        """Copy the chunks of a record to one more peer, to `to` if it is given and has none.

        Bytes that are kept in the metadata go to as many peers as the bucket wants.

        Returns:
            The id of the peer that has a new copy; empty when nothing was to be done.

        Raises:
            DoorError: 409, the file changed meanwhile.
            MictlanError: as `Peers.copy`.
        """
        file, piece = target.file, target.piece
        copied: list[Chunk] = []
        for chunk in await self._chunks(file, piece):
            grown = await (self._peers.copy(chunk, to) if chunk.peers else self._move(file, chunk))
            if grown.peers != chunk.peers:
                copied.append(grown)
        if not copied:
            return ""
        try:
            await self._changes.apply(self._ops(file, copied), is_strict=True)
        except MictlanError as error:
            await self._undo(copied)
            if error.kind in {Kind.CONFLICT, Kind.NOT_FOUND, Kind.INVALID}:
                raise DoorError(409, f"{file.path} changed meanwhile") from error
            raise
        ids = self._peers.ids_of([copied[0].peers[-1]])
        return ids[0] if ids else ""

    async def _undo(self, copied: Sequence[Chunk]) -> None:
        """Delete copies that came to nothing.

        Not those that count by now: it may not be known that they were committed, and the healer
        may have wanted the same.
        """
        for start in range(0, len(copied), LOCATE_COUNT_MAX):
            part = copied[start : start + LOCATE_COUNT_MAX]
            request = Locate(tuple([chunk.id for chunk in part]))
            try:
                located = await self._space.ask(wire.Path.LOCATE, request, Located)
            except MictlanError as error:
                # An orphan does no harm, which a copy that counts and is gone does.
                log.warning("copies that came to nothing stay where they are: %s", error)
                return
            counted = {chunk.id: chunk.peers for chunk in located.chunks if chunk is not None}
            await self._peers.delete(
                {
                    chunk.id: {chunk.peers[-1]}
                    for chunk in part
                    if chunk.peers[-1] not in counted.get(chunk.id, ())
                }
            )

    def _ops(self, file: File, chunks: list[Chunk]) -> list[wire.Operation]:
        attributes = file.node.attributes
        described = wire.WriteExtents(
            file.ino,
            (),
            tuple(chunks),
            0,
            attributes.mtime_ns,
            if_content_version=attributes.content_version,
        )
        if file.record is None:
            return [described]
        # Describing chunks counts as a change of content, which makes a record stale.
        return [described, wire.SetRecord(file.ino, 0, file.record.pieces)]

    async def _move(self, file: File, chunk: Chunk) -> Chunk:
        """Store an inline chunk on peers."""
        request = wire.GetInline((chunk.id,))
        answer = await self._space.ask(wire.Path.INLINE, request, wire.InlineBodies)
        if not answer.bodies[0]:
            raise DoorError(409, f"{file.path} changed meanwhile")
        framed = wire.FrameChunk(chunk.id, chunk.length, chunk.digest)
        policy = file.bucket.policy
        return await self._peers.store(
            framed, answer.bodies[0], policy.replicas, policy.replicas_min, set()
        )

    async def _chunks(self, file: File, piece: Piece) -> list[Chunk]:
        """The chunks that a record has bytes of, each once."""
        found: dict[bytes, Chunk] = {}
        at: int | None = piece.offset
        while at is not None and at < piece.offset + piece.size:
            request = wire.GetExtents(file.ino, at)
            page = await self._space.ask(wire.Path.EXTENTS, request, wire.ExtentPage)
            by_id = {chunk.id: chunk for chunk in page.chunks}
            for extent in page.extents:
                if _overlaps(extent, piece):
                    found[extent.chunk_id] = by_id[extent.chunk_id]
            at = page.end
        return list(found.values())


def _overlaps(extent: Extent, piece: Piece) -> bool:
    return extent.offset < piece.offset + piece.size and extent.end > piece.offset
