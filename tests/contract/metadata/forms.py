"""The forms of the metadata store that the contract suite runs over, and a client to drive one."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import (
    ROOT_INODE,
    Attributes,
    Chunk,
    Extent,
    FileKind,
    InodeNumber,
    Node,
    PeerInfo,
    PeerNumber,
    PeerState,
)
from mictlanfs_server.metadata.base import MetadataStore, SessionRecord
from mictlanfs_server.metadata.sqlite import SqliteStore

T = TypeVar("T")
Clock = Callable[[], int]

PEERS = (PeerNumber(1), PeerNumber(2), PeerNumber(3))


def open_sqlite(folder: Path, clock: Clock) -> MetadataStore:
    return SqliteStore(folder / "metadata.db", clock)


# Name of the form -> what opens it over a folder that a test owns.
FORMS: dict[str, Callable[[Path, Clock], MetadataStore]] = {"sqlite": open_sqlite}


def peer_info(number: int) -> PeerInfo:
    url = f"http://127.0.0.1:{24000 + number}"
    return PeerInfo(PeerNumber(number), f"peer-{number}", url, "", 10**12, 0, PeerState.UP)


def new_chunk(length: int = 10, peers: tuple[PeerNumber, ...] = PEERS[:2]) -> Chunk:
    return Chunk(new_chunk_id(), length, b"d" * 32, peers)


@dataclass
class Form:
    """One form of the store over one folder; can be opened again and again."""

    name: str
    folder: Path
    now_ns: int = 1_000

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[MetadataStore]:
        store = FORMS[self.name](self.folder, lambda: self.now_ns)
        try:
            await store.start()
            yield store
        finally:
            await store.close()

    def run(self, scenario: Callable[[MetadataStore], Awaitable[T]]) -> T:
        """Open the store, run the scenario, close the store."""

        async def main() -> T:
            async with self.opened() as store:
                return await scenario(store)

        return asyncio.run(main())


class Client:
    """A session with a store, numbering its batches."""

    def __init__(self, store: MetadataStore, session: SessionRecord, first_inode: int) -> None:
        self.store = store
        self.session = session
        self.next_number = 1
        self._inodes = itertools.count(first_inode)

    @classmethod
    async def open(cls, store: MetadataStore, label: str = "test") -> "Client":
        await store.save_peers(2, [peer_info(number) for number in PEERS])
        request = wire.OpenSession(wire.PROTOCOL_VERSION, "host", 7, label)
        session = await store.open_session(request)
        return cls(store, session, (await store.take_inodes(1024)).first)

    def new_inode(self) -> InodeNumber:
        return InodeNumber(next(self._inodes))

    def batch(self, *ops: wire.Operation, sync: bool = False) -> wire.Commit:
        session = self.session
        return wire.Commit(session.session, session.epoch, self.next_number, ops, sync)

    async def send(self, batch: wire.Commit) -> wire.CommitAnswer:
        answer = wire.decode(await self.store.commit(batch), wire.CommitAnswer)
        if batch.first_number == self.next_number:
            self.next_number += len(answer.results)
        return answer

    async def do(self, *ops: wire.Operation, sync: bool = False) -> tuple[Attributes, ...]:
        """Apply operations; returns what the last one touched."""
        answer = await self.send(self.batch(*ops, sync=sync))
        for result in answer.results:
            if result.error is not None:
                raise result.error.to_error()
        return answer.results[-1].touched

    def make_op(
        self, parent: InodeNumber, name: bytes, kind: FileKind = FileKind.FILE
    ) -> wire.MakeNode:
        return wire.MakeNode(parent, name, self.new_inode(), kind, 0o644, 0, 0, 5)

    async def make(
        self, parent: InodeNumber, name: bytes, kind: FileKind = FileKind.FILE
    ) -> InodeNumber:
        op = self.make_op(parent, name, kind)
        await self.do(op)
        return op.ino

    async def bucket(self, name: bytes = b"bucket") -> InodeNumber:
        return await self.make(ROOT_INODE, name, FileKind.DIRECTORY)

    async def write(self, ino: InodeNumber, *chunks: Chunk) -> None:
        """Make chunks the content of a file, one behind the other."""
        extents, offset = [], 0
        for chunk in chunks:
            extents.append(Extent(offset, chunk.length, chunk.id, 0))
            offset += chunk.length
        await self.do(wire.WriteExtents(ino, tuple(extents), chunks, offset, 6))

    async def node(self, ino: InodeNumber) -> Node:
        return await self.store.node(wire.GetNode(ino, 256))

    async def exists(self, ino: InodeNumber) -> bool:
        return await kind_of(self.store.node(wire.GetNode(ino))) is not Kind.NOT_FOUND


async def kind_of(work: Awaitable[object]) -> Kind | None:
    """The kind of the error that `work` ends with, None when it succeeds."""
    try:
        await work
    except MictlanError as error:
        return error.kind
    return None
