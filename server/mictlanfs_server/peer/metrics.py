"""The metrics of a peer: what it holds and may hold, and its requests. Pure."""

from __future__ import annotations

from mictlanfs.exposition import Family, gauge, total
from mictlanfs.wireverify import ScrubState
from mictlanfs_server.metering import Meters
from mictlanfs_server.peer.store import ChunkStore


def families(
    store: ChunkStore, meters: Meters, scrub: ScrubState, *, bad_count: int, is_registered: bool
) -> list[Family]:
    """The metrics of a peer now."""
    return [
        *meters.families(),
        gauge("mictlanfs_peer_used_bytes", "Bytes that the peer holds.", store.used_bytes),
        gauge("mictlanfs_peer_capacity_bytes", "Bytes that it may hold.", store.capacity_bytes),
        gauge("mictlanfs_peer_chunks", "Chunks that it holds.", store.chunk_count),
        gauge("mictlanfs_peer_full", "1 when it takes no more.", store.is_full),
        gauge("mictlanfs_peer_registered", "1 when a router knows it.", is_registered),
        total("mictlanfs_peer_bad_copies_total", "Copies found bad or missing.", bad_count),
        gauge("mictlanfs_peer_scrub_passes", "Passes of the scrub over all chunks.", scrub.passes),
        gauge(
            "mictlanfs_peer_scrubbed_bytes",
            "Bytes read in the present or last pass.",
            scrub.checked_bytes,
        ),
        gauge(
            "mictlanfs_peer_quarantined_bytes",
            "Bytes of bad copies that are kept aside.",
            scrub.quarantined_bytes,
        ),
    ]
