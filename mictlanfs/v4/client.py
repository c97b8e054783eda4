"""A space of the v4 API as a program sees it: the verbs of the public client, with exceptions.

Owns the wiring of routers, cache, puts and gets, and the rule for names. Works with the routers of
MictlanFS and with those of MictlanX: it asks nothing that only ours can answer.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import trio

from mictlanfs import uri as uris
from mictlanfs.client.pipeline import for_each
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.client.transport import HttpTransport
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_token
from mictlanfs.model import Buffer
from mictlanfs.sizes import parse_decimal_size
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs.v4 import names, tags
from mictlanfs.v4.balls import Ball, ball_of, balls_in
from mictlanfs.v4.cache import BallCache, EvictionPolicy
from mictlanfs.v4.digests import sha256_of
from mictlanfs.v4.download import Chunk, Downloader, check_readable
from mictlanfs.v4.endpoint import TIMEOUT_S
from mictlanfs.v4.files import check_same, file_name
from mictlanfs.v4.models import CONTENT_TYPE_DEFAULT, Metadata
from mictlanfs.v4.router import AsyncRouter
from mictlanfs.v4.routerpool import RouterPool
from mictlanfs.v4.upload import PutOptions, Uploader
from mictlanfs.v4.values import MemoryValue, Pieces, Value, open_file, open_pieces

CHUNK_SIZE_DEFAULT = "1MiB"
CACHE_SIZE_DEFAULT = "1GB"
# Chunks of one ball under way at once, as many as the public client has.
CONCURRENCY_DEFAULT = 10

NameRule = Literal["stripped", "exact"]


@dataclass(frozen=True, slots=True)
class GetResult:
    """A ball that was got.

    Attributes:
        data: its bytes, read-only. Views of the same memory may be in the cache.
        metadatas: of its chunks, in order.
    """

    data: memoryview
    metadatas: tuple[Metadata, ...]


class AsyncClient:
    """The verbs, for trio. Leaving the `async with` block closes the connections.

    Any number of tasks may use one client. Every verb raises `MictlanError`: UNAVAILABLE or
    TIMED_OUT when no router could do it before the deadline of `retry`, NOT_FOUND, EXISTS, CORRUPT
    when bytes do not match their checksums, INVALID.

    Args:
        uri: names the routers: `mictlanx://router-0@127.0.0.1:60666/?protocol=http`.
        client_id: the producer of what is put; by default a random one.
        names: "stripped" sends the names of buckets and balls as the public client does, without
            other characters than letters, digits, `-` and `_`; "exact" as they are, for routers
            that keep them.
        retry: how long, and how often, a request is tried again.
        cache_size: bytes of balls kept in memory, or text such as "1GB".
        eviction_policy: what goes first when there is no room: "LRU" or "LFU".
        use_cache: whether `get` looks into the cache when it is not told.
        max_concurrency: chunks of one ball under way at once.
        verify: for https: False trusts any certificate, a context says which ones.
        timeout_s: how long a router may be silent.
        transport: by default one of its own.

    Raises:
        UsageError: `uri` is wrong.
    """

    def __init__(
        self,
        uri: str,
        *,
        client_id: str | None = None,
        names: NameRule = "stripped",
        retry: RetryPolicy | None = None,
        cache_size: int | str = CACHE_SIZE_DEFAULT,
        eviction_policy: EvictionPolicy = "LRU",
        use_cache: bool = False,
        max_concurrency: int = CONCURRENCY_DEFAULT,
        verify: bool | ssl.SSLContext = True,
        timeout_s: float = TIMEOUT_S,
        transport: HttpTransport | None = None,
    ) -> None:
        if names not in ("stripped", "exact"):
            raise MictlanError(Kind.INVALID, detail=f"names {names!r} is not stripped or exact")
        if max_concurrency < 1:
            raise MictlanError(Kind.INVALID, detail="max_concurrency is below 1")
        addresses = uris.parse_routers(uri)
        self.client_id = client_id or f"mictlanfs-{new_token()[:12]}"
        self._is_exact = names == "exact"
        self._use_cache = use_cache
        self._concurrency_max = max_concurrency
        self._cache = BallCache(_size(cache_size), eviction_policy)
        self._is_owner = transport is None
        self._transport = transport or HttpTransport(verify=verify)
        self.pool = RouterPool(
            [
                AsyncRouter(address, transport=self._transport, timeout_s=timeout_s)
                for address in addresses
            ],
            retry or RetryPolicy(),
        )
        self._uploader = Uploader(self.pool, self.client_id)
        self._downloader = Downloader(self.pool)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._is_owner:
            with trio.CancelScope(shield=True):
                await self._transport.aclose()

    # --- putting ---------------------------------------------------------------------------------

    async def put(
        self,
        bucket_id: str,
        ball_id: str,
        value: Buffer,
        *,
        chunk_size: int | str = CHUNK_SIZE_DEFAULT,
        rf: int = 1,
        tags: Mapping[str, str] | None = None,
        content_type: str = CONTENT_TYPE_DEFAULT,
        replace: bool = False,
    ) -> Ball:
        """Put bytes as a ball, which may be empty; returns when all of it is stored.

        Args:
            bucket_id: the bucket; it is there as soon as something is in it.
            ball_id: the name of the ball.
            value: its bytes, which must not change meanwhile.
            chunk_size: of all chunks but the last; `256kb` is decimal, `1MiB` binary.
            rf: how many peers are to hold each chunk.
            tags: of your own, texts to texts, for every chunk. They cannot replace ours.
            content_type: of the chunks.
            replace: delete first what has that name. Without it that is an error. Readers see
                nothing in between, and the old bytes are gone when the put then fails.

        Cancellation and errors: the chunks put so far are deleted, as far as that is possible.

        Raises:
            MictlanError: EXISTS when there is a ball of that name.
        """
        options = PutOptions(rf, content_type, tags or {}, self._concurrency_max)
        value_cut = MemoryValue(value, _chunk_size(chunk_size))
        return await self._put(bucket_id, ball_id, value_cut, options, replace=replace)

    async def put_file(
        self,
        bucket_id: str,
        ball_id: str,
        path: Path | str,
        *,
        chunk_size: int | str = CHUNK_SIZE_DEFAULT,
        rf: int = 1,
        tags: Mapping[str, str] | None = None,
        content_type: str = CONTENT_TYPE_DEFAULT,
        replace: bool = False,
    ) -> Ball:
        """Put a local file as a ball; otherwise as `put`.

        The file is read twice, in chunks, and never as a whole. A pipe is read to its end first.
        The tags `fullname` and `extension` tell its name, unless you give others.

        Raises:
            MictlanError: STALE when the file changed meanwhile; also when it cannot be read.
        """
        path = Path(path)
        options = PutOptions(
            rf, content_type, _tags_of_file(path) | dict(tags or {}), self._concurrency_max
        )
        value = await open_file(path, _chunk_size(chunk_size))
        return await self._put(bucket_id, ball_id, value, options, replace=replace)

    async def put_chunks(
        self,
        bucket_id: str,
        ball_id: str,
        chunks: Pieces,
        *,
        rf: int = 1,
        tags: Mapping[str, str] | None = None,
        content_type: str = CONTENT_TYPE_DEFAULT,
        replace: bool = False,
    ) -> Ball:
        """Put a ball that the caller has cut; otherwise as `put`.

        Args:
            bucket_id: the bucket.
            ball_id: the name of the ball.
            chunks: buffers, from any iterable or asynchronous iterable. All are taken before the
                first is sent; many bytes wait in a temporary file.
            rf: how many peers are to hold each chunk.
            tags: of your own.
            content_type: of the chunks.
            replace: delete first what has that name.
        """
        options = PutOptions(rf, content_type, tags or {}, self._concurrency_max)
        value = await open_pieces(chunks)
        return await self._put(bucket_id, ball_id, value, options, replace=replace)

    async def put_single_chunk(
        self,
        bucket_id: str,
        key: str,
        value: Buffer,
        *,
        ball_id: str | None = None,
        rf: int = 1,
        tags: Mapping[str, str] | None = None,
        content_type: str = CONTENT_TYPE_DEFAULT,
    ) -> Metadata:
        """Put one record with exactly these tags; its ball is named as itself unless told.

        Raises:
            MictlanError: EXISTS when there is a record of that name and no peer without it.
        """
        options = PutOptions(rf, content_type, tags or {})
        value = memoryview(value).cast("B")
        record = Metadata(
            key=self._name(key, "key"),
            size=len(value),
            checksum=await sha256_of(value),
            tags=dict(options.tags),
            content_type=content_type,
            producer_id=self.client_id,
            ball_id=self._name(key if ball_id is None else ball_id, "ball"),
            bucket_id=self._name(bucket_id, "bucket"),
        )
        await self._uploader.put_record(record, value, rf, set())
        return record

    async def _put(
        self, bucket_id: str, ball_id: str, value: Value, options: PutOptions, *, replace: bool
    ) -> Ball:
        try:
            bucket, ball = self._name(bucket_id, "bucket"), self._name(ball_id, "ball")
            await self._make_room(bucket, ball, replace=replace)
            return await self._uploader.put(bucket, ball, ball_id, value, options)
        finally:
            value.close()

    async def _make_room(self, bucket: str, ball: str, *, replace: bool) -> None:
        # Routers of MictlanX take a second ball of the same name as copies of the first.
        try:
            records = await self._records(bucket, ball)
        except MictlanError as error:
            if error.kind is Kind.NOT_FOUND:
                return
            raise
        if not replace:
            detail = "there is one already: delete it first, or put with replace=True"
            raise MictlanError(Kind.EXISTS, "put", names.combined_key(bucket, ball), detail)
        await self._delete(bucket, (record.key for record in records), force=True)

    # --- getting ---------------------------------------------------------------------------------

    async def get(
        self, bucket_id: str, ball_id: str, *, use_cache: bool | None = None
    ) -> GetResult:
        """All bytes of a ball, in memory. Each chunk and the whole are checked.

        With the cache the metadata is still asked for; only bytes that match it are reused.

        Raises:
            MictlanError: CORRUPT when no copy matches its checksum; NOT_FOUND when there is no
                such ball or chunks of it are missing; UNSUPPORTED when it went through filters.
        """
        ball = await self.get_metadata(bucket_id, ball_id)
        check_readable(ball)
        is_cached = self._use_cache if use_cache is None else use_cache
        data = self._cache.get(ball.bucket_id, ball.ball_id, ball.checksum) if is_cached else None
        if data is None:
            data = await self._downloader.get(ball, self._concurrency_max)
            if is_cached:
                self._cache.put(ball.bucket_id, ball.ball_id, ball.checksum, data)
        return GetResult(data, ball.chunks)

    async def get_to_file(
        self,
        bucket_id: str,
        ball_id: str,
        output_path: Path | str,
        *,
        fullname: str | None = None,
        replace: bool = False,
    ) -> Path:
        """Write a ball to a local file, which appears when all bytes are there and match.

        Args:
            bucket_id: the bucket.
            ball_id: the ball.
            output_path: the file, or a directory to put it in.
            fullname: its name in that directory; else the last part of the tag `fullname`, else
                the name of the ball, with the tag `extension` behind a dot.
            replace: the file may be there with other bytes.

        Returns:
            The path of the file. One that has these bytes already is left alone.

        Cancellation and errors: no file is left, and one that was there stays.

        Raises:
            MictlanError: as `get`; EXISTS when the file is there with other bytes.
        """
        ball = await self.get_metadata(bucket_id, ball_id)
        check_readable(ball)
        path = Path(output_path)
        if await trio.to_thread.run_sync(path.is_dir):
            path /= file_name(ball, fullname)
        if not await check_same(path, ball, replace=replace):
            await self._downloader.get_to_file(ball, path, self._concurrency_max)
        return path

    async def get_chunk(self, bucket_id: str, ball_id: str, index: int) -> Chunk:
        """Chunk number `index`, from 0, of a ball.

        Raises:
            MictlanError: NOT_FOUND; CORRUPT.
        """
        bucket, ball = self._name(bucket_id, "bucket"), self._name(ball_id, "ball")
        return await self._get_key(bucket, names.chunk_key(ball, index))

    async def get_by_key(self, bucket_id: str, key: str) -> Chunk:
        """One record by its key.

        Raises:
            MictlanError: NOT_FOUND; CORRUPT.
        """
        return await self._get_key(self._name(bucket_id, "bucket"), self._name(key, "key"))

    async def _get_key(self, bucket: str, key: str) -> Chunk:
        record = await self._metadata(bucket, key)
        return Chunk(record, await self._downloader.fetch(bucket, record))

    @asynccontextmanager
    async def get_chunks(self, bucket_id: str, ball_id: str) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The chunks of a ball in order, each checked, while further ones are on their way.

        Use it as `async with client.get_chunks("b", "a") as chunks`, then `async for chunk in
        chunks`. The whole is not checked. Leaving the block early is no error.

        Raises:
            MictlanError: as `get`, from the block as well.
        """
        ball = await self.get_metadata(bucket_id, ball_id)
        ball.check_complete("get")
        async with self._downloader.chunks(ball, self._concurrency_max) as chunks:
            yield chunks

    # --- metadata --------------------------------------------------------------------------------

    async def get_metadata(self, bucket_id: str, ball_id: str) -> Ball:
        """A ball with the metadata of all its chunks.

        Raises:
            MictlanError: NOT_FOUND.
        """
        bucket, ball = self._name(bucket_id, "bucket"), self._name(ball_id, "ball")
        return ball_of(bucket, ball, await self._records(bucket, ball))

    async def get_metadata_by_key(self, bucket_id: str, key: str) -> Metadata:
        """The metadata of one record.

        Raises:
            MictlanError: NOT_FOUND.
        """
        return await self._metadata(self._name(bucket_id, "bucket"), self._name(key, "key"))

    async def get_bucket_metadata(self, bucket_id: str) -> list[Ball]:
        """The balls of a bucket with their true sizes; none when there is no such bucket.

        Routers of MictlanX do not list empty balls.
        """
        bucket = self._name(bucket_id, "bucket")
        return balls_in(bucket, await self.get_chunks_by_bucket_id(bucket_id))

    async def get_chunks_by_bucket_id(self, bucket_id: str) -> list[Metadata]:
        """The records of a bucket as the router lists them: unordered, some perhaps twice."""
        bucket = self._name(bucket_id, "bucket")
        found = await self.pool.call(lambda router, _: router.get_bucket_metadata(bucket))
        return found.balls

    async def _records(self, bucket: str, ball: str) -> list[Metadata]:
        """The records of a ball, at least one."""
        found = await self.pool.call(lambda router, _: router.get_chunks_metadata(bucket, ball))
        if not found.chunks:
            raise MictlanError(Kind.NOT_FOUND, "get chunks", names.combined_key(bucket, ball))
        return found.chunks

    async def _metadata(self, bucket: str, key: str) -> Metadata:
        found = await self.pool.call(lambda router, _: router.get_metadata(bucket, key))
        return found.metadata

    # --- deleting --------------------------------------------------------------------------------

    async def delete(self, *, bucket_id: str, ball_id: str, force: bool = True) -> int:
        """Delete a ball with all its chunks, also one that is not complete.

        The arguments are named, since the public client has them in the other order.

        Returns:
            How many copies of chunks were deleted.

        Raises:
            MictlanError: NOT_FOUND when there is no such ball.
        """
        bucket, ball = self._name(bucket_id, "bucket"), self._name(ball_id, "ball")
        self._cache.drop(bucket, ball)
        records = await self._records(bucket, ball)
        return await self._delete(bucket, (record.key for record in records), force=force)

    async def delete_by_key(self, *, bucket_id: str, key: str, force: bool = True) -> int:
        """Delete one record; gives how many copies were deleted.

        Raises:
            MictlanError: NOT_FOUND when there is no such record.
        """
        bucket, key = self._name(bucket_id, "bucket"), self._name(key, "key")

        async def attempt(router: AsyncRouter, number: int) -> int:
            try:
                return max((await router.delete(bucket, key, force=force)).n_deletes, 0)
            except MictlanError as error:
                # The attempt before may have deleted it, and only its answer was lost.
                if error.kind is Kind.NOT_FOUND and number > 0:
                    return 0
                raise

        return await self.pool.call(attempt)

    async def delete_bucket(self, bucket_id: str, *, force: bool = True) -> int:
        """Delete everything that is listed in a bucket, and with it the bucket.

        Routers of MictlanX do not list empty balls, so these stay.

        Returns:
            How many copies of records were deleted; 0 when there is no such bucket.
        """
        bucket = self._name(bucket_id, "bucket")
        records = await self.get_chunks_by_bucket_id(bucket_id)
        for record in records:
            self._cache.drop(bucket, record.ball_id)
        return await self._delete(bucket, (record.key for record in records), force=force)

    async def _delete(self, bucket: str, keys: Iterable[str], *, force: bool) -> int:
        deleted = 0

        async def delete(key: str) -> None:
            nonlocal deleted
            try:
                answer = await self.pool.call(
                    lambda router, _: router.delete(bucket, key, force=force)
                )
            except MictlanError as error:
                # Another attempt, or somebody else, was faster.
                if error.kind is not Kind.NOT_FOUND:
                    raise
            else:
                deleted += max(answer.n_deletes, 0)

        with raising_single_errors():
            await for_each(_unique(keys), delete, tasks_max=self._concurrency_max)
        return deleted

    def _name(self, text: str, what: str) -> str:
        if self._is_exact:
            return names.exact_name(text, what)
        return names.stripped_name(text, what)


def _chunk_size(chunk_size: int | str) -> int:
    size = _size(chunk_size)
    if size < 1:
        raise MictlanError(Kind.INVALID, "put", detail="chunk_size is less than a byte")
    return size


def _size(size: int | str) -> int:
    """Bytes, from a number or a text such as `256kb`, `1MB` or `1MiB`."""
    if isinstance(size, int):
        if size < 0:
            raise MictlanError(Kind.INVALID, detail=f"a size is not negative, and {size} is")
        return size
    try:
        return parse_decimal_size(size)
    except ValueError as error:
        raise MictlanError(Kind.INVALID, detail=f"{size!r}: {error}") from error


def _tags_of_file(path: Path) -> dict[str, str]:
    found = {tags.FULLNAME: path.name, tags.EXTENSION: path.suffix.removeprefix(".")}
    return {name: text for name, text in found.items() if text and names.is_unicode(text)}


async def _unique(keys: Iterable[str]) -> AsyncGenerator[str, None]:
    for key in dict.fromkeys(keys):
        yield key
