"""Makes snapshots of the metadata on the peers, by a schedule, when something has changed.

One at a time. A snapshot counts only when its manifest is on two peers, or on the one that there
is. Its moment is then noted in the database, and no chunk that died later is deleted from peers
until there is a newer one (`horizon_ns`): what the newest snapshot names can be read, so it can be
restored. Owns the file `snapshot.tmp` of the router's directory, which is the copy that is sent.

A snapshot that fails is tried again; what was sent of it stays on the peers and is not sent again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from mictlanfs import __version__, placement
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import CHUNK_ID_SIZE_BYTES, ChunkId, PeerInfo, PeerState
from mictlanfs.wireobjects import MetadataSnapshot
from mictlanfs.wirestatus import MetadataStatus
from mictlanfs_server.metasnapshots.form import FORMAT, PIECE_SIZE_BYTES, Manifest
from mictlanfs_server.metasnapshots.peerobjects import PeerObjects
from mictlanfs_server.metasnapshots.sending import CopyFile, Target, send, thin_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mictlanfs.clock import Clock
    from mictlanfs_server.router.peerrequests import Transport

log = logging.getLogger(__name__)

COPY_NAME: Final = "snapshot.tmp"
COPIES: Final = 3
COPIES_MIN: Final = 2
TICK_S: Final = 0.5
# The first one after a start: what changed before is not known.
FIRST_DELAY_S: Final = 5.0
# When chunks can only be deleted after a newer one, or a copy was lost with its peer.
HASTE_S: Final = 2.0
# However large the database: at most this share of the time.
TIME_FACTOR: Final = 20.0
RETRY_S_FIRST: Final = 5.0
RETRY_S_MAX: Final = 60.0
# Later than this many intervals, and a minute, is a problem.
LATE_FACTOR: Final = 3.0
LATE_S: Final = 60.0
# Ranks the peers: the same ones every time, so that little has to be sent.
_PLACE: Final = ChunkId(b"metadata".ljust(CHUNK_ID_SIZE_BYTES, b"\0"))


class SnapshotStore(Protocol):
    """What of a metadata store is needed here; `SqliteStore` has it."""

    @property
    def space_id(self) -> str:
        """The name of the space."""
        ...

    @property
    def schema_version(self) -> int:
        """Of the database."""
        ...

    @property
    def change_count(self) -> int:
        """How often something was changed that a snapshot should have."""
        ...

    @property
    def restored_to_ns(self) -> int:
        """Which moment it was restored to the last time; 0: it never was."""
        ...

    @property
    def snapshot_ns(self) -> int:
        """The moment of the last snapshot that was noted; 0: none was."""
        ...

    async def copy_to(self, path: Path) -> int:
        """Write a copy into a file; returns the moment that it stands for."""
        ...

    async def note_snapshot(self, moment_ns: int) -> None:
        """Remember durably that a snapshot of this moment is complete."""
        ...


class MetadataKeeper:
    """The snapshots of one router.

    Args:
        peers: the peers of the public map.
        folder: of the router; holds the copy while it is sent.
        interval_s: between two snapshots while things change; 0: none are made by themselves, and
            chunks are deleted as if there were none.
    """

    def __init__(
        self,
        store: SnapshotStore,
        peers: Callable[[], Sequence[PeerInfo]],
        transport: Transport,
        clock: Clock,
        folder: Path,
        interval_s: float,
    ) -> None:
        self._store = store
        self._peers = peers
        self._transport = transport
        self._clock = clock
        self._copy = folder / COPY_NAME
        self._interval_s = interval_s
        self._lock = asyncio.Lock()
        self._saved_count: int | None = None
        self._last: MetadataSnapshot | None = None
        self._thinned: set[str] = set()
        self._error = ""
        self._retry_delay_s = 0.0
        self._short_wait_s = 0.0
        now_s = clock.monotonic_s()
        self._good_s = now_s
        self._not_before_s = now_s + min(interval_s, FIRST_DELAY_S)
        self._rest_until_s = now_s
        self._copy.unlink(missing_ok=True)

    # --- what others ask -------------------------------------------------------------------------

    @property
    def horizon_ns(self) -> int | None:
        """What died at this time or later must stay on the peers; None: no snapshot needs it."""
        return self._store.snapshot_ns if self._interval_s else None

    def hasten(self) -> None:
        """Something waits for a newer snapshot: make one soon."""
        if self._interval_s and not self._retry_delay_s:
            soon_s = max(self._clock.monotonic_s() + HASTE_S, self._rest_until_s)
            self._not_before_s = min(self._not_before_s, soon_s)

    def status(self) -> MetadataStatus:
        """The state of the snapshots, for people."""
        moment_ns, restored_ns = self._store.snapshot_ns, self._store.restored_to_ns
        return MetadataStatus(
            interval_s=self._interval_s,
            moment_s=moment_ns / 1e9 if moment_ns else None,
            age_s=max(0.0, (self._clock.wall_ns() - moment_ns) / 1e9) if moment_ns else None,
            is_current=not self._is_changed,
            is_late=self._is_late(),
            size=self._last.size if self._last else 0,
            peers=list(self._last.peers) if self._last else [],
            error=self._error,
            restored_to_s=restored_ns / 1e9 if restored_ns else None,
        )

    @property
    def _is_changed(self) -> bool:
        return self._store.change_count != self._saved_count

    def _is_late(self) -> bool:
        late_s = LATE_FACTOR * self._interval_s + LATE_S
        is_due = self._interval_s > 0 and self._is_changed
        return is_due and self._clock.monotonic_s() - self._good_s > late_s

    # --- the schedule ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Make snapshots until cancelled; one that is half made then counts for nothing."""
        if not self._interval_s:
            return
        while True:
            await asyncio.sleep(TICK_S)
            try:
                if self.is_due():
                    await self.snapshot()
            except MictlanError as error:
                log.warning("the metadata was not copied to peers: %s", error)
            except Exception:
                log.exception("copying the metadata to peers failed")

    def is_due(self) -> bool:
        """Whether it is time for the next one. Also notes when there is nothing to do."""
        is_short = self._is_short()
        if not self._is_changed and not is_short:
            self._good_s = self._clock.monotonic_s()
            return False
        if is_short and not self._short_wait_s:
            # A peer has come, or has gone, since.
            self.hasten()
        return bool(self._usable()) and self._clock.monotonic_s() >= self._not_before_s

    def _usable(self) -> list[PeerInfo]:
        """The peers that could have a copy, best first."""
        there = [peer for peer in self._peers() if peer.state is not PeerState.DOWN]
        ranked = placement.rank(_PLACE, there)
        # A full peer still has room for metadata, unless its disk has none.
        return [*ranked, *(peer for peer in there if peer.is_full)]

    def _is_short(self) -> bool:
        """Whether more peers could have the last one than do."""
        if self._last is None:
            return False
        usable = {peer.id for peer in self._usable()}
        return len(usable.intersection(self._last.peers)) < min(COPIES, len(usable))

    # --- one snapshot ----------------------------------------------------------------------------

    async def snapshot(self) -> MetadataSnapshot:
        """Make a snapshot now.

        Cancellation: nothing has changed, but for pieces on peers that the next one will use.

        Raises:
            MictlanError: it is not complete; NO_SPACE, UNAVAILABLE, and what peers answer.
        """
        async with self._lock:
            started_s = self._clock.monotonic_s()
            try:
                made = await self._make()
            except BaseException as error:
                self._failed(error)
                raise
            finally:
                self._copy.unlink(missing_ok=True)
            self._succeeded(made, started_s)
            await self._thin_out(made)
            return made

    async def _make(self) -> MetadataSnapshot:
        usable = self._usable()
        if not usable:
            raise MictlanError(Kind.UNAVAILABLE, "copy metadata", detail="no peer is up")
        targets = [
            Target(peer.id, PeerObjects(self._transport, peer.url)) for peer in usable[:COPIES]
        ]
        change_count = self._store.change_count
        moment_ns = await self._store.copy_to(self._copy)
        copy = CopyFile(self._copy)
        try:
            manifest = Manifest(
                FORMAT,
                self._store.space_id,
                moment_ns,
                self._store.schema_version,
                copy.size,
                PIECE_SIZE_BYTES,
                await copy.digests(),
                __version__,
            )
            sent = await send(copy, manifest, targets)
        finally:
            copy.close()
        complete = tuple(target.id for target in targets if target.error is None)
        if len(complete) < min(COPIES_MIN, len(usable)):
            raise _incomplete(targets, complete)
        await self._store.note_snapshot(moment_ns)
        self._saved_count = change_count
        return MetadataSnapshot(moment_ns, copy.size, sent, complete)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            self._error = str(error)
        self._retry_delay_s = min(max(2 * self._retry_delay_s, RETRY_S_FIRST), RETRY_S_MAX)
        self._not_before_s = self._clock.monotonic_s() + self._retry_delay_s

    def _succeeded(self, made: MetadataSnapshot, started_s: float) -> None:
        self._last = made
        self._error = ""
        self._retry_delay_s = 0.0
        self._good_s = now_s = self._clock.monotonic_s()
        took_s = now_s - started_s
        self._rest_until_s = started_s + TIME_FACTOR * took_s
        # A peer that did not take it is asked less and less often.
        longer_s = min(max(2 * self._short_wait_s, HASTE_S), self._interval_s)
        self._short_wait_s = longer_s if self._is_short() else 0.0
        wait_s = self._short_wait_s or self._interval_s
        self._not_before_s = max(started_s + wait_s, self._rest_until_s)
        log.info(
            "the metadata, %d bytes, is on %s; %d bytes were sent in %.2f s",
            *(made.size, ", ".join(made.peers), made.sent, took_s),
        )

    async def _thin_out(self, made: MetadataSnapshot) -> None:
        for peer in self._usable():
            if peer.id not in made.peers:
                continue
            try:
                await thin_out(
                    PeerObjects(self._transport, peer.url),
                    looks_for_left_over=peer.id not in self._thinned,
                )
                self._thinned.add(peer.id)
            except MictlanError as error:
                log.info("old snapshots of the metadata stay on %s for now: %s", peer.id, error)


def _incomplete(targets: Sequence[Target], complete: Sequence[str]) -> MictlanError:
    errors = [target.error for target in targets if target.error is not None]
    first = errors[0] if errors else None
    kind = first.kind if first is not None else Kind.UNAVAILABLE
    detail = f"only {len(complete)} of {len(targets)} peers have all of it; {first}"
    return MictlanError(kind, "copy metadata", detail=detail)
