"""Balls in the memory of a client, so that their bytes need not travel again.

Bounded by bytes. What is here is only given out for the checksum that fresh metadata tells, so a
ball that was replaced is never given out.
"""

from __future__ import annotations

from typing import Literal

import cachetools

from mictlanfs.errors import Kind, MictlanError

EvictionPolicy = Literal["LRU", "LFU"]
# Of an entry besides its bytes: without it empty balls would fill the memory unseen.
ENTRY_SIZE_BYTES = 512

_Key = tuple[str, str]
_Entry = tuple[str, memoryview]


class BallCache:
    """Balls by bucket and name.

    Args:
        capacity: bytes.
        policy: what goes first when there is no room: the ball used longest ago (LRU), or the one
            used least often (LFU).
    """

    def __init__(self, capacity: int, policy: EvictionPolicy = "LRU") -> None:
        kinds = {"LRU": cachetools.LRUCache, "LFU": cachetools.LFUCache}
        if policy not in kinds:
            detail = f"{policy!r} is neither LRU nor LFU"
            raise MictlanError(Kind.INVALID, "cache", detail=detail)
        self._entries: cachetools.Cache[_Key, _Entry] = kinds[policy](capacity, _size_of)

    @property
    def used(self) -> int:
        """Bytes in use."""
        return int(self._entries.currsize)

    def get(self, bucket_id: str, ball_id: str, checksum: str) -> memoryview | None:
        """The bytes of the ball that has this checksum; None when they are not here."""
        entry = self._entries.get((bucket_id, ball_id))
        if entry is None or not checksum:
            return None
        if entry[0] != checksum:
            self.drop(bucket_id, ball_id)
            return None
        return entry[1]

    def put(self, bucket_id: str, ball_id: str, checksum: str, data: memoryview) -> None:
        """Keep the bytes of a ball, which nobody may change; those it had before are let go.

        A ball larger than the whole cache is not kept, nor one without a checksum.
        """
        self.drop(bucket_id, ball_id)
        entry = (checksum, data)
        if checksum and _size_of(entry) <= self._entries.maxsize:
            self._entries[bucket_id, ball_id] = entry

    def drop(self, bucket_id: str, ball_id: str) -> None:
        """Let go of a ball."""
        self._entries.pop((bucket_id, ball_id), None)


def _size_of(entry: _Entry) -> int:
    return len(entry[1]) + ENTRY_SIZE_BYTES
