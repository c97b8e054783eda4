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


class SpaceStatus(msgspec.Struct, frozen=True):
    """The state of a space, for people and scripts. Sizes in bytes, times in seconds.

    Attributes:
        trash_count, trash_bytes: what buckets keep of what they lost; counted nowhere else.
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
