"""What the servers of a space of the v4 API have in memory, and how the public client reads it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Any
REQUIRED = {
    "bucket_id": str,
    "key": str,
    "ball_id": str,
    "checksum": str,
    "producer_id": str,
    "size": int,
}


@dataclass
class Record:
    """A record of a peer; there from the second step of its put on."""

    metadata: dict[str, Json]
    data: bytes


@dataclass
class Task:
    metadata: dict[str, Json]
    peer_ids: list[str]


@dataclass
class V4Space:
    """What routers and peers share.

    Attributes:
        peers: by id, records by bucket and key.
        failing_peers: lose the bytes, which routers do not tell.
    """

    peers: dict[str, dict[tuple[str, str], Record]]
    tasks: dict[str, Task] = field(default_factory=dict)
    failing_peers: set[str] = field(default_factory=set)
    router_cache: dict[tuple[str, str], bytes] = field(default_factory=dict)
    numbers: Any = field(default_factory=itertools.count)

    @classmethod
    def of(cls, peer_count: int) -> V4Space:
        return cls({f"mictlanx-peer-{index}": {} for index in range(peer_count)})

    def holders(self, bucket: str, key: str) -> list[str]:
        return [peer for peer, records in self.peers.items() if (bucket, key) in records]

    def record(self, bucket: str, key: str) -> Record | None:
        holders = self.holders(bucket, key)
        return self.peers[holders[0]][bucket, key] if holders else None

    def records(self) -> dict[tuple[str, str], list[Record]]:
        found: dict[tuple[str, str], list[Record]] = {}
        for records in self.peers.values():
            for name, record in records.items():
                found.setdefault(name, []).append(record)
        return found

    def keys(self, bucket: str) -> list[str]:
        return sorted(key for found, key in self.records() if found == bucket)

    def store(
        self, bucket: str, key: str, data: bytes, *, ball: str | None = None, **tags: str
    ) -> dict[str, Json]:
        """A record on the first peer, as another program would have put it."""
        metadata = {
            "key": key,
            "size": len(data),
            "checksum": sha256(data),
            "tags": tags,
            "content_type": "application/octet-stream",
            "producer_id": "somebody",
            "ball_id": key if ball is None else ball,
            "bucket_id": bucket,
            "is_disabled": False,
        }
        self.peers[next(iter(self.peers))][bucket, key] = Record(metadata, data)
        return metadata


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def stats_of(space: V4Space, peer: str) -> dict[str, Json]:
    used = sum(record.metadata["size"] for record in space.peers[peer].values())
    return {
        "peer_id": peer,
        "used_disk": used,
        "total_disk": 1000,
        "available_disk": 1000 - used,
        "disk_uf": used / 1000,
        "balls": [],
        "peers": [other for other in space.peers if other != peer],
    }


def public_get(space: V4Space, bucket: str, ball: str) -> bytes:
    """What the unmodified public client reads, by the rules of the reference, section 9.3."""
    first = _public_record(space, bucket, f"{ball}_0")
    count = int(first["tags"]["num_chunks"])
    assert count > 0
    parts: dict[int, bytes] = {}
    for index in range(count):
        metadata = _public_record(space, bucket, f"{ball}_{index}")
        record = space.record(bucket, f"{ball}_{index}")
        assert record is not None
        assert len(record.data) >= metadata["size"]
        parts[int(metadata["tags"]["index"])] = record.data[: metadata["size"]]
    whole = b"".join(data for _, data in sorted(parts.items()))
    assert sha256(whole) == first["tags"]["full_checksum"]
    return whole


def _public_record(space: V4Space, bucket: str, key: str) -> Mapping[str, Json]:
    record = space.record(bucket, key)
    assert record is not None, f"no {bucket}@{key}"
    metadata = record.metadata
    for name, kind in {**REQUIRED, "content_type": str}.items():
        assert isinstance(metadata[name], kind)
    assert all(isinstance(text, str) for item in metadata["tags"].items() for text in item)
    return metadata
