"""Putting a ball: its chunks in parallel, each in two steps, all or none.

A chunk whose answer was lost is sent again. When it then turns out to be there already, its bytes
are read back: they are the ones that were sent, or it is somebody else's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from mictlanfs.client.pipeline import Budget, in_order
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB, Buffer
from mictlanfs.v4 import tags
from mictlanfs.v4.balls import Ball
from mictlanfs.v4.digests import sha256_of
from mictlanfs.v4.models import CONTENT_TYPE_DEFAULT, Metadata, PutDone, PutMetadata
from mictlanfs.v4.names import chunk_key, combined_key
from mictlanfs.v4.router import AsyncRouter
from mictlanfs.v4.routerpool import RouterPool
from mictlanfs.v4.tags import Part
from mictlanfs.v4.values import Piece, Value

# Of each put: bounds its memory, unless a single chunk is larger.
IN_FLIGHT_SIZE_BYTES_MAX = 64 * MIB
# A chunk is in memory whole, here and at servers.
CHUNK_SIZE_BYTES_MAX = 256 * MIB
CLEAN_UP_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PutOptions:
    """How a ball is put.

    Attributes:
        replication_factor: how many peers are to hold each chunk.
        tags: the user's own, on every chunk.
        concurrency_max: chunks of the ball under way at once.
    """

    replication_factor: int = 1
    content_type: str = CONTENT_TYPE_DEFAULT
    tags: Mapping[str, str] = field(default_factory=dict)
    concurrency_max: int = 10

    def __post_init__(self) -> None:
        tags.checked_tags(self.tags)
        if self.replication_factor < 1:
            raise MictlanError(Kind.INVALID, "put", detail="a chunk needs a copy, rf is below 1")
        if self.concurrency_max < 1:
            raise MictlanError(Kind.INVALID, "put", detail="max_concurrency is below 1")


class Uploader:
    """Puts balls and single records, any number at once."""

    def __init__(self, pool: RouterPool, producer_id: str) -> None:
        self._pool = pool
        self._producer_id = producer_id

    async def put(
        self, bucket_id: str, ball_id: str, group_id: str, value: Value, options: PutOptions
    ) -> Ball:
        """Put a ball that is not there yet.

        Args:
            bucket_id: where to.
            ball_id: what the keys of its chunks begin with.
            group_id: its name as the owner wrote it.
            value: its bytes.
            options: how.

        Cancellation and errors: the chunks that were put are deleted again, as far as the routers
        can be reached within some seconds.

        Raises:
            MictlanError: EXISTS when there is another record of the name of a chunk.
        """
        _check_sizes(bucket_id, ball_id, value)
        checksum = await value.checksum()
        common = dict(options.tags) | {tags.UPDATED_AT: str(time.time_ns() // 1_000_000)}
        chunk_count = len(value.sizes)
        sent: set[str] = set()
        chunks: list[Metadata] = []

        async def put_piece(piece: Piece) -> Metadata:
            chunk_tags = tags.chunk_tags(
                Part(piece.index, chunk_count),
                chunk_size=len(piece.data),
                full_checksum=checksum,
                group_id=group_id,
                extra=common,
            )
            record = Metadata(
                key=chunk_key(ball_id, piece.index),
                size=len(piece.data),
                checksum=checksum if chunk_count == 1 else await sha256_of(piece.data),
                tags=chunk_tags,
                content_type=options.content_type,
                producer_id=self._producer_id,
                ball_id=ball_id,
                bucket_id=bucket_id,
            )
            await self.put_record(record, piece.data, options.replication_factor, sent)
            return record

        async def keep(_: Piece, record: Metadata) -> None:
            chunks.append(record)

        try:
            await in_order(
                value.pieces(),
                put_piece,
                keep,
                size_of=lambda piece: len(piece.data),
                budget=Budget(IN_FLIGHT_SIZE_BYTES_MAX, options.concurrency_max),
                size_before=max(value.sizes),
            )
        except BaseException:
            await self._clean_up(bucket_id, sent)
            raise
        return Ball(bucket_id, ball_id, tuple(chunks), chunk_count, checksum)

    async def put_record(
        self, record: Metadata, data: Buffer, replication_factor: int, sent: set[str]
    ) -> None:
        """Put one record; `sent` gets its key before any server can have it from us.

        Raises:
            MictlanError: EXISTS when there is another record of its name.
        """
        announced = PutMetadata(
            bucket_id=record.bucket_id,
            key=record.key,
            ball_id=record.ball_id,
            checksum=record.checksum,
            size=record.size,
            producer_id=record.producer_id,
            tags=record.tags,
            content_type=record.content_type,
            replication_factor=replication_factor,
        )

        async def attempt(router: AsyncRouter, number: int) -> None:
            try:
                accepted = await router.put_metadata(announced)
            except MictlanError as error:
                if error.kind is Kind.EXISTS and number > 0:
                    await _check_stored(router, record)
                    return
                if number == 0 and not error.is_retryable:
                    sent.discard(record.key)
                raise
            if not accepted.tasks_ids:
                detail = "the router accepted the record and named no task"
                target = combined_key(record.bucket_id, record.key)
                raise MictlanError(Kind.PROTOCOL, "put metadata", target, detail)
            done = await _put_data(router, accepted.tasks_ids[0], data)
            if not done.peer_ids:
                # Routers of the public code say so when every peer has failed.
                await _check_stored(router, record)

        sent.add(record.key)
        await self._pool.call(attempt)

    async def _clean_up(self, bucket_id: str, keys: set[str]) -> None:
        async def delete(key: str) -> None:
            try:
                await self._pool.call(lambda router, _: router.delete(bucket_id, key))
            except MictlanError as error:
                if error.kind is not Kind.NOT_FOUND:
                    log.warning("%s: left over by a failed put: %s", key, error)

        with trio.move_on_after(CLEAN_UP_S, shield=True) as scope:
            async with trio.open_nursery() as nursery:
                for key in keys:
                    nursery.start_soon(delete, key)
        if scope.cancelled_caught:
            log.warning("%s: chunks of a failed put may be left over", bucket_id)


async def _put_data(router: AsyncRouter, task_id: str, data: Buffer) -> PutDone:
    try:
        return await router.put_chunked(task_id, data)
    except MictlanError as error:
        if error.kind is Kind.NOT_FOUND:
            # The router was started anew, or the bytes came twice: another task is needed.
            raise MictlanError(Kind.UNAVAILABLE, "put data", task_id, error.detail) from error
        raise


def _check_sizes(bucket_id: str, ball_id: str, value: Value) -> None:
    if len(value.sizes) > tags.CHUNK_COUNT_MAX or max(value.sizes) > CHUNK_SIZE_BYTES_MAX:
        detail = (
            f"a ball has at most {tags.CHUNK_COUNT_MAX} chunks of at most "
            f"{CHUNK_SIZE_BYTES_MAX} bytes: choose another chunk_size"
        )
        raise MictlanError(Kind.INVALID, "put", combined_key(bucket_id, ball_id), detail)


async def _check_stored(router: AsyncRouter, record: Metadata) -> None:
    """See whether a record that this client has sent is stored as it was sent.

    Raises:
        MictlanError: UNAVAILABLE when it is not, so that it can be sent again; EXISTS when there is
            another in its place.
    """
    target = combined_key(record.bucket_id, record.key)
    try:
        found = (await router.get_metadata(record.bucket_id, record.key)).metadata
        if _identity(found) != _identity(record):
            raise MictlanError(Kind.EXISTS, "put metadata", target, "there is another one")
        data = await router.get(record.bucket_id, record.key, size=found.size, is_forced=True)
        if await sha256_of(data) == record.checksum:
            return
        # Announced, and without its bytes: in the way of another attempt.
        await router.delete(record.bucket_id, record.key)
    except MictlanError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
    raise MictlanError(Kind.UNAVAILABLE, "put data", target, "no peer has taken it whole")


def _identity(record: Metadata) -> tuple[int, str, list[str | None]]:
    names = (tags.FULL_CHECKSUM, tags.INDEX, tags.NUM_CHUNKS)
    return record.size, record.checksum, [record.tags.get(name) for name in names]
