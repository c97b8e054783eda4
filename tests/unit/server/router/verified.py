"""Peers that answer what is asked about their copies, and the parts of a router that asks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer, Chunk, ChunkId, PeerNumber
from mictlanfs.wirepeers import FrameChunk
from mictlanfs.wireverify import (
    CheckSpace,
    CheckState,
    HeldChunk,
    HeldPage,
    ListHeld,
    Verdict,
    Verdicts,
    VerifyCopies,
)
from mictlanfs_server.router.auditing import Auditor
from mictlanfs_server.router.settings import RouterSettings
from mictlanfs_server.router.verifying import CopyVerifier
from tests.unit.server.router.fakes import FakeClock, FakePeers, FakeResponse
from tests.unit.server.router.parts import Parts, build

T = TypeVar("T")
HOUR_S = 3600.0


@dataclass
class HoldingPeers:
    """Peers by number, each with an inventory, in the place of the transport.

    Attributes:
        held: what each has.
        bad: copies that are found bad when they are read.
        page_count: chunks of a page.
        asked: copies that a verdict was asked on.
        on_list: called before a page is answered.
    """

    held: dict[int, dict[ChunkId, HeldChunk]] = field(default_factory=dict)
    bad: set[tuple[int, ChunkId]] = field(default_factory=set)
    broken: set[int] = field(default_factory=set)
    page_count: int = 3
    asked: list[tuple[int, ChunkId]] = field(default_factory=list)
    on_list: Callable[[], Awaitable[None]] | None = None

    def hold(self, number: int, *chunks: Chunk, age_s: float = 48 * HOUR_S) -> None:
        kept = self.held.setdefault(number, {})
        for chunk in chunks:
            kept[chunk.id] = HeldChunk(chunk.id, chunk.length, chunk.digest, age_s)

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
        number = int(address.rpartition(":")[2]) - 24000
        if number in self.broken:
            raise MictlanError(Kind.UNAVAILABLE, "reach peer", str(number))
        assert isinstance(body, bytes)
        kept = self.held.setdefault(number, {})
        if "/mictlanfs" + path == wire.Path.VERIFY:
            chunks = wire.decode(body, VerifyCopies).chunks
            self.asked += [(number, chunk.id) for chunk in chunks]
            verdicts = tuple(self._verdict(number, chunk) for chunk in chunks)
            return FakeResponse(200, wire.encode(Verdicts(verdicts)))
        assert "/mictlanfs" + path == wire.Path.HELD
        request = wire.decode(body, ListHeld)
        behind = sorted(chunk_id for chunk_id in kept if chunk_id > request.after)
        ids = behind[: self.page_count]
        page = HeldPage(tuple(kept[chunk_id] for chunk_id in ids), len(ids) == len(behind))
        if self.on_list is not None:
            await self.on_list()
        return FakeResponse(200, wire.encode(page))

    def _verdict(self, number: int, chunk: FrameChunk) -> Verdict:
        kept = self.held[number].get(chunk.id)
        if kept is None:
            return Verdict.MISSING
        if (number, chunk.id) in self.bad or kept.digest != chunk.digest:
            del self.held[number][chunk.id]
            return Verdict.BAD
        return Verdict.GOOD


@dataclass
class Verified:
    """A router's parts, with those that verify at work."""

    parts: Parts
    peers: HoldingPeers
    verifier: CopyVerifier
    auditor: Auditor
    woken: list[None]

    async def check(self, **wanted: bool) -> CheckState:
        """What a check finds."""
        return await self._ended(await self.auditor.check(CheckSpace(begin=True, **wanted)))

    async def check_after(self, running: CheckState, **wanted: bool) -> CheckState:
        """What a check finds that is begun when another one has ended."""
        await self._ended(running)
        return await self.check(**wanted)

    async def _ended(self, state: CheckState) -> CheckState:
        async with asyncio.timeout(20):
            while state.is_running:
                await asyncio.sleep(0.001)
                state = await self.auditor.check(CheckSpace(number=state.number))
        return state

    async def peers_of(self, chunk: Chunk) -> tuple[PeerNumber, ...]:
        """The peers that the metadata names for a chunk."""
        numbers = (PeerNumber(1), PeerNumber(2), PeerNumber(3))
        return tuple([n for n in numbers if await self.parts.store.truth.named(n, [chunk.id])])


@asynccontextmanager
async def _running(folder: Path) -> AsyncIterator[Verified]:
    clock = FakeClock()
    parts = await build(folder, clock, FakePeers())
    peers = HoldingPeers()
    woken: list[None] = []
    settings = RouterSettings(folder, audit_interval_s=0)
    verifier = CopyVerifier(parts.store, parts.membership, peers, clock, lambda: woken.append(None))
    auditor = Auditor(settings, parts.store, parts.membership, verifier, clock)
    await parts.announce(1, 2, 3)
    tasks = [asyncio.create_task(verifier.run()), asyncio.create_task(auditor.run())]
    try:
        yield Verified(parts, peers, verifier, auditor, woken)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await parts.store.close()


def run_verified(folder: Path, scenario: Callable[[Verified], Awaitable[T]]) -> T:
    """Build it all, run the scenario, close it."""

    async def main() -> T:
        async with _running(folder) as verified:
            return await scenario(verified)

    return asyncio.run(main())
