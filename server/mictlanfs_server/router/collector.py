"""The router's own work: it ends silent sessions, lets go of what nobody uses, deletes dead chunks.

Deleting a chunk is safe against a crash at every step, because the order is: dead in the metadata
(for ever: a chunk is never resurrected), deleted on a peer, that replica's row removed, and when
the last replica row is gone the chunk's row. Whoever starts again finds the rows of what may still
be there and deletes it again, which does no harm. A peer that is down keeps its rows until it is
back. Nothing reads the chunk meanwhile but readers that got its name before it died; the grace
period is theirs. A restore of the metadata would, too: what the newest snapshot may name stays
until there is a newer one.

Two tasks: `watch` ticks and never waits for the network; `collect` talks to peers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from mictlanfs import wire
from mictlanfs.model import ChunkId, PeerNumber, PeerState, SessionId
from mictlanfs_server.metadata.base import DeadChunk
from mictlanfs_server.router.peerrequests import Transport, delete_on_peer

if TYPE_CHECKING:
    from mictlanfs.clock import Clock
    from mictlanfs_server.metadata.base import MetadataStore
    from mictlanfs_server.router.membership import Membership
    from mictlanfs_server.router.peermap import PublicPeerMap
    from mictlanfs_server.router.sessions import SessionTable
    from mictlanfs_server.router.settings import RouterSettings

log = logging.getLogger(__name__)

TICK_S = 0.5
# A tick this late means that the process, not the others, was silent.
PAUSE_MIN_S = 1.0
SAVE_SEEN_S = 5.0
COLLECT_MAX_S = 10.0
COLLECT_MIN_S = 0.5
RECLAIM_COUNT = 256


class Snapshots(Protocol):
    """What is known here of the snapshots of the metadata."""

    @property
    def horizon_ns(self) -> int | None:
        """What died at this time or later must stay on the peers; None: there is no such bound."""
        ...

    def hasten(self) -> None:
        """Chunks could be deleted if there was a newer snapshot."""
        ...


class Collector:
    """The background work of a router."""

    def __init__(
        self,
        settings: RouterSettings,
        store: MetadataStore,
        sessions: SessionTable,
        membership: Membership,
        peer_map: PublicPeerMap,
        transport: Transport,
        clock: Clock,
        end_session: Callable[[SessionId], Awaitable[None]],
        snapshots: Snapshots | None = None,
    ) -> None:
        self._end_session = end_session
        self._snapshots = snapshots
        self._settings = settings
        self._store = store
        self._sessions = sessions
        self._membership = membership
        self._peer_map = peer_map
        self._transport = transport
        self._clock = clock
        self._last_tick_s = clock.monotonic_s()
        self._last_saved_s = self._last_tick_s

    async def run(self) -> None:
        """Work until cancelled; what was half done is done again by whoever starts next."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="router-watch")
            tasks.create_task(self._collect(), name="router-collect")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await _survive(self.tick(TICK_S), "watching sessions and peers")

    async def _collect(self) -> None:
        interval_s = min(COLLECT_MAX_S, max(COLLECT_MIN_S, self._settings.gc_grace_s / 10))
        while True:
            await asyncio.sleep(interval_s)
            await _survive(self.collect(), "deleting dead chunks")

    # --- sessions and peers ----------------------------------------------------------------------

    async def tick(self, interval_s: float) -> None:
        """One look at everybody's silence, `interval_s` after the last one."""
        now_s = self._clock.monotonic_s()
        pause_s = now_s - self._last_tick_s - interval_s
        self._last_tick_s = now_s
        if pause_s > PAUSE_MIN_S:
            log.warning("the router did not run for %.1f s", pause_s)
            self._sessions.forgive(pause_s)
            self._membership.forgive(pause_s)
        self._membership.tick()
        await self._peer_map.publish()
        await self._expire_sessions()
        if now_s - self._last_saved_s >= SAVE_SEEN_S:
            self._last_saved_s = now_s
            if unsaved := self._sessions.take_unsaved():
                await self._store.touch_sessions(unsaved)
        await self.reclaim()

    async def _expire_sessions(self) -> None:
        for record in self._sessions.expired():
            log.warning("session %s of %s on %s expired", record.session, record.label, record.host)
            await self._end_session(record.session)

    async def reclaim(self) -> None:
        """Let go of everything that ended sessions and removed files left, slice by slice."""
        while await self._store.reclaim(RECLAIM_COUNT):
            pass

    # --- dead chunks -----------------------------------------------------------------------------

    async def collect(self) -> int:
        """Delete every chunk that has been dead for the grace period, where its peers answer.

        Returns the number of copies deleted.
        """
        before_ns = await self._deletable_before_ns()
        last: DeadChunk | None = None
        deleted_count = 0
        unreachable: set[PeerNumber] = set()
        while page := await self._store.dead_chunks(before_ns, last, wire.FRAME_CHUNKS_MAX):
            last = page[-1]
            deleted_count += await self._delete_page(page, unreachable)
        if deleted_count:
            log.info("deleted %d copies of dead chunks", deleted_count)
        return deleted_count

    async def _deletable_before_ns(self) -> int:
        """When a chunk must have died to be deleted now."""
        before_ns = self._clock.wall_ns() - int(self._settings.gc_grace_s * 1e9)
        horizon_ns = self._snapshots.horizon_ns if self._snapshots else None
        if self._snapshots is None or horizon_ns is None or horizon_ns >= before_ns:
            return before_ns
        first_kept = DeadChunk(ChunkId(b""), horizon_ns, ())
        if await self._store.dead_chunks(before_ns, first_kept, 1):
            self._snapshots.hasten()
        return horizon_ns

    async def _delete_page(self, page: Sequence[DeadChunk], unreachable: set[PeerNumber]) -> int:
        by_peer: defaultdict[PeerNumber, list[ChunkId]] = defaultdict(list)
        for chunk in page:
            for number in chunk.peers:
                by_peer[number].append(chunk.id)
        urls = {
            peer.number: peer.url
            for peer in self._peer_map.peer_map.peers
            if peer.state is not PeerState.DOWN and peer.number not in unreachable
        }
        asked = [(number, ids) for number, ids in by_peer.items() if number in urls]
        answers = await asyncio.gather(
            *(delete_on_peer(self._transport, urls[number], ids) for number, ids in asked)
        )
        # Chunks whose last copy went without its row being removed are forgotten here as well.
        deleted: dict[ChunkId, list[PeerNumber]] = {
            chunk.id: [] for chunk in page if not chunk.peers
        }
        for (number, _), gone in zip(asked, answers, strict=True):
            if gone is None:
                unreachable.add(number)
                continue
            for chunk_id in gone:
                deleted.setdefault(chunk_id, []).append(number)
        if deleted:
            await self._store.forget_replicas(deleted)
        return sum(len(numbers) for numbers in deleted.values())


async def _survive(work: Awaitable[object], what: str) -> None:
    """Await `work`; an error is logged, and the next round tries again."""
    try:
        await work
    except Exception:
        log.exception("%s failed", what)
