"""Old data of a bucket in the form that its policy asks for now: copies, or a code.

Reads every chunk that has another form, stores its bytes anew, and moves the extents over, file by
file. Can be stopped and run again at any time: what has the form already is passed over, and a
file is right at every moment. A file that is changed meanwhile is looked at again.

Order: the new chunk durable, then the extents moved, in a transaction that has no effect on any
other content; then the old chunk dies, and is deleted after the grace period.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import trio

from mictlanfs import wire
from mictlanfs.client.chunks import ChunkStore
from mictlanfs.client.names import Names, show_path
from mictlanfs.client.session import Session
from mictlanfs.client.tree import Tree
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import BucketPolicy, Chunk, ChunkId, Extent, FileKind, InodeNumber, Node

log = logging.getLogger(__name__)

# Chunks that are moved by one operation: bounds memory.
TOGETHER_COUNT_MAX = 4
# A file that is being written to all the time keeps its form until it is not.
ATTEMPTS_MAX = 5

Progress = Callable[[int], None]


@dataclass(slots=True)
class Recoded:
    """What was done.

    Attributes:
        files: with a chunk that was stored anew.
        chunks, bytes: stored anew.
        left: why files stay as they were, in part: errors that name their paths.
    """

    files: int = 0
    chunks: int = 0
    bytes: int = 0
    left: list[MictlanError] = field(default_factory=list)


class Recoder:
    """Recodes the files of one bucket.

    Args:
        policy: of the bucket.
        peer_count: peers that the space has; more copies there cannot be.
    """

    def __init__(
        self,
        tree: Tree,
        chunks: ChunkStore,
        session: Session,
        policy: BucketPolicy,
        peer_count: int,
    ) -> None:
        self._tree = tree
        self._chunks = chunks
        self._session = session
        self._policy = policy
        self._copies = min(policy.replicas, peer_count)
        self.done = Recoded()

    async def run(self, names: Names, ino: InodeNumber, progress: Progress) -> Recoded:
        """Recode all files in the directory `ino`, which has the path `names`.

        `progress` is called with the number of bytes stored since the last call. Cancellation: what
        was moved stays moved.

        Raises:
            MictlanError: the router cannot be reached. What concerns one file is in `left`.
        """
        stack = [(names, ino)]
        while stack:
            names, ino = stack.pop()
            async with aclosing(self._entries(ino)) as entries:
                async for entry in entries:
                    kind = entry.node.attributes.kind
                    if kind is FileKind.DIRECTORY:
                        stack.append(((*names, entry.name), entry.node.attributes.ino))
                    elif kind is FileKind.FILE:
                        await self._file((*names, entry.name), entry.node, progress)
        return self.done

    def _entries(self, ino: InodeNumber) -> AsyncGenerator[wire.Entry, None]:
        return self._tree.entries(ino, extents_max=wire.EXTENTS_PAGE_MAX)

    async def _file(self, names: Names, node: Node, progress: Progress) -> None:
        before = self.done.chunks
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                await self._try(node, progress)
                break
            except MictlanError as error:
                if error.kind is Kind.NOT_FOUND:
                    break
                if error.kind not in {Kind.STALE, Kind.CONFLICT} or attempt == ATTEMPTS_MAX:
                    path = show_path(names)
                    self.done.left.append(MictlanError(error.kind, "recode", path, error.detail))
                    break
            found = await self._tree.find(names, extents_max=wire.EXTENTS_PAGE_MAX)
            if not found.is_complete or found.node.attributes.ino != node.attributes.ino:
                break
            node = found.node
        self.done.files += self.done.chunks > before

    async def _try(self, node: Node, progress: Progress) -> None:
        """Recode a file as it is in `node`. Raises CONFLICT or STALE when it is another by now."""
        extents: dict[ChunkId, list[Extent]] = {}
        unfit: dict[ChunkId, Chunk] = {}
        async with aclosing(self._tree.extents(node)) as pages:
            async for page in pages:
                unfit.update({c.id: c for c in page.chunks if not self._is_fit(c)})
                for extent in page.extents:
                    if extent.chunk_id in unfit:
                        extents.setdefault(extent.chunk_id, []).append(extent)
        version = node.attributes.content_version
        waiting = list(unfit.values())
        for first in range(0, len(waiting), TOGETHER_COUNT_MAX):
            group = waiting[first : first + TOGETHER_COUNT_MAX]
            moved = await self._store(group)
            op = wire.WriteExtents(
                node.attributes.ino,
                tuple(
                    Extent(extent.offset, extent.length, new.id, extent.chunk_offset)
                    for old, new in zip(group, moved, strict=True)
                    for extent in extents[old.id]
                ),
                tuple(moved),
                0,
                node.attributes.mtime_ns,
                if_content_version=version,
                is_same_content=True,
            )
            [attributes] = await self._session.apply(op)
            version = attributes.content_version
            size = sum(chunk.length for chunk in moved)
            self.done.chunks += len(moved)
            self.done.bytes += size
            progress(size)

    def _is_fit(self, chunk: Chunk) -> bool:
        """Whether a chunk has the form that the policy asks for; what is inline has none."""
        if not chunk.peers:
            return True
        if not self._policy.is_coded(chunk.length):
            return chunk.coding is None and len(chunk.peers) == self._copies
        coding = chunk.coding
        wanted = (self._policy.data, self._policy.data + self._policy.parity)
        return coding is not None and (coding.data, coding.count) == wanted

    async def _store(self, group: Sequence[Chunk]) -> list[Chunk]:
        """New chunks of the same bytes."""
        moved: dict[ChunkId, Chunk] = {}
        errors: list[MictlanError] = []

        async def move(chunk: Chunk) -> None:
            try:
                body = await self._chunks.fetch(chunk, 0, chunk.length)
                moved[chunk.id] = await self._chunks.store([body], self._policy)
            except MictlanError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for chunk in group:
                nursery.start_soon(move, chunk)
        if errors:
            raise errors[0]
        return [moved[chunk.id] for chunk in group]
