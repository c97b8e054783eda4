"""The state of the space for people: counts, and problems as short sentences."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mictlanfs import __version__, wire
from mictlanfs.model import PeerState
from mictlanfs_server.metadata.base import ReplicaCounts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mictlanfs.clock import Clock
    from mictlanfs.model import SessionId
    from mictlanfs.wirecopies import UpkeepStatus
    from mictlanfs.wireverify import DamagedFile
    from mictlanfs_server.metadata.base import MetadataStore
    from mictlanfs_server.router.membership import Membership
    from mictlanfs_server.router.sessions import SessionTable

# Counting replicas reads every chunk: no more often than this, and at most a twentieth of the time.
COUNTS_AGE_MAX_S = 3.0
COUNTS_SHARE_MAX = 0.05
PATHS_SHOWN_MAX = 5


class ReplicaCounter:
    """Replica counts that are at most some seconds old.

    The age allowed grows with what counting costs: 3 s, or twenty times as long as it took.
    """

    def __init__(self, store: MetadataStore, membership: Membership, clock: Clock) -> None:
        self._store = store
        self._membership = membership
        self._clock = clock
        self._lock = asyncio.Lock()
        self._counts = ReplicaCounts(0, 0)
        self._map_version = -1
        self._expires_s = 0.0

    async def counts(self) -> ReplicaCounts:
        """The counts, made anew when they are too old or the peer map has changed."""
        async with self._lock:
            started_s = self._clock.monotonic_s()
            version = self._membership.version
            if started_s >= self._expires_s or version != self._map_version:
                live = [
                    peer.number
                    for peer in self._membership.peer_map().peers
                    if peer.state is not PeerState.DOWN
                ]
                self._counts = await self._store.replica_counts(live)
                now_s = self._clock.monotonic_s()
                age_s = max(COUNTS_AGE_MAX_S, (now_s - started_s) / COUNTS_SHARE_MAX)
                self._map_version, self._expires_s = version, now_s + age_s
            return self._counts


class StatusReport:
    """Builds `wire.SpaceStatus`."""

    def __init__(
        self,
        store: MetadataStore,
        membership: Membership,
        sessions: SessionTable,
        clock: Clock,
        router_id: str,
        leases: Callable[[SessionId], tuple[int, int]],
        upkeep: Callable[[], UpkeepStatus],
        metadata: Callable[[], wire.MetadataStatus] = wire.MetadataStatus,
        damaged: Callable[[], Awaitable[Sequence[DamagedFile]]] | None = None,
    ) -> None:
        self._store = store
        self._membership = membership
        self._sessions = sessions
        self._clock = clock
        self._router_id = router_id
        self._leases = leases
        self._upkeep = upkeep
        self._metadata = metadata
        self._damaged = damaged
        self._started_s = clock.monotonic_s()
        self._replicas = ReplicaCounter(store, membership, clock)

    async def status(self) -> wire.SpaceStatus:
        """The state of the space now; replica counts may be some seconds old."""
        counts = await self._store.counts()
        replicas = await self._replicas.counts()
        peers = self._membership.statuses()
        metadata = self._metadata()
        damaged = [] if self._damaged is None else await self._damaged()
        problems = [
            *peer_problems(peers),
            *replica_problems(replicas),
            *damage_problems(damaged),
            *metadata_problems(metadata, counts.tombstones),
        ]
        return wire.SpaceStatus(
            space_id=self._store.space_id,
            router_id=self._router_id,
            version=__version__,
            uptime_s=self._clock.monotonic_s() - self._started_s,
            is_healthy=not problems,
            problems=problems,
            peers=peers,
            sessions=self._sessions.statuses(self._leases),
            bucket_count=counts.buckets,
            inode_count=counts.inodes,
            chunk_count=counts.chunks,
            under_replicated_count=replicas.under_replicated,
            lost_count=replicas.lost,
            tombstone_count=counts.tombstones,
            bytes_logical=counts.bytes_logical,
            inline_count=replicas.inline,
            upkeep=self._upkeep(),
            trash_count=counts.trash_items,
            trash_bytes=counts.trash_bytes,
            snapshot_count=counts.snapshots,
            metadata=metadata,
            damaged_count=len(damaged),
            damaged_paths=sorted({path for one in damaged for path in one.paths}),
        )


def peer_problems(peers: Sequence[wire.PeerStatus]) -> list[str]:
    """What is wrong with the peers."""
    problems = []
    if not any(peer.state != "down" for peer in peers):
        problems.append("no peer is up")
    for peer in peers:
        silent = f"{peer.last_seen_s:.0f} s"
        if peer.state == "down":
            problems.append(f"peer {peer.id} is down since {silent}")
        elif peer.state == "suspect":
            problems.append(f"peer {peer.id} is silent since {silent}")
        elif peer.is_full:
            problems.append(f"peer {peer.id} is full")
    return problems


def replica_problems(counts: ReplicaCounts) -> list[str]:
    """What is wrong with the copies of chunks."""
    problems = []
    if counts.lost:
        what = "1 chunk has" if counts.lost == 1 else f"{counts.lost} chunks have"
        problems.append(f"{what} no copy on any peer that answers")
    short = counts.under_replicated - counts.lost
    if short > 0:
        what = "1 chunk has" if short == 1 else f"{short} chunks have"
        problems.append(f"{what} fewer copies than wanted")
    return problems


def metadata_problems(status: wire.MetadataStatus, tombstones: int) -> list[str]:
    """What is wrong with the snapshots of the metadata."""
    if not status.is_late:
        return []
    when = "was never copied to peers"
    if status.age_s is not None:
        when = f"was last copied to peers {status.age_s / 60:.0f} min ago"
    waiting = f"; {tombstones} chunks of removed files wait for the next copy" if tombstones else ""
    reason = f": {status.error}" if status.error else ""
    return [f"the metadata {when}{waiting}{reason}"]


def damage_problems(damaged: Sequence[DamagedFile]) -> list[str]:
    """What is wrong with chunks without a good copy: which files cannot be read whole."""
    if not damaged:
        return []
    what = "1 chunk is" if len(damaged) == 1 else f"{len(damaged)} chunks are"
    paths = sorted({path for one in damaged for path in one.paths})
    shown = ", ".join(paths[:PATHS_SHOWN_MAX])
    if len(paths) > PATHS_SHOWN_MAX:
        shown += f" and {len(paths) - PATHS_SHOWN_MAX} more"
    return [f"{what} damaged in every copy: {shown or 'of files without a name'}"]
