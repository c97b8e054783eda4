"""Moves that people order: `rebalance`, and clones of peers. A page of chunks at a time.

What was ordered, and the last chunk dealt with, is in the metadata: a move goes on after a restart
of the router and ends when the last chunk is reached. A page whose copies could not all be made is
done again, so no chunk is passed over because a peer was away.

Owns the orders. The healer calls `step` and gives up what a page has too much then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from mictlanfs.model import ChunkId, PeerInfo, PeerNumber
from mictlanfs_server.router.upkeep.planning import Copy, rebalancing_copies, sources_of

if TYPE_CHECKING:
    from mictlanfs.clock import Clock
    from mictlanfs_server.metadata.base import MetadataStore
    from mictlanfs_server.router.upkeep.mover import Mover
    from mictlanfs_server.router.upkeep.standing import Standing
    from mictlanfs_server.router.upkeep.tally import Tally

log = logging.getLogger(__name__)

PAGE_COUNT: Final = 128
REBALANCE: Final = "rebalance"
TRY_AGAIN_S: Final = 5.0
_CLONE: Final = "clone "
# Of a chunk id; see `mictlanfs.identifiers`.
_TIME_SIZE_BYTES: Final = 6


def clone_name(source: PeerNumber, target: PeerNumber) -> str:
    """What the order to clone a peer is called."""
    return f"{_CLONE}{source} {target}"


def described(name: str, peers: Mapping[PeerNumber, PeerInfo]) -> str:
    """What people call an order: `rebalance`, or `clone` with the ids of two peers."""
    if name == REBALANCE:
        return name
    numbers = [PeerNumber(int(word)) for word in name.removeprefix(_CLONE).split()]
    return _CLONE + " ".join(peers[n].id if n in peers else str(n) for n in numbers)


class Orders:
    """The orders of a space.

    Attributes:
        progress: of each order the part that is done, from 0 to 1.
    """

    def __init__(self, store: MetadataStore, mover: Mover, tally: Tally, clock: Clock) -> None:
        self._store = store
        self._mover = mover
        self._tally = tally
        self._clock = clock
        self._moved: list[list[ChunkId]] = []
        self._orders: dict[str, bytes] | None = None
        self._rest_until_s = 0.0
        # Between looking whether a move still holds and noting how far it came.
        self._changing = asyncio.Lock()
        self.progress: dict[str, float] = {}

    @property
    def has_work(self) -> bool:
        """Whether there is a page to be moved now."""
        return bool(self._orders) and self._clock.monotonic_s() >= self._rest_until_s

    async def order(self, name: str) -> None:
        """Begin a move, from its beginning also when it is under way. Durable on return."""
        async with self._changing:
            await self._store.save_move_order(name, b"")
            self._orders, self._rest_until_s = None, 0.0
            self.progress[name] = 0.0

    async def cancel(self) -> None:
        """End all moves; what was moved stays where it is now."""
        async with self._changing:
            for name in await self._store.move_orders():
                await self._store.save_move_order(name, None)
            self._orders = None

    async def prepare(self) -> None:
        """Know the orders that there are."""
        if self._orders is None:
            self._orders = await self._store.move_orders()
        await self._measure()

    async def step(self, standing: Standing) -> None:
        """Do one page of each move."""
        if self._orders is None:
            self._orders = await self._store.move_orders()
        if self.has_work:
            for name, position in list(self._orders.items()):
                await self._step_of(name, position, standing)
        await self._measure()

    async def _step_of(self, name: str, position: bytes, standing: Standing) -> None:
        is_rebalance = name == REBALANCE
        self._tally.activity = "rebalancing" if is_rebalance else "cloning"
        move = self._rebalance if is_rebalance else partial(self._clone, name)
        orders = self._orders
        last = await move(position, standing)
        async with self._changing:
            if orders is None or orders is not self._orders:
                # Ordered anew, or cancelled, meanwhile: that counts.
                return
            if last == position:
                self._rest_until_s = self._clock.monotonic_s() + TRY_AGAIN_S
                return
            await self._store.save_move_order(name, last)
            if last is None:
                log.info("%s has ended", name)
                del orders[name]
            else:
                orders[name] = last

    def take_moved(self) -> list[list[ChunkId]]:
        """Chunks that got copies in better places since the last call, in pages."""
        moved, self._moved = self._moved, []
        return moved

    async def _measure(self) -> None:
        """How far along the ids each order has come."""
        orders = self._orders
        first = await self._store.live_chunks(None, 1) if orders else []
        if orders is None or orders is not self._orders:
            # What was ordered meanwhile has been noted.
            return
        now_ms = self._clock.wall_ns() // 1_000_000
        self.progress = {
            name: _part_done(position, first[0], now_ms) if first and position else 0.0
            for name, position in orders.items()
        }

    async def _rebalance(self, position: bytes, standing: Standing) -> bytes | None:
        if standing.counted != standing.up:
            # Where a chunk belongs is known only when it is known who is there.
            return position
        page = await self._store.live_chunks(ChunkId(position), PAGE_COUNT)
        chunks = await self._store.copies(page)
        planned = [copy for chunk in chunks for copy in rebalancing_copies(chunk, standing)]
        moved = await self._mover.make(planned, standing)
        self._tally.moved(moved)
        self._moved.append([chunk.id for chunk in chunks])
        if moved.failed:
            return position
        return page[-1] if len(page) == PAGE_COUNT else None

    async def _clone(self, name: str, position: bytes, standing: Standing) -> bytes | None:
        source, target = map(PeerNumber, map(int, name.removeprefix(_CLONE).split()))
        if source not in standing.peers or target not in standing.peers:
            log.warning("%s ends: a peer of it is gone", name)
            return None
        page = await self._store.peer_chunks(source, ChunkId(position), PAGE_COUNT)
        chunks = await self._store.copies(page)
        planned = [
            Copy(chunk, sources_of(chunk, standing), target)
            for chunk in chunks
            # A fragment is on one peer only.
            if target not in chunk.peers and chunk.coding is None
        ]
        moved = await self._mover.make(planned, standing, raises_wanted=True)
        self._tally.moved(moved)
        if moved.failed:
            return position
        return page[-1] if len(page) == PAGE_COUNT else None


def _part_done(position: bytes, first: bytes, now_ms: int) -> float:
    """Where an id lies between the first one and now: it begins with the time it was made."""
    start_ms, at_ms = (int.from_bytes(raw[:_TIME_SIZE_BYTES], "big") for raw in (first, position))
    return min(0.99, max(0.0, (at_ms - start_ms) / max(1, now_ms - start_ms)))
