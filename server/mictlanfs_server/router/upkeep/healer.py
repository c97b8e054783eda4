"""The healer: the one task of a router that makes, moves and gives up copies.

::

    watch peers -> look at all chunks -> heal what is short, fewest copies first
                                      -> empty peers that are drained
                                      -> give up what is too much
                   ordered moves (rebalance, clone), a page at a time
                   make extra copies of what is read often, a few at a time, and end them
                   delete copies that were given up, when their time has come

What is to be done is derived from the metadata each time and kept nowhere, so a router that is
started again goes on where it was; an ordered move keeps its position there, too, and what is read
often the peers say every second. Extra copies are made only while nothing is short. Everything is
one after the other in one task: a copy is never made and given up at the same time.

It looks at all chunks when peers come, go or change, when `wake` says so, and once in a while: no
more often than takes a hundredth of the time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mictlanfs.wirecopies import UpkeepStatus
from mictlanfs_server.router.peerrequests import delete_on_peer
from mictlanfs_server.router.upkeep.mover import Mover, Pace
from mictlanfs_server.router.upkeep.orders import Orders, described
from mictlanfs_server.router.upkeep.planning import can_leave, missing_copies, surplus_copies
from mictlanfs_server.router.upkeep.popularity import ExtraLimits, Popularity, rates_of
from mictlanfs_server.router.upkeep.standing import Standing, StandingTable
from mictlanfs_server.router.upkeep.survey import Survey, survey
from mictlanfs_server.router.upkeep.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mictlanfs.clock import Clock
    from mictlanfs.model import ChunkId, PeerNumber
    from mictlanfs_server.metadata.base import MetadataStore
    from mictlanfs_server.metadata.copies import ChunkCopies, GivenUp
    from mictlanfs_server.router.membership import Membership
    from mictlanfs_server.router.peerrequests import Transport
    from mictlanfs_server.router.settings import RouterSettings

log = logging.getLogger(__name__)

# How often it looks at the peers, which costs nothing.
WATCH_S: Final = 0.5
LOOK_AGAIN_S: Final = 60.0
LOOK_SHARE_MAX: Final = 0.01
# After copies that could not be made.
TRY_AGAIN_S: Final = 5.0
DELETE_EVERY_S: Final = 1.0
# What is read often is looked at so often; copies made by one look hold up healing.
SPREAD_EVERY_S: Final = 2.0
SPREAD_COUNT_MAX: Final = 16
BATCH_COUNT: Final = 256
PURGE_COUNT: Final = 2000


class Healer:
    """The task and its progress.

    Args:
        transport: to peers; not closed here.
    """

    def __init__(
        self,
        settings: RouterSettings,
        store: MetadataStore,
        membership: Membership,
        transport: Transport,
        clock: Clock,
    ) -> None:
        self._store = store
        self._membership = membership
        self._transport = transport
        self._clock = clock
        self._grace_s = settings.gc_grace_s
        self._table = StandingTable(settings.heal_delay_s)
        pace = Pace(settings.heal_rate, clock)
        self._mover = Mover(store, transport, pace, self._give_up_at_ns)
        self._woken = asyncio.Event()
        self._signature: object = None
        self._look_at_s = 0.0
        self._changed_at_s = 0.0
        self._has_failed = False
        self._look_number = 0
        self._delete_at_s = 0.0
        self._spread_at_s = 0.0
        limits = ExtraLimits(
            settings.popular_reads_per_min, settings.extra_copies_max, settings.extra_bytes_max
        )
        self._popularity = Popularity(limits, clock.monotonic_s())
        self.tally = Tally()
        self.orders = Orders(store, self._mover, self.tally, clock)

    # --- for others ------------------------------------------------------------------------------

    def wake(self) -> int:
        """Chunks may be short of copies: look now. Cheap, may be called for each of them.

        Returns the number of the look that will see everything as it is now.
        """
        self._look_at_s = 0.0
        self._woken.set()
        return self._look_number + 1

    def standing(self) -> Standing:
        """The peers as they may be used now."""
        return self._table.observe(self._membership.peer_map().peers, self._clock.monotonic_s())

    def status(self) -> UpkeepStatus:
        """Progress, for people and metrics."""
        standing = self.standing()
        orders = {
            described(name, standing.peers): part for name, part in self.orders.progress.items()
        }
        return self.tally.status(standing.waiting_s, orders)

    # --- the task --------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Know what an earlier router was at, before anybody asks how far that has come."""
        for peer in self._membership.peer_map().peers:
            if peer.is_draining:
                self.tally.draining[peer.id] = await self._store.peer_chunk_count(peer.number)
        await self.orders.prepare()

    async def run(self) -> None:
        """Work until cancelled; whoever starts next goes on."""
        while True:
            if not self.orders.has_work:
                with suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_S):
                        await self._woken.wait()
            self._woken.clear()
            try:
                await self.step()
            except Exception:
                log.exception("the healer failed, and goes on")
                self._look_at_s = self._clock.monotonic_s() + TRY_AGAIN_S
            self.tally.activity = "idle"

    async def step(self) -> None:
        """Do what is to be done now; returns when that is little, or when peers have changed."""
        # First: what readers need is known before anything is given up.
        if self._clock.monotonic_s() >= self._spread_at_s:
            self._spread_at_s = self._clock.monotonic_s() + SPREAD_EVERY_S
            await self._spread()
        standing = self.standing()
        now_s = self._clock.monotonic_s()
        if standing.signature != self._signature or now_s >= self._look_at_s:
            # Noted first: a change that comes meanwhile is for the next step.
            if standing.signature != self._signature:
                self._signature, self._changed_at_s = standing.signature, now_s
            self._look_at_s = float("inf")
            await self._look(standing)
        await self.orders.step(standing)
        for page in self.orders.take_moved():
            await self._give_up_surplus(page)
        if now_s >= self._delete_at_s:
            self._delete_at_s = now_s + DELETE_EVERY_S
            await self.delete_given_up()

    async def _look(self, standing: Standing) -> None:
        self.tally.activity = "looking"
        self._look_number += 1
        number = self._look_number
        found = await survey(self._store, standing, self._clock)
        self.tally.begin(found.short_count, found.short_bytes, found.unreadable_count)
        self._has_failed = False
        healed_before = self.tally.healed_count
        is_done = (
            await self._heal(found)
            and await self._empty_peers(standing)
            and await self._trim(found)
        )
        if not is_done or (found.is_cut and self.tally.healed_count > healed_before):
            self.wake()
            return
        await self._purge_retired()
        self.tally.given_up_count = await self._store.given_up_count()
        self.tally.look_count = number
        # What was stored before peers changed may be committed only now.
        is_unsettled = self._clock.monotonic_s() - self._changed_at_s < LOOK_AGAIN_S
        is_behind = is_unsettled or self._has_failed or any(self.tally.draining.values())
        wait_s = max(TRY_AGAIN_S if is_behind else LOOK_AGAIN_S, found.took_s / LOOK_SHARE_MAX)
        self._look_at_s = min(self._look_at_s, self._clock.monotonic_s() + wait_s)

    def _is_outdated(self) -> bool:
        """Whether peers have changed since what is being done was planned."""
        return self.standing().signature != self._signature

    # --- healing ---------------------------------------------------------------------------------

    async def _heal(self, found: Survey) -> bool:
        """Copy what is short; whether that was all, as far as it can be."""
        ids = found.in_order()
        if not ids:
            return True
        self.tally.activity = "healing"
        log.info("%d chunks are short of copies", found.short_count)
        for batch in _batches(ids):
            if self._is_outdated():
                return False
            await self._heal_batch(batch)
        return True

    async def _heal_batch(self, ids: Sequence[ChunkId]) -> None:
        standing = self.standing()
        chunks = await self._store.copies(ids)
        planned = [copy for chunk in chunks for copy in missing_copies(chunk, standing)]
        moved = await self._mover.make(planned, standing)
        self.tally.healed(moved)
        self._has_failed |= bool(moved.failed)

    async def _empty_peers(self, standing: Standing) -> bool:
        """Take from drained peers what is elsewhere in full; whether that was all."""
        # As it is now: somebody may have begun to drain a peer since, and waits for its count.
        peers = self._membership.peer_map().peers
        ids = {peer.id for peer in peers if peer.is_draining}
        left = self.tally.draining
        self.tally.draining = {peer_id: left[peer_id] for peer_id in left if peer_id in ids}
        for number in standing.draining:
            self.tally.activity = "draining"
            after: ChunkId | None = None
            while page := await self._store.peer_chunks(number, after, BATCH_COUNT):
                after = page[-1]
                if self._is_outdated():
                    return False
                chunks = [
                    chunk
                    for chunk in await self._store.copies(page)
                    if can_leave(chunk, number, standing)
                ]
                going = {chunk.id: [number] for chunk in chunks}
                await self._give_up(chunks, going, standing, standing.up)
            peer = standing.peers[number]
            self.tally.draining[peer.id] = await self._store.peer_chunk_count(number)
        return True

    # --- giving up -------------------------------------------------------------------------------

    async def _trim(self, found: Survey) -> bool:
        """Give up what is too much; whether that was all."""
        for batch in _batches(found.surplus):
            if self._is_outdated():
                return False
            self.tally.activity = "trimming"
            await self._give_up_surplus(batch)
        return True

    async def _give_up_surplus(self, ids: Sequence[ChunkId]) -> None:
        if not self._popularity.has_decided:
            # They may be what readers need: the next looks, soon after the start, find them again.
            return
        standing = self.standing()
        chunks = await self._store.copies(ids)
        surplus = {
            chunk.id: surplus_copies(chunk, standing, self._popularity.extra_copies(chunk.id))
            for chunk in chunks
        }
        going = {chunk_id: peers for chunk_id, peers in surplus.items() if peers}
        await self._give_up(
            [chunk for chunk in chunks if chunk.id in going], going, standing, standing.steady
        )

    # --- extra copies ----------------------------------------------------------------------------

    async def _spread(self) -> None:
        """Make some extra copies of what is read often, give up those of what is not any more."""
        reads, now_s = self._membership.reads(), self._clock.monotonic_s()
        if not self._popularity.is_settled(reads, now_s):
            return
        rates = rates_of(reads)
        ids = self._popularity.interesting(rates)
        if ids or self.tally.popular_count or not self._popularity.has_decided:
            standing = self.standing()
            is_busy = self.tally.short_count or self._has_failed or self._is_outdated()
            is_idle = self.tally.look_count > 0 and not is_busy
            chunks = [chunk for batch in _batches(ids) for chunk in await self._store.copies(batch)]
            copies, shrunk = self._popularity.decide(ids, chunks, rates, standing, may_grow=is_idle)
            for batch in _batches(shrunk):
                await self._give_up_surplus(batch)
            if copies:
                self.tally.activity = "spreading"
                self.tally.spread(await self._mover.make(copies[:SPREAD_COUNT_MAX], standing))
            self.tally.popular_count = self._popularity.chunk_count
            self.tally.extra_count = self._popularity.copy_count
            self.tally.extra_bytes = self._popularity.copy_bytes

    async def _give_up(
        self,
        chunks: Sequence[ChunkCopies],
        going: dict[ChunkId, list[PeerNumber]],
        standing: Standing,
        counted: frozenset[PeerNumber],
    ) -> None:
        """Drop rows of chunks that have enough others; their copies serve readers for a while."""
        if not chunks:
            return
        # That the others have theirs is not taken from the metadata alone.
        confirmed = await self._mover.confirm(chunks, going, standing)
        kept = await self._store.drop_replicas(
            {chunk_id: going[chunk_id] for chunk_id in confirmed},
            counted=counted,
            delete_at_ns=self._give_up_at_ns(),
        )
        self.tally.trimmed_count += sum(
            len(going[chunk_id]) for chunk_id in confirmed if chunk_id not in kept
        )

    def _give_up_at_ns(self) -> int:
        """When nobody looks any more for what is given up now."""
        return self._clock.wall_ns() + int(self._grace_s * 1e9)

    async def delete_given_up(self) -> int:
        """Delete copies that were given up, where their time has come and peers answer."""
        standing = self.standing()
        urls = {number: standing.peers[number].url for number in standing.sources}
        now_ns = self._clock.wall_ns()
        last: GivenUp | None = None
        deleted_count = 0
        while page := await self._store.given_up(now_ns, last, BATCH_COUNT):
            last = page[-1]
            by_peer: defaultdict[PeerNumber, list[GivenUp]] = defaultdict(list)
            for copy in page:
                by_peer[copy.peer].append(copy)
            for number, copies in by_peer.items():
                if number not in urls:
                    continue
                ids = [copy.chunk for copy in copies]
                gone = await delete_on_peer(self._transport, urls[number], ids)
                if gone is None:
                    del urls[number]
                    continue
                deleted = [copy for copy in copies if copy.chunk in set(gone)]
                await self._store.forget_given_up(deleted)
                deleted_count += len(deleted)
        if deleted_count:
            self.tally.deleted_count += deleted_count
            self.tally.given_up_count = await self._store.given_up_count()
            if self.tally.short_count:
                # A peer gets no new copy while it has a bad one, and may be the only one left.
                self.wake()
        return deleted_count

    async def _purge_retired(self) -> None:
        """Remove rows of peers that are gone; of a store that may come back, once all is elsewhere.

        Until then it can still give what it has.
        """
        is_missed = bool(self.tally.short_count or self.tally.unhealable_count)
        for number, peer in self._membership.book().retired.items():
            dead_only = is_missed and not peer.is_removed
            after: ChunkId | None = None
            while True:
                after = await self._store.purge_retired(
                    number, after, PURGE_COUNT, dead_only=dead_only
                )
                if after is None:
                    break


def _batches(ids: Sequence[ChunkId]) -> list[Sequence[ChunkId]]:
    return [ids[start : start + BATCH_COUNT] for start in range(0, len(ids), BATCH_COUNT)]
