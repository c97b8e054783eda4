"""Taking one chunk out of a ball that is one file: its other chunks become files of their own.

That is what they were before the last of them came, so the one that was taken out can be put again.
All happens in one transaction; no bytes move. When a name is in the way all is undone.

A bucket with a quota may have no room for the chunks beside the ball. So the quota is lifted within
the transaction, and is back at its end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from mictlanfs import wire
from mictlanfs.client.names import TEMPORARY_NAME_PREFIX
from mictlanfs.errors import MictlanError
from mictlanfs.identifiers import new_token
from mictlanfs.model import BucketPolicy, Extent, FileKind
from mictlanfs_server.v4 import records
from mictlanfs_server.v4.records import Piece

if TYPE_CHECKING:
    from mictlanfs_server.v4.catalog import File
    from mictlanfs_server.v4.space import Changes, SpaceAccess

log = logging.getLogger(__name__)

# Three operations each, and a few for the ball: they must fit into a batch.
SPLIT_PIECES_MAX: Final = 1000


class Splitting:
    """Splits balls into chunks."""

    def __init__(self, space: SpaceAccess, changes: Changes) -> None:
        self._space = space
        self._changes = changes

    async def split(self, file: File, without: int) -> None:
        """Make files of all pieces of a ball but one, and remove the ball.

        Args:
            file: a ball that clients put, with its record; at most `SPLIT_PIECES_MAX` pieces.
            without: index of the piece that goes.

        Raises:
            MictlanError: nothing has changed: EXISTS, a name is taken; CONFLICT, the file changed.
        """
        extents = await self._extents(file)
        hidden = TEMPORARY_NAME_PREFIX + new_token().encode()
        parent, name = file.parent, file.names[-1]
        ops: list[wire.Operation] = [
            # Has no effect but to fail when the file is not as it was.
            self._guard(file),
            wire.Rename(parent, name, parent, hidden, time.time_ns(), wire.RenameMode.NO_REPLACE),
        ]
        undo: list[wire.Operation] = []
        for piece in file.pieces:
            if piece.index != without:
                ops += await self._part_ops(file, piece, extents)
                undo.append(wire.Unlink(parent, _name_of(piece), time.time_ns()))
        ops.append(wire.Unlink(parent, hidden, time.time_ns()))
        policy = file.bucket.policy
        if policy.quota:
            ops.insert(1, self._policy_op(file, msgspec.structs.replace(policy, quota=0)))
            ops.append(self._policy_op(file, policy))
            undo.insert(0, self._policy_op(file, policy))
        results = await self._changes.submit(ops, is_strict=True)
        error = results[-1].error
        if error is None:
            return
        await self._undo(ops[: len(results) - 1], undo, hidden, file)
        raise error.to_error()

    def _policy_op(self, file: File, policy: BucketPolicy) -> wire.Operation:
        return wire.SetBucketPolicy(file.bucket.ino, policy, time.time_ns())

    def _guard(self, file: File) -> wire.Operation:
        assert file.record is not None
        return wire.SetRecord(file.ino, file.record.content_version, file.record.pieces)

    async def _part_ops(
        self, file: File, piece: Piece, extents: Sequence[Extent]
    ) -> list[wire.Operation]:
        assert file.record is not None
        attributes, now_ns = file.node.attributes, time.time_ns()
        ino, name = await self._changes.new_inode(), _name_of(piece)
        ops: list[wire.Operation] = [
            wire.MakeNode(
                file.parent,
                name,
                ino,
                FileKind.FILE,
                attributes.mode,
                attributes.uid,
                attributes.gid,
                now_ns,
            )
        ]
        if piece.size:
            own = _cut(extents, piece.offset, piece.offset + piece.size)
            ops.append(wire.WriteExtents(ino, tuple(own), (), piece.size, now_ns))
        raw = file.record.pieces[piece.index].body
        body = records.decode_body(raw)
        ball_ino = await self._changes.new_inode()
        ball = file.names[-1]
        ops.append(
            wire.PutPart(
                *(ino, file.parent, name, ball, ball_ino, body.index, body.count, raw, now_ns)
            )
        )
        return ops

    async def _undo(
        self,
        applied: Sequence[wire.Operation],
        undo: Sequence[wire.Operation],
        hidden: bytes,
        file: File,
    ) -> None:
        """Bring the ball back after a batch that broke off behind `applied`."""
        lasting = (wire.MakeNode, wire.SetBucketPolicy)
        ops = list(undo[: sum(isinstance(op, lasting) for op in applied)])
        if any(isinstance(op, wire.Rename) for op in applied):
            parent, name, now_ns = file.parent, file.names[-1], time.time_ns()
            mode = wire.RenameMode.NO_REPLACE
            ops.append(wire.Rename(parent, hidden, parent, name, now_ns, mode))
        try:
            await self._changes.apply(ops)
        except MictlanError:
            log.exception("ball %s is left as %s", file.path, hidden.decode())

    async def _extents(self, file: File) -> list[Extent]:
        """All extents of a file."""
        if file.node.has_all_extents:
            return list(file.node.extents)
        found: list[Extent] = []
        at: int | None = 0
        while at is not None:
            request = wire.GetExtents(file.ino, at)
            page = await self._space.ask(wire.Path.EXTENTS, request, wire.ExtentPage)
            found.extend(page.extents)
            at = page.end
        return found


def is_splittable(file: File) -> bool:
    """Whether a file is a ball that clients put chunk by chunk, and that still has its name."""
    if file.record is None or not 1 < len(file.pieces) <= SPLIT_PIECES_MAX:
        return False
    bodies = [records.decode_body(piece.body) for piece in file.record.pieces]
    return all(body.is_part and body.ball_id == file.path for body in bodies)


def _name_of(piece: Piece) -> bytes:
    names = records.names_of(piece.key)
    assert names is not None, "it was a name when the piece was put"
    return names[-1]


def _cut(extents: Sequence[Extent], start: int, end: int) -> list[Extent]:
    """What `extents` have of `[start, end)`, as extents of a file that begins there."""
    found = []
    for extent in extents:
        first, last = max(extent.offset, start), min(extent.end, end)
        if first < last:
            shift = first - extent.offset
            chunk_offset = extent.chunk_offset + shift
            found.append(Extent(first - start, last - first, extent.chunk_id, chunk_offset))
    return found
