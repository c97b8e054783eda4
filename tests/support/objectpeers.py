"""Peers that keep objects in folders and answer without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB, Buffer, ChunkId, PeerInfo, PeerNumber, PeerState
from mictlanfs.wireverify import HeldChunk, HeldPage, ListHeld
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.budget import ByteBudget
from mictlanfs_server.peer.objecthandlers import ObjectHandlers
from mictlanfs_server.peer.objects import ObjectStore
from mictlanfs_server.serving import Message


@dataclass
class Answer:
    """An answer of a peer."""

    status: int = 0
    body: Buffer = b""


class HeldChunks:
    """The chunks of a peer, without their bytes."""

    def __init__(self) -> None:
        self.uploads = ByteBudget(64 * MIB)
        self.held: dict[ChunkId, StoredChunk] = {}

    def page(self, after: ChunkId) -> HeldPage:
        """Two of them."""
        behind = [self.held[chunk_id] for chunk_id in sorted(self.held) if chunk_id > after]
        chunks = tuple(HeldChunk(one.id, one.length, one.digest, 0.0) for one in behind[:2])
        return HeldPage(chunks, len(behind) <= 2)


@dataclass
class Peer:
    """One peer."""

    info: PeerInfo
    folder: Path
    objects: ObjectStore
    chunks: HeldChunks

    @property
    def url(self) -> str:
        return self.info.url

    @property
    def object_folder(self) -> Path:
        return self.folder / "objects"

    def names(self, prefix: str = "") -> list[str]:
        """The objects it has."""
        return sorted(path.name for path in self.object_folder.glob(f"{prefix}*"))


@dataclass
class ObjectPeers:
    """Stands for the transport.

    Attributes:
        requests: method and path of each, in order.
        broken: URLs that do not answer.
        watch: called before each request; what it raises is what the caller gets.
    """

    peers: list[Peer]
    requests: list[tuple[str, str]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    watch: Callable[[str, str], None] = lambda _method, _path: None

    def infos(self) -> list[PeerInfo]:
        return [peer.info for peer in self.peers]

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: Buffer | Sequence[Buffer] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Answer:
        parts = urlsplit(url)
        base = f"{parts.scheme}://{parts.netloc}"
        self.watch(method, parts.path)
        self.requests.append((method, parts.path))
        if base in self.broken:
            raise MictlanError(Kind.UNAVAILABLE, method, url)
        (peer,) = (peer for peer in self.peers if peer.url == base)
        assert body is None or isinstance(body, Buffer)
        if parts.path == wire.Path.HELD:
            page = peer.chunks.page(wire.decode(body or b"", ListHeld).after)
            return Answer(200, wire.encode(page))
        return await call(ObjectHandlers(peer.objects, peer.chunks), method, parts.path, body)


async def call(
    handlers: ObjectHandlers, method: str, path: str, body: Buffer | None = None, digest: str = ""
) -> Answer:
    """One request to the handlers, and their answer; by default with the right digest."""
    content = bytes(body or b"")
    header = digest or digest_of([content]).hex()
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [
            (b"content-length", b"%d" % len(content)),
            (wire.HEADER_DIGEST.encode(), header.encode()),
        ],
    }
    answer = Answer()

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            assert isinstance(status, int)
            answer.status = status
        else:
            part = message.get("body", b"")
            assert isinstance(part, Buffer)
            answer.body = bytes(answer.body) + bytes(part)

    await handlers(scope, receive, send)
    return answer


@contextmanager
def object_peers(folder: Path, count: int = 3) -> Iterator[ObjectPeers]:
    """Peers below `folder`, in zones of their own."""
    peers: list[Peer] = []
    try:
        for number in range(1, count + 1):
            place = folder / f"peer-{number}"
            place.mkdir()
            info = PeerInfo(
                number=PeerNumber(number),
                id=f"peer-{number}",
                url=f"http://127.0.0.1:{24000 + number}",
                zone=f"zone-{number}",
                capacity=10**12,
                used=0,
                state=PeerState.UP,
            )
            objects = ObjectStore(place, fsync=False)
            peers.append(Peer(info, place, objects, HeldChunks()))
        yield ObjectPeers(peers)
    finally:
        for peer in peers:
            peer.objects.close()
