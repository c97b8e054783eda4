"""The requests that router and peer answer alike: bytes in, bytes out, single records.

Reads what a request says and puts answers together; what it means is for `objects`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from mictlanfs.model import MIB, Buffer
from mictlanfs.v4 import tags as v4tags
from mictlanfs.v4.names import combined_key
from mictlanfs_server.v4.catalog import File, Target
from mictlanfs_server.v4.failures import DoorError, missing
from mictlanfs_server.v4.models import (
    BallSize,
    GetMetadataAnswer,
    Metadata,
    PutMetadata,
    UpdateMetadata,
)
from mictlanfs_server.v4.web import (
    Download,
    Parameter,
    boolean,
    integer,
    json_answer,
    json_body,
    no_answer,
    note,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from mictlanfs_server.v4.caching.base import Cache
    from mictlanfs_server.v4.objects import Door
    from mictlanfs_server.v4.storing import Stored
    from mictlanfs_server.v4.tasks import Task

# A value is held in memory whole before it is cached.
CACHED_SIZE_BYTES_MAX: Final = 32 * MIB
PAGE_PARAMETERS: Final = (
    Parameter("start", "query", "integer", "number of the first record, from 0"),
    Parameter("end", "query", "integer", "number behind the last; 0 or less: all"),
)
READ_PARAMETERS: Final = (
    Parameter("content_type", "query", "string", "the Content-Type to answer with"),
    Parameter("filename", "query", "string", "the name to save the bytes as"),
    Parameter("attachment", "query", "boolean", "whether a browser is to save the bytes"),
    Parameter("Force-Get", "header", "integer", "1: past the cache"),
    Parameter("Chunk-Size", "header", "string", "accepted, without effect"),
    Parameter("Peer-Id", "header", "string", "accepted, without effect"),
    Parameter("Range", "header", "string", "one range of bytes, as in RFC 9110"),
)


class Endpoints:
    """What both servers have.

    Args:
        door: the verbs.
        server_id: the router or peer that answers.
        cache: of whole records.
    """

    def __init__(self, door: Door, server_id: str, cache: Cache) -> None:
        self.door = door
        self.server_id = server_id
        self.cache = cache

    # --- putting ---------------------------------------------------------------------------------

    async def announced(self, request: Request) -> Task:
        """The task of a first step of a put."""
        body = await json_body(request, PutMetadata)
        headers = request.headers
        task = await self.door.announce(
            request.path_params["bucket_id"],
            body,
            task_id=headers.get("task-id", "") if self.adopts_tasks else "",
            is_update=headers.get("update", "0").strip() == "1",
        )
        note(request, key=task.key, size=body.size, task_id=task.id, replicas=task.peers)
        return task

    adopts_tasks = False

    async def put(
        self, request: Request, source: AsyncGenerator[Buffer, None], *, is_cached: bool
    ) -> tuple[Task, Stored]:
        """Store the bytes of a task; with `is_cached` they are in the cache afterwards."""
        task = self.door.tasks.take(request.path_params["task_id"])
        announced = task.announced
        kept: list[Buffer] | None = (
            [] if is_cached and announced.size <= CACHED_SIZE_BYTES_MAX else None
        )

        async def teed() -> AsyncGenerator[Buffer, None]:
            async for piece in source:
                if kept is not None:
                    kept.append(piece)
                yield piece

        async with aclosing(source), aclosing(teed()) as pieces:
            stored = await self.door.put(task, pieces)
        name = combined_key(task.bucket, task.key)
        if kept is None:
            self.cache.remove(name)
        else:
            self.cache.put(name, stored.checksum, b"".join(kept))
        peers = self.holders_of(task, stored)
        note(request, bucket_id=task.bucket, key=task.key, size=stored.size, replicas=peers)
        return task, stored

    def holders_of(self, task: Task, stored: Stored) -> list[str]:
        """Ids of the peers that took the bytes; of those that would have, when none had to."""
        return self.door.peers.ids_of(stored.peer_numbers()) or list(task.peers)

    # --- reading ---------------------------------------------------------------------------------

    async def get_metadata(self, request: Request) -> Response:
        """GET …/metadata/{key}."""
        started_s = time.perf_counter()
        bucket_id, key = names_in(request)
        target = await self.door.metadata(bucket_id, key)
        holder = await self._one_holder(target)
        metadata = Metadata.of(target.file.bucket.name, target.piece)
        return json_answer(
            GetMetadataAnswer(milliseconds_since(started_s), holder, holder, metadata)
        )

    async def _one_holder(self, target: Target) -> str:
        replicas = await self.door.replicas(target)
        if self.server_id in replicas or not replicas:
            return self.server_id
        return replicas[0]

    async def get(self, request: Request) -> Response:
        """GET and HEAD …/{key}: the bytes of a record."""
        bucket_id, key = names_in(request)
        is_forced = integer(request.headers.get("force-get"), 0, ("header", "force-get")) == 1
        target = await self.door.catalog.find(bucket_id, key)
        note(request, size=target.piece.size, force=is_forced)
        return self._download(request, target, is_forced=is_forced).answer(request)

    async def merge(self, request: Request) -> Response:
        """GET …/{ball_id}/merge: the chunks of a ball, one behind the other."""
        bucket = await self.door.catalog.bucket(request.path_params["bucket_id"])
        ball_id = request.path_params["ball_id"]
        targets = await self.door.catalog.ball(bucket, ball_id)
        if (targets and targets[0].file.path == ball_id) or is_one_file(targets):
            target = Target(targets[0].file, None)
            return self._download(request, target, is_forced=True).answer(request)
        count = targets[0].piece.tags.get(v4tags.NUM_CHUNKS, "") if targets else ""
        indices = [target.piece.tags.get(v4tags.INDEX) for target in targets]
        if not count or indices != [str(index) for index in range(int(count))]:
            raise missing(f"chunks of ball {ball_id} are missing")
        # Whole, and not one file: its name is taken, or its parts are called otherwise.
        size = sum(target.piece.size for target in targets)

        async def read(start: int, end: int) -> AsyncGenerator[Buffer, None]:
            offset = 0
            for target in targets:
                first, last = max(start - offset, 0), min(end - offset, target.piece.size)
                offset += target.piece.size
                if first < last:
                    async with aclosing(self.door.read(target.file, first, last)) as pieces:
                        async for piece in pieces:
                            yield piece

        etag = "-".join(str(target.file.node.attributes.version) for target in targets)
        piece = targets[0].piece
        content_type = request.query_params.get("content_type") or piece.content_type
        name = self._attachment(request, targets[0])
        return Download(size, read, etag[:64], content_type, name).answer(request)

    def _download(self, request: Request, target: Target, *, is_forced: bool) -> Download:
        file, piece = target.file, target.piece
        attributes = file.node.attributes
        name = combined_key(file.bucket.name, piece.key)
        # The checksum of a ball of several pieces is what its client says, and may be wrong.
        is_known = bool(piece.checksum) and (target.index is not None or len(file.pieces) == 1)
        version = f"{attributes.ino}-{attributes.content_version}-{piece.index}"
        etag = piece.checksum if is_known else version
        is_cached = is_known and piece.size <= CACHED_SIZE_BYTES_MAX

        async def read(start: int, end: int) -> AsyncGenerator[Buffer, None]:
            is_all = is_cached and (start, end) == (0, piece.size)
            if is_all and not is_forced:
                held = self.cache.get(name, piece.checksum)
                if held is not None:
                    yield held
                    return
            kept: list[Buffer] = []
            async with aclosing(
                self.door.read(file, piece.offset + start, piece.offset + end)
            ) as pieces:
                async for data in pieces:
                    if is_all:
                        kept.append(data)
                    yield data
            if is_all:
                self.cache.put(name, piece.checksum, b"".join(kept))

        content_type = request.query_params.get("content_type") or piece.content_type
        return Download(piece.size, read, etag, content_type, self._attachment(request, target))

    def _attachment(self, request: Request, target: Target) -> str | None:
        query = request.query_params
        if not boolean(query.get("attachment"), default=False, where=("query", "attachment")):
            return None
        tags, piece = target.piece.tags, target.piece
        default = f"{target.file.bucket.name}_{piece.key}"
        return query.get("filename") or tags.get("fullname") or tags.get("filename") or default

    # --- changing --------------------------------------------------------------------------------

    async def disable(self, request: Request) -> Response:
        """POST …/{key}/disable."""
        await self.door.disable(*names_in(request))
        return no_answer()

    async def update(self, request: Request) -> Response:
        """POST /u/…: change what a record says."""
        bucket_id, key = names_in(request)
        await self.door.update(bucket_id, key, await json_body(request, UpdateMetadata))
        return no_answer()

    async def deleted(self, request: Request) -> tuple[int, str]:
        """Delete a record: how many copies went, and its key."""
        bucket_id, key = names_in(request)
        count, gone = await self.door.delete(bucket_id, key)
        self.forget(gone)
        note(request, n_deletes=count)
        return count, key

    async def deleted_or_gone(self, request: Request) -> tuple[int, str]:
        """As `deleted`; of a record that is not there no copy goes."""
        try:
            return await self.deleted(request)
        except DoorError as error:
            if error.status != 404:
                raise
            return 0, request.path_params["key"]

    async def deleted_ball(self, request: Request) -> tuple[int, str]:
        """Delete a ball: how many copies went, and its id."""
        ball_id = request.path_params["ball_id"]
        count, gone = await self.door.delete_ball(request.path_params["bucket_id"], ball_id)
        self.forget(gone)
        note(request, n_deletes=count)
        return count, ball_id

    def forget(self, gone: Sequence[Target]) -> None:
        """Records that are gone need no cache."""
        for target in gone:
            self.cache.remove(combined_key(target.file.bucket.name, target.piece.key))

    # --- listings --------------------------------------------------------------------------------

    async def metadatas(self, bucket_id: str) -> tuple[str, list[Metadata]]:
        """The name of a bucket and all its records."""
        bucket, targets = await self.door.listing(bucket_id)
        return bucket, [Metadata.of(bucket, target.piece) for target in targets]

    async def ball_sizes(self, request: Request, end_default: int) -> list[BallSize]:
        """Records of the space, those that `start` and `end` of the query ask for."""
        found = await self.door.records_of_space(*page_in(request, end_default))
        return [BallSize(bucket, target.piece.key, target.piece.size) for bucket, target in found]


def is_one_file(targets: Sequence[Target]) -> bool:
    """Whether records are pieces of one file, all of them."""
    files: dict[int, File] = {target.file.ino: target.file for target in targets}
    return len(files) == 1 and len(targets) == len(targets[0].file.pieces)


def page_in(request: Request, end_default: int) -> tuple[int, int]:
    """`start` and `end` of a query; end 0: all. Raises 422."""
    query = request.query_params
    start = integer(query.get("start"), 0, ("query", "start"))
    end = integer(query.get("end"), end_default, ("query", "end"))
    return max(start, 0), max(end, 0)


def names_in(request: Request) -> tuple[str, str]:
    """The bucket and the key of a path."""
    return request.path_params["bucket_id"], request.path_params["key"]


def milliseconds_since(started_s: float) -> int:
    """Milliseconds since `time.perf_counter` gave `started_s`."""
    return int((time.perf_counter() - started_s) * 1000)
