"""Balls: the records that belong together, put in order. Pure.

Listings give records one by one, in any order, once for each copy, and those of a ball that was put
twice all mixed. Here they become balls with their true sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4 import tags
from mictlanfs.v4.models import Metadata
from mictlanfs.v4.names import combined_key

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Ball:
    """A ball and its chunks.

    Attributes:
        chunks: in order, each once. Those of a ball that is still being put may have gaps.
        chunk_count: how many it has when it is complete.
        checksum: SHA-256 of all bytes, in hex; empty when no record tells it.
    """

    bucket_id: str
    ball_id: str
    chunks: tuple[Metadata, ...]
    chunk_count: int
    checksum: str

    @property
    def is_complete(self) -> bool:
        """Whether every chunk is there."""
        return len(self.chunks) == self.chunk_count

    @property
    def size(self) -> int:
        """Bytes of the chunks that are there."""
        return sum(chunk.size for chunk in self.chunks)

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the first chunk."""
        return self.chunks[0].tags

    @property
    def updated_at_ms(self) -> int:
        """When the newest chunk was made, in milliseconds since the epoch; 0 when none says."""
        return max(tags.updated_at_ms(chunk.tags) for chunk in self.chunks)

    def check_complete(self, operation: str) -> None:
        """Refuse a ball that has gaps.

        Raises:
            MictlanError: NOT_FOUND.
        """
        if not self.is_complete:
            detail = (
                f"only {len(self.chunks)} of its {self.chunk_count} chunks are there: "
                "it is still being put, or that failed"
            )
            target = combined_key(self.bucket_id, self.ball_id)
            raise MictlanError(Kind.NOT_FOUND, operation, target, detail)


def ball_of(bucket_id: str, ball_id: str, records: Iterable[Metadata]) -> Ball:
    """The ball that `records`, at least one, make up.

    When they are of several puts of the same name, the complete one that is newest.
    """
    found = list(records)
    puts: dict[tuple[str, int], dict[int, Metadata]] = {}
    for record in found:
        index = tags.decimal_tag(record.tags, tags.INDEX)
        count = tags.decimal_tag(record.tags, tags.NUM_CHUNKS)
        if index is None or count is None or index >= count:
            continue
        chunks = puts.setdefault((record.tags.get(tags.FULL_CHECKSUM, ""), count), {})
        _keep_newer(chunks, index, record)
    balls = [
        Ball(bucket_id, ball_id, tuple(c for _, c in sorted(chunks.items())), count, checksum)
        for (checksum, count), chunks in puts.items()
    ]
    if not balls:
        return _untagged(bucket_id, ball_id, found)
    return max(balls, key=lambda ball: (ball.is_complete, ball.updated_at_ms, len(ball.chunks)))


def balls_in(bucket_id: str, records: Iterable[Metadata]) -> list[Ball]:
    """The balls that the records of a bucket make up, in the order of their first records."""
    groups: dict[str, list[Metadata]] = {}
    for record in records:
        groups.setdefault(record.ball_id, []).append(record)
    return [ball_of(bucket_id, ball_id, group) for ball_id, group in groups.items()]


def _untagged(bucket_id: str, ball_id: str, records: list[Metadata]) -> Ball:
    """Records that nobody numbered: in the order of their keys, each with its newest copy."""
    by_key: dict[str, Metadata] = {}
    for record in records:
        _keep_newer(by_key, record.key, record)
    chunks = tuple(by_key[key] for key in sorted(by_key))
    checksum = chunks[0].checksum if len(chunks) == 1 else ""
    return Ball(bucket_id, ball_id, chunks, len(chunks), checksum)


def _keep_newer(records: dict[K, Metadata], key: K, record: Metadata) -> None:
    known = records.get(key)
    if known is None or tags.updated_at_ms(known.tags) < tags.updated_at_ms(record.tags):
        records[key] = record
