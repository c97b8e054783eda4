"""The state of a space as JSON, for people and scripts; see `mictlanfs.wire`, which offers it."""

from __future__ import annotations

import msgspec

from mictlanfs.wirecopies import UpkeepStatus


class PeerStatus(msgspec.Struct, frozen=True):
    """A peer, for people."""

    id: str
    url: str
    zone: str
    state: str
    capacity: int
    used: int
    chunk_count: int
    is_full: bool
    last_seen_s: float
    number: int = 0
    is_draining: bool = False


class SessionStatus(msgspec.Struct, frozen=True):
    """An open session, for people.

    Attributes:
        lease_count, waited_count: leases that it holds, and for which it waits.
    """

    label: str
    host: str
    pid: int
    last_seen_s: float
    lease_count: int = 0
    waited_count: int = 0


class MetadataStatus(msgspec.Struct, frozen=True):
    """The snapshots of the metadata on the peers, for people.

    Attributes:
        interval_s: between two while things change; 0: none are made.
        moment_s: what the newest complete one stands for, seconds since the epoch; None: there is
            none.
        age_s: of that moment.
        is_current: nothing has changed since.
        is_late: it should long have been followed by another one.
        size: bytes of the database then; 0 before the first one of this router.
        peers: ids of those that have it; empty before the first one of this router.
        error: why the last attempt failed; empty after a success.
        restored_to_s: which moment the metadata was restored to, the last time that it was, or of
            which a dump that was loaded; None: never.
    """

    interval_s: float = 0.0
    moment_s: float | None = None
    age_s: float | None = None
    is_current: bool = False
    is_late: bool = False
    size: int = 0
    peers: list[str] = []
    error: str = ""
    restored_to_s: float | None = None


class SpaceStatus(msgspec.Struct, frozen=True):
    """The state of a space, for people and scripts. Sizes in bytes, times in seconds.

    Attributes:
        trash_count, trash_bytes: what buckets keep of what they lost; counted nowhere else.
        damaged_count: chunks that files need and of which no good copy is known; at most 100.
        damaged_paths: of the files, up to 4 for each chunk.
    """

    space_id: str
    router_id: str
    version: str
    uptime_s: float
    is_healthy: bool
    problems: list[str]
    peers: list[PeerStatus]
    sessions: list[SessionStatus]
    bucket_count: int
    inode_count: int
    chunk_count: int
    under_replicated_count: int
    lost_count: int
    tombstone_count: int
    bytes_logical: int
    inline_count: int = 0
    upkeep: UpkeepStatus = UpkeepStatus()
    trash_count: int = 0
    trash_bytes: int = 0
    snapshot_count: int = 0
    metadata: MetadataStatus | None = None
    damaged_count: int = 0
    damaged_paths: list[str] = []
