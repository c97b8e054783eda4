"""The v4 interface of a router: its table of operations, and what only routers answer.

Source: the wire interface of MictlanX v4, section 5.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from mictlanfs.client.caller import Caller
from mictlanfs.config import format_size
from mictlanfs.model import PeerInfo, PeerState
from mictlanfs.v4 import tags as v4tags
from mictlanfs.v4.names import combined_key
from mictlanfs_server.tracing import span
from mictlanfs_server.v4 import models
from mictlanfs_server.v4.caching.settings import CacheSettings, open_cache
from mictlanfs_server.v4.describing import DescribedApplication
from mictlanfs_server.v4.endpoints import (
    PAGE_PARAMETERS,
    READ_PARAMETERS,
    Endpoints,
    page_in,
)
from mictlanfs_server.v4.entry import API, HEALTH
from mictlanfs_server.v4.failures import invalid
from mictlanfs_server.v4.links import Links
from mictlanfs_server.v4.local import LocalSpace
from mictlanfs_server.v4.models import Metadata
from mictlanfs_server.v4.objects import Door, Settings
from mictlanfs_server.v4.web import (
    BYTES,
    FORM,
    Operation,
    Parameter,
    body_of,
    form_field,
    json_answer,
    json_body,
    no_answer,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from mictlanfs.clock import Clock
    from mictlanfs_server.router.handlers import RouterHandlers
    from mictlanfs_server.v4.caching.base import Cache

# Peers that somebody added and that have not registered.
EXPECTED_PEERS_MAX: Final = 1000
STATS_END_DEFAULT: Final = 100
_BUCKET: Final = API + "/buckets/{bucket_id}"
_FORCE: Final = (Parameter("Force", "header", "integer", "accepted, without effect"),)
_UPDATE: Final = (
    Parameter("Update", "header", "string", "1: replace the metadata of a stored record"),
)


@asynccontextmanager
async def open_router_door(
    handlers: RouterHandlers,
    clock: Clock,
    *,
    router_id: str,
    space_id: str,
    cache: CacheSettings,
    verifies: bool,
) -> AsyncIterator[DescribedApplication]:
    """The v4 interface over the handlers of a running router; closed on leaving.

    Args:
        handlers: of the router.
        clock: of the router.
        router_id: its name in answers.
        space_id: of the space, so that no other one shares the cache.
        cache: what is cached.
        verifies: whether bodies with another checksum than announced are refused.
    """
    async with AsyncExitStack() as stack:
        transport = Links()
        stack.push_async_callback(transport.aclose)
        held = open_cache(cache, space_id)
        stack.callback(held.close)
        settings = Settings(f"v4 door of {router_id}", Caller.of_process(), verifies)
        door = Door(settings, LocalSpace(handlers), transport, clock)
        stack.push_async_callback(door.close)
        yield DescribedApplication(RouterEndpoints(door, router_id, held).operations())


class RouterEndpoints(Endpoints):
    """The v4 interface of a router.

    Args:
        door: the verbs.
        server_id: of the router.
        cache: of whole records.
    """

    def __init__(self, door: Door, server_id: str, cache: Cache) -> None:
        super().__init__(door, server_id, cache)
        self._expected: dict[str, models.Peer] = {}

    # --- putting ---------------------------------------------------------------------------------

    async def put_metadata(self, request: Request) -> Response:
        """POST …/metadata."""
        started_s = time.perf_counter()
        task = await self.announced(request)
        service_time = time.perf_counter() - started_s
        return json_answer(
            models.PutMetadataAnswer(
                task.announced.key, service_time, [task.id], task.bucket, list(task.peers)
            )
        )

    async def put_metadata_nowhere(self, _: Request) -> Response:
        """The same with an empty bucket name, which is no 404: that would mean something else."""
        raise invalid("a bucket needs a name: nothing is left of this one")

    async def put_data(self, request: Request) -> Response:
        """POST …/data/{task_id}: a multipart form."""
        await self.put(request, form_field(request, "data"), is_cached=False)
        return no_answer(201)

    async def put_chunked(self, request: Request) -> Response:
        """POST …/data/{task_id}/chunked: raw bytes."""
        task, stored = await self.put(request, body_of(request), is_cached=True)
        return json_answer(
            models.PutChunkedAnswer(
                self.holders_of(task, stored),
                combined_key(task.bucket, task.key),
                task.bucket,
                task.key,
                stored.size,
            )
        )

    # --- reading ---------------------------------------------------------------------------------

    async def list_bucket(self, request: Request) -> Response:
        """GET …/metadata."""
        bucket, balls = await self.metadatas(request.path_params["bucket_id"])
        peers = [peer.id for peer in await self.door.available()]
        return json_answer(models.BucketMetadata(bucket, peers, peers, balls))

    async def chunks(self, request: Request) -> Response:
        """GET …/metadata/{ball_id}/chunks."""
        params = request.path_params
        bucket, targets = await self.door.ball(params["bucket_id"], params["ball_id"])
        chunks = [Metadata.of(bucket.name, target.piece) for target in targets]
        size = sum(chunk.size for chunk in chunks)
        checksum = chunks[0].tags.get(v4tags.FULL_CHECKSUM, "")
        if not checksum and len(chunks) == 1:
            checksum = chunks[0].checksum
        return json_answer(
            models.BallMetadata(
                bucket.name, chunks[0].ball_id, format_size(size), size, checksum, chunks
            )
        )

    async def sizes(self, request: Request) -> Response:
        """GET …/{key}/size."""
        params = request.path_params
        target = await self.door.catalog.find(params["bucket_id"], params["key"])
        bucket, piece = target.file.bucket.name, target.piece
        return json_answer(
            [
                models.ReplicaSize(bucket, piece.key, peer_id, piece.size)
                for peer_id in await self.door.replicas(target) or [self.server_id]
            ]
        )

    # --- deleting --------------------------------------------------------------------------------

    async def delete(self, request: Request) -> Response:
        """DELETE …/{key}."""
        return json_answer(models.DeletedKey(*await self.deleted(request)))

    async def delete_ball(self, request: Request) -> Response:
        """DELETE …/bid/{ball_id}."""
        return json_answer(models.DeletedBall(*await self.deleted_ball(request)))

    # --- peers -----------------------------------------------------------------------------------

    async def list_peers(self, _: Request) -> Response:
        """GET /peers."""
        known = await self.door.peers.refresh()
        for peer in known:
            self._expected.pop(peer.id, None)
        up = [_peer(peer) for peer in known if peer.state is not PeerState.DOWN]
        down = [_peer(peer) for peer in known if peer.state is PeerState.DOWN]
        return json_answer(models.Peers(up, [*down, *self._expected.values()]))

    async def add_peer(self, request: Request) -> Response:
        """POST /peers."""
        await self._expect([await json_body(request, models.PeerAddress)])
        return no_answer()

    async def add_peers(self, request: Request) -> Response:
        """POST /xpeers."""
        await self._expect(await json_body(request, list[models.PeerAddress]))
        return no_answer()

    async def _expect(self, addresses: list[models.PeerAddress]) -> None:
        """Take note of peers: they become part of the space when they register by themselves."""
        known = {peer.id for peer in await self.door.peers.refresh()}
        for address in addresses:
            if not address.peer_id or not 0 < address.port < 65536:
                raise invalid("a peer has an id and a port from 1 to 65535")
            if address.peer_id in known:
                continue
            if len(self._expected) >= EXPECTED_PEERS_MAX:
                raise invalid(f"at most {EXPECTED_PEERS_MAX} peers are waited for")
            self._expected[address.peer_id] = models.Peer(
                address.peer_id, address.hostname, address.port, address.protocol
            )

    async def remove_peer(self, request: Request) -> Response:
        """DELETE /peers/{peer_id}."""
        self._expected.pop(request.path_params["peer_id"], None)
        return no_answer()

    async def remove_peers(self, request: Request) -> Response:
        """DELETE /xpeers."""
        for peer_id in await json_body(request, list[str]):
            self._expected.pop(peer_id, None)
        return no_answer()

    async def peer_stats(self, request: Request) -> Response:
        """GET /peers/stats."""
        start, end = page_in(request, STATS_END_DEFAULT)
        with span("peer.stats") as traced:
            stats = await self._peer_stats(start, end)
            if traced is not None:
                traced.set_attributes({"peer.stats.start": start, "peer.stats.end": end})
                traced.add_event("peers.stats.completed", {"peers.count": len(stats)})
        return json_answer(stats)

    async def _peer_stats(self, start: int, end: int) -> dict[str, models.PeerStats]:
        known = await self.door.peers.refresh()
        held: dict[str, list[models.BallSize]] = {}
        for bucket, target in await self.door.records_of_space(start, end, with_extents=True):
            ball = models.BallSize(bucket, target.piece.key, target.piece.size)
            for peer_id in await self.door.holders(target, is_listed=True):
                held.setdefault(peer_id, []).append(ball)
        ids = [peer.id for peer in known]
        return {peer.id: stats_of(peer, held.get(peer.id, []), ids) for peer in known}

    # --- cache, tasks, health --------------------------------------------------------------------

    async def cache_keys(self, _: Request) -> Response:
        """GET /cache."""
        return json_answer(models.CacheKeys(self.cache.keys()))

    async def cache_stats(self, _: Request) -> Response:
        """GET /cache/stats."""
        stats = self.cache.stats()
        return json_answer(
            models.CacheStatistics(stats.total, stats.used, stats.available, stats.uf)
        )

    async def reset_cache(self, _: Request) -> Response:
        """DELETE /cache/reset."""
        self.cache.clear()
        return no_answer()

    async def list_tasks(self, _: Request) -> Response:
        """GET /tasks."""
        return json_answer(
            [
                models.TaskInfo(
                    *(task.id, task.id, "PUT", task.bucket, task.key, list(task.peers)),
                    *(task.announced.size, task.announced.content_type),
                )
                for task in self.door.tasks.all()
            ]
        )

    async def drop_tasks(self, _: Request) -> Response:
        """DELETE /tasks."""
        self.door.tasks.clear()
        return no_answer()

    async def health(self, _: Request) -> Response:
        """GET /health."""
        return json_answer(models.Health())

    # --- the table -------------------------------------------------------------------------------

    def operations(self) -> list[Operation]:
        """All of it, in the order in which paths are tried: the names of keys depend on it."""
        return [
            *self._puts(),
            *self._gets(),
            Operation(
                *("DELETE", _BUCKET + "/bid/{ball_id:key}", self.delete_ball),
                *("Delete a ball", 200, models.DeletedBall),
                parameters=_FORCE,
                event="DELETED.BY.BALL_ID",
            ),
            Operation(
                *("DELETE", _BUCKET + "/{key:key}", self.delete),
                *("Delete a record", 200, models.DeletedKey),
                parameters=_FORCE,
                event="DELETED.BY.KEY",
            ),
            *self._administration(),
        ]

    def _puts(self) -> list[Operation]:
        data = API + "/buckets/data/{task_id}"
        return [
            Operation(
                *("POST", API + "/buckets//metadata", self.put_metadata_nowhere, "No bucket"),
                is_described=False,
            ),
            Operation(
                *("POST", _BUCKET + "/metadata", self.put_metadata),
                *("Announce a chunk", 200, models.PutMetadataAnswer),
                takes=models.PutMetadata,
                parameters=_UPDATE,
                event="PUT.METADATA",
            ),
            Operation(
                *("POST", data, self.put_data, "Send the bytes of a chunk as a form", 201),
                takes=FORM,
                event="PUT.DATA",
            ),
            Operation(
                *("POST", data + "/chunked", self.put_chunked, "Send the bytes of a chunk"),
                *(200, models.PutChunkedAnswer, BYTES),
                event="PUT.DATA",
            ),
            Operation(
                *("POST", data + "/chunkedv1", self.put_chunked, "As `chunked`"),
                *(200, models.PutChunkedAnswer, BYTES),
                is_described=False,
                event="PUT.DATA",
            ),
            Operation(
                *("POST", _BUCKET + "/{key:key}/disable", self.disable),
                *("Mark a record as disabled", 204),
                event="DISABLE.COMPLETED",
            ),
            Operation(
                *("POST", API + "/u/buckets/{bucket_id}/{key:key}", self.update),
                *("Change the metadata of a record", 204),
                takes=models.UpdateMetadata,
            ),
        ]

    def _gets(self) -> list[Operation]:
        metadata = _BUCKET + "/metadata"
        return [
            Operation(
                *("GET", metadata, self.list_bucket, "List a bucket", 200, models.BucketMetadata),
                event="GET.BUCKET.METADATA",
            ),
            Operation(
                *("GET", _BUCKET + "/{key}/size", self.sizes, "The size of each replica", 200),
                list[models.ReplicaSize],
            ),
            Operation(
                *("GET", metadata + "/{ball_id:key}/chunks", self.chunks),
                *("The chunks of a ball", 200, models.BallMetadata),
                event="GET.METADATA.CHUNKS",
            ),
            Operation(
                *("GET", metadata + "/{key:key}", self.get_metadata),
                *("The metadata of a record", 200, models.GetMetadataAnswer),
                event="GET.METADATA",
            ),
            Operation(
                *("GET", _BUCKET + "/{ball_id:key}/merge", self.merge, "The bytes of a ball"),
                gives_bytes=True,
                parameters=READ_PARAMETERS,
                event="GET.DATA",
            ),
            Operation(
                *("GET", _BUCKET + "/{key:key}/size", self.sizes, "As `{key}/size`"),
                is_described=False,
            ),
            Operation(
                *("GET", _BUCKET + "/{key:key}", self.get, "The bytes of a record"),
                gives_bytes=True,
                parameters=READ_PARAMETERS,
                event="GET.DATA",
            ),
        ]

    def _administration(self) -> list[Operation]:
        peers, xpeers, cache, tasks = (API + p for p in ("/peers", "/xpeers", "/cache", "/tasks"))
        return [
            Operation("GET", peers, self.list_peers, "The peers", 200, models.Peers, tag="peers"),
            Operation(
                *("POST", peers, self.add_peer, "Expect a peer", 204, None, models.PeerAddress),
                tag="peers",
                event="PEER.ADDED",
            ),
            Operation(
                *("POST", xpeers, self.add_peers, "Expect peers", 204, None),
                list[models.PeerAddress],
                tag="peers",
                event="PEERS.ADDED",
            ),
            Operation(
                *("DELETE", xpeers, self.remove_peers, "Expect peers no more", 204, None),
                list[str],
                tag="peers",
                event="LEAVE.PEER",
            ),
            Operation(
                *("GET", peers + "/stats", self.peer_stats, "The use of each peer", 200),
                dict[str, models.PeerStats],
                parameters=PAGE_PARAMETERS,
                tag="peers",
                event="PEER.STATS",
            ),
            Operation(
                *("DELETE", peers + "/{peer_id}", self.remove_peer, "Expect a peer no more", 204),
                tag="peers",
                event="LEAVE.PEER",
            ),
            Operation(
                *("GET", cache, self.cache_keys, "What is cached", 200, models.CacheKeys),
                tag="cache",
            ),
            Operation(
                *("GET", cache + "/stats", self.cache_stats, "The use of the cache", 200),
                models.CacheStatistics,
                tag="cache",
            ),
            Operation(
                *("DELETE", cache + "/reset", self.reset_cache, "Empty the cache", 204),
                tag="cache",
            ),
            Operation(
                *("GET", tasks, self.list_tasks, "Chunks that are announced", 200),
                list[models.TaskInfo],
                tag="tasks",
            ),
            Operation(
                *("DELETE", tasks, self.drop_tasks, "Expect no announced chunk", 204),
                tag="tasks",
            ),
            Operation(
                *("GET", HEALTH, self.health, "Whether the router serves", 200, models.Health),
                tag="health",
            ),
        ]


def _peer(peer: PeerInfo) -> models.Peer:
    where = urlsplit(peer.url)
    return models.Peer(peer.id, where.hostname or "", where.port or 0, where.scheme)


def stats_of(peer: PeerInfo, balls: list[models.BallSize], peer_ids: list[str]) -> models.PeerStats:
    """The use of a peer; `balls` are those that it holds, `peer_ids` all there are."""
    others = [peer_id for peer_id in peer_ids if peer_id != peer.id]
    share = peer.used / peer.capacity if peer.capacity else 0.0
    free = max(0, peer.capacity - peer.used)
    return models.PeerStats(peer.id, peer.used, peer.capacity, free, share, balls, others)
