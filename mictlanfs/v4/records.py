"""The requests about one record that routers and peers answer alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mictlanfs.client.newfile import NewFile
from mictlanfs.model import Buffer
from mictlanfs.v4 import models
from mictlanfs.v4.endpoint import Call, Download, Endpoint, form_data
from mictlanfs.v4.models import CONTENT_TYPE_DEFAULT


class RecordServer(Endpoint):
    """A server that keeps records, or knows who does.

    Cancellation of a method: the server may or may not have acted.
    """

    async def get_metadata(self, bucket_id: str, key: str) -> models.FoundMetadata:
        """What is known of a record.

        Raises:
            MictlanError: NOT_FOUND.
        """
        parts = ("buckets", bucket_id, "metadata", key)
        return await self._ask(Call("get metadata", "GET", parts), models.FoundMetadata)

    async def get(
        self,
        bucket_id: str,
        key: str,
        *,
        size: int | None = None,
        chunk_size: str | None = None,
        peer_id: str | None = None,
        is_forced: bool = False,
    ) -> Buffer:
        """The bytes of a record, in memory. They are not checked.

        Args:
            bucket_id: of the record.
            key: of the record.
            size: as its metadata says; without it at most 256 MiB can be read.
            chunk_size: such as `1MB`: in what pieces a router passes the bytes on.
            peer_id: the peer from which a router reads.
            is_forced: not from the cache of a router.

        Raises:
            MictlanError: NOT_FOUND.
        """
        return await self._read(_data_call(bucket_id, key, chunk_size, peer_id, is_forced), size)

    @asynccontextmanager
    async def get_streaming(
        self,
        bucket_id: str,
        key: str,
        *,
        chunk_size: str | None = None,
        peer_id: str | None = None,
        is_forced: bool = False,
    ) -> AsyncIterator[Download]:
        """The bytes of a record, in pieces, inside the block; otherwise as `get`."""
        call = _data_call(bucket_id, key, chunk_size, peer_id, is_forced)
        async with self._stream(call) as download:
            yield download

    async def get_to_file(self, bucket_id: str, key: str, path: Path) -> int:
        """Write the bytes of a record to a file, which appears, or is replaced, when all are there.

        They are not checked.

        Returns:
            The number of bytes.
        """
        size = 0
        file = NewFile(path)
        try:
            async with self.get_streaming(bucket_id, key) as download:
                async for piece in download.pieces:
                    await file.write(size, piece)
                    size += len(piece)
            file.appear()
        finally:
            file.abandon()
        return size

    async def put_data(
        self, task_id: str, key: str, value: Buffer, content_type: str = CONTENT_TYPE_DEFAULT
    ) -> None:
        """Second step of a put, as a form.

        Routers of the public code answer with success even when no peer took the bytes.
        """
        headers, body = form_data(key, value, content_type)
        await self._send(Call("put data", "POST", ("buckets", "data", task_id), body, headers))

    async def disable(self, bucket_id: str, key: str) -> None:
        """Mark a record as disabled."""
        await self._send(Call("disable", "POST", ("buckets", bucket_id, key, "disable")))


def _data_call(
    bucket_id: str, key: str, chunk_size: str | None, peer_id: str | None, is_forced: bool
) -> Call:
    headers = {"accept-encoding": "identity", "force-get": "1" if is_forced else "0"}
    if chunk_size is not None:
        headers["chunk-size"] = chunk_size
    if peer_id is not None:
        headers["peer-id"] = peer_id
    return Call("get", "GET", ("buckets", bucket_id, key), headers=headers)
