"""The JSON messages of the v4 API, as routers, peers and the public client exchange them.

Field names are those of the wire. Decoding is lax where the public client is (`"5"` is a number),
and passes over fields that are not known. What one end leaves out has the default given here.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer

CONTENT_TYPE_DEFAULT = "application/octet-stream"

# Seconds. Some fields must be written as a whole number, since clients refuse another.
Seconds = int | float


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all messages: objects whose fields are known by name."""


class Metadata(Message, frozen=True, kw_only=True):
    """What is known of one record.

    Attributes:
        size: bytes of the record.
        checksum: SHA-256 of its bytes, in lower-case hex.
        tags: texts to texts; see `tags`.
        producer_id: the client that put it.
        ball_id: the ball it is a chunk of.
    """

    key: str
    size: int
    checksum: str
    tags: dict[str, str]
    content_type: str
    producer_id: str
    ball_id: str
    bucket_id: str = ""
    is_disabled: bool = False


# --- writing -------------------------------------------------------------------------------------


class PutMetadata(Message, frozen=True, kw_only=True):
    """First step of a put, to a router. Answer: `PutAccepted`."""

    bucket_id: str
    key: str
    ball_id: str
    checksum: str
    size: int
    producer_id: str
    tags: dict[str, str] = {}
    content_type: str = CONTENT_TYPE_DEFAULT
    is_disabled: bool = False
    replication_factor: int = 1


class PutMetadataToPeer(Message, frozen=True, kw_only=True):
    """First step of a put, to a peer: without copies, and `is_disable` without its last letter."""

    bucket_id: str
    key: str
    ball_id: str
    checksum: str
    size: int
    producer_id: str
    tags: dict[str, str] = {}
    content_type: str = CONTENT_TYPE_DEFAULT
    is_disable: bool = False


class PutAccepted(Message, frozen=True, kw_only=True):
    """A router takes the bytes for the first of `tasks_ids`.

    Attributes:
        replicas: ids of the peers that are to hold them.
    """

    key: str
    service_time: Seconds = 0
    tasks_ids: list[str] = []
    bucket_id: str = ""
    replicas: list[str] = []
    extra: dict[str, Any] = {}


class PutAcceptedByPeer(Message, frozen=True, kw_only=True):
    """A peer takes the bytes for `task_id`. `service_time` is a whole number."""

    key: str
    service_time: Seconds
    task_id: str
    node_id: str


class PutDone(Message, frozen=True, kw_only=True):
    """The bytes are stored, on `peer_ids`. `size` is the one that was declared."""

    peer_ids: list[str]
    combined_key: str
    bucket_id: str
    key: str
    size: int


class PutDoneByPeer(Message, frozen=True, kw_only=True):
    """A peer has stored the bytes. `throughput` in bytes per second."""

    node_id: str
    combined_key: str
    bucket_id: str
    key: str
    size: int
    throughput: float = 0.0
    service_time: Seconds = 0


# --- reading -------------------------------------------------------------------------------------


class FoundMetadata(Message, frozen=True, kw_only=True):
    """One record, from a router or peer. `service_time` is a whole number."""

    service_time: Seconds
    peer_id: str
    local_peer_id: str
    metadata: Metadata


class BallChunks(Message, frozen=True, kw_only=True):
    """The chunks of a ball, from a router; one may come once for each of its copies.

    Attributes:
        size: for people.
        size_bytes: each key counted once.
        checksum: the tag `full_checksum` of the first chunk.
    """

    bucket_id: str
    ball_id: str
    size: str
    size_bytes: int
    checksum: str
    chunks: list[Metadata]


class BallChunksOfPeer(Message, frozen=True, kw_only=True):
    """The chunks of a ball that a peer holds. `size` in bytes."""

    bucket_id: str
    ball_id: str
    size: int
    balls: list[Metadata]


class BucketListing(Message, frozen=True, kw_only=True):
    """The records of a bucket, from a router. Routers of the public code write `peers_ids`."""

    bucket_id: str
    peer_ids: list[str] = []
    peers_ids: list[str] = []
    balls: list[Metadata] = []
    extra: dict[str, Any] = {}


class BucketListingOfPeer(Message, frozen=True, kw_only=True):
    """The records of a bucket that a peer holds."""

    peer_id: str
    balls: list[Metadata]


class RecordSize(Message, frozen=True, kw_only=True):
    """Bytes of one copy of a record."""

    bucket_id: str
    key: str
    peer_id: str
    size: int


class DeletedKey(Message, frozen=True, kw_only=True):
    """Copies of the record `key` that were deleted."""

    n_deletes: int
    key: str


class DeletedBall(Message, frozen=True, kw_only=True):
    """Copies of chunks of the ball that were deleted; 0 when there were none."""

    n_deletes: int
    ball_id: str


# --- peers and caches ----------------------------------------------------------------------------


class PeerAddress(Message, frozen=True, kw_only=True):
    """A peer to add to a router."""

    peer_id: str
    hostname: str
    port: int
    protocol: str = "http"


class KnownPeer(Message, frozen=True, kw_only=True):
    """A peer that a router knows."""

    peer_id: str
    ip_addr: str = ""
    port: int = -1
    protocol: str = "http"
    api_version: int = 4


class KnownPeers(Message, frozen=True, kw_only=True):
    """The peers of a router."""

    available: list[KnownPeer] = []
    unavailable: list[KnownPeer] = []


class BallSize(Message, frozen=True, kw_only=True):
    """A record of a peer with its size in bytes."""

    bucket_id: str
    key: str
    size: int


class PeerStats(Message, frozen=True, kw_only=True):
    """How full a peer is. Sizes in bytes, `disk_uf` from 0 to 1."""

    peer_id: str = ""
    used_disk: int = 0
    total_disk: int = 0
    available_disk: int = 0
    disk_uf: float = 0.0
    balls: list[Any] = []
    peers: list[str] = []


class PeerUse(Message, frozen=True, kw_only=True):
    """The disk of a peer. Sizes in bytes, `disk_uf` from 0 to 1."""

    total_disk: int
    used_disk: int
    disk_uf: float


class NodeAddress(Message, frozen=True, kw_only=True):
    """A peer as another peer sees it."""

    node_id: str
    ip_addr: str
    port: int


class BallPlaces(Message, frozen=True, kw_only=True):
    """The peers that hold a record, and its size in bytes."""

    locations: list[str]
    size: int


class PeerNetwork(Message, frozen=True, kw_only=True):
    """What a peer knows of other peers and of where records are."""

    nodes: list[NodeAddress] = []
    balls: dict[str, BallPlaces] = {}


class Node(Message, frozen=True, kw_only=True):
    """A peer to add to a peer; sizes in bytes. The answer has the same fields."""

    id: str
    ip_addr: str
    port: int
    disk: int = 0
    memory: int = 0
    weight: float = 1.0
    used_disk: int = 0
    used_memory: int = 0


class Replicated(Message, frozen=True, kw_only=True):
    """A peer copied a record to another."""

    peer_id: str
    replica_peer_id: str
    bucket_id: str
    key: str
    size: int
    ok: bool
    response_time: Seconds = 0


class BallCount(Message, frozen=True, kw_only=True):
    """How many records a peer holds."""

    len: int


class CacheKeys(Message, frozen=True, kw_only=True):
    """The combined keys in the cache of a router; None when it has none."""

    keys: list[str] | None = None


class CacheStats(Message, frozen=True, kw_only=True):
    """The cache of a router, in bytes; `uf` from 0 to 1."""

    total: int
    used: int
    available: int
    uf: float


M = TypeVar("M")


def decode(body: Buffer, form: type[M], operation: str, target: str) -> M:
    """The message in an answer.

    Raises:
        MictlanError: PROTOCOL when the answer is none.
    """
    try:
        return msgspec.json.decode(body, type=form, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        detail = f"the answer is not what the v4 API says: {error}"
        raise MictlanError(Kind.PROTOCOL, operation, target, detail) from error


def encode(message: Message | list[Any]) -> bytes:
    """A message as JSON."""
    return msgspec.json.encode(message)
