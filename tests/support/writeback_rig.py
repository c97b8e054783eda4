"""Write-back over a space in memory, with one file, for its tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from mictlanfs import wire
from mictlanfs.errors import MictlanError
from mictlanfs.model import MIB, Attributes, BucketPolicy, Buffer, Chunk, InodeNumber
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs_mount.budget import Budget
from mictlanfs_mount.extents import Segment
from mictlanfs_mount.writeback import (
    FileWriter,
    WriteBack,
)
from tests.support.mount_fakes import FakeChunks, Script
from tests.support.mount_space import CHUNK_SIZE_BYTES, START_NS, FakeSpace


class Storage:
    """A fake space as `writeback.Storage`; operations pass the points of `WriteExtents`.

    Attributes:
        keeps_posts: whether what is posted is taken, and not answered.
        posted_count: how much was taken.
        hurried_count: how often somebody waited for it.
    """

    def __init__(self, space: FakeSpace, script: Script) -> None:
        self.keeps_posts = False
        self.posted_count = 0
        self.hurried_count = 0
        self._space = space
        self._script = script
        self._chunks = FakeChunks(space, script)

    async def store(self, pieces: Sequence[Buffer], policy: BucketPolicy) -> Chunk:
        return await self._chunks.store(pieces, policy)

    async def commit(self, op: wire.WriteExtents, *, sync: bool) -> Attributes:
        await self._script.passing("WriteExtents:asked")
        (attributes,) = self._space.apply(1, op)
        await self._script.passing("WriteExtents:served")
        return attributes

    def post(
        self,
        op: wire.WriteExtents,
        on_result: Callable[[Attributes | MictlanError], None],
        *,
        sync: bool,
    ) -> bool:
        self.posted_count += self.keeps_posts
        return self.keeps_posts

    def hurry(self) -> None:
        self.hurried_count += 1


@dataclass
class Rig:
    """Write-back over a fake space with one file."""

    space: FakeSpace
    script: Script
    storage: Storage
    writeback: WriteBack
    nursery: trio.Nursery
    ino: InodeNumber
    stored: list[tuple[Chunk, bytes]] = field(default_factory=list)
    committed: list[tuple[list[Segment], Attributes]] = field(default_factory=list)
    writes: int = 0

    @property
    def writer(self) -> FileWriter:
        return self.writer_of(self.ino)

    def writer_of(self, ino: InodeNumber) -> FileWriter:
        def on_committed(segments: list[Segment], attributes: Attributes) -> None:
            self.committed.append((segments, attributes))

        return self.writeback.writer(ino, self.space.policy, on_committed, lambda: None)

    def write(self, offset: int, data: bytes) -> int:
        """Write, at a time of its own, which is returned."""
        self.writes += 1
        self.writer.write(offset, data, START_NS + self.writes)
        return START_NS + self.writes

    @property
    def commits(self) -> list[wire.WriteExtents]:
        return [op for _, op in self.space.applied if isinstance(op, wire.WriteExtents)]

    @property
    def content(self) -> bytes:
        return self.space.content(self.ino)


@asynccontextmanager
async def open_rig(
    limit_bytes: int = 64 * MIB, chunk_size: int = CHUNK_SIZE_BYTES, inline_size_max: int = 0
) -> AsyncIterator[Rig]:
    space, script = FakeSpace(chunk_size), Script()
    stored: list[tuple[Chunk, bytes]] = []

    def on_stored(chunk: Chunk, pieces: Sequence[Buffer]) -> None:
        stored.append((chunk, b"".join(pieces)))

    with raising_single_errors():
        async with trio.open_nursery() as nursery:
            storage = Storage(space, script)
            writeback = WriteBack(nursery, storage, Budget(limit_bytes), on_stored, inline_size_max)
            ino = space.add(space.bucket, b"file")
            yield Rig(space, script, storage, writeback, nursery, ino, stored)
            nursery.cancel_scope.cancel()
    assert script.violations == []
