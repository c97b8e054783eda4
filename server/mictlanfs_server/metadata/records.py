"""Operations on records: what a file is made of for a door, and parts that become one file.

The bodies are never looked into. Owns the tables `record` and `part`; `removal` lets their rows go
with an inode. A record changes nothing of its inode, not even its version: it says what the content
is, in other words, and is stale when that changes.

Putting parts together moves rows of extents, no bytes, and leaves no moment at which both the parts
and the ball can be seen, or neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import FILE_SIZE_BYTES_MAX, ChunkId, Extent, FileKind, InodeNumber
from mictlanfs_server.metadata.checks import (
    check_name,
    check_new_name,
    check_range,
    check_time,
    existing,
    failure,
    open_directory,
)
from mictlanfs_server.metadata.content import change_rows, join
from mictlanfs_server.metadata.names import change_entries
from mictlanfs_server.metadata.removal import change_references
from mictlanfs_server.metadata.rows import InodeRecord, PartRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mictlanfs_server.metadata.transaction import Transaction

Touched = list[InodeRecord]

# Of all parts of a ball: what is moved in one transaction. Four for each of the most parts.
ASSEMBLED_EXTENTS_MAX: Final = 262_144


# --- records -------------------------------------------------------------------------------------


def set_record(tx: Transaction, op: wire.SetRecord) -> Touched:
    """Give a file a record; see `wire.SetRecord`."""
    record = _file(tx, op.ino, "record")
    if op.content_version not in {0, record.content_version}:
        detail = f"it is of content version {record.content_version}"
        raise failure(Kind.CONFLICT, "record", op.ino, detail)
    if not op.pieces:
        tx.rows.records.delete(op.ino)
        return [record]
    _check_pieces(record, op.pieces)
    if tx.rows.records.version(op.ino) != record.content_version:
        # If it was a part, it is not that part any more.
        tx.rows.records.delete_part(op.ino)
    _keep(tx, record, op.pieces)
    return [record]


def _file(tx: Transaction, ino: InodeNumber, operation: str) -> InodeRecord:
    record = existing(tx, ino, operation)
    if record.kind is not FileKind.FILE:
        raise failure(Kind.INVALID, operation, ino, "this is not a file")
    return record


def _check_pieces(record: InodeRecord, pieces: Sequence[wire.RecordPiece]) -> None:
    if len(pieces) > wire.RECORD_PIECES_MAX:
        detail = f"a record has at most {wire.RECORD_PIECES_MAX} pieces"
        raise failure(Kind.INVALID, "record", record.ino, detail)
    if max(len(piece.body) for piece in pieces) > wire.RECORD_BODY_SIZE_BYTES_MAX:
        detail = f"a body has at most {wire.RECORD_BODY_SIZE_BYTES_MAX} bytes"
        raise failure(Kind.INVALID, "record", record.ino, detail)
    if sum(len(piece.body) for piece in pieces) > wire.RECORD_SIZE_BYTES_MAX:
        detail = f"the bodies have at most {wire.RECORD_SIZE_BYTES_MAX} bytes together"
        raise failure(Kind.INVALID, "record", record.ino, detail)
    size = sum(piece.size for piece in pieces)
    if min(piece.size for piece in pieces) < 0 or size != record.size:
        detail = f"pieces of {size} bytes were given for a file of {record.size}"
        raise failure(Kind.INVALID, "record", record.ino, detail)


def _keep(tx: Transaction, record: InodeRecord, pieces: Sequence[wire.RecordPiece]) -> None:
    tx.rows.records.replace(record.ino, record.content_version, pieces)
    tx.note_record()


# --- parts ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Whole:
    """What the parts of a ball are together.

    Attributes:
        extents: those of each part, where they will be in the ball.
        size: bytes of all parts.
    """

    parts: list[tuple[PartRecord, InodeRecord]]
    own_extents: list[list[Extent]]
    extents: list[Extent]
    pieces: list[wire.RecordPiece]
    size: int


def put_part(tx: Transaction, op: wire.PutPart) -> Touched:
    """Say that a file is a part, and make the ball if it is the last; see `wire.PutPart`."""
    parent = open_directory(tx, op.parent, "part")
    record = _file(tx, op.ino, "part")
    _check_part(tx, op, record)
    check_new_name(parent, op.ball, "part")
    records = tx.rows.records
    in_place = records.part_at(op.parent, op.ball, op.count, op.index)
    for known in (in_place, records.part(op.ino)):
        if known is None:
            continue
        if _intact(tx, known) is not None:
            raise failure(Kind.EXISTS, "part", known.name, "this part is there already")
        records.delete_part(known.ino)
    part = PartRecord(op.ino, op.parent, op.name, op.ball, op.count, op.index)
    records.insert_part(part)
    _keep(tx, record, [wire.RecordPiece(record.size, op.body)])
    _check_ball_name(tx, part)
    parts = _intact_parts(tx, part)
    if parts is None:
        return [record]
    whole = _whole(tx, op, parts)
    return [_assemble(tx, op, parent, whole), parent]


def _check_part(tx: Transaction, op: wire.PutPart, record: InodeRecord) -> None:
    check_name(op.name, "part")
    check_name(op.ball, "part")
    check_time(op.time_ns, "part")
    check_range(op.count, 1, wire.RECORD_PIECES_MAX, "count", "part")
    check_range(op.index, 0, op.count - 1, "index", "part")
    if record.nlink != 1 or tx.rows.entry(op.parent, op.name) != op.ino:
        raise failure(Kind.INVALID, "part", op.name, "this is not the only name of the file")
    if len(op.body) > min(wire.RECORD_BODY_SIZE_BYTES_MAX, wire.RECORD_SIZE_BYTES_MAX // op.count):
        raise failure(Kind.INVALID, "part", op.name, "the body of its record is too large")
    if not tx.is_handed_out(op.ball_ino):
        raise failure(Kind.INVALID, "part", op.ball_ino, "this number was not handed out")
    if tx.inode(op.ball_ino) is not None:
        raise failure(Kind.INVALID, "part", op.ball_ino, "this number is in use")


def _check_ball_name(tx: Transaction, part: PartRecord) -> None:
    """Raises EXISTS when the name of the ball is that of anything but one of its parts."""
    ino = tx.rows.entry(part.parent, part.ball)
    if ino is None:
        return
    other = tx.rows.records.part(ino)
    if (
        other is None
        or (other.parent, other.ball, other.count) != (part.parent, part.ball, part.count)
        or _intact(tx, other) is None
    ):
        raise failure(Kind.EXISTS, "part", part.ball)


def _intact(tx: Transaction, part: PartRecord) -> InodeRecord | None:
    """The inode of a part that is named as it was, by that name alone, with what it held."""
    record = tx.inode(part.ino)
    assert record is not None, "an inode that is gone is a part"
    if record.nlink != 1 or tx.rows.entry(part.parent, part.name) != part.ino:
        return None
    return record if tx.rows.records.version(part.ino) == record.content_version else None


def _intact_parts(tx: Transaction, part: PartRecord) -> list[tuple[PartRecord, InodeRecord]] | None:
    """All parts that make the ball of `part`; None while one is missing."""
    parts = tx.rows.records.parts(part.parent, part.ball, part.count)
    intact = []
    for each in parts or ():
        record = _intact(tx, each)
        if record is None:
            return None
        intact.append((each, record))
    return intact or None


# --- the ball ------------------------------------------------------------------------------------


def _whole(
    tx: Transaction, op: wire.PutPart, parts: list[tuple[PartRecord, InodeRecord]]
) -> _Whole:
    """Read what the parts hold. Raises TOO_LARGE when it is too much for one file."""
    whole = _Whole(parts, [], [], [], 0)
    for part, record in parts:
        left = ASSEMBLED_EXTENTS_MAX - len(whole.extents)
        extents = tx.rows.first_extents(part.ino, left + 1) if record.allocated else []
        if len(extents) > left:
            raise failure(Kind.TOO_LARGE, "part", op.ball, "its content is too scattered")
        whole.own_extents.append(extents)
        whole.extents += [
            Extent(whole.size + e.offset, e.length, e.chunk_id, e.chunk_offset) for e in extents
        ]
        whole.size += record.size
    whole.pieces += tx.rows.records.pieces_of_parts(op.parent, op.ball, op.count)
    # Of pieces there are more than parts when a part was given another record.
    if (
        whole.size > FILE_SIZE_BYTES_MAX
        or len(whole.pieces) > wire.RECORD_PIECES_MAX
        or sum(len(piece.body) for piece in whole.pieces) > wire.RECORD_SIZE_BYTES_MAX
    ):
        raise failure(Kind.TOO_LARGE, "part", op.ball, "the parts are too much for one file")
    return whole


def _assemble(tx: Transaction, op: wire.PutPart, parent: InodeRecord, whole: _Whole) -> InodeRecord:
    """Make the ball of its parts, which are gone then."""
    _, first = whole.parts[0]
    ball = InodeRecord(
        ino=op.ball_ino,
        kind=FileKind.FILE,
        mode=first.mode,
        uid=first.uid,
        gid=first.gid,
        size=whole.size,
        atime_ns=op.time_ns,
        mtime_ns=op.time_ns,
        ctime_ns=op.time_ns,
        nlink=1,
        version=1,
        content_version=1,
        has_xattrs=first.has_xattrs,
        parent=op.parent,
    )
    tx.insert(ball)
    if first.has_xattrs:
        tx.rows.copy_xattrs(first.ino, ball.ino)
    references: dict[ChunkId, int] = {}
    for (part, record), extents in zip(whole.parts, whole.own_extents, strict=True):
        _take_extents(tx, tx.change(record), extents, references)
        _remove(tx, part, record)
    tx.rows.records.delete_parts(op.parent, op.ball, op.count)
    _give_extents(tx, ball, whole.extents, references)
    tx.rows.set_entry(op.parent, op.ball, ball.ino)
    change_entries(tx, parent, op.time_ns, entries=1 - len(whole.parts), directories=0)
    _keep(tx, ball, whole.pieces)
    return ball


def _remove(tx: Transaction, part: PartRecord, record: InodeRecord) -> None:
    """Remove a part without content, for which nobody who has it open has a use."""
    tx.rows.delete_entry(part.parent, part.name)
    tx.rows.forget_sustained(part.ino)
    if record.has_xattrs:
        tx.rows.delete_xattrs(part.ino)
    tx.delete(record)


def _take_extents(
    tx: Transaction,
    record: InodeRecord,
    extents: Sequence[Extent],
    references: dict[ChunkId, int],
) -> None:
    change_rows(tx, record, extents, ())
    for extent in extents:
        references[extent.chunk_id] = references.get(extent.chunk_id, 0) - 1


def _give_extents(
    tx: Transaction,
    record: InodeRecord,
    extents: Sequence[Extent],
    references: dict[ChunkId, int],
) -> None:
    """The other half: most counts come out as they were, fewer where two extents become one."""
    joined = join(extents)
    change_rows(tx, record, (), joined)
    for extent in joined:
        references[extent.chunk_id] = references.get(extent.chunk_id, 0) + 1
    gone = change_references(tx, references)
    assert not gone, "a chunk of a part is not in the ball"
