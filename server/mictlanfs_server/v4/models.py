"""The JSON bodies of the v4 interface, field by field as the public client parses them.

Source: the wire interface of MictlanX v4, sections 3, 5 and 6. Requests are read leniently, as
pydantic does: a number may come as text, fields that are unknown are passed over.
"""

from __future__ import annotations

import msgspec

from mictlanfs_server.v4.records import BYTES_TYPE, Piece


class Model(msgspec.Struct, frozen=True):
    """Base of all bodies."""


class Metadata(Model, frozen=True):
    """A record, as peers and routers tell it."""

    key: str
    size: int
    checksum: str
    tags: dict[str, str]
    content_type: str
    producer_id: str
    ball_id: str
    bucket_id: str = ""
    is_disabled: bool = False

    @classmethod
    def of(cls, bucket_id: str, piece: Piece) -> Metadata:
        """The record that a piece is."""
        return cls(
            piece.key,
            piece.size,
            piece.checksum,
            dict(piece.tags),
            piece.content_type,
            piece.producer_id,
            piece.ball_id,
            bucket_id,
            piece.is_disabled,
        )


# --- requests ------------------------------------------------------------------------------------


class PutMetadata(Model, frozen=True):
    """Announces a chunk. Routers are sent `is_disabled`, peers `is_disable`."""

    bucket_id: str
    key: str
    ball_id: str
    checksum: str
    producer_id: str
    size: int
    tags: dict[str, str] = {}
    content_type: str = BYTES_TYPE
    is_disabled: bool = False
    is_disable: bool = False
    replication_factor: int = 1


class UpdateMetadata(Model, frozen=True):
    """Changes what a stored record says; what is left out, or null, stays."""

    tags: dict[str, str] | None = None
    content_type: str | None = None
    producer_id: str | None = None
    is_disabled: bool | None = None


class PeerAddress(Model, frozen=True):
    """A peer that is to be added to a space."""

    protocol: str
    peer_id: str
    hostname: str
    port: int


class PeerNode(Model, frozen=True):
    """A peer that is to be added to another one, and the answer to that."""

    id: str
    disk: int
    memory: int
    ip_addr: str
    port: int
    weight: float
    used_disk: int = 0
    used_memory: int = 0


# --- answers of routers --------------------------------------------------------------------------


class PutMetadataAnswer(Model, frozen=True):
    """Where to send the bytes of an announced chunk: to the one task of `tasks_ids`."""

    key: str
    service_time: float
    tasks_ids: list[str]
    bucket_id: str
    replicas: list[str]
    extra: dict[str, str] = {}


class PutChunkedAnswer(Model, frozen=True):
    """The chunk is stored."""

    peer_ids: list[str]
    combined_key: str
    bucket_id: str
    key: str
    size: int


class GetMetadataAnswer(Model, frozen=True):
    """One record."""

    service_time: int
    peer_id: str
    local_peer_id: str
    metadata: Metadata


class BallMetadata(Model, frozen=True):
    """The chunks of a ball in their order; `size` is for people."""

    bucket_id: str
    ball_id: str
    size: str
    size_bytes: int
    checksum: str
    chunks: list[Metadata]


class BucketMetadata(Model, frozen=True):
    """All records of a bucket, those of a ball together."""

    bucket_id: str
    peer_ids: list[str]
    peers_ids: list[str]
    balls: list[Metadata]
    extra: dict[str, str] = {}


class ReplicaSize(Model, frozen=True):
    """The size of a record, as one of its replicas tells it."""

    bucket_id: str
    key: str
    peer_id: str
    size: int


class DeletedKey(Model, frozen=True):
    """How many copies of a record are gone."""

    n_deletes: int
    key: str


class DeletedBall(Model, frozen=True):
    """How many copies of the records of a ball are gone."""

    n_deletes: int
    ball_id: str


class Peer(Model, frozen=True):
    """A peer of the space."""

    peer_id: str
    ip_addr: str
    port: int
    protocol: str
    api_version: int = 4


class Peers(Model, frozen=True):
    """Peers that answer, and those that do not."""

    available: list[Peer]
    unavailable: list[Peer]


class BallSize(Model, frozen=True):
    """A record, its size in bytes."""

    bucket_id: str
    key: str
    size: int


class PeerStats(Model, frozen=True):
    """The use of a peer. The public client accepts exactly these fields."""

    peer_id: str
    used_disk: int
    total_disk: int
    available_disk: int
    disk_uf: float
    balls: list[BallSize]
    peers: list[str]


class CacheKeys(Model, frozen=True):
    """The combined keys that a cache holds."""

    keys: list[str]


class CacheStatistics(Model, frozen=True):
    """What a cache holds: bytes, and `used` by `total`."""

    total: int
    used: int
    available: int
    uf: float


class TaskInfo(Model, frozen=True):
    """A chunk that was announced and is not there yet."""

    group_id: str
    task_id: str
    operation: str
    bucket_id: str
    key: str
    peers: list[str]
    size: int
    content_type: str


class Health(Model, frozen=True):
    """The server serves."""

    status: str = "ok"


# --- answers of peers ----------------------------------------------------------------------------


class PeerPutMetadataAnswer(Model, frozen=True):
    """Where to send the bytes of an announced chunk."""

    key: str
    service_time: int
    task_id: str
    node_id: str


class PeerPutChunkedAnswer(Model, frozen=True):
    """The chunk is stored. `throughput` in bytes a second, `service_time` in seconds."""

    node_id: str
    combined_key: str
    bucket_id: str
    key: str
    size: int
    throughput: float
    service_time: float


class PeerBucketMetadata(Model, frozen=True):
    """All records of a bucket."""

    peer_id: str
    bucket_id: str
    balls: list[Metadata]


class BallGroup(Model, frozen=True):
    """The chunks of a ball in their order; `size` in bytes."""

    bucket_id: str
    ball_id: str
    size: int
    balls: list[Metadata]


class Replicated(Model, frozen=True):
    """A record has one more copy. `response_time` in milliseconds."""

    peer_id: str
    replica_peer_id: str
    bucket_id: str
    key: str
    size: int
    ok: bool
    response_time: int


class DiskUse(Model, frozen=True):
    """The use of a peer's disk, in bytes and as a share."""

    total_disk: int
    used_disk: int
    disk_uf: float


class BallCount(Model, frozen=True):
    """How many records there are."""

    len: int


class PeerNodeState(Model, frozen=True):
    """A peer as another one knows it."""

    node_id: str
    ip_addr: str
    port: int


class BallLocations(Model, frozen=True):
    """Which peers hold a record."""

    locations: list[str]
    size: int


class PeerState(Model, frozen=True):
    """What a peer knows of the space; `balls` by combined key."""

    nodes: list[PeerNodeState]
    balls: dict[str, BallLocations]
