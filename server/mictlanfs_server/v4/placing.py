"""Giving a stored ball its name: directories, file, content and record, in few batches.

Nobody ever sees a part of a ball under its name. Without a quota a file is made under its name:
when that works nothing behind it can fail. With one the content may be refused, so it is made
under another name first, in a batch of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.client.names import DIRECTORY_MODE, TEMPORARY_NAME_PREFIX
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_token
from mictlanfs.model import BucketPolicy, FileKind, InodeNumber
from mictlanfs_server.v4 import records
from mictlanfs_server.v4.records import Names, RecordBody
from mictlanfs_server.v4.storing import Stored

if TYPE_CHECKING:
    from mictlanfs.client.caller import Caller
    from mictlanfs_server.v4.space import Changes, SpaceAccess

log = logging.getLogger(__name__)

FILE_MODE: Final = 0o666
# Somebody else makes, or removes, the same directories.
ATTEMPTS_MAX: Final = 8
# The parent went away between a look and a batch.
_GONE: Final = frozenset({Kind.NOT_FOUND, Kind.STALE, Kind.NOT_DIRECTORY})


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory that exists, and how the data of its bucket is kept."""

    ino: InodeNumber
    policy: BucketPolicy


class NameTakenError(Exception):
    """The name of a file, or of the ball that it would complete, is taken.

    Attributes:
        is_stored: whether the bytes became part of the space before that was found out; they are
            the space's to remove then.
    """

    def __init__(self, message: str, *, is_stored: bool) -> None:
        super().__init__(message)
        self.is_stored = is_stored


class Placing:
    """Makes files of stored bytes."""

    def __init__(self, space: SpaceAccess, changes: Changes, caller: Caller) -> None:
        self._space = space
        self._changes = changes
        self._caller = caller
        self._making: dict[Names, asyncio.Lock] = {}

    # --- directories -----------------------------------------------------------------------------

    async def directory(self, names: Names) -> Directory:
        """The directory of that path from the root, made if it is missing.

        Raises:
            MictlanError: NOT_DIRECTORY and others.
        """
        for _ in range(ATTEMPTS_MAX):
            found, missing = await self._look(names)
            if not missing:
                return found
            # Many chunks of a new bucket come at once: one of them makes it.
            lock = self._making.setdefault(names, asyncio.Lock())
            try:
                async with lock:
                    found, missing = await self._look(names)
                    if missing:
                        await self._make_directories(found.ino, missing)
            finally:
                self._making.pop(names, None)
        raise MictlanError(Kind.BUSY, "put", records.shown(names), "its directories come and go")

    async def _look(self, names: Names) -> tuple[Directory, Names]:
        """The last directory of a path that exists, and the names that do not."""
        request = wire.Resolve(names)
        nodes = (await self._space.ask(wire.Path.RESOLVE, request, wire.Resolved)).nodes
        last = nodes[-1]
        if last.attributes.kind is not FileKind.DIRECTORY:
            raise MictlanError(Kind.NOT_DIRECTORY, "put", records.shown(names[: len(nodes) - 1]))
        policy = last.policy or BucketPolicy()
        return Directory(last.attributes.ino, policy), names[len(nodes) - 1 :]

    async def _make_directories(self, parent: InodeNumber, names: Names) -> None:
        ops: list[wire.Operation] = []
        for name in names:
            ino = await self._changes.new_inode()
            ops.append(self._make(parent, name, ino, FileKind.DIRECTORY, DIRECTORY_MODE))
            parent = ino
        try:
            await self._changes.apply(ops, is_strict=True)
        except MictlanError as error:
            if error.kind is not Kind.EXISTS and error.kind not in _GONE:
                raise

    def _make(
        self, parent: InodeNumber, name: bytes, ino: InodeNumber, kind: FileKind, mode: int
    ) -> wire.MakeNode:
        caller = self._caller
        return wire.MakeNode(
            parent,
            name,
            ino,
            kind,
            mode & ~caller.umask,
            caller.uid,
            caller.gid,
            time.time_ns(),
            masked=mode & caller.umask,
        )

    # --- files -----------------------------------------------------------------------------------

    async def place(self, bucket: bytes, names: Names, stored: Stored, body: RecordBody) -> None:
        """Make the file `names` of a bucket, durably.

        Raises:
            NameTakenError: there is one of that name, or of the name of its whole ball.
            MictlanError: nothing was made; UNAVAILABLE and TIMED_OUT: nobody knows.
        """
        for attempt in range(1, ATTEMPTS_MAX + 1):
            directory = await self.directory((bucket, *names[:-1]))
            try:
                await self._place_in(directory, names[-1], stored, body)
                return
            except MictlanError as error:
                if error.kind not in _GONE or attempt == ATTEMPTS_MAX:
                    raise

    async def _place_in(
        self, directory: Directory, name: bytes, stored: Stored, body: RecordBody
    ) -> None:
        is_strict = directory.policy.quota > 0
        made_name = TEMPORARY_NAME_PREFIX + new_token().encode() if is_strict else name
        ino = await self._changes.new_inode()
        parent = directory.ino
        ops: list[wire.Operation] = [self._make(parent, made_name, ino, FileKind.FILE, FILE_MODE)]
        now_ns = time.time_ns()
        if stored.extents:
            extents, chunks = tuple(stored.extents), tuple(stored.chunks)
            ops.append(
                wire.WriteExtents(ino, extents, chunks, stored.size, now_ns, tuple(stored.inline))
            )
        if is_strict:
            mode = wire.RenameMode.NO_REPLACE
            ops.append(wire.Rename(parent, made_name, parent, name, now_ns, mode))
        ops.append(await self._record_op(parent, name, ino, stored, body))
        results = await self._changes.submit(ops, is_strict=is_strict)
        failed = [index for index, result in enumerate(results) if result.error is not None]
        if failed:
            await self._undo(ops, results, failed[0], body)

    async def _record_op(
        self, parent: InodeNumber, name: bytes, ino: InodeNumber, stored: Stored, body: RecordBody
    ) -> wire.Operation:
        encoded = records.encode_body(body)
        if not body.is_part:
            return wire.SetRecord(ino, 0, (wire.RecordPiece(stored.size, encoded),))
        ball = records.names_of(body.ball_id)
        assert ball is not None, "a part names its ball"
        ball_ino = await self._changes.new_inode()
        return wire.PutPart(
            ino, parent, name, ball[-1], ball_ino, body.index, body.count, encoded, time.time_ns()
        )

    async def _undo(
        self,
        ops: Sequence[wire.Operation],
        results: Sequence[wire.OpResult],
        index: int,
        body: RecordBody,
    ) -> None:
        """Remove what a batch made whose operation `index` failed; raises the reason."""
        failure = results[index].error
        assert failure is not None
        error = failure.to_error()
        made, is_named = ops[0], not isinstance(ops[index], wire.Rename)
        assert isinstance(made, wire.MakeNode)
        is_written = index > 1
        if index > 0:
            name = made.name
            if is_written and is_named and isinstance(ops[-2], wire.Rename):
                name = ops[-2].new_name
            try:
                await self._changes.apply([wire.Unlink(made.parent, name, time.time_ns())])
            except MictlanError as undoing:
                log.warning("what was made for %s could not be removed: %s", body.key, undoing)
        if error.kind is Kind.EXISTS:
            raise NameTakenError(str(error), is_stored=is_written)
        raise error
