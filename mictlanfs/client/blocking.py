"""The client library for scripts that are not asynchronous.

Each call runs an event loop of its own, connects, does its work and closes: simple, at the cost of
a few milliseconds a call. A program that makes many calls uses `mictlanfs.client.space`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import trio

from mictlanfs import uri as uris
from mictlanfs import wire
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.client.space import Listing, SpaceClient, open_space
from mictlanfs.model import Attributes, BucketPolicy, Node
from mictlanfs.protection import Protection

T = TypeVar("T")


class BlockingSpace:
    """The verbs of `SpaceClient`, each returning when it is done. See there for what they raise.

    Raises:
        UsageError: `uri` is wrong.
    """

    def __init__(
        self, uri: str, *, label: str = "script", retry: RetryPolicy | None = None
    ) -> None:
        uris.parse_routers(uri)
        self._uri = uri
        self._label = label
        self._retry = retry

    def put(
        self,
        source: Path | BinaryIO,
        bucket: str | bytes,
        path: str | bytes,
        *,
        keep_times: bool = False,
    ) -> Attributes:
        """Store a local file or a stream as an object."""
        return self._run(lambda space: space.put(source, bucket, path, keep_times=keep_times))

    def get(
        self, bucket: str | bytes, path: str | bytes, destination: Path | BinaryIO
    ) -> Attributes:
        """Fetch an object into a local file or a stream."""
        return self._run(lambda space: space.get(bucket, path, destination))

    def list(self, path: str | bytes = "") -> list[Listing]:
        """What is in a directory."""
        return self._run(lambda space: space.list(path))

    def stat(self, path: str | bytes) -> Node:
        """What a path names."""
        return self._run(lambda space: space.stat(path))

    def exists(self, path: str | bytes) -> bool:
        """Whether a path names anything."""
        return self._run(lambda space: space.exists(path))

    def remove(self, path: str | bytes, *, recursive: bool = False) -> None:
        """Remove a file or directory."""
        self._run(lambda space: space.remove(path, recursive=recursive))

    def make_bucket(self, name: str | bytes, policy: BucketPolicy | None = None) -> None:
        """Make a bucket."""
        self._run(lambda space: space.make_bucket(name, policy))

    def set_bucket_policy(
        self,
        name: str | bytes,
        *,
        replicas: int | None = None,
        replicas_min: int | None = None,
        chunk_size: int | None = None,
        quota: int | None = None,
        protection: Protection | None = None,
        trash_days: int | None = None,
    ) -> BucketPolicy:
        """Change what is given of how a bucket keeps its new data."""
        return self._run(
            lambda space: space.set_bucket_policy(
                name,
                replicas=replicas,
                replicas_min=replicas_min,
                chunk_size=chunk_size,
                quota=quota,
                protection=protection,
                trash_days=trash_days,
            )
        )

    def remove_bucket(self, name: str | bytes, *, recursive: bool = False) -> None:
        """Remove a bucket."""
        self._run(lambda space: space.remove_bucket(name, recursive=recursive))

    def buckets(self) -> tuple[wire.BucketInfo, ...]:
        """All buckets."""
        return self._run(lambda space: space.buckets())

    def status(self) -> wire.SpaceStatus:
        """The state of the space."""
        return self._run(lambda space: space.status())

    def _run(self, verb: Callable[[SpaceClient], Awaitable[T]]) -> T:
        async def main() -> T:
            async with open_space(self._uri, label=self._label, retry=self._retry) as space:
                return await verb(space)

        return trio.run(main)
