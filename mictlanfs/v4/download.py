"""Getting a ball: its chunks in parallel, each checked, and the whole again.

A chunk of the wrong size or checksum is asked for again, past the caches of routers and from
another router when there is one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from mictlanfs.client.newfile import NewFile
from mictlanfs.client.pipeline import Budget, in_order
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB, Buffer
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs.v4 import tags
from mictlanfs.v4.balls import Ball
from mictlanfs.v4.digests import Hasher, new_hasher, sha256_of, update_hasher
from mictlanfs.v4.models import Metadata
from mictlanfs.v4.names import combined_key
from mictlanfs.v4.router import AsyncRouter
from mictlanfs.v4.routerpool import RouterPool

# Of each get: bounds its memory besides the result.
IN_FLIGHT_SIZE_BYTES_MAX = 64 * MIB
# Larger chunks go to a file in pieces, one chunk at a time.
WHOLE_SIZE_BYTES_MAX = 16 * MIB
# Routers of the public code ask one peer for the bytes, and another one the next time.
_OTHER_COPY_KINDS = (Kind.CORRUPT, Kind.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A record that was got, and checked."""

    metadata: Metadata
    data: Buffer


class Downloader:
    """Gets balls and single records, any number at once."""

    def __init__(self, pool: RouterPool) -> None:
        self._pool = pool

    async def fetch(self, bucket_id: str, record: Metadata) -> Buffer:
        """The bytes of one record.

        Raises:
            MictlanError: CORRUPT when no copy that could be had matches its metadata; NOT_FOUND.
        """

        async def attempt(router: AsyncRouter, number: int) -> Buffer:
            data = await router.get(bucket_id, record.key, size=record.size, is_forced=number > 0)
            _check_chunk(bucket_id, record, len(data), await _checksum_of(record, data))
            return data

        return await self._pool.call(attempt, also=_OTHER_COPY_KINDS)

    async def get(self, ball: Ball, concurrency_max: int) -> memoryview:
        """All bytes of a ball, in memory and read-only.

        Raises:
            MictlanError: CORRUPT, also when the whole does not match its checksum; NOT_FOUND when
                the ball is not complete; UNSUPPORTED when it went through filters.
        """
        check_readable(ball)
        if len(ball.chunks) == 1:
            data = await self.fetch(ball.bucket_id, ball.chunks[0])
            await self._check_whole(ball, data)
            return memoryview(data).toreadonly()
        whole = bytearray()

        async def keep(_: Metadata, data: Buffer) -> None:
            whole.extend(data)

        await in_order(
            _each(ball.chunks),
            lambda record: self.fetch(ball.bucket_id, record),
            keep,
            size_of=lambda record: record.size,
            budget=Budget(IN_FLIGHT_SIZE_BYTES_MAX, concurrency_max),
        )
        await self._check_whole(ball, whole)
        return memoryview(whole).toreadonly()

    async def _check_whole(self, ball: Ball, data: Buffer) -> None:
        if len(ball.chunks) == 1 and ball.checksum == ball.chunks[0].checksum:
            return
        if ball.checksum and await sha256_of(data) != ball.checksum.lower():
            raise _broken_whole(ball)

    @asynccontextmanager
    async def chunks(self, ball: Ball, concurrency_max: int) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The chunks in order, each checked, while further ones are on their way.

        Leaving the block early cancels what is on its way. Errors leave it as they are, without an
        exception group.
        """
        send, receive = trio.open_memory_channel[Chunk](0)

        async def hand_on(record: Metadata, data: Buffer) -> None:
            await send.send(Chunk(record, data))

        async def run() -> None:
            # Closed without a checkpoint: who reads to the end cancels this task, and an error that
            # is on its way out would be lost in the cancellation.
            with send:
                await in_order(
                    _each(ball.chunks),
                    lambda record: self.fetch(ball.bucket_id, record),
                    hand_on,
                    size_of=lambda record: record.size,
                    budget=Budget(IN_FLIGHT_SIZE_BYTES_MAX, concurrency_max),
                )

        with raising_single_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                yield receive
                nursery.cancel_scope.cancel()

    async def get_to_file(self, ball: Ball, path: Path, concurrency_max: int) -> None:
        """Write all bytes of a ball to a file, which appears, or is replaced, when they match.

        Cancellation and errors: no file is left, and one that was there stays.

        Raises:
            MictlanError: as `get`; also when the file cannot be written.
        """
        check_readable(ball)
        file = NewFile(path)
        hasher = new_hasher()
        size = 0

        async def fetch(record: Metadata) -> Buffer | None:
            if record.size > WHOLE_SIZE_BYTES_MAX:
                return None
            return await self.fetch(ball.bucket_id, record)

        async def write(record: Metadata, data: Buffer | None) -> None:
            nonlocal size, hasher
            if data is None:
                hasher = await self._stream(ball.bucket_id, record, file, size, hasher)
            else:
                await file.write(size, data)
                await update_hasher(hasher, data)
            size += record.size

        try:
            await in_order(
                _each(ball.chunks),
                fetch,
                write,
                # What is streamed takes no memory.
                size_of=lambda record: min(record.size, WHOLE_SIZE_BYTES_MAX),
                budget=Budget(IN_FLIGHT_SIZE_BYTES_MAX, concurrency_max),
            )
            if ball.checksum and hasher.hexdigest() != ball.checksum.lower():
                raise _broken_whole(ball)
            file.appear()
        finally:
            file.abandon()

    async def _stream(
        self,
        bucket_id: str,
        record: Metadata,
        file: NewFile,
        offset: int,
        whole: Hasher,
    ) -> Hasher:
        """Write a large record at `offset`; gives the hasher of the whole, with its bytes."""

        async def attempt(router: AsyncRouter, number: int) -> Hasher:
            so_far, chunk, size = whole.copy(), new_hasher(), 0
            async with router.get_streaming(
                bucket_id, record.key, is_forced=number > 0
            ) as download:
                async for piece in download.pieces:
                    # Nothing behind it may be overwritten, and a server may send for ever.
                    if size + len(piece) > record.size:
                        _check_chunk(bucket_id, record, size + len(piece), None)
                    await file.write(offset + size, piece)
                    await update_hasher(so_far, piece)
                    await update_hasher(chunk, piece)
                    size += len(piece)
            _check_chunk(bucket_id, record, size, chunk.hexdigest())
            return so_far

        return await self._pool.call(attempt, also=_OTHER_COPY_KINDS)


def check_readable(ball: Ball) -> None:
    """Refuse a ball whose bytes would not be those that were put.

    Raises:
        MictlanError: NOT_FOUND when chunks are missing; UNSUPPORTED when it went through filters,
            or when nothing says how its records belong together.
    """
    ball.check_complete("get")
    target = combined_key(ball.bucket_id, ball.ball_id)
    if filters := ball.tags.get(tags.FILTERS):
        detail = f"its bytes went through {filters}, which this client cannot undo"
        raise MictlanError(Kind.UNSUPPORTED, "get", target, detail)
    if len(ball.chunks) > 1 and tags.decimal_tag(ball.tags, tags.INDEX) is None:
        detail = "its records do not say how they belong together; each can be got by its key"
        raise MictlanError(Kind.UNSUPPORTED, "get", target, detail)


async def _checksum_of(record: Metadata, data: Buffer) -> str | None:
    """None when the record says nothing to compare it with."""
    return await sha256_of(data) if record.checksum else None


def _check_chunk(bucket_id: str, record: Metadata, size: int, checksum: str | None) -> None:
    target = combined_key(bucket_id, record.key)
    if size != record.size:
        detail = f"{size} bytes came, and its metadata says {record.size}"
        raise MictlanError(Kind.CORRUPT, "get", target, detail)
    if checksum is not None and record.checksum and checksum != record.checksum.lower():
        detail = f"its bytes do not match their checksum {record.checksum}"
        raise MictlanError(Kind.CORRUPT, "get", target, detail)


def _broken_whole(ball: Ball) -> MictlanError:
    target = combined_key(ball.bucket_id, ball.ball_id)
    detail = f"all chunks are as they were put, and together do not match {ball.checksum}"
    return MictlanError(Kind.CORRUPT, "get", target, detail)


async def _each(records: Sequence[Metadata]) -> AsyncGenerator[Metadata, None]:
    for record in records:
        yield record
