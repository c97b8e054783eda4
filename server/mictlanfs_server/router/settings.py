"""The settings of a router process, parsed by its caller and passed down as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mictlanfs.errors import UsageError
from mictlanfs.logsetup import DEFAULT_LOGS, LogSettings
from mictlanfs.model import GIB
from mictlanfs_server.v4.caching.settings import CacheSettings

LEASE_TTL_S = 10.0
HEAL_DELAY_S = 120.0
POPULAR_READS_PER_MIN = 120.0
EXTRA_COPIES_MAX = 1000
EXTRA_BYTES_MAX = 4 * GIB
SNAPSHOT_INTERVAL_S = 300.0
ORPHAN_AGE_HOURS_DEFAULT = 24
AUDIT_INTERVAL_HOURS_DEFAULT = 12


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Everything a router can be told.

    Attributes:
        data: directory of its own, made when missing; one router at a time uses it.
        host: address to listen at.
        port: port to listen at; 0 lets the kernel choose.
        router_id: its name in the space's URI.
        insecure: whether it may listen beyond this machine without TLS and tokens.
        lifeline_fd: descriptor whose end tells the router to stop; None without a supervisor.
        gc_grace_s: seconds between the last reference to a chunk and its deletion.
        snapshot_interval_s: seconds between two snapshots of the metadata on the peers while things
            change; 0: none are made.
        orphan_age_s: seconds for which a chunk on a peer that no file needs is left alone: as long
            as the longest way from an upload to its commit.
        audit_interval_s: seconds between two comparisons of peers with the metadata; 0: none but
            those that are asked for.
        session_ttl_s: seconds of silence after which a session is ended.
        heartbeat_s: seconds between the heartbeats of a session.
        lease_ttl_s: seconds for which a session may trust its leases without an answer of the
            router, and in which it must give up one that is recalled.
        peer_heartbeat_s: seconds between the heartbeats of a peer.
        peer_suspect_s: seconds of silence after which a peer is used last.
        peer_down_s: seconds of silence after which a peer is not used.
        heal_delay_s: seconds for which a peer is down before its chunks are copied elsewhere;
            longer for one that goes down again and again.
        heal_rate: bytes a second that peers copy among themselves at most; 0: no limit.
        popular_reads_per_min: reads of a copy of a chunk above which there is another copy.
        extra_copies_max: of these copies in the space; 0: there are none.
        extra_bytes_max: bytes of them.
        logs: how to log.
        cache: of the MictlanX v4 interface.
        verifies_checksums: whether the MictlanX v4 interface refuses bodies whose SHA-256 is not
            the one announced; one that is empty is never compared.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 60666
    router_id: str = "mictlanx-router-0"
    insecure: bool = False
    lifeline_fd: int | None = None
    gc_grace_s: float = 600.0
    snapshot_interval_s: float = SNAPSHOT_INTERVAL_S
    orphan_age_s: float = ORPHAN_AGE_HOURS_DEFAULT * 3600.0
    audit_interval_s: float = AUDIT_INTERVAL_HOURS_DEFAULT * 3600.0
    session_ttl_s: float = 30.0
    heartbeat_s: float = 5.0
    lease_ttl_s: float = LEASE_TTL_S
    peer_heartbeat_s: float = 1.0
    peer_suspect_s: float = 3.0
    peer_down_s: float = 10.0
    heal_delay_s: float = HEAL_DELAY_S
    heal_rate: int = 0
    popular_reads_per_min: float = POPULAR_READS_PER_MIN
    extra_copies_max: int = EXTRA_COPIES_MAX
    extra_bytes_max: int = EXTRA_BYTES_MAX
    logs: LogSettings = DEFAULT_LOGS
    cache: CacheSettings = field(default_factory=CacheSettings)
    verifies_checksums: bool = True

    def __post_init__(self) -> None:
        """Refuse times that contradict each other, as a UsageError."""
        if self.gc_grace_s < 0:
            raise UsageError("the grace period before chunks are deleted cannot be negative")
        if self.heal_delay_s < 0 or self.heal_rate < 0:
            raise UsageError("the delay and the rate of healing cannot be negative")
        if self.popular_reads_per_min <= 0:
            raise UsageError("what is popular is read more often than never")
        if self.extra_copies_max < 0 or self.extra_bytes_max < 0:
            raise UsageError("the number and the bytes of extra copies cannot be negative")
        if self.snapshot_interval_s < 0:
            raise UsageError("the time between two snapshots of the metadata cannot be negative")
        if self.orphan_age_s < 0 or self.audit_interval_s < 0:
            raise UsageError("the age of orphans and the time between audits cannot be negative")
        if not 0 < self.heartbeat_s < self.session_ttl_s:
            raise UsageError("a session's heartbeat must come more often than its time to live")
        if not 0 < self.lease_ttl_s < self.session_ttl_s:
            raise UsageError("a lease must end before the session that holds it")
        if not 0 < self.peer_heartbeat_s < self.peer_suspect_s <= self.peer_down_s:
            raise UsageError(
                "a peer's heartbeat must come before it is suspect, and that before it is down"
            )
