"""The tags of a v4 record that mean something to programs. Pure.

All values of tags are text, numbers in decimal. The chunks of one ball carry the same tags but for
`index` and `chunk_size`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.names import is_unicode

INDEX: Final = "index"
NUM_CHUNKS: Final = "num_chunks"
FULL_CHECKSUM: Final = "full_checksum"
CHUNK_SIZE: Final = "chunk_size"
GROUP_ID: Final = "group_id"
# Milliseconds since the epoch; of two records of one key the newer one counts.
UPDATED_AT: Final = "updated_at"
# Names of the filters that the bytes went through before they were cut; empty or absent: none.
FILTERS: Final = "mictlanx_filters"
FULLNAME: Final = "fullname"
EXTENSION: Final = "extension"

CHUNK_COUNT_MAX: Final = 65536
_DIGITS_MAX: Final = 18


@dataclass(frozen=True, slots=True)
class Part:
    """Which chunk of its ball a record is: `index` from 0, below `count`."""

    index: int
    count: int


def decimal_tag(tags: Mapping[str, str], name: str) -> int | None:
    """The number in a tag, 0 or more; None when there is no such tag or it is no number."""
    text = tags.get(name, "").strip()
    if not text.isascii() or not text.isdecimal() or len(text) > _DIGITS_MAX:
        return None
    return int(text)


def chunk_tags(
    part: Part,
    *,
    chunk_size: int,
    full_checksum: str,
    group_id: str,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The tags of one chunk of a ball.

    Args:
        part: which one.
        chunk_size: bytes of this chunk.
        full_checksum: SHA-256 of the whole ball, in hex.
        group_id: the name of the ball as its owner wrote it.
        extra: the user's own. They cannot replace the ones above.

    Raises:
        MictlanError: INVALID when `extra` has anything but text.
    """
    return checked_tags(extra) | {
        INDEX: str(part.index),
        NUM_CHUNKS: str(part.count),
        FULL_CHECKSUM: full_checksum,
        CHUNK_SIZE: str(chunk_size),
        GROUP_ID: group_id,
    }


def checked_tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of a user's tags.

    Raises:
        MictlanError: INVALID when a name or value is no text: the public client cannot read it.
    """
    for item in (tags or {}).items():
        for text in item:
            if not isinstance(text, str) or not is_unicode(text):
                detail = f"names and values of tags are texts, and {text!r} is none"
                raise MictlanError(Kind.INVALID, detail=detail)
    return dict(tags or {})


def updated_at_ms(tags: Mapping[str, str]) -> int:
    """When the record was made, in milliseconds since the epoch; 0 when its tags do not say."""
    return decimal_tag(tags, UPDATED_AT) or 0
