"""The messages about records: what the v4 door keeps with a file; `mictlanfs.wire` offers them.

A file may have a *record*: the pieces it is made of, in order, each with a body that only the door
reads. A record describes one content version of its file and is stale as soon as the file is of
another. A *part* is a file that waits for others to become one file with them.
"""

from __future__ import annotations

from typing import Final

from mictlanfs.model import InodeNumber, Struct

RECORD_BODY_SIZE_BYTES_MAX: Final = 64 * 1024
# Of all bodies of one record: a file's record is always answered whole.
RECORD_SIZE_BYTES_MAX: Final = 32 * 1024 * 1024
# Pieces of a record, parts of a ball.
RECORD_PIECES_MAX: Final = 65_536
# Inodes of one `GetRecords`, and the bodies behind which its answer ends.
RECORDS_COUNT_MAX: Final = 1024
RECORDS_ANSWER_SIZE_BYTES_MAX: Final = 4 * 1024 * 1024


class RecordPiece(Struct, frozen=True):
    """A range of a file, behind that of the piece before.

    Attributes:
        size: bytes, may be 0.
        body: opaque to the space, at most 64 KiB.
    """

    size: int
    body: bytes


class SetRecord(Struct, frozen=True, tag="record"):
    """Give a file a record, in the place of the one it has. Result: the inode, not changed by it.

    Attributes:
        content_version: of the file that the record describes; 0: whatever it is at this point of
            the batch.
        pieces: their sizes add up to the size of the file. None: the file has no record any more.

    Errors: NOT_FOUND, CONFLICT (another version), INVALID (not a file, sizes that do not add up,
    too many pieces or too large ones).
    """

    ino: InodeNumber
    content_version: int
    pieces: tuple[RecordPiece, ...]


class PutPart(Struct, frozen=True, tag="part"):
    """Say that a file is a part of a ball; the part that completes the ball makes it.

    The ball is complete when there is a part for each `index` with the same `parent`, `ball` and
    `count`, each of them still named as it was and of the content that it had. Then, in the same
    transaction, the file `ball` is made in `parent`: its bytes and its record are those of the
    parts one behind the other, its mode, owner and extended attributes those of part 0. The names
    of the parts are removed. A name `ball` may exist only if it is that of one of the parts.

    Attributes:
        ino: of the part, which has the name `name` in `parent`.
        ball_ino: number of the file if this part completes it; else it is not used up.
        index: 0 to `count` - 1.
        count: 1 to 65536.
        body: of the part's piece in the record; `count` of them make at most 32 MiB.

    Errors: NOT_FOUND, NOT_DIRECTORY (parent), STALE (parent was removed), EXISTS (the name of the
    ball is taken; the part is there already, or the file is one: the error names it), INVALID (not
    a file, not named so, a number out of range or in use, too large a body), TOO_LARGE (the ball
    would be larger than a file can be), NAME_TOO_LONG, NOT_PERMITTED (in the root).
    Result: the part; if it completes the ball: the ball, then the parent.
    """

    ino: InodeNumber
    parent: InodeNumber
    name: bytes
    ball: bytes
    ball_ino: InodeNumber
    index: int
    count: int
    body: bytes
    time_ns: int


class GetRecords(Struct, frozen=True):
    """Read the records of at most 1024 inodes. Errors: INVALID (too many). Answer: `Records`."""

    inodes: tuple[InodeNumber, ...]


class FileRecord(Struct, frozen=True):
    """The record of a file, or the body of a part as its only piece.

    Attributes:
        content_version: that it describes: the file's own now. 0, and no pieces: the file has no
            record, or a stale one, or is not there.
    """

    content_version: int
    pieces: tuple[RecordPiece, ...]


class Records(Struct, frozen=True):
    """Records in the order asked for.

    The answer ends before the first that would make it larger than 4 MiB, but has one at least: ask
    again for the rest.
    """

    records: tuple[FileRecord, ...]
