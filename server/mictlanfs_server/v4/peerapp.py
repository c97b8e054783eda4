"""The v4 interface of a peer: its table of operations, and what only peers answer.

A peer answers for the whole space: what it does not hold it fetches from the others. What is put on
it gets its first copy on it, and appears in the space through its router.

Source: the wire interface of MictlanX v4, section 6.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from mictlanfs.client.caller import Caller
from mictlanfs.v4.names import combined_key
from mictlanfs_server.v4 import models
from mictlanfs_server.v4.caching.base import NoCache
from mictlanfs_server.v4.describing import DescribedApplication
from mictlanfs_server.v4.endpoints import (
    PAGE_PARAMETERS,
    READ_PARAMETERS,
    Endpoints,
    milliseconds_since,
    names_in,
    page_in,
)
from mictlanfs_server.v4.entry import API, HEALTH
from mictlanfs_server.v4.links import Links
from mictlanfs_server.v4.models import Metadata
from mictlanfs_server.v4.objects import Door, Settings
from mictlanfs_server.v4.remote import RemoteSpace
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

_BUCKET: Final = API + "/buckets/{bucket_id}"
N_DELETES: Final = "n-deletes"
_FORCE: Final = (Parameter("Force", "header", "integer", "accepted, without effect"),)
_STEP: Final = (
    Parameter("Task-Id", "header", "string", "what the task is to be called"),
    Parameter("Update", "header", "string", "1: replace the metadata of a stored record"),
)


@asynccontextmanager
async def open_peer_door(
    routers: Sequence[str],
    clock: Clock,
    *,
    peer_id: str,
    usage: Callable[[], tuple[int, int]],
    verifies: bool,
) -> AsyncIterator[DescribedApplication]:
    """The v4 interface of a peer, over the routers of its space; closed on leaving.

    Args:
        routers: URLs, at least one.
        clock: of the peer.
        peer_id: its id.
        usage: tells the bytes that it holds and those that it may hold.
        verifies: whether bodies with another checksum than announced are refused.
    """
    async with AsyncExitStack() as stack:
        transport = Links()
        stack.push_async_callback(transport.aclose)
        settings = Settings(
            f"v4 door of {peer_id}",
            Caller.of_process(),
            verifies,
            preferred=peer_id,
            accepts_same=True,
        )
        door = Door(settings, RemoteSpace(routers, transport), transport, clock)
        stack.push_async_callback(door.close)
        yield DescribedApplication(PeerEndpoints(door, peer_id, usage).operations())


class PeerEndpoints(Endpoints):
    """The v4 interface of a peer."""

    adopts_tasks = True

    def __init__(self, door: Door, server_id: str, usage: Callable[[], tuple[int, int]]) -> None:
        super().__init__(door, server_id, NoCache())
        self._usage = usage

    # --- putting ---------------------------------------------------------------------------------

    async def put_metadata(self, request: Request) -> Response:
        """POST …/metadata."""
        started_s = time.perf_counter()
        task = await self.announced(request)
        return json_answer(
            models.PeerPutMetadataAnswer(
                task.announced.key, milliseconds_since(started_s), task.id, self.server_id
            )
        )

    async def put_data(self, request: Request) -> Response:
        """POST …/data/{task_id}: a multipart form."""
        await self.put(request, form_field(request, "data"), is_cached=False)
        return no_answer(201)

    async def put_chunked(self, request: Request) -> Response:
        """POST …/data/{task_id}/chunked: raw bytes."""
        started_s = time.perf_counter()
        task, stored = await self.put(request, body_of(request), is_cached=False)
        took_s = time.perf_counter() - started_s
        return json_answer(
            models.PeerPutChunkedAnswer(
                self.server_id,
                combined_key(task.bucket, task.key),
                task.bucket,
                task.key,
                stored.size,
                stored.size / took_s if took_s > 0 else 0.0,
                took_s,
            )
        )

    async def replicate(self, request: Request) -> Response:
        """POST …/{key}/replicate."""
        started_s = time.perf_counter()
        target = await self.door.catalog.find(*names_in(request))
        to = await self.door.replicate(target)
        piece = target.piece
        return json_answer(
            models.Replicated(
                *(self.server_id, to, target.file.bucket.name, piece.key, piece.size),
                ok=bool(to),
                response_time=milliseconds_since(started_s),
            )
        )

    # --- reading ---------------------------------------------------------------------------------

    async def list_bucket(self, request: Request) -> Response:
        """GET …/metadata."""
        bucket, balls = await self.metadatas(request.path_params["bucket_id"])
        return json_answer(models.PeerBucketMetadata(self.server_id, bucket, balls))

    async def group(self, request: Request) -> Response:
        """GET …/metadata/{ball_id}/group, and its older form …/chunks."""
        params = request.path_params
        bucket, targets = await self.door.ball(params["bucket_id"], params["ball_id"])
        balls = [Metadata.of(bucket.name, target.piece) for target in targets]
        size = sum(ball.size for ball in balls)
        return json_answer(models.BallGroup(bucket.name, balls[0].ball_id, size, balls))

    async def size(self, request: Request) -> Response:
        """GET …/{key}/size."""
        target = await self.door.catalog.find(*names_in(request))
        bucket, piece = target.file.bucket.name, target.piece
        return json_answer(models.ReplicaSize(bucket, piece.key, self.server_id, piece.size))

    # --- deleting --------------------------------------------------------------------------------

    async def delete(self, request: Request) -> Response:
        """DELETE …/{key}: what is not there is gone already."""
        count, key = await self.deleted_or_gone(request)
        return json_answer(models.DeletedKey(count, key), headers={N_DELETES: str(count)})

    async def delete_ball(self, request: Request) -> Response:
        """DELETE …/bid/{ball_id}."""
        count, ball_id = await self.deleted_ball(request)
        return json_answer(models.DeletedBall(count, ball_id), headers={N_DELETES: str(count)})

    # --- the peer --------------------------------------------------------------------------------

    async def stats(self, request: Request) -> Response:
        """GET /stats."""
        used, total = self._usage()
        balls = await self.ball_sizes(request, 0)
        others = [p.id for p in await self.door.peers.refresh() if p.id != self.server_id]
        share = used / total if total else 0.0
        free = max(0, total - used)
        return json_answer(
            models.PeerStats(self.server_id, used, total, free, share, balls, others)
        )

    async def ufs(self, _: Request) -> Response:
        """GET /stats/ufs."""
        used, total = self._usage()
        return json_answer(models.DiskUse(total, used, used / total if total else 0.0))

    async def balls(self, request: Request) -> Response:
        """GET /xballs."""
        return json_answer(await self.ball_sizes(request, 0))

    async def sizes_of_balls(self, request: Request) -> Response:
        """GET /xballs/size."""
        balls = await self.ball_sizes(request, 0)
        return json_answer([[ball.bucket_id, ball.key, ball.size] for ball in balls])

    async def ball_count(self, _: Request) -> Response:
        """GET /balls/len."""
        return json_answer(models.BallCount(await self.door.record_count()))

    async def state(self, request: Request) -> Response:
        """GET /peers/state."""
        start, end = page_in(request, 0)
        nodes = []
        for peer in await self.door.peers.refresh():
            where = urlsplit(peer.url)
            nodes.append(models.PeerNodeState(peer.id, where.hostname or "", where.port or 0))
        balls = {}
        for bucket, target in await self.door.records_of_space(start, end, with_extents=True):
            locations = await self.door.holders(target, is_listed=True)
            piece = target.piece
            balls[combined_key(bucket, piece.key)] = models.BallLocations(locations, piece.size)
        return json_answer(models.PeerState(nodes, balls))

    async def add_node(self, request: Request) -> Response:
        """POST /nodes: peers find each other through their router; what was sent is sent back."""
        return json_answer(await json_body(request, models.PeerNode))

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
                *("POST", _BUCKET + "/metadata", self.put_metadata),
                *("Announce a chunk", 200, models.PeerPutMetadataAnswer),
                takes=models.PutMetadata,
                parameters=_STEP,
                event="PUT.METADATA",
            ),
            Operation(
                *("POST", data, self.put_data, "Send the bytes of a chunk as a form", 201),
                takes=FORM,
                event="PUT.DATA",
            ),
            Operation(
                *("POST", data + "/chunked", self.put_chunked, "Send the bytes of a chunk"),
                *(200, models.PeerPutChunkedAnswer, BYTES),
                event="PUT.DATA",
            ),
            Operation(
                *("POST", _BUCKET + "/{key:key}/disable", self.disable),
                *("Mark a record as disabled", 204),
                event="DISABLE.COMPLETED",
            ),
            Operation(
                *("POST", _BUCKET + "/{key:key}/replicate", self.replicate),
                *("Make one more copy of a record", 200, models.Replicated),
            ),
        ]

    def _gets(self) -> list[Operation]:
        metadata = _BUCKET + "/metadata"
        group = (*("The chunks of a ball", 200), models.BallGroup)
        return [
            Operation(
                *("GET", metadata, self.list_bucket, "List a bucket", 200),
                models.PeerBucketMetadata,
                event="GET.BUCKET.METADATA",
            ),
            Operation(
                *("GET", _BUCKET + "/{key}/size", self.size, "The size of a record", 200),
                models.ReplicaSize,
            ),
            Operation(
                "GET",
                metadata + "/{ball_id:key}/group",
                self.group,
                *group,
                event="GET.METADATA.CHUNKS",
            ),
            Operation(
                "GET",
                metadata + "/{ball_id:key}/chunks",
                self.group,
                *group,
                event="GET.METADATA.CHUNKS",
            ),
            Operation(
                *("GET", metadata + "/{key:key}", self.get_metadata),
                *("The metadata of a record", 200, models.GetMetadataAnswer),
                event="GET.METADATA",
            ),
            Operation(
                *("GET", _BUCKET + "/{key:key}/size", self.size, "As `{key}/size`"),
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
        def listing(path: str, handler: object, summary: str, answer: object) -> Operation:
            return Operation(
                *("GET", API + path, handler, summary, 200, answer),  # type: ignore[arg-type]
                parameters=PAGE_PARAMETERS,
                tag="peer",
            )

        return [
            listing("/stats", self.stats, "The use of this peer", models.PeerStats),
            Operation(
                *("GET", API + "/stats/ufs", self.ufs, "The use of its disk", 200),
                models.DiskUse,
                tag="peer",
            ),
            listing("/xballs", self.balls, "Records of the space", list[models.BallSize]),
            listing(
                *("/xballs/size", self.sizes_of_balls, "The same as arrays"),
                list[tuple[str, str, int]],
            ),
            Operation(
                *("GET", API + "/balls/len", self.ball_count, "How many there are", 200),
                models.BallCount,
                tag="peer",
            ),
            listing("/peers/state", self.state, "Who holds what", models.PeerState),
            Operation(
                *("POST", API + "/nodes", self.add_node, "Accepted, without effect", 200),
                models.PeerNode,
                models.PeerNode,
                tag="peer",
            ),
            Operation(
                *("DELETE", API + "/tasks", self.drop_tasks, "Expect no announced chunk", 204),
                tag="peer",
            ),
            Operation(
                *("GET", HEALTH, self.health, "Whether the peer serves", 200, models.Health),
                tag="peer",
            ),
        ]
