"""The metrics of a space, as its router sees it: peers, sessions, leases, chunks, commits. Pure."""

from __future__ import annotations

from collections import Counter

from mictlanfs import wire
from mictlanfs.exposition import Family, gauge, gauges, total
from mictlanfs.model import PeerState
from mictlanfs.wirecopies import UpkeepStatus
from mictlanfs_server.metering import Meters


def families(status: wire.SpaceStatus, meters: Meters) -> list[Family]:
    """The metrics of a router; replica counts may be some seconds old, as in its status."""
    peers, sessions = status.peers, status.sessions
    states = Counter(peer.state for peer in peers)
    return [
        *meters.families(),
        gauge("mictlanfs_healthy", "1 when the space has no problem.", status.is_healthy),
        gauge("mictlanfs_uptime_seconds", "Since the router started.", status.uptime_s),
        gauges(
            "mictlanfs_peers",
            "Peers by state.",
            {state.name.lower(): states[state.name.lower()] for state in PeerState},
            "state",
        ),
        gauges(
            "mictlanfs_peer_used_bytes",
            "Bytes that a peer holds, as it said last.",
            {peer.id: peer.used for peer in peers},
            "peer_id",
        ),
        gauges(
            "mictlanfs_peer_capacity_bytes",
            "Bytes that a peer may hold.",
            {peer.id: peer.capacity for peer in peers},
            "peer_id",
        ),
        gauge("mictlanfs_sessions", "Open sessions.", len(sessions)),
        gauge(
            "mictlanfs_leases",
            "Leases that sessions hold.",
            sum(session.lease_count for session in sessions),
        ),
        gauge(
            "mictlanfs_leases_waited",
            "Leases that sessions wait for.",
            sum(session.waited_count for session in sessions),
        ),
        gauge("mictlanfs_buckets", "Buckets.", status.bucket_count),
        gauge("mictlanfs_inodes", "Files and directories.", status.inode_count),
        gauge("mictlanfs_bytes", "Bytes in files, copies not counted.", status.bytes_logical),
        *_chunk_families(status),
        *_upkeep_families(status.upkeep),
        *_kept_families(status),
        *_snapshot_families(status.metadata or wire.MetadataStatus()),
        total(
            "mictlanfs_commits_total",
            "Commits of clients that had success.",
            meters.answered("POST", wire.Path.COMMIT),
        ),
    ]


def _chunk_families(status: wire.SpaceStatus) -> list[Family]:
    return [
        gauge("mictlanfs_chunks", "Chunks on peers.", status.chunk_count),
        gauge("mictlanfs_chunks_inline", "Chunks kept by the router.", status.inline_count),
        gauge(
            "mictlanfs_chunks_under_replicated",
            "Chunks with fewer copies than wanted.",
            status.under_replicated_count,
        ),
        gauge(
            "mictlanfs_chunks_lost",
            "Chunks without a copy on a peer that answers.",
            status.lost_count,
        ),
        gauge(
            "mictlanfs_chunks_damaged",
            "Chunks of which no good copy is known; at most 100.",
            status.damaged_count,
        ),
        gauge(
            "mictlanfs_chunks_unreferenced",
            "Chunks of deleted files that wait for their removal.",
            status.tombstone_count,
        ),
    ]


def _upkeep_families(upkeep: UpkeepStatus) -> list[Family]:
    return [
        gauge(
            "mictlanfs_heal_short_chunks",
            "Chunks that wait for copies, as of the last look.",
            upkeep.short_count,
        ),
        gauge(
            "mictlanfs_heal_unreadable_chunks",
            "Chunks without a copy to heal them from, as of the last look.",
            upkeep.unhealable_count,
        ),
        gauge(
            "mictlanfs_copies_given_up",
            "Copies that wait for their deletion.",
            upkeep.given_up_count,
        ),
        total(
            "mictlanfs_copies_healed_total",
            "Copies made of chunks that were short.",
            upkeep.healed_count,
        ),
        total(
            "mictlanfs_copies_moved_total", "Copies made by an ordered move.", upkeep.moved_count
        ),
        total(
            "mictlanfs_copies_trimmed_total",
            "Copies given up because there were enough.",
            upkeep.trimmed_count,
        ),
        total(
            "mictlanfs_copies_failed_total", "Copies that could not be made.", upkeep.failed_count
        ),
        total("mictlanfs_copied_bytes_total", "Bytes of all copies made.", upkeep.copied_bytes),
        gauge(
            "mictlanfs_popular_chunks",
            "Chunks that are read so often that they have extra copies.",
            upkeep.popular_count,
        ),
        gauge("mictlanfs_extra_copies", "Of these chunks, now.", upkeep.extra_count),
        gauge("mictlanfs_extra_copy_bytes", "Bytes of these copies.", upkeep.extra_bytes),
        total("mictlanfs_extra_copies_total", "Extra copies made.", upkeep.extra_made_count),
    ]


def _snapshot_families(status: wire.MetadataStatus) -> list[Family]:
    return [
        gauge(
            "mictlanfs_metadata_snapshot_timestamp_seconds",
            "What the newest snapshot of the metadata on peers stands for; 0: there is none.",
            status.moment_s or 0.0,
        ),
        gauge("mictlanfs_metadata_bytes", "Of the database in that snapshot.", status.size),
        gauge("mictlanfs_metadata_copies", "Peers that have that snapshot.", len(status.peers)),
    ]


def _kept_families(status: wire.SpaceStatus) -> list[Family]:
    return [
        gauge(
            "mictlanfs_trash_bytes",
            "Bytes of removed and overwritten files that are kept.",
            status.trash_bytes,
        ),
        gauge("mictlanfs_snapshots", "Snapshots.", status.snapshot_count),
    ]
