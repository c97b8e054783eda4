"""The audit: the metadata checked in itself, and against what peers really hold.

Owns one task, which does what was asked for and, from time to time, what nobody asked for. One
check runs at a time. It reads pages, a few a second, and holds up nobody.

*Missing copies.* The rows of a range of ids are read after the peer's inventory of that range, so a
copy that came in between looks missing; and what is being deleted does, too. Hence a second look:
the peer is asked for a verdict on each, and only that counts.

*Orphans.* The inventory is read before the metadata, so a chunk that is committed in between is
known. One that nobody knows is an orphan only when it is older than the grace time by both clocks:
by its id, which its writer made, and by the time at which it came to the peer. Then it becomes a
*dead chunk* in the metadata, in the writer's own order of changes: if its commit came first it is
live and stays; if it comes later it is refused, and the writer, which has the bytes until they are
committed, stores them again. So no chunk that a commit names is ever removed, whatever the clocks
say and wherever the commit waited: under way, in the log of a session, or refused by a quota.
Recovery files hold bytes, not names of chunks. Dead chunks are removed by the collector, in its
order, after its own grace period.

*After a restore* of the metadata the peers hold what was written since the snapshot, and nobody
knows it. It may be wanted: another snapshot may turn up, with a peer that was away, or another one
may have been meant. So what lay on the peers before the restore stays for a month, unless people
say that it shall go.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec

from mictlanfs import wire
from mictlanfs.errors import MictlanError
from mictlanfs.identifiers import made_at_ns
from mictlanfs.model import ChunkId, PeerState
from mictlanfs.wirepeers import FrameChunk
from mictlanfs.wireverify import (
    HELD_COUNT_MAX,
    VERIFY_COUNT_MAX,
    CheckSpace,
    CheckState,
    HeldChunk,
    HeldPage,
    ListHeld,
    Verdict,
)
from mictlanfs_server.metadata.truth import Standing
from mictlanfs_server.router.routes import MessageRoute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mictlanfs.clock import Clock
    from mictlanfs.model import PeerInfo
    from mictlanfs_server.metadata.base import MetadataStore
    from mictlanfs_server.router.membership import Membership
    from mictlanfs_server.router.settings import RouterSettings
    from mictlanfs_server.router.verifying import CopyVerifier

log = logging.getLogger(__name__)

LIST_TIMEOUT_S: Final = 30.0
# Between two pages: a thousand chunks, some milliseconds of peer and router.
PAUSE_S: Final = 0.02
# After the start of a router, so that one that is started every day compares, too.
FIRST_S: Final = 900.0
# For so long what the metadata of before a restore may have known is kept.
RESTORED_KEPT_S: Final = 30 * 86_400.0
# Checks that have ended and may still be asked for: others may have begun meanwhile.
ENDED_COUNT_MAX: Final = 16
# Of a rarely asked kind: what is collected by itself also finds what is missing.
_UNASKED: Final = CheckSpace(begin=True, peers=True, repair=True, collect=True)


class Auditor:
    """Checks the space. `run` is the task."""

    def __init__(
        self,
        settings: RouterSettings,
        store: MetadataStore,
        membership: Membership,
        verifier: CopyVerifier,
        clock: Clock,
    ) -> None:
        self._grace_s = settings.orphan_age_s
        self._interval_s = settings.audit_interval_s
        self._store = store
        self._membership = membership
        self._verifier = verifier
        self._clock = clock
        self._wanted: CheckSpace | None = None
        self._has_wanted = asyncio.Event()
        self.state = CheckState()
        self._ended: OrderedDict[int, CheckState] = OrderedDict()
        self._number = clock.wall_ns() // 1_000_000
        self.collected_count = 0

    def routes(self) -> list[MessageRoute]:
        """The messages that it answers."""
        return [MessageRoute(wire.Path.CHECK, CheckSpace, self.check, "check the space")]

    async def check(self, request: CheckSpace) -> CheckState:
        """Begin a check when that is asked for and none is running; how it stands."""
        if request.begin and not self.state.is_running:
            self._begin(request)
            return msgspec.structs.replace(self.state, is_begun=True)
        if request.number and request.number != self.state.number:
            return self._ended.get(request.number, CheckState())
        return self.state

    def _begin(self, request: CheckSpace) -> None:
        self._wanted = request
        self._number += 1
        self.state = CheckState(is_running=True, number=self._number)
        self._has_wanted.set()

    async def run(self) -> None:
        """Check until cancelled."""
        wait_s = min(self._interval_s, FIRST_S)
        while True:
            try:
                async with asyncio.timeout(wait_s or None):
                    await self._has_wanted.wait()
            except TimeoutError:
                wait_s = self._interval_s
                if not self.state.is_running:
                    self._begin(_UNASKED)
            self._has_wanted.clear()
            if self._wanted is not None:
                await self._work(self._wanted)
                self._wanted = None

    async def _work(self, request: CheckSpace) -> None:
        try:
            if request.metadata:
                self._note(doing="the metadata")
                broken = await self._store.truth.find_damage(deep=request.deep)
                self._note(broken=tuple(broken))
            if request.peers or request.collect:
                for peer in self._membership.peer_map().peers:
                    await self._audit(peer, request)
            if request.repair:
                await self._look_again()
            self._note(damaged=tuple(await self._verifier.damaged()))
        except Exception as error:
            log.exception("a check of the space failed")
            self._note(error=str(error))
        finally:
            self._note(is_running=False, doing="")
            self._ended[self.state.number] = self.state
            if len(self._ended) > ENDED_COUNT_MAX:
                self._ended.popitem(last=False)

    def _note(self, **changes: object) -> None:
        self.state = msgspec.structs.replace(self.state, **changes)

    async def _look_again(self) -> None:
        """Ask for another verdict on damaged chunks: somebody may have brought bytes back."""
        for chunk in await self._store.truth.damaged(VERIFY_COUNT_MAX, 0):
            for number in chunk.peers:
                try:
                    await self._verifier.verify(number, [chunk.chunk])
                except MictlanError as error:
                    log.info("no new verdict on chunk %s: %s", chunk.chunk.id.hex(), error)

    # --- one peer --------------------------------------------------------------------------------

    async def _audit(self, peer: PeerInfo, request: CheckSpace) -> None:
        if peer.state is PeerState.DOWN:
            self._note(peers_skipped=(*self.state.peers_skipped, peer.id))
            return
        self._note(doing=f"peer {peer.id}")
        after, is_last = ChunkId(b""), False
        try:
            while not is_last:
                page = await self._verifier.ask(
                    peer, wire.Path.HELD, ListHeld(after), HeldPage, LIST_TIMEOUT_S
                )
                is_last = page.is_last or not page.chunks
                until = None if is_last else page.chunks[-1].id
                await self._compare(peer, after, until, page.chunks, request)
                if until is not None:
                    after = until
                await asyncio.sleep(PAUSE_S)
        except MictlanError as error:
            log.warning("peer %s cannot be compared with the metadata: %s", peer.id, error)
            self._note(peers_skipped=(*self.state.peers_skipped, peer.id))
            return
        self._note(peers_checked=(*self.state.peers_checked, peer.id))

    async def _compare(
        self,
        peer: PeerInfo,
        after: ChunkId,
        until: ChunkId | None,
        held: Sequence[HeldChunk],
        request: CheckSpace,
    ) -> None:
        """One range of ids, `(after, until]`."""
        there = {chunk.id: (chunk.length, chunk.digest) for chunk in held}
        position: ChunkId | None = after
        while position is not None:
            rows = await self._store.truth.on_peer(peer.number, position, until, HELD_COUNT_MAX)
            position = rows[-1].id if len(rows) == HELD_COUNT_MAX else None
            self._note(copies_count=self.state.copies_count + len(rows))
            wrong = [row for row in rows if there.get(row.id) != (row.length, row.digest)]
            for first in range(0, len(wrong), VERIFY_COUNT_MAX):
                await self._look(peer, wrong[first : first + VERIFY_COUNT_MAX], request)
        await self._look_at_unknown(peer, held, request)

    async def _look(
        self, peer: PeerInfo, suspects: Sequence[FrameChunk], request: CheckSpace
    ) -> None:
        verdicts = await self._verifier.verify(peer.number, suspects, drop=request.repair)
        bad = [
            chunk.id
            for chunk, verdict in zip(suspects, verdicts, strict=True)
            if verdict in {Verdict.BAD, Verdict.MISSING}
        ]
        # The rows of last copies stay.
        named = await self._store.truth.named(peer.number, bad)
        self._note(
            missing_count=self.state.missing_count + len(bad),
            repaired_count=self.state.repaired_count + len(bad) - len(named),
        )

    async def _look_at_unknown(
        self, peer: PeerInfo, held: Sequence[HeldChunk], request: CheckSpace
    ) -> None:
        ids = [chunk.id for chunk in held]
        standing = await self._store.truth.standing(peer.number, ids)
        by = {
            kind: [chunk for chunk, one in zip(held, standing, strict=True) if one is kind]
            for kind in Standing
        }
        # Another copy of an orphan that was found on a peer before, in this check maybe, is left.
        orphans = by[Standing.ORPHAN] + by[Standing.LEFT]
        aged = [chunk for chunk in by[Standing.ORPHAN] if self._is_old(chunk)]
        removed = [c for c in aged if request.force or not self._is_of_before_restore(c)]
        old = by[Standing.LEFT] + removed
        self._note(
            orphan_count=self.state.orphan_count + len(orphans),
            orphan_bytes=self.state.orphan_bytes + sum(chunk.length for chunk in orphans),
            young_count=self.state.young_count + len(by[Standing.ORPHAN]) - len(aged),
            restored_count=self.state.restored_count + len(aged) - len(removed),
            surplus_count=self.state.surplus_count + len(by[Standing.SURPLUS]),
        )
        if request.collect:
            await self._collect(peer, old)
        if request.repair:
            surplus = [chunk for chunk in by[Standing.SURPLUS] if chunk.age_s >= self._grace_s]
            await self._store.truth.adopt(peer.number, _framed(surplus))

    async def _collect(self, peer: PeerInfo, orphans: Sequence[HeldChunk]) -> None:
        if not orphans:
            return
        count = await self._store.truth.adopt(peer.number, _framed(orphans))
        size = sum(chunk.length for chunk in orphans)
        log.info("peer %s holds %d orphans of %d bytes: removing them", peer.id, count, size)
        self.collected_count += count
        self._note(
            collected_count=self.state.collected_count + count,
            collected_bytes=self.state.collected_bytes + size,
        )

    def _is_of_before_restore(self, chunk: HeldChunk) -> bool:
        """Whether metadata that was lost may have known it, and not long ago."""
        now_ns, restored_ns = self._clock.wall_ns(), self._store.restored_at_ns
        if not restored_ns or now_ns - restored_ns >= RESTORED_KEPT_S * 1e9:
            return False
        return min(made_at_ns(chunk.id), now_ns - int(chunk.age_s * 1e9)) < restored_ns

    def _is_old(self, chunk: HeldChunk) -> bool:
        made_s = (self._clock.wall_ns() - made_at_ns(chunk.id)) / 1e9
        return min(made_s, chunk.age_s) >= self._grace_s


def _framed(chunks: Sequence[HeldChunk]) -> list[FrameChunk]:
    return [FrameChunk(chunk.id, chunk.length, chunk.digest) for chunk in chunks]
