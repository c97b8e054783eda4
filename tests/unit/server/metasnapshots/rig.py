"""A store with data, whose metadata is kept on peers of a test, and restored from them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from mictlanfs import wire
from mictlanfs.model import ROOT_INODE, Chunk, FileKind, InodeNumber, PeerState
from mictlanfs_server.metadata.sqlite import SqliteStore
from mictlanfs_server.metasnapshots.keeper import MetadataKeeper
from mictlanfs_server.peer.backends.base import StoredChunk
from tests.contract.metadata.forms import PEERS, Client
from tests.support.objectpeers import ObjectPeers
from tests.unit.server.peer.making import make_chunk
from tests.unit.server.router.fakes import FakeClock

T = TypeVar("T")

INTERVAL_S = 300.0


@dataclass
class Rig:
    """A router's store and keeper."""

    folder: Path
    peers: ObjectPeers
    clock: FakeClock
    store: SqliteStore
    keeper: MetadataKeeper
    client: Client
    bucket: InodeNumber
    stored: dict[bytes, StoredChunk] = field(default_factory=dict)

    async def write(self, name: bytes, length: int = 5000) -> Chunk:
        """A file whose chunk two peers hold."""
        stored, _ = make_chunk(length, len(self.stored))
        self.stored[name] = stored
        for peer in self.peers.peers[:2]:
            peer.chunks.held[stored.id] = stored
        chunk = Chunk(stored.id, length, stored.digest, PEERS[:2])
        file = await self.client.make(self.bucket, name)
        await self.client.write(file, chunk)
        return chunk

    async def grow(self, count: int = 20) -> None:
        """So many times 60 KB of metadata that cannot be compressed."""
        for number in range(count):
            value = random.Random(number).randbytes(60_000)
            ino = await self.client.make(self.bucket, b"big-%d" % number)
            await self.client.do(wire.SetXattr(ino, b"user.x", value, 1))

    async def names(self) -> list[bytes]:
        page = await self.store.list_directory(wire.ListDirectory(self.bucket))
        return [entry.name for entry in page.entries]

    def set_state(self, number: int, state: PeerState) -> None:
        """What the router believes of a peer."""
        peer = self.peers.peers[number - 1]
        peer.info = msgspec.structs.replace(peer.info, state=state)


@asynccontextmanager
async def rig(
    folder: Path, peers: ObjectPeers, interval_s: float = INTERVAL_S
) -> AsyncIterator[Rig]:
    clock = FakeClock()
    folder.mkdir(exist_ok=True)
    store = SqliteStore(folder / "metadata.db", clock.wall_ns)
    try:
        await store.start()
        client = await Client.open(store)
        await store.save_peers(3, peers.infos())
        bucket = await client.make(ROOT_INODE, b"bucket", FileKind.DIRECTORY)
        keeper = MetadataKeeper(store, peers.infos, peers, clock, folder, interval_s)
        yield Rig(folder, peers, clock, store, keeper, client, bucket)
    finally:
        await store.close()


def with_rig(
    folder: Path,
    peers: ObjectPeers,
    scenario: Callable[[Rig], Awaitable[T]],
    interval_s: float = INTERVAL_S,
) -> T:
    async def main() -> T:
        async with rig(folder, peers, interval_s) as made:
            return await scenario(made)

    return asyncio.run(main())
