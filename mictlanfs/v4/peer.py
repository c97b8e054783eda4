"""Requests to one storage peer of the v4 API, one method for each.

For direct use of a peer, without a router. Names are sent as they are, percent-encoded. Nothing is
retried or checked against a checksum.
"""

from __future__ import annotations

from typing import Any, Final

from mictlanfs.uri import ServerAddress
from mictlanfs.v4 import models
from mictlanfs.v4.endpoint import JSON_HEADERS, Call, Chunks
from mictlanfs.v4.models import CONTENT_TYPE_DEFAULT, decode, encode
from mictlanfs.v4.records import RecordServer

DELETED_UNKNOWN: Final = -1
_DELETED_HEADER: Final = "n-deletes"


class AsyncPeer(RecordServer):
    """A peer. All methods raise the `MictlanError` that it answers, UNAVAILABLE or TIMED_OUT.

    Where a method takes `start` and `end`, they number what is wanted; an `end` of 0 or less
    leaves the end to the peer.

    Cancellation of a method: the peer may or may not have acted.
    """

    @classmethod
    def at(
        cls,
        ip_addr: str,
        port: int,
        *,
        peer_id: str | None = None,
        protocol: str = "http",
        api_version: int = 4,
    ) -> AsyncPeer:
        """The peer at an address, with connections of its own."""
        return cls(ServerAddress(peer_id, ip_addr, port, protocol, api_version))

    # --- writing ---------------------------------------------------------------------------------

    async def put_metadata(
        self,
        metadata: models.PutMetadataToPeer,
        *,
        task_id: str | None = None,
        is_update: bool = False,
    ) -> models.PutAcceptedByPeer:
        """First step of a put: announce a record. The bytes go to the `task_id` of the answer.

        Args:
            metadata: of the record.
            task_id: for the peer to use; by default it makes one.
            is_update: replace the metadata of a stored record.
        """
        headers = JSON_HEADERS | {"update": "1" if is_update else "0"}
        if task_id is not None:
            headers["task-id"] = task_id
        parts = ("buckets", metadata.bucket_id, "metadata")
        call = Call("put metadata", "POST", parts, encode(metadata), headers)
        return await self._ask(call, models.PutAcceptedByPeer)

    async def put_chunked(self, task_id: str, chunks: Chunks) -> models.PutDoneByPeer:
        """Second step of a put, as raw bytes, whole or in pieces."""
        headers = {"content-type": CONTENT_TYPE_DEFAULT}
        call = Call("put data", "POST", ("buckets", "data", task_id, "chunked"), headers=headers)
        answer = await self._upload(call, chunks)
        return decode(answer, models.PutDoneByPeer, call.operation, call.target)

    async def replicate(self, bucket_id: str, key: str) -> models.Replicated:
        """Make the peer copy a record to another peer."""
        parts = ("buckets", bucket_id, key, "replicate")
        return await self._ask(Call("replicate", "POST", parts), models.Replicated)

    # --- reading ---------------------------------------------------------------------------------

    async def get_chunks_metadata(self, bucket_id: str, ball_id: str) -> models.BallChunksOfPeer:
        """The chunks of a ball that the peer holds."""
        parts = ("buckets", bucket_id, "metadata", ball_id, "group")
        return await self._ask(Call("get chunks", "GET", parts), models.BallChunksOfPeer)

    async def get_bucket_metadata(self, bucket_id: str) -> models.BucketListingOfPeer:
        """The records of a bucket that the peer holds."""
        parts = ("buckets", bucket_id, "metadata")
        return await self._ask(Call("list bucket", "GET", parts), models.BucketListingOfPeer)

    async def get_size(self, bucket_id: str, key: str) -> models.RecordSize:
        """The size of a record."""
        parts = ("buckets", bucket_id, key, "size")
        return await self._ask(Call("get size", "GET", parts), models.RecordSize)

    # --- deleting --------------------------------------------------------------------------------

    async def delete(self, bucket_id: str, key: str, *, force: bool = True) -> int:
        """Delete a record; gives how many were deleted, or `DELETED_UNKNOWN`."""
        return await self._delete("delete", ("buckets", bucket_id, key), force)

    async def delete_by_ball_id(self, bucket_id: str, ball_id: str, *, force: bool = True) -> int:
        """Delete all chunks of a ball; gives how many were deleted, or `DELETED_UNKNOWN`."""
        return await self._delete("delete ball", ("buckets", bucket_id, "bid", ball_id), force)

    async def _delete(self, operation: str, parts: tuple[str, ...], force: bool) -> int:
        headers = {"force": "1" if force else "0"}
        response = await self._send(Call(operation, "DELETE", parts, headers=headers))
        text = response.headers.get(_DELETED_HEADER, "")
        return int(text) if text.isascii() and text.isdecimal() else DELETED_UNKNOWN

    # --- the peer itself -------------------------------------------------------------------------

    async def get_stats(self, *, start: int = 0, end: int = 0) -> models.PeerStats:
        """How full the peer is, with its records from number `start`."""
        return await self._ask(self._paged("get stats", ("stats",), start, end), models.PeerStats)

    async def get_ufs(self) -> models.PeerUse:
        """How full the disk of the peer is."""
        return await self._ask(Call("get ufs", "GET", ("stats", "ufs")), models.PeerUse)

    async def get_balls(self, *, start: int = 0, end: int = 0) -> list[models.BallSize]:
        """The records of the peer."""
        call = self._paged("get balls", ("xballs",), start, end)
        return await self._ask(call, list[models.BallSize])

    async def get_all_ball_sizes(self, *, start: int = 0, end: int = 0) -> list[models.BallSize]:
        """The records of the peer, from a shorter answer."""
        call = self._paged("get ball sizes", ("xballs", "size"), start, end)
        rows = await self._ask(call, list[tuple[str, str, int]])
        return [models.BallSize(bucket_id=bucket, key=key, size=size) for bucket, key, size in rows]

    async def get_balls_len(self) -> int:
        """How many records the peer has."""
        call = Call("get balls length", "GET", ("balls", "len"))
        return (await self._ask(call, models.BallCount)).len

    async def get_state(self, *, start: int = 0, end: int = 0) -> models.PeerNetwork:
        """What the peer knows of other peers."""
        call = self._paged("get state", ("peers", "state"), start, end)
        return await self._ask(call, models.PeerNetwork)

    async def add_peer(self, node: models.Node) -> models.Node:
        """Make another peer known to this one."""
        call = Call("add peer", "POST", ("nodes",), encode(node), JSON_HEADERS)
        return await self._ask(call, models.Node)

    async def flush_tasks(self) -> None:
        """Forget puts of which only the first step was made."""
        await self._send(Call("flush tasks", "DELETE", ("tasks",)))

    def _paged(self, operation: str, parts: tuple[str, ...], start: int, end: int) -> Call:
        query: dict[str, Any] = {"start": str(start), "end": str(end) if end > 0 else None}
        return Call(operation, "GET", parts, query=query)
