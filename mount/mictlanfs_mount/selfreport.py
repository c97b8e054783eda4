"""What a mount tells of itself in its hidden directory: counters, options, session, peers.

Reads the parts of the mount and changes none. The keys are for people and scripts: append-only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from mictlanfs import __version__
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.client.peers import PeerClient
from mictlanfs.client.races import RaceStats
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session
from mictlanfs.exposition import counter, gauge, text_of, total
from mictlanfs.model import PeerNumber
from mictlanfs_mount.budget import Budget
from mictlanfs_mount.chunkcache.cache import CacheStats
from mictlanfs_mount.defragment import DefragmentStats
from mictlanfs_mount.filesystem import FileSystem
from mictlanfs_mount.settings import MountSettings
from mictlanfs_mount.virtual import Document, Views
from mictlanfs_mount.warming import Warming


@dataclass(frozen=True, slots=True)
class SelfReport:
    """The parts of one mount that are told of."""

    settings: MountSettings
    router: RouterClient
    peer_client: PeerClient
    session: Session
    directory: PeerDirectory
    cache_stats: Callable[[], CacheStats]
    dirty: Budget
    filesystem: FileSystem
    kernel_requests: Mapping[str, int]
    defragmented: Callable[[], DefragmentStats]
    races: Callable[[], RaceStats]
    local_writes: Callable[[], int]
    warming: Warming | None = None

    def views(self) -> Views:
        """What `VirtualFileSystem` shows."""
        documents: dict[bytes, Document] = {
            b"stats": self.stats,
            b"config": self.config,
            b"session": self.session_of,
            b"peers": self.peers,
            b"metrics": self.metrics,
        }
        return Views(documents, self.peer_name, self.warming)

    def stats(self) -> Mapping[str, Any]:
        """Counters since the mount began, and what it holds now."""
        return {
            "kernel_requests": dict(self.kernel_requests),
            "router_requests": self.router.request_count,
            "peer_requests": self.peer_client.request_count,
            "local_writes": self.local_writes(),
            "dirty_bytes": self.dirty.used_bytes,
            "dirty_bytes_max": self.dirty.limit_bytes,
            "inodes": len(self.filesystem.inodes),
            "handles": len(self.filesystem.handles),
            "cache": asdict(self.cache_stats()),
            "defragmented": asdict(self.defragmented()),
            "races": asdict(self.races()),
        }

    def metrics(self) -> str:
        """The counters of `stats` in the text format of Prometheus."""
        cache = self.cache_stats()
        reads = {"memory": cache.memory_hits, "disk": cache.disk_hits, "space": cache.misses}
        return text_of(
            (
                counter(
                    "mictlanfs_mount_kernel_requests_total",
                    "Requests of the kernel.",
                    self.kernel_requests,
                    "operation",
                ),
                total(
                    "mictlanfs_mount_router_requests_total",
                    "Requests to routers.",
                    self.router.request_count,
                ),
                total(
                    "mictlanfs_mount_peer_requests_total",
                    "Requests to peers.",
                    self.peer_client.request_count,
                ),
                counter(
                    "mictlanfs_mount_cache_reads_total",
                    "Reads of chunks, by what answered them.",
                    reads,
                    "source",
                ),
                total(
                    "mictlanfs_mount_fetched_bytes_total",
                    "Bytes fetched from the space.",
                    cache.fetched_bytes,
                ),
                total(
                    "mictlanfs_mount_fetch_errors_total",
                    "Requests for chunks that failed.",
                    cache.fetch_errors,
                ),
                total(
                    "mictlanfs_mount_second_requests_total",
                    "Requests made because a peer was late.",
                    self.races().second_requests,
                ),
                total(
                    "mictlanfs_mount_defragmented_bytes_total",
                    "Bytes of files written in pieces that were put together.",
                    self.defragmented().bytes,
                ),
                gauge("mictlanfs_mount_dirty_bytes", "Not yet durable.", self.dirty.used_bytes),
                gauge(
                    "mictlanfs_mount_dirty_limit_bytes",
                    "As much may be so at once.",
                    self.dirty.limit_bytes,
                ),
                gauge(
                    "mictlanfs_mount_inodes",
                    "Inodes that the kernel or the mount knows.",
                    len(self.filesystem.inodes),
                ),
                gauge(
                    "mictlanfs_mount_handles",
                    "Open files and directories.",
                    len(self.filesystem.handles),
                ),
            )
        )

    def config(self) -> Mapping[str, Any]:
        """What is mounted where, and the options it was mounted with."""
        return {
            "version": __version__,
            "uri": self.settings.uri,
            "mountpoint": self.settings.mountpoint,
            "options": asdict(self.settings.options),
        }

    def session_of(self) -> Mapping[str, Any]:
        """The session of the mount with its space."""
        grant = self.session.grant
        return {
            "session": grant.session,
            "epoch": grant.epoch,
            "space": grant.space_id,
            "routers": [address.base_url for address in self.router.addresses],
        }

    def peers(self) -> Mapping[str, Any]:
        """The peer map that the mount uses."""
        found = [
            {
                **msgspec.structs.asdict(peer),
                "state": peer.state.name.lower(),
                "is_slow": self.directory.is_slow(peer.number),
            }
            for peer in self.directory.all()
        ]
        return {"version": self.directory.version, "peers": found}

    def peer_name(self, number: PeerNumber) -> str:
        """The name of a peer; its number while the map does not know it."""
        peer = self.directory.get(number)
        return str(number) if peer is None else peer.id
