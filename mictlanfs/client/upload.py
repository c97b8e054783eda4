"""Putting an object: chunks first, then one batch that makes it visible whole.

::

    pieces --store--> chunks --+--> many extents, or long since the last commit:
                               |    make directories and a temporary node, WriteExtents
                               +--> at the end, in one batch: (directories, temporary node,)
                                    WriteExtents, times, Rename over the target

Invariants: nobody ever sees a part of an object under its name. A chunk waits at most
`COMMIT_AFTER_S` for its commit, far less than the grace period after which a router takes chunks
that nothing refers to for lost. A put that fails removes its temporary node if it still can.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from mictlanfs import wire
from mictlanfs.client.caller import Caller
from mictlanfs.client.chunks import ChunkStore
from mictlanfs.client.inline import inline_chunk
from mictlanfs.client.names import (
    DIRECTORY_MODE,
    TEMPORARY_NAME_PREFIX,
    Names,
    show_path,
)
from mictlanfs.client.pipeline import Budget, in_order
from mictlanfs.client.session import Session
from mictlanfs.client.sources import Piece, Source
from mictlanfs.client.tree import Found, Tree
from mictlanfs.config import format_size
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_token
from mictlanfs.model import MIB, Attributes, BucketPolicy, Chunk, Extent, FileKind, InodeNumber

log = logging.getLogger(__name__)

# Of all puts of a client together: bounds its memory.
IN_FLIGHT_SIZE_BYTES_MAX = 64 * MIB
IN_FLIGHT_COUNT_MAX = 128
EXTENTS_PER_COMMIT_MAX = 1024
COMMIT_AFTER_S = 20.0
# Two puts that need the same new directory meet once; more often only under heavy contention.
COMMIT_ATTEMPTS_MAX = 8
CLEAN_UP_TIMEOUT_S = 3.0

Progress = Callable[[int], None]
# Operations on (parent, temporary node).
_OpsOf = Callable[[InodeNumber, InodeNumber], list[wire.Operation]]


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory that exists, and how the data of its bucket is kept."""

    ino: InodeNumber
    policy: BucketPolicy


class Uploader:
    """Puts objects into the space, any number at once."""

    def __init__(
        self, tree: Tree, chunks: ChunkStore, caller: Caller, inline_size_max: int
    ) -> None:
        self._inline_size_max = inline_size_max
        self._tree = tree
        self._chunks = chunks
        self._caller = caller
        self._budget = Budget(IN_FLIGHT_SIZE_BYTES_MAX, IN_FLIGHT_COUNT_MAX)

    async def put(
        self,
        session: Session,
        source: Source,
        names: Names,
        *,
        directory: Directory | None = None,
        keep_times: bool = False,
        progress: Progress | None = None,
    ) -> Attributes:
        """Store `source` as the object `names`, in the place of what has that name.

        Missing directories are made. Returns once object and name are durable.

        Args:
            session: that makes the changes.
            source: read from start to end; not closed.
            names: bucket and path.
            directory: the one that `names` is in, for a caller that puts many objects: saves two
                requests, and commits share their batches with other puts.
            keep_times: whether the object gets the mtime of the source.
            progress: called with the number of bytes stored since the last call.

        Cancellation: as an error; the object may be there, whole, when its commit was under way.

        Raises:
            MictlanError: the object is not there; or TIMED_OUT: it may or may not be.
        """
        upload = _Upload(self._tree, session, self._caller, names, source.mode)
        if directory is not None:
            policy, place = directory.policy, directory.ino
            upload.join_others(directory.ino)
        else:
            found = await self._tree.find(names)
            policy, place = _policy_for(found), found.nodes[-1].attributes.ino
        if policy.quota:
            await self._check_quota(place, source.stored_size, names)

        async def store(piece: Piece) -> Chunk:
            if piece.offset == 0 and len(piece.data) <= self._inline_size_max:
                # A small object whole: its commit carries it.
                return inline_chunk(bytes(piece.data))
            return await self._chunks.store([piece.data], policy)

        async def stored(piece: Piece, chunk: Chunk) -> None:
            await upload.add(piece, chunk)
            if progress is not None:
                progress(chunk.length)

        try:
            await in_order(
                source.pieces(policy.chunk_size),
                store,
                stored,
                size_of=lambda piece: len(piece.data),
                budget=self._budget,
                # Pieces are read before they are stored: they count from then on.
                size_before=min(policy.chunk_size, source.size or policy.chunk_size),
            )
            return await upload.finish(source.size, source.mtime_ns if keep_times else None)
        except BaseException:
            await upload.abandon()
            raise

    async def _check_quota(self, place: InodeNumber, size: int, names: Names) -> None:
        """Refuse what cannot fit before anything is stored or made.

        What it replaces has its place until the end, so it does not count as room.
        """
        use = await self._tree.bucket_use(place)
        if 0 < use.quota < use.used + size:
            detail = (
                f"{format_size(size)} are too much for the bucket: it uses {format_size(use.used)}"
                f" of its quota, {format_size(use.quota)}"
            )
            raise MictlanError(Kind.QUOTA_EXCEEDED, "put", show_path(names), detail)


def _policy_for(found: Found) -> BucketPolicy:
    """The policy that holds for a new object, once it is sure that it can have its name."""
    if len(found.names) < 2:
        detail = "an object needs a bucket and a name: BUCKET/PATH"
        raise MictlanError(Kind.IS_DIRECTORY, "put", show_path(found.names), detail)
    reached = found.nodes[-1]
    is_directory = reached.attributes.kind is FileKind.DIRECTORY
    if found.is_complete and is_directory:
        raise MictlanError(Kind.IS_DIRECTORY, "put", show_path(found.names))
    if len(found.nodes) < 2 or not (found.is_complete or is_directory):
        raise found.missing()
    if reached.policy is None:
        raise MictlanError(Kind.PROTOCOL, "put", show_path(found.names), "no bucket policy")
    return reached.policy


class _Upload:
    """One object on its way: what is stored and not committed yet, and where it is committed to.

    Used by one task at a time.
    """

    def __init__(
        self, tree: Tree, session: Session, caller: Caller, names: Names, mode: int
    ) -> None:
        self._tree = tree
        self._session = session
        self._caller = caller
        self._path = names[:-1]
        self._name = names[-1] if names else b""
        self._mode = mode
        self._temporary = TEMPORARY_NAME_PREFIX + new_token().encode()
        self._extents: list[Extent] = []
        self._chunks: list[Chunk] = []
        self._inline: list[bytes] = []
        self._committed_at = trio.current_time()
        # Of the object: None until it is known.
        self._parent: InodeNumber | None = None
        # The temporary node: chosen before the first commit, there after it.
        self._ino: InodeNumber | None = None
        self._is_made = False
        self._made_directories: list[wire.MakeNode] = []
        self._is_one_of_many = False

    def join_others(self, parent: InodeNumber) -> None:
        """The directory is known, and other uploads are on their way too: share batches."""
        self._parent = parent
        self._is_one_of_many = True

    async def add(self, piece: Piece, chunk: Chunk) -> None:
        """Take note of the chunk that `piece` became; commit when it is time."""
        self._extents.append(Extent(piece.offset, chunk.length, chunk.id, 0))
        self._chunks.append(chunk)
        if not chunk.peers:
            self._inline.append(bytes(piece.data))
        age_s = trio.current_time() - self._committed_at
        if len(self._extents) >= EXTENTS_PER_COMMIT_MAX or age_s >= COMMIT_AFTER_S:
            await self._commit(self._write_ops, sync=False)
            self._committed_at = trio.current_time()

    async def finish(self, size: int, mtime_ns: int | None) -> Attributes:
        """Commit the rest and give the object its name and its size."""
        if self._is_one_of_many and not self._is_made:
            return await self._finish_among_others(size, mtime_ns)

        def ops(parent: InodeNumber, ino: InodeNumber) -> list[wire.Operation]:
            return [
                *self._write_ops(parent, ino),
                *self._closing_ops(parent, ino, size, mtime_ns),
            ]

        touched = await self._commit(ops, sync=True)
        return touched[-1][0]

    async def _finish_among_others(self, size: int, mtime_ns: int | None) -> Attributes:
        """The same in two steps that share their batches with other uploads.

        They do not stop at errors, so the name is only given once the first step is known good.
        """
        assert self._parent is not None
        self._ino = await self._session.new_inode()
        *closing, rename = self._closing_ops(self._parent, self._ino, size, mtime_ns)
        making = self._make_op(self._parent, self._ino)
        ops = [making, *self._write_ops(self._parent, self._ino), *closing]
        for result in await self._session.apply_each(ops):
            if isinstance(result, MictlanError):
                raise result
        touched = await self._session.apply(rename, sync=True)
        return touched[0]

    def _closing_ops(
        self, parent: InodeNumber, ino: InodeNumber, size: int, mtime_ns: int | None
    ) -> list[wire.Operation]:
        now_ns = time.time_ns()
        return [
            # Also says the size of an object that ends in a hole.
            wire.SetAttributes(ino, now_ns, size=size, mtime_ns=mtime_ns),
            wire.Rename(parent, self._temporary, parent, self._name, now_ns),
        ]

    def _write_ops(self, parent: InodeNumber, ino: InodeNumber) -> list[wire.Operation]:
        if not self._extents:
            return []
        extents, chunks, bodies = tuple(self._extents), tuple(self._chunks), tuple(self._inline)
        now_ns = time.time_ns()
        return [wire.WriteExtents(ino, extents, chunks, extents[-1].end, now_ns, bodies)]

    async def _commit(
        self,
        ops_of: _OpsOf,
        *,
        sync: bool,
    ) -> list[tuple[Attributes, ...]]:
        """Apply the operations that `ops_of` gives for parent and node, made first if need be."""
        if self._is_made:
            assert self._parent is not None
            assert self._ino is not None
            touched = await self._session.apply_all(ops_of(self._parent, self._ino), sync=sync)
        elif self._parent is not None:
            touched = await self._make_and_commit(self._parent, [], ops_of, sync=sync)
        else:
            touched = await self._find_and_commit(ops_of, sync=sync)
        self._is_made = True
        self._extents.clear()
        self._chunks.clear()
        self._inline.clear()
        return touched

    async def _find_and_commit(
        self,
        ops_of: _OpsOf,
        *,
        sync: bool,
    ) -> list[tuple[Attributes, ...]]:
        """The same, with the directories that are missing."""
        for attempt in range(1, COMMIT_ATTEMPTS_MAX + 1):
            found = await self._tree.find(self._path)
            reached = found.nodes[-1].attributes
            if len(found.nodes) < 2 or reached.kind is not FileKind.DIRECTORY:
                raise found.missing()
            making, parent = await new_directories(
                self._session, self._caller, reached.ino, found.missing_names
            )
            self._made_directories = making
            try:
                return await self._make_and_commit(parent, making, ops_of, sync=sync)
            except MictlanError as error:
                # Only a directory can exist: somebody made it since it was looked for.
                if error.kind is not Kind.EXISTS or attempt == COMMIT_ATTEMPTS_MAX:
                    raise
                self._made_directories = []
        raise AssertionError("the last attempt returns or raises")

    async def _make_and_commit(
        self,
        parent: InodeNumber,
        making: Sequence[wire.Operation],
        ops_of: _OpsOf,
        *,
        sync: bool,
    ) -> list[tuple[Attributes, ...]]:
        """Apply `making`, then make the temporary node, then what `ops_of` gives."""
        self._parent, self._ino = parent, await self._session.new_inode()
        ops = [*making, self._make_op(parent, self._ino), *ops_of(parent, self._ino)]
        return await self._session.apply_all(ops, sync=sync)

    def _make_op(self, parent: InodeNumber, ino: InodeNumber) -> wire.Operation:
        caller = self._caller
        return wire.MakeNode(
            parent,
            self._temporary,
            ino,
            FileKind.FILE,
            self._mode & ~caller.umask,
            caller.uid,
            caller.gid,
            time.time_ns(),
            masked=self._mode & caller.umask,
        )

    async def abandon(self) -> None:
        """Remove what was made for the object alone, if the router answers soon.

        That is the temporary node, and directories that nobody else uses by now.
        """
        if self._parent is None or self._ino is None:
            return
        removals: list[wire.Operation] = [
            wire.Unlink(self._parent, self._temporary, time.time_ns()),
            *(
                wire.RemoveDirectory(made.parent, made.name, time.time_ns())
                for made in reversed(self._made_directories)
            ),
        ]
        with trio.CancelScope(shield=True), trio.move_on_after(CLEAN_UP_TIMEOUT_S):
            for removal in removals:
                try:
                    await self._session.apply(removal)
                except MictlanError as error:
                    # Not there when the commit that makes it failed as a whole.
                    if error.kind not in {Kind.NOT_FOUND, Kind.NOT_EMPTY}:
                        name = self._temporary.decode()
                        log.info("what was made for %s could not be removed: %s", name, error)


async def new_directories(
    session: Session, caller: Caller, parent: InodeNumber, names: Names
) -> tuple[list[wire.MakeNode], InodeNumber]:
    """Operations that make directories `names` below `parent`, each in the one before it.

    Returns:
        The operations, and the inode of the last directory.
    """
    ops: list[wire.MakeNode] = []
    for name in names:
        ino = await session.new_inode()
        ops.append(
            wire.MakeNode(
                parent,
                name,
                ino,
                FileKind.DIRECTORY,
                DIRECTORY_MODE & ~caller.umask,
                caller.uid,
                caller.gid,
                time.time_ns(),
                masked=DIRECTORY_MODE & caller.umask,
            )
        )
        parent = ino
    return ops, parent
