"""What a mount tells of itself: the keys that scripts rely on, and values from its parts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import trio

from mictlanfs import __version__
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.client.peers import PeerClient
from mictlanfs.client.races import RaceStats
from mictlanfs.client.retry import NO_RETRY
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import open_session
from mictlanfs.config import MountOptions
from mictlanfs.model import PeerInfo, PeerMap, PeerNumber, PeerState
from mictlanfs.uri import parse_routers
from mictlanfs_mount.budget import Budget
from mictlanfs_mount.chunkcache.cache import CacheStats
from mictlanfs_mount.chunkcache.memory import MemoryLevel
from mictlanfs_mount.defragment import DefragmentStats
from mictlanfs_mount.selfreport import SelfReport
from mictlanfs_mount.settings import MountSettings
from tests.support.fakenet import FakeNet
from tests.support.fakerouter import FakeRouter
from tests.support.metrics import samples_of
from tests.support.mount_fakes import open_mount

URI = "mictlanx://r@router:60666/?protocol=http"


def cache_stats() -> CacheStats:
    return CacheStats(1, 2, 3, 4, 5, 6, 7, 8, MemoryLevel(1024).stats(), None)


def directory_of_one() -> PeerDirectory:
    """A peer that is down, and was slow before."""
    directory = PeerDirectory(trio.current_time)
    peer = PeerInfo(PeerNumber(7), "peer-7", "http://h:1", "z", 10, 1, PeerState.DOWN)
    directory.update(PeerMap(3, (peer,)))
    directory.slow(peer.number)
    return directory


async def test_every_document_is_json_and_says_what_the_parts_know() -> None:
    fake = FakeRouter()
    router = RouterClient(parse_routers(URI), FakeNet({fake.url: fake}), NO_RETRY)
    directory = directory_of_one()
    budget = Budget(100)
    budget.charge(5)
    settings = MountSettings(URI, Path("mnt"), MountOptions(cache_dir=Path("cache")))
    async with open_mount() as mount, open_session(router, "label") as session:
        report = SelfReport(
            settings,
            router,
            PeerClient(FakeNet({})),
            session,
            directory,
            cache_stats,
            budget,
            mount.filesystem,
            {"lookup": 3},
            lambda: DefragmentStats(slices=2, bytes=9),
            lambda: RaceStats(second_requests=4, second_won=3, refused=2),
            lambda: 11,
        )
        views = report.views()
        told = {
            name: json.loads(json.dumps(document(), default=os.fspath))
            for name, document in views.documents.items()
            if name != b"metrics"
        }
        metrics = report.metrics()
        assert views.documents[b"metrics"]() == metrics
        grant = session.grant
    assert list(views.documents) == [b"stats", b"config", b"session", b"peers", b"metrics"]
    assert list(told) == [b"stats", b"config", b"session", b"peers"]
    assert samples_of(metrics) == {
        ("mictlanfs_mount_kernel_requests_total", ("operation", "lookup")): 3,
        ("mictlanfs_mount_router_requests_total",): 1,
        ("mictlanfs_mount_peer_requests_total",): 0,
        ("mictlanfs_mount_cache_reads_total", ("source", "memory")): 1,
        ("mictlanfs_mount_cache_reads_total", ("source", "disk")): 2,
        ("mictlanfs_mount_cache_reads_total", ("source", "space")): 3,
        ("mictlanfs_mount_fetched_bytes_total",): 6,
        ("mictlanfs_mount_fetch_errors_total",): 7,
        ("mictlanfs_mount_second_requests_total",): 4,
        ("mictlanfs_mount_dirty_bytes",): 5,
        ("mictlanfs_mount_dirty_limit_bytes",): 100,
        ("mictlanfs_mount_defragmented_bytes_total",): 9,
        ("mictlanfs_mount_inodes",): 0,
        ("mictlanfs_mount_handles",): 0,
    }
    stats = told[b"stats"]
    assert stats["kernel_requests"] == {"lookup": 3}
    counts = ("router_requests", "peer_requests", "local_writes", "inodes", "handles")
    assert [stats[name] for name in counts] == [1, 0, 11, 0, 0]
    assert (stats["dirty_bytes"], stats["dirty_bytes_max"]) == (5, 100)
    assert stats["cache"]["memory"]["budget_bytes"] == 1024
    assert stats["races"] == {"second_requests": 4, "second_won": 3, "refused": 2}
    assert told[b"config"]["version"] == __version__
    assert told[b"config"]["uri"] == URI
    assert told[b"config"]["options"]["cache_dir"] == "cache"
    assert told[b"session"] == {
        "session": grant.session,
        "epoch": grant.epoch,
        "space": grant.space_id,
        "routers": ["http://router:60666"],
    }
    assert told[b"peers"]["version"] == 3
    (shown,) = told[b"peers"]["peers"]
    assert (shown["id"], shown["state"], shown["capacity"]) == ("peer-7", "down", 10)
    assert shown["is_slow"] is True
    assert [views.peer_name(PeerNumber(number)) for number in (7, 8)] == ["peer-7", "8"]
