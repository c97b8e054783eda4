"""Names and records of the v4 door: how balls and chunks of MictlanX stand for files. Pure.

A *record* of MictlanX is (bucket, key) with metadata. Here it is a *piece*: a range of a file, with
a `RecordBody` that the metadata store keeps for the door. A file is made of one piece or of many:

- a record that names no place in a ball is one file of one piece, named by its key;
- the parts of a ball are a file each while some are missing, and pieces of one file afterwards;
- a file that was written through the mount has pieces that nobody sent: `made_pieces`.

Names of files are what a user sees and changes. So a body counts as it was sent only while the file
has the path that it was stored under; a file that was renamed has keys made of its present path.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from mictlanfs.model import NAME_SIZE_BYTES_MAX, Buffer
from mictlanfs.v4 import tags as v4tags
from mictlanfs.wirerecords import RECORD_PIECES_MAX, RecordPiece

Names: TypeAlias = tuple[bytes, ...]

BYTES_TYPE: Final = "application/octet-stream"
# Who made what came in through a mount.
PRODUCER_ID: Final = "mictlanfs"
_PART_KEY: Final = re.compile(r"(?s)(.+)_(0|[1-9][0-9]{0,17})")
_NUMBER: Final = re.compile(r"[0-9]{1,9}")


class RecordBody(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the door keeps of one piece, encoded as msgpack.

    Attributes:
        key, ball_id, content_type: as sent; all empty for a piece that nobody sent.
        checksum: SHA-256 of the bytes of the piece, lower-case hex.
        count: of the parts of the ball; 0 when the record names no place in a ball.
        index: of the part, 0 to `count` - 1.
    """

    key: str
    ball_id: str
    checksum: str
    tags: dict[str, str]
    content_type: str
    producer_id: str
    is_disabled: bool = False
    count: int = 0
    index: int = 0

    @property
    def is_part(self) -> bool:
        """Whether it belongs to a ball of several records, or says so at least."""
        return self.count > 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RecordBody).decode


def encode_body(body: RecordBody) -> bytes:
    """The body as the store keeps it."""
    return _encode(body)


def decode_body(raw: Buffer) -> RecordBody:
    """The body that `encode_body` made."""
    return _decode(raw)


# --- names ---------------------------------------------------------------------------------------


def names_of(key: str) -> Names | None:
    """The names of the path that `key` is; None when it cannot name a file."""
    try:
        names = tuple(key.encode("utf-8").split(b"/"))
    except UnicodeEncodeError:
        return None
    for name in names:
        if name in {b"", b".", b".."} or b"\0" in name or len(name) > NAME_SIZE_BYTES_MAX:
            return None
    return names


def shown(names: Sequence[bytes]) -> str:
    """A path as a key; what is no UTF-8 in it is written as hexadecimal escapes."""
    return b"/".join(names).decode("utf-8", "backslashreplace")


def split_part_key(key: str) -> tuple[str, int] | None:
    """The ball and the index that `BALL_INDEX` names, None when it is no such key."""
    match = _PART_KEY.fullmatch(key)
    return (match[1], int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a part in its ball."""

    index: int
    count: int


def place_of(key: str, ball_id: str, tags: Mapping[str, str]) -> Place | None:
    """Where the tags put a record in its ball; None when it is no part of one.

    That is also so when the ball could not be a file beside the file of the record.
    """
    index, count = tags.get(v4tags.INDEX, ""), tags.get(v4tags.NUM_CHUNKS, "")
    if not (_NUMBER.fullmatch(index) and _NUMBER.fullmatch(count)):
        return None
    if not 1 <= int(count) <= RECORD_PIECES_MAX or int(index) >= int(count):
        return None
    ball, names = names_of(ball_id), names_of(key)
    if ball is None or names is None or ball[:-1] != names[:-1]:
        return None
    return Place(int(index), int(count))


# --- pieces --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """A record as a client sees it: a range of a file with its metadata.

    Attributes:
        index: of the piece in the file.
        offset, size: the range, in bytes.
        checksum: SHA-256, empty while nobody has worked it out.
    """

    key: str
    ball_id: str
    index: int
    offset: int
    size: int
    checksum: str
    tags: Mapping[str, str]
    content_type: str
    producer_id: str
    is_disabled: bool = False


def pieces_of(path: str, stored: Sequence[RecordPiece]) -> list[Piece]:
    """The pieces of the file at `path` in its bucket, from its record."""
    pieces, offset = [], 0
    for index, piece in enumerate(stored):
        body = decode_body(piece.body)
        key, ball_id = _names_now(path, body, index, len(stored))
        pieces.append(
            Piece(
                key,
                ball_id,
                index,
                offset,
                piece.size,
                body.checksum,
                body.tags if body.key else {**_tags_of_path(path), **body.tags},
                body.content_type if body.key else body.content_type or content_type_of(path),
                body.producer_id,
                body.is_disabled,
            )
        )
        offset += piece.size
    return pieces


def _names_now(path: str, body: RecordBody, index: int, count: int) -> tuple[str, str]:
    """Key and ball of a piece whose file has `path` now."""
    if not body.key:
        return f"{path}_{index}", path
    if not body.is_part:
        return path, body.ball_id if path == body.key else path
    if path == body.ball_id:
        return body.key, path
    if path == body.key:
        return path, body.ball_id
    if count == body.count:
        return f"{path}_{index}", path
    # A part that was renamed before the ball was whole: a file like any other.
    return path, path


def cut(size: int, piece_size: int) -> list[int]:
    """The sizes of the pieces that a file of `size` bytes is cut into; one at least."""
    count, rest = divmod(size, piece_size)
    return [piece_size] * count + ([rest] if rest or not count else [])


def content_type_of(name: str) -> str:
    """What a file of that name most likely holds."""
    return mimetypes.guess_type(name)[0] or BYTES_TYPE


def made_pieces(
    sizes: Sequence[int], checksums: Sequence[str], full_checksum: str, mtime_ns: int
) -> list[RecordPiece]:
    """The record of a file that nobody put as a ball, as a client would have sent it.

    What depends on its name comes with the path, in `pieces_of`. `checksums` and `full_checksum`
    are SHA-256 of the pieces and of the file, or empty.
    """
    common = {
        v4tags.NUM_CHUNKS: str(len(sizes)),
        v4tags.UPDATED_AT: str(max(mtime_ns, 0) // 1_000_000),
    }
    if full_checksum:
        common[v4tags.FULL_CHECKSUM] = full_checksum
    pieces = []
    for index, (size, checksum) in enumerate(zip(sizes, checksums, strict=True)):
        tags = {v4tags.INDEX: str(index), v4tags.CHUNK_SIZE: str(size), **common}
        body = RecordBody("", "", checksum, tags, "", PRODUCER_ID)
        pieces.append(RecordPiece(size, encode_body(body)))
    return pieces


def _tags_of_path(path: str) -> dict[str, str]:
    """The tags of a file that nobody put as a ball that say how it is called."""
    name = path.rpartition("/")[2]
    stem, _, extension = name.rpartition(".")
    tags = {"group_id": path, "fullname": name}
    return {**tags, "extension": extension} if stem else tags
