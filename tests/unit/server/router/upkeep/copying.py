"""Peers that copy among themselves, and a healer over them and a real store. No network."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from mictlanfs import wire
from mictlanfs.errors import HTTP_STATUS, Kind, MictlanError
from mictlanfs.model import Buffer, Chunk, ChunkId, PeerNumber
from mictlanfs.wirecopies import PullChunks
from mictlanfs_server.metadata.copies import ChunkCopies
from mictlanfs_server.router.settings import RouterSettings
from mictlanfs_server.router.upkeep.healer import Healer
from tests.contract.metadata.forms import Client
from tests.unit.server.router.fakes import FakeClock, FakePeers, FakeResponse, announce
from tests.unit.server.router.parts import Parts, build

HEAL_DELAY_S = 100.0
ONE, TWO, THREE, FOUR = map(PeerNumber, (1, 2, 3, 4))


def url_of(number: int) -> str:
    return f"http://127.0.0.1:{24000 + number}"


@dataclass
class CopyingPeers:
    """Stands for the transport to peers.

    Attributes:
        held: chunks by the address of the peer that holds them.
        silent: addresses that do not answer.
        full: addresses that take nothing.
        bad: copies, by address and chunk, that turn out to be damaged.
        pulls: source, target and number of chunks of every request for copies.
        on_pull: called before a copy is made.
    """

    held: dict[str, set[ChunkId]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    full: set[str] = field(default_factory=set)
    bad: set[tuple[str, ChunkId]] = field(default_factory=set)
    pulls: list[tuple[str, str, int]] = field(default_factory=list)
    copied: list[tuple[str, ChunkId]] = field(default_factory=list)
    deleted: list[tuple[str, ChunkId]] = field(default_factory=list)
    on_pull: Callable[[], Awaitable[None]] | None = None

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: Buffer | Sequence[Buffer] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> FakeResponse:
        address, _, path = url.partition("/mictlanfs")
        if address in self.silent:
            raise MictlanError(Kind.UNAVAILABLE, detail=address)
        assert isinstance(body, list)
        raw = b"".join(body)
        if "/mictlanfs" + path == wire.Path.FRAME_DELETE:
            results = [self._delete(address, i) for i in wire.unframe(raw, wire.FrameDelete)[0].ids]
        else:
            assert "/mictlanfs" + path == wire.Path.FRAME_PULL
            request = wire.unframe(raw, PullChunks)[0]
            if self.on_pull is not None:
                await self.on_pull()
            self.pulls.append((request.source, address, len(request.chunks)))
            results = [self._pull(address, request.source, chunk) for chunk in request.chunks]
        return FakeResponse(200, b"".join(wire.frame(wire.FrameAnswer(tuple(results)))))

    def _delete(self, address: str, chunk_id: ChunkId) -> wire.FrameResult:
        self.held.setdefault(address, set()).discard(chunk_id)
        self.deleted.append((address, chunk_id))
        return wire.FrameResult()

    def _pull(self, address: str, source: str, chunk: wire.FrameChunk) -> wire.FrameResult:
        kind = None
        mine = self.held.setdefault(address, set())
        if chunk.id in mine:
            return wire.FrameResult(chunk.length)
        if address in self.full:
            kind = Kind.NO_SPACE
        elif source in self.silent:
            kind = Kind.UNAVAILABLE
        elif (source, chunk.id) in self.bad:
            kind = Kind.CORRUPT
        elif chunk.id not in self.held.get(source, set()):
            kind = Kind.NOT_FOUND
        if kind is not None:
            return wire.FrameResult(error=wire.WireError.of(MictlanError(kind)))
        mine.add(chunk.id)
        self.copied.append((address, chunk.id))
        return wire.FrameResult(chunk.length)


@dataclass
class Space:
    """A router in pieces, with a healer over peers that copy.

    Attributes:
        up: numbers of the peers that send heartbeats.
    """

    parts: Parts
    peers: CopyingPeers
    healer: Healer
    healer_settings: RouterSettings
    up: set[int] = field(default_factory=set)

    @property
    def clock(self) -> FakeClock:
        return self.parts.clock

    async def beat(self) -> None:
        """All that are up announce themselves."""
        for number in sorted(self.up):
            space_id = self.parts.store.space_id
            await self.parts.handlers.announce(announce(number, space_id=space_id))
        self.parts.membership.tick()
        await self.parts.peer_map.publish()

    async def start(self, *numbers: int) -> None:
        """Peers are there from now on."""
        self.up.update(numbers)
        self.peers.silent -= {url_of(number) for number in numbers}
        await self.beat()

    async def stop(self, number: int) -> None:
        """A peer is gone and says so."""
        self.up.discard(number)
        self.peers.silent.add(url_of(number))
        await self.parts.handlers.leave(wire.PeerLeave(f"peer-{number}", url_of(number)))

    async def wait(self, seconds: float) -> None:
        """Time passes, with heartbeats."""
        self.clock.advance(seconds)
        await self.beat()

    async def store(self, *chunks: Chunk) -> Client:
        """Chunks are stored by a client and committed as one file."""
        for chunk in chunks:
            for number in chunk.peers:
                self.peers.held.setdefault(url_of(number), set()).add(chunk.id)
        client, _, _ = await self.parts.file_of(*chunks)
        return client

    async def copies(self, chunk: Chunk) -> ChunkCopies:
        [found] = await self.parts.store.copies([chunk.id])
        return found

    async def holders(self, chunk: Chunk) -> set[PeerNumber]:
        return set((await self.copies(chunk)).peers)

    def is_held(self, chunk: Chunk, number: int) -> bool:
        return chunk.id in self.peers.held.get(url_of(number), set())

    async def check(self) -> None:
        """No row without a copy."""
        for chunk in await self.parts.store.copies(await self.parts.store.live_chunks(None, 1000)):
            for number in chunk.peers:
                held = self.peers.held.get(url_of(number), set())
                assert chunk.id in held, f"{chunk.id.hex()} is not on {number}"


def run_space(folder: Path, scenario: Callable[[Space], Awaitable[None]], rate: int = 0) -> None:
    """Build a router over `folder`, run the scenario, close it. Peers 1 to 3 are up."""

    async def main() -> None:
        clock, peers = FakeClock(), CopyingPeers()
        parts = await build(folder, clock, cast("FakePeers", peers))
        settings = RouterSettings(
            folder, gc_grace_s=50.0, heal_delay_s=HEAL_DELAY_S, heal_rate=rate
        )
        healer = Healer(settings, parts.store, parts.membership, peers, clock)
        space = Space(parts, peers, healer, settings)
        try:
            await space.start(1, 2, 3)
            await scenario(space)
            await space.check()
        finally:
            await parts.store.close()

    asyncio.run(main())


def status_of(kind: Kind) -> int:
    return HTTP_STATUS[kind]
