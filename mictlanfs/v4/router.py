"""Requests to one router of the v4 API, one method for each.

For programs that want to say exactly what goes over the wire; `AsyncClient` does more. Names are
sent as they are, percent-encoded. Nothing is retried or checked against a checksum.
"""

from __future__ import annotations

from collections.abc import Sequence

from mictlanfs.model import Buffer
from mictlanfs.uri import ServerAddress
from mictlanfs.v4 import models
from mictlanfs.v4.endpoint import JSON_HEADERS, Call, Chunks
from mictlanfs.v4.errors import refused_put
from mictlanfs.v4.models import CONTENT_TYPE_DEFAULT, decode, encode
from mictlanfs.v4.names import combined_key
from mictlanfs.v4.records import RecordServer


class AsyncRouter(RecordServer):
    """A router. All methods raise the `MictlanError` that it answers, UNAVAILABLE or TIMED_OUT.

    Cancellation of a method: the router may or may not have acted.
    """

    @classmethod
    def at(
        cls,
        ip_addr: str,
        port: int,
        *,
        router_id: str | None = None,
        protocol: str = "http",
        api_version: int = 4,
    ) -> AsyncRouter:
        """The router at an address, with connections of its own."""
        return cls(ServerAddress(router_id, ip_addr, port, protocol, api_version))

    # --- writing ---------------------------------------------------------------------------------

    async def put_metadata(
        self, metadata: models.PutMetadata, *, is_update: bool = False
    ) -> models.PutAccepted:
        """First step of a put: announce a record. The bytes go to `tasks_ids[0]`.

        Raises:
            MictlanError: EXISTS when the peers that there are have a record of this name; INVALID;
                UNAVAILABLE when no peer can take it.
        """
        call = Call(
            "put metadata",
            "POST",
            ("buckets", metadata.bucket_id, "metadata"),
            encode(metadata),
            JSON_HEADERS | {"update": "1" if is_update else "0"},
        )
        response = await self._exchange(call)
        target = combined_key(metadata.bucket_id, metadata.key)
        if not 200 <= response.status < 300:
            raise refused_put(response.status, response.body, call.operation, target)
        return decode(response.body, models.PutAccepted, call.operation, target)

    async def put_chunked(
        self, task_id: str, chunks: Chunks, *, chunk_size: str | None = None
    ) -> models.PutDone:
        """Second step of a put, as raw bytes.

        Args:
            task_id: of the first step.
            chunks: the bytes, whole or in pieces.
            chunk_size: such as `1MB`: in what pieces the router passes them on.
        """
        headers = {"content-type": CONTENT_TYPE_DEFAULT}
        if chunk_size is not None:
            headers["chunk-size"] = chunk_size
        call = Call("put data", "POST", ("buckets", "data", task_id, "chunked"), headers=headers)
        answer = await self._upload(call, chunks)
        return decode(answer, models.PutDone, call.operation, call.target)

    async def update_metadata(self, metadata: models.PutMetadata) -> None:
        """Replace the metadata of a stored record. Routers of the public code fail at it."""
        parts = ("u", "buckets", metadata.bucket_id, metadata.key)
        await self._send(Call("update metadata", "POST", parts, encode(metadata), JSON_HEADERS))

    # --- reading ---------------------------------------------------------------------------------

    async def get_chunks_metadata(self, bucket_id: str, ball_id: str) -> models.BallChunks:
        """The chunks of a ball, in no particular order, once for each copy.

        Raises:
            MictlanError: NOT_FOUND.
        """
        parts = ("buckets", bucket_id, "metadata", ball_id, "chunks")
        return await self._ask(Call("get chunks", "GET", parts), models.BallChunks)

    async def get_bucket_metadata(self, bucket_id: str) -> models.BucketListing:
        """All records of a bucket; none for one that is not there.

        Routers of the public code leave out empty records, and may repeat others.
        """
        parts = ("buckets", bucket_id, "metadata")
        return await self._ask(Call("list bucket", "GET", parts), models.BucketListing)

    async def merge(self, bucket_id: str, ball_id: str) -> Buffer:
        """The bytes of all chunks of a ball, one behind the other; at most 256 MiB.

        Raises:
            MictlanError: NOT_FOUND.
        """
        parts = ("buckets", bucket_id, ball_id, "merge")
        return await self._read(Call("merge", "GET", parts), None)

    async def get_size(self, bucket_id: str, key: str) -> list[models.RecordSize]:
        """The size of each copy of a record."""
        parts = ("buckets", bucket_id, key, "size")
        return await self._ask(Call("get size", "GET", parts), list[models.RecordSize])

    # --- deleting --------------------------------------------------------------------------------

    async def delete(self, bucket_id: str, key: str, *, force: bool = True) -> models.DeletedKey:
        """Delete a record with all its copies.

        Raises:
            MictlanError: NOT_FOUND.
        """
        headers = {"force": "1" if force else "0"}
        call = Call("delete", "DELETE", ("buckets", bucket_id, key), headers=headers)
        return await self._ask(call, models.DeletedKey)

    async def delete_by_ball_id(
        self, bucket_id: str, ball_id: str, *, force: bool = True
    ) -> models.DeletedBall:
        """Delete all chunks of a ball; none is no error."""
        headers = {"force": "1" if force else "0"}
        parts = ("buckets", bucket_id, "bid", ball_id)
        return await self._ask(
            Call("delete ball", "DELETE", parts, headers=headers), models.DeletedBall
        )

    # --- peers and the cache of the router -------------------------------------------------------

    async def get_peers(self) -> models.KnownPeers:
        """The peers that the router knows."""
        return await self._ask(Call("get peers", "GET", ("peers",)), models.KnownPeers)

    async def add_peers(self, peers: Sequence[models.PeerAddress]) -> None:
        """Make peers known to the router."""
        await self._send(Call("add peers", "POST", ("xpeers",), encode(list(peers)), JSON_HEADERS))

    async def delete_peers(self, peer_ids: Sequence[str]) -> None:
        """Make the router forget peers; one that it does not know is no error."""
        body = encode(list(peer_ids))
        await self._send(Call("delete peers", "DELETE", ("xpeers",), body, JSON_HEADERS))

    async def get_stats(self, *, start: int = 0, end: int = 100) -> dict[str, models.PeerStats]:
        """How full each peer is, by its id, with its records from number `start` to `end`."""
        query = {"start": str(start), "end": str(end)}
        call = Call("get stats", "GET", ("peers", "stats"), query=query)
        return await self._ask(call, dict[str, models.PeerStats])

    async def get_cache_keys(self) -> list[str]:
        """The combined keys in the cache; none when the router has no cache."""
        found = await self._ask(Call("get cache", "GET", ("cache",)), models.CacheKeys)
        return found.keys or []

    async def get_cache_stats(self) -> models.CacheStats:
        """How full the cache is. Routers of the public code fail at it when they have none."""
        return await self._ask(Call("get cache", "GET", ("cache", "stats")), models.CacheStats)

    async def reset_cache(self) -> None:
        """Empty the cache."""
        await self._send(Call("reset cache", "DELETE", ("cache", "reset")))
