"""What the router does about copies that are said to be bad: it asks their peer, and drops rows.

A reader's word is a hint: the peer reads the copy and says what it is. A peer's word about its own
copy counts. What is bad or missing loses its row (`drop_replicas`), durably, before the peer is
answered; then healing is woken. The row of a last copy stays: such a chunk is *damaged*, readers
get errors and never wrong bytes, and `status` names its files.

Owns the queue of reports and one task. Crash points: a report that was not followed up is lost, and
the next reader or scrub makes it again; rows that were dropped before the peer had its answer are
told again, and dropping them twice is dropping them once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Final, TypeVar

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import PeerState, Struct
from mictlanfs.wireverify import (
    BAD_COPIES_MAX,
    VERIFY_COUNT_MAX,
    BadCopies,
    DamagedFile,
    LastCopies,
    ReportCopy,
    Verdict,
    Verdicts,
    VerifyCopies,
)
from mictlanfs_server.router.routes import MessageRoute

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from mictlanfs.clock import Clock
    from mictlanfs.model import ChunkId, PeerInfo, PeerNumber
    from mictlanfs.wirepeers import FrameChunk
    from mictlanfs_server.metadata.base import MetadataStore
    from mictlanfs_server.metadata.truth import DamagedChunk
    from mictlanfs_server.router.membership import Membership
    from mictlanfs_server.router.peerrequests import Transport

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Struct)

# Reports that wait. Further ones are forgotten: whoever reads the chunk again makes them again.
REPORTS_MAX: Final = 1024
# The same copy is not looked at again for as long.
REPEAT_S_MIN: Final = 30.0
# All of them may be read from a slow disk, one behind the other.
VERIFY_TIMEOUT_S: Final = 120.0
_RECOVERY_S: Final = 5.0
DAMAGED_SHOWN_MAX: Final = 100
# What is shown of them is no older, but takes no more than a part of the time to find.
DAMAGED_AGE_S_MAX: Final = 3.0
DAMAGED_SHARE_MAX: Final = 0.05
PATHS_SHOWN_MAX: Final = 4


class CopyVerifier:
    """Follows up what is said of copies. `run` is the task.

    Args:
        wake_healer: called when a chunk has one copy less.

    Attributes:
        dropped_count: copies that lost their row since the router started.
        report_count: reports of readers that were followed up.
    """

    def __init__(
        self,
        store: MetadataStore,
        membership: Membership,
        transport: Transport,
        clock: Clock,
        wake_healer: Callable[[], object] = lambda: None,
    ) -> None:
        self._store = store
        self._membership = membership
        self._transport = transport
        self._clock = clock
        self.wake_healer = wake_healer
        self._waiting: dict[tuple[PeerNumber, ChunkId], None] = {}
        self._has_reports = asyncio.Event()
        self._seen_s: OrderedDict[tuple[PeerNumber, ChunkId], float] = OrderedDict()
        self._damaged_lock = asyncio.Lock()
        self._damaged: list[DamagedFile] = []
        self._damaged_until_s = 0.0
        self.dropped_count = 0
        self.report_count = 0

    def routes(self) -> list[MessageRoute]:
        """The messages that it answers."""
        return [
            MessageRoute(
                wire.Path.PEER_BAD, BadCopies, self.bad_copies, "a peer has copies that are bad"
            ),
            MessageRoute(wire.Path.REPORT, ReportCopy, self.report, "complain of a copy"),
        ]

    # --- what others say -------------------------------------------------------------------------

    async def report(self, request: ReportCopy) -> wire.Done:
        """A reader complains of a copy: look at it soon."""
        key = (request.peer, request.chunk)
        now_s = self._clock.monotonic_s()
        seen_s = self._seen_s.get(key)
        if (seen_s is None or now_s - seen_s >= REPEAT_S_MIN) and len(self._waiting) < REPORTS_MAX:
            self._seen_s[key] = now_s
            self._seen_s.move_to_end(key)
            if len(self._seen_s) > REPORTS_MAX:
                self._seen_s.popitem(last=False)
            self._waiting[key] = None
            self._has_reports.set()
        return wire.Done()

    async def bad_copies(self, request: BadCopies) -> LastCopies:
        """A peer has taken copies of its own out of service. Raises NOT_FOUND, INVALID."""
        if len(request.chunks) > BAD_COPIES_MAX:
            detail = f"a peer tells of at most {BAD_COPIES_MAX} at a time"
            raise MictlanError(Kind.INVALID, "report", detail=detail)
        peers = self._membership.peer_map().peers
        found = next((peer for peer in peers if peer.id == request.peer_id), None)
        if found is None:
            raise MictlanError(Kind.NOT_FOUND, "report", request.peer_id[:255])
        return LastCopies(tuple(await self.drop(found.number, request.chunks)))

    # --- what follows ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow up reports until cancelled."""
        while True:
            await self._has_reports.wait()
            self._has_reports.clear()
            by_peer: defaultdict[PeerNumber, list[ChunkId]] = defaultdict(list)
            for number, chunk_id in self._waiting:
                by_peer[number].append(chunk_id)
            self._waiting.clear()
            for number, ids in by_peer.items():
                try:
                    await self._follow_up(number, ids)
                except MictlanError as error:
                    log.info("reports of copies on peer %d come to nothing: %s", number, error)
                except Exception:
                    log.exception("following up reports of copies on peer %d failed", number)
                    await asyncio.sleep(_RECOVERY_S)

    async def _follow_up(self, number: PeerNumber, ids: Sequence[ChunkId]) -> None:
        # What nobody needs, or the peer is not said to have, is no matter.
        chunks = await self._store.truth.named(number, ids)
        self.report_count += len(chunks)
        for first in range(0, len(chunks), VERIFY_COUNT_MAX):
            await self.verify(number, chunks[first : first + VERIFY_COUNT_MAX])

    async def verify(
        self, number: PeerNumber, chunks: Sequence[FrameChunk], *, drop: bool = True
    ) -> list[Verdict]:
        """Have a peer read copies, and let what it says of them have its effect.

        Args:
            number: of the peer.
            chunks: at most `VERIFY_COUNT_MAX`, as the metadata names them.
            drop: whether bad and missing copies lose their rows.

        Raises:
            MictlanError: UNAVAILABLE, TIMED_OUT, NOT_FOUND (no such peer), or as the peer answers.
        """
        peer = self._peer(number)
        answer = await self.ask(
            peer, wire.Path.VERIFY, VerifyCopies(tuple(chunks)), Verdicts, VERIFY_TIMEOUT_S
        )
        if len(answer.verdicts) != len(chunks):
            detail = f"{len(answer.verdicts)} verdicts for {len(chunks)} chunks"
            raise MictlanError(Kind.PROTOCOL, "verify", peer.id, detail)
        verdicts = {chunk.id: v for chunk, v in zip(chunks, answer.verdicts, strict=True)}
        good = [chunk_id for chunk_id, v in verdicts.items() if v is Verdict.GOOD]
        await self._store.truth.forget_damaged(good)
        self._damaged_until_s = 0.0
        if drop:
            bad = {Verdict.BAD, Verdict.MISSING}
            await self.drop(number, [chunk_id for chunk_id, v in verdicts.items() if v in bad])
        return list(answer.verdicts)

    async def drop(self, number: PeerNumber, ids: Collection[ChunkId]) -> list[ChunkId]:
        """Take note, durably, that a peer has no good copies; those that were last ones.

        The order is the one that survives a crash: rows first, then whoever asked is answered.
        """
        if not ids:
            return []
        named = {chunk.id for chunk in await self._store.truth.named(number, ids)}
        last = await self._store.drop_replicas({chunk_id: [number] for chunk_id in ids})
        await self._store.truth.note_damaged(number, last)
        if last:
            self._damaged_until_s = 0.0
        dropped_count = len(named - set(last))
        self.dropped_count += dropped_count
        if dropped_count:
            log.warning("peer %d has %d copies less, which were bad", number, dropped_count)
            self.wake_healer()
        for chunk_id in last:
            log.error("no good copy of chunk %s is known", chunk_id.hex())
        return last

    # --- what is known ---------------------------------------------------------------------------

    async def damaged(self) -> list[DamagedFile]:
        """Chunks without a good copy, and the files that need them; the first ones only.

        May be some seconds old: finding the files looks at every extent.
        """
        async with self._damaged_lock:
            started_s = self._clock.monotonic_s()
            if started_s >= self._damaged_until_s:
                self._damaged_until_s = 0.0
                found = await self._store.truth.damaged(DAMAGED_SHOWN_MAX, PATHS_SHOWN_MAX)
                self._damaged = [_shown(chunk) for chunk in found]
                now_s = self._clock.monotonic_s()
                age_s = max(DAMAGED_AGE_S_MAX, (now_s - started_s) / DAMAGED_SHARE_MAX)
                self._damaged_until_s = now_s + age_s
            return self._damaged

    # --- peers -----------------------------------------------------------------------------------

    def _peer(self, number: PeerNumber) -> PeerInfo:
        for peer in self._membership.peer_map().peers:
            if peer.number == number:
                if peer.state is PeerState.DOWN:
                    raise MictlanError(Kind.UNAVAILABLE, "reach peer", peer.id, "it is down")
                return peer
        raise MictlanError(Kind.NOT_FOUND, "reach peer", str(number))

    async def ask(
        self, peer: PeerInfo, path: str, message: Struct, answer: type[T], timeout_s: float
    ) -> T:
        """One message to a peer.

        Raises:
            MictlanError: UNAVAILABLE, TIMED_OUT, or as the peer answers.
        """
        response = await self._transport.request(
            "POST",
            peer.url + path,
            body=wire.encode(message),
            headers={"content-type": wire.MSGPACK},
            timeout_s=timeout_s,
        )
        if response.status != 200:
            raise wire.decode_error(response.status, response.body)
        return wire.decode(response.body, answer)


def _shown(chunk: DamagedChunk) -> DamagedFile:
    paths = [b"/".join(names).decode("utf-8", "backslashreplace") for names in chunk.paths]
    return DamagedFile(chunk.chunk.id.hex(), tuple(paths))
