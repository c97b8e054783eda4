"""All parts of a router over a real store, with a clock and peers that tests control."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mictlanfs import wire
from mictlanfs.model import ROOT_INODE, Chunk, FileKind, InodeNumber
from mictlanfs_server.metadata.sqlite import SqliteStore
from mictlanfs_server.router.auditing import Auditor
from mictlanfs_server.router.collector import Collector
from mictlanfs_server.router.gate import LeaseGate
from mictlanfs_server.router.handlers import RouterHandlers
from mictlanfs_server.router.membership import Membership
from mictlanfs_server.router.peermap import PublicPeerMap
from mictlanfs_server.router.sessions import SessionTable
from mictlanfs_server.router.settings import RouterSettings
from mictlanfs_server.router.status import StatusReport
from mictlanfs_server.router.upkeep.desk import UpkeepDesk
from mictlanfs_server.router.upkeep.healer import Healer
from mictlanfs_server.router.verifying import CopyVerifier
from tests.contract.metadata.forms import Client
from tests.unit.server.router.fakes import FakeClock, FakePeers, announce

T = TypeVar("T")

GRACE_S = 60.0


@dataclass
class Parts:
    """One router, in pieces."""

    clock: FakeClock
    peers: FakePeers
    store: SqliteStore
    membership: Membership
    peer_map: PublicPeerMap
    sessions: SessionTable
    handlers: RouterHandlers
    collector: Collector
    report: StatusReport
    gate: LeaseGate
    healer: Healer
    desk: UpkeepDesk

    async def announce(self, *numbers: int, chunk_count: int = 0, used: int = 0) -> None:
        for number in numbers:
            space_id = self.store.space_id
            await self.handlers.announce(
                announce(number, space_id=space_id, chunk_count=chunk_count, used=used)
            )

    async def open_session(self, label: str = "test", *, leases: bool = False) -> wire.SessionGrant:
        request = wire.OpenSession(wire.PROTOCOL_VERSION, "host", 7, label, leases)
        return await self.handlers.open_session(request)

    async def file_of(self, *chunks: Chunk) -> tuple[Client, InodeNumber, InodeNumber]:
        """A file with these chunks in a new bucket; also the session and the bucket."""
        grant = await self.open_session()
        records = {record.session: record for record in await self.store.sessions()}
        client = Client(self.store, records[grant.session], grant.inodes.first)
        bucket = await client.make(ROOT_INODE, b"bucket", FileKind.DIRECTORY)
        file = await client.make(bucket, b"file")
        await client.write(file, *chunks)
        return client, bucket, file


async def build(folder: Path, clock: FakeClock, peers: FakePeers) -> Parts:
    settings = RouterSettings(folder, gc_grace_s=GRACE_S)
    store = SqliteStore(folder / "metadata.db", clock.wall_ns)
    await store.start()
    saved = await store.peer_map()
    book = await store.peer_book()
    membership = Membership(clock, store.space_id, saved, book, suspect_s=3, down_s=10)
    peer_map = PublicPeerMap(store, membership, saved)
    sessions = SessionTable(clock, settings.session_ttl_s, await store.sessions())
    gate = LeaseGate(store, sessions, clock, settings.lease_ttl_s)
    healer = Healer(settings, store, membership, peers, clock)
    desk = UpkeepDesk(store, membership, peer_map, healer)
    verifier = CopyVerifier(store, membership, peers, clock)
    auditor = Auditor(settings, store, membership, verifier, clock)
    more = [*verifier.routes(), *auditor.routes()]
    return Parts(
        clock,
        peers,
        store,
        membership,
        peer_map,
        sessions,
        RouterHandlers(settings, store, sessions, membership, peer_map, gate, desk, more),
        Collector(settings, store, sessions, membership, peer_map, peers, clock, gate.end),
        StatusReport(
            store,
            membership,
            sessions,
            clock,
            settings.router_id,
            gate.table.counts,
            healer.status,
        ),
        gate,
        healer,
        desk,
    )


def run_parts(
    folder: Path, scenario: Callable[[Parts], Awaitable[T]], clock: FakeClock | None = None
) -> T:
    """Build a router over `folder`, run the scenario, close it."""

    async def main() -> T:
        parts = await build(folder, clock or FakeClock(), FakePeers())
        try:
            return await scenario(parts)
        finally:
            await parts.store.close()

    return asyncio.run(main())
