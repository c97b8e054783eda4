"""The verbs of `AsyncClient` for programs that are not asynchronous.

One thread runs an event loop for as long as the client is open, so that connections, the cache and
what is known of the routers last from call to call. Any number of threads may use one client.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import trio

from mictlanfs import uri as uris
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer
from mictlanfs.v4.balls import Ball
from mictlanfs.v4.cache import EvictionPolicy
from mictlanfs.v4.client import (
    CACHE_SIZE_DEFAULT,
    CHUNK_SIZE_DEFAULT,
    CONCURRENCY_DEFAULT,
    AsyncClient,
    GetResult,
    NameRule,
)
from mictlanfs.v4.download import Chunk
from mictlanfs.v4.endpoint import TIMEOUT_S
from mictlanfs.v4.models import CONTENT_TYPE_DEFAULT, Metadata

T = TypeVar("T")


class Client:
    """The verbs, each returning when it is done.

    See `AsyncClient` for what they and the arguments mean, and what they raise. Close the client,
    or use it in a `with` block; a call under way then ends as UNAVAILABLE. A call that is
    interrupted by Ctrl-C may still be done.

    Raises:
        UsageError: `uri` is wrong.
        MictlanError: INVALID, another argument is wrong.
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
    ) -> None:
        uris.parse_routers(uri)
        self._client = AsyncClient(
            uri,
            client_id=client_id,
            names=names,
            retry=retry,
            cache_size=cache_size,
            eviction_policy=eviction_policy,
            use_cache=use_cache,
            max_concurrency=max_concurrency,
            verify=verify,
            timeout_s=timeout_s,
        )
        self._is_closed = False
        self._token: trio.lowlevel.TrioToken
        self._scope: trio.CancelScope
        started = threading.Event()
        # A program that ends without closing it is not held up by it.
        self._thread = threading.Thread(
            target=trio.run, args=(self._serve, started), name="mictlanfs-client", daemon=True
        )
        self._thread.start()
        started.wait()

    async def _serve(self, started: threading.Event) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with self._client:
            with trio.CancelScope() as self._scope:
                started.set()
                await trio.sleep_forever()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Calls after it, and those under way, end as UNAVAILABLE."""
        if not self._is_closed:
            self._is_closed = True
            self._token.run_sync_soon(self._scope.cancel)
            self._thread.join()

    # --- putting ---------------------------------------------------------------------------------

    def put(
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
        """Put bytes as a ball."""
        return self._run(
            lambda: self._client.put(
                bucket_id,
                ball_id,
                value,
                chunk_size=chunk_size,
                rf=rf,
                tags=tags,
                content_type=content_type,
                replace=replace,
            )
        )

    def put_file(
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
        """Put a local file as a ball."""
        return self._run(
            lambda: self._client.put_file(
                bucket_id,
                ball_id,
                path,
                chunk_size=chunk_size,
                rf=rf,
                tags=tags,
                content_type=content_type,
                replace=replace,
            )
        )

    def put_chunks(
        self,
        bucket_id: str,
        ball_id: str,
        chunks: Iterable[Buffer],
        *,
        rf: int = 1,
        tags: Mapping[str, str] | None = None,
        content_type: str = CONTENT_TYPE_DEFAULT,
        replace: bool = False,
    ) -> Ball:
        """Put a ball that the caller has cut. `chunks` is read in the thread of the client."""
        return self._run(
            lambda: self._client.put_chunks(
                bucket_id,
                ball_id,
                chunks,
                rf=rf,
                tags=tags,
                content_type=content_type,
                replace=replace,
            )
        )

    def put_single_chunk(
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
        """Put one record."""
        return self._run(
            lambda: self._client.put_single_chunk(
                bucket_id,
                key,
                value,
                ball_id=ball_id,
                rf=rf,
                tags=tags,
                content_type=content_type,
            )
        )

    # --- getting ---------------------------------------------------------------------------------

    def get(self, bucket_id: str, ball_id: str, *, use_cache: bool | None = None) -> GetResult:
        """All bytes of a ball."""
        return self._run(lambda: self._client.get(bucket_id, ball_id, use_cache=use_cache))

    def get_to_file(
        self,
        bucket_id: str,
        ball_id: str,
        output_path: Path | str,
        *,
        fullname: str | None = None,
        replace: bool = False,
    ) -> Path:
        """Write a ball to a local file."""
        return self._run(
            lambda: self._client.get_to_file(
                bucket_id, ball_id, output_path, fullname=fullname, replace=replace
            )
        )

    def get_chunk(self, bucket_id: str, ball_id: str, index: int) -> Chunk:
        """One chunk of a ball."""
        return self._run(lambda: self._client.get_chunk(bucket_id, ball_id, index))

    def get_by_key(self, bucket_id: str, key: str) -> Chunk:
        """One record."""
        return self._run(lambda: self._client.get_by_key(bucket_id, key))

    # --- metadata --------------------------------------------------------------------------------

    def get_metadata(self, bucket_id: str, ball_id: str) -> Ball:
        """A ball with the metadata of its chunks."""
        return self._run(lambda: self._client.get_metadata(bucket_id, ball_id))

    def get_metadata_by_key(self, bucket_id: str, key: str) -> Metadata:
        """The metadata of one record."""
        return self._run(lambda: self._client.get_metadata_by_key(bucket_id, key))

    def get_bucket_metadata(self, bucket_id: str) -> list[Ball]:
        """The balls of a bucket."""
        return self._run(lambda: self._client.get_bucket_metadata(bucket_id))

    def get_chunks_by_bucket_id(self, bucket_id: str) -> list[Metadata]:
        """The records of a bucket."""
        return self._run(lambda: self._client.get_chunks_by_bucket_id(bucket_id))

    # --- deleting --------------------------------------------------------------------------------

    def delete(self, *, bucket_id: str, ball_id: str, force: bool = True) -> int:
        """Delete a ball."""
        return self._run(
            lambda: self._client.delete(bucket_id=bucket_id, ball_id=ball_id, force=force)
        )

    def delete_by_key(self, *, bucket_id: str, key: str, force: bool = True) -> int:
        """Delete one record."""
        return self._run(
            lambda: self._client.delete_by_key(bucket_id=bucket_id, key=key, force=force)
        )

    def delete_bucket(self, bucket_id: str, *, force: bool = True) -> int:
        """Delete everything that is listed in a bucket."""
        return self._run(lambda: self._client.delete_bucket(bucket_id, force=force))

    def _run(self, verb: Callable[[], Awaitable[T]]) -> T:
        if self._is_closed:
            raise MictlanError(Kind.UNAVAILABLE, detail="the client is closed")
        try:
            return trio.from_thread.run(verb, trio_token=self._token)
        except (trio.Cancelled, trio.RunFinishedError) as error:
            detail = "the client was closed meanwhile"
            raise MictlanError(Kind.UNAVAILABLE, detail=detail) from error
