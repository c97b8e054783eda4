"""Operations on the bytes of a file: write extents, truncate, with exact reference counts.

An extent that is written replaces what it covers: what was there is trimmed or split, in the same
transaction, so extents never overlap. Owns also the joining of extents that continue each other.

Invariants: `allocated` is the sum of the lengths of the extents; a chunk's count is the number of
extents that name it; a dead chunk is never named again.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from mictlanfs.checksums import DIGEST_SIZE_BYTES
from mictlanfs.errors import Kind
from mictlanfs.model import (
    CHUNK_ID_SIZE_BYTES,
    CHUNK_SIZE_BYTES_MAX,
    FILE_SIZE_BYTES_MAX,
    KIB,
    Chunk,
    Extent,
    FileKind,
)
from mictlanfs_server.metadata.checks import check_time, existing, failure
from mictlanfs_server.metadata.coded import (
    add_replicas,
    content_of,
    fault_of,
    is_readable,
    known_content,
    with_replicas,
    without_peers,
)
from mictlanfs_server.metadata.inline import checked_bodies, keep_bodies
from mictlanfs_server.metadata.quotas import check_quota, count
from mictlanfs_server.metadata.removal import change_references
from mictlanfs_server.metadata.trash import keep_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mictlanfs import wire
    from mictlanfs.model import ChunkId
    from mictlanfs_server.metadata.rows import InodeRecord
    from mictlanfs_server.metadata.transaction import Transaction

Touched = list["InodeRecord"]

# Between extents that are put among the rows together. Nearly all rows are of a page or more, so
# few that stay as they are are read for that.
GAP_SIZE_BYTES_MAX: Final = 64 * KIB
# Of one part, which bounds the rows in memory.
NEIGHBOURS_MAX: Final = 1024

_offset_of = attrgetter("offset")


# --- write ---------------------------------------------------------------------------------------


def write_extents(tx: Transaction, op: wire.WriteExtents) -> Touched:
    """Make chunks the content of ranges of a file; see `wire.WriteExtents`.

    An extent beyond `op.size` makes the file grow to its end: no extent lies behind the end.
    """
    check_time(op.time_ns, "write")
    record = existing(tx, op.ino, "write")
    if record.kind is not FileKind.FILE:
        raise failure(Kind.INVALID, "write", op.ino, "this is not a file")
    if op.if_content_version not in {-1, record.content_version}:
        detail = f"it is of content version {record.content_version}"
        raise failure(Kind.CONFLICT, "write", op.ino, detail)
    op = _without_retired(tx, op)
    bodies = checked_bodies(op)
    fresh = _check_chunks(tx, op, bodies)
    _check_extents(tx, op, fresh)
    tx.change(record)
    references: dict[ChunkId, int] = {}
    for group in neighbours(op.extents):
        _put_extents(tx, record, group, references)
    _describe_again(tx, op.chunks, fresh)
    _record_chunks(tx, record, fresh, references, bodies)
    end = max((extent.end for extent in op.extents), default=0)
    record.size = max(record.size, op.size, end)
    changed_at_ns, version = record.ctime_ns, record.content_version
    record.mark_content_changed(op.time_ns)
    if op.is_same_content and tx.may_have_record():
        tx.rows.records.renew(record.ino, version, record.content_version)
    # A link or a rename that came between the write and this is not undone.
    record.ctime_ns = max(record.ctime_ns, changed_at_ns)
    check_quota(tx, record, "write")
    return [record]


def _without_retired(tx: Transaction, op: wire.WriteExtents) -> wire.WriteExtents:
    """`op` without peers that lost their data, or were removed, since the chunks were stored.

    Raises NO_DATA for a chunk that is nowhere by that: its bytes must be stored again.
    """
    if all(tx.is_peer(number) for chunk in op.chunks for number in chunk.peers):
        return op
    chunks = []
    for chunk in op.chunks:
        left = without_peers(chunk, tx.is_retired)
        if chunk.peers and not is_readable(left):
            detail = _named(chunk.id, "is on no peer any more: store the bytes again")
            raise failure(Kind.NO_DATA, "write", op.ino, detail)
        chunks.append(left)
    return msgspec.structs.replace(op, chunks=tuple(chunks))


def _check_chunks(
    tx: Transaction, op: wire.WriteExtents, bodies: Mapping[ChunkId, bytes]
) -> dict[ChunkId, Chunk]:
    """The chunks of `op` that are new. Raises INVALID for one that cannot be right."""
    fresh: dict[ChunkId, Chunk] = {}
    for chunk in op.chunks:
        _check_chunk(tx, op, chunk)
        if chunk.peers and tx.rows.is_collected(chunk.id):
            detail = _named(chunk.id, "was removed as an orphan: store the bytes again")
            raise failure(Kind.NO_DATA, "write", op.ino, detail)
        known = tx.rows.chunk(chunk.id)
        if known is None and chunk.id not in fresh:
            if not chunk.peers and chunk.id not in bodies:
                detail = _named(chunk.id, "has neither a peer nor bytes")
                raise failure(Kind.INVALID, "write", op.ino, detail)
            fresh[chunk.id] = chunk
            continue
        before = content_of(fresh[chunk.id]) if known is None else known_content(known)
        if before != content_of(chunk):
            raise failure(Kind.INVALID, "write", op.ino, _named(chunk.id, "has other content"))
        if chunk.id in fresh:
            # Described twice: both know of peers.
            fresh[chunk.id] = with_replicas(fresh[chunk.id], chunk)
    return fresh


def _check_chunk(tx: Transaction, op: wire.WriteExtents, chunk: Chunk) -> None:
    if len(chunk.id) != CHUNK_ID_SIZE_BYTES or len(chunk.digest) != DIGEST_SIZE_BYTES:
        raise failure(Kind.INVALID, "write", op.ino, "a chunk id or digest has the wrong size")
    if not 0 < chunk.length <= CHUNK_SIZE_BYTES_MAX:
        raise failure(Kind.INVALID, "write", op.ino, _named(chunk.id, "has an impossible length"))
    if len(set(chunk.peers)) != len(chunk.peers):
        detail = _named(chunk.id, "names a peer more than once")
        raise failure(Kind.INVALID, "write", op.ino, detail)
    if not all(map(tx.is_peer, chunk.peers)):
        raise failure(Kind.INVALID, "write", op.ino, _named(chunk.id, "names an unknown peer"))
    if chunk.coding is not None and (wrong := fault_of(chunk, chunk.coding)):
        raise failure(Kind.INVALID, "write", op.ino, _named(chunk.id, wrong))


def _check_extents(tx: Transaction, op: wire.WriteExtents, fresh: dict[ChunkId, Chunk]) -> None:
    if not 0 <= op.size <= FILE_SIZE_BYTES_MAX:
        raise failure(Kind.INVALID, "write", op.ino, f"size {op.size} is out of range")
    lengths = {chunk_id: chunk.length for chunk_id, chunk in fresh.items()}
    for extent in op.extents:
        if extent.chunk_id not in lengths:
            known = tx.rows.chunk(extent.chunk_id)
            if known is None:
                raise failure(Kind.INVALID, "write", op.ino, _named(extent.chunk_id, "is unknown"))
            if known.is_dead:
                detail = _named(extent.chunk_id, "is being deleted: store the bytes again")
                raise failure(Kind.INVALID, "write", op.ino, detail)
            lengths[extent.chunk_id] = known.length
        if (
            extent.length < 1
            or extent.offset < 0
            or extent.end > FILE_SIZE_BYTES_MAX
            or extent.chunk_offset < 0
            or extent.chunk_offset + extent.length > lengths[extent.chunk_id]
        ):
            detail = f"extent at {extent.offset} is out of range of the file or of its chunk"
            raise failure(Kind.INVALID, "write", op.ino, detail)


def _named(chunk_id: ChunkId, what: str) -> str:
    return f"chunk {chunk_id.hex()} {what}"


def neighbours(extents: Sequence[Extent]) -> Iterator[Sequence[Extent]]:
    """Parts of `extents`, one behind the other: in each, extents in order that lie close together.

    What was written here and there in a file comes in thousands of extents, which are put among its
    rows by a few statements for each part. Two that lie far apart may have any number of rows in
    between, which are none of their business.
    """
    begin = 0
    for index in range(1, len(extents)):
        gap = extents[index].offset - extents[index - 1].end
        if not 0 <= gap <= GAP_SIZE_BYTES_MAX or index - begin == NEIGHBOURS_MAX:
            yield extents[begin:index]
            begin = index
    if begin < len(extents):
        yield extents[begin:]


def _put_extents(
    tx: Transaction, record: InodeRecord, group: Sequence[Extent], references: dict[ChunkId, int]
) -> None:
    """Replace the rows that neighbours cover or continue; note what that does to references."""
    old = tx.rows.extents_touching(record.ino, group[0].offset, group[-1].end)
    new = join(replace(old, group))
    before, after = set(old), set(new)
    removed = [row for row in old if row not in after]
    added = [row for row in new if row not in before]
    change_rows(tx, record, removed, added)
    for row in removed:
        references[row.chunk_id] = references.get(row.chunk_id, 0) - 1
    for row in added:
        references[row.chunk_id] = references.get(row.chunk_id, 0) + 1


def replace(rows: Sequence[Extent], extents: Sequence[Extent]) -> list[Extent]:
    """`rows`, disjoint, with `extents` in the place of what they cover; all in order of offset.

    Neither `rows` nor `extents` overlap among themselves.
    """
    kept = list(extents)
    first = 0
    for row in rows:
        while first < len(extents) and extents[first].end <= row.offset:
            first += 1
        start, index = row.offset, first
        while index < len(extents) and extents[index].offset < row.end:
            if start < extents[index].offset:
                kept.append(_cut_of(row, start, extents[index].offset))
            start = extents[index].end
            index += 1
        if start < row.end:
            kept.append(_cut_of(row, start, row.end))
    return sorted(kept, key=_offset_of)


def _cut_of(row: Extent, start: int, end: int) -> Extent:
    skipped = start - row.offset
    return Extent(start, end - start, row.chunk_id, row.chunk_offset + skipped)


def join(rows: Sequence[Extent]) -> list[Extent]:
    """`rows` with those made one that continue each other in the same chunk."""
    joined: list[Extent] = []
    for row in rows:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.end == row.offset
            and last.chunk_id == row.chunk_id
            and last.chunk_offset + last.length == row.chunk_offset
        ):
            length = last.length + row.length
            joined[-1] = Extent(last.offset, length, last.chunk_id, last.chunk_offset)
        else:
            joined.append(row)
    return joined


def change_rows(
    tx: Transaction, record: InodeRecord, removed: Sequence[Extent], added: Sequence[Extent]
) -> None:
    """Write the rows of a changed range and count the bytes they cover."""
    if removed:
        tx.rows.delete_extents(record.ino, removed)
    if added:
        tx.rows.insert_extents(record.ino, added)
    difference = sum(row.length for row in added) - sum(row.length for row in removed)
    record.allocated += difference
    tx.counts.bytes_logical += difference
    count(tx, record, difference)


def _describe_again(tx: Transaction, chunks: Sequence[Chunk], fresh: dict[ChunkId, Chunk]) -> None:
    """Take over new peers of chunks that are known; bytes that peers hold are not kept here."""
    for chunk in chunks:
        if chunk.id in fresh or not chunk.peers:
            continue
        add_replicas(tx, chunk)
        tx.rows.delete_inline(chunk.id)


def _record_chunks(
    tx: Transaction,
    record: InodeRecord,
    fresh: dict[ChunkId, Chunk],
    references: dict[ChunkId, int],
    bodies: Mapping[ChunkId, bytes],
) -> None:
    """Add the new chunks with the references they ended up with, change those of the others."""
    wanted = tx.policy_of(record).replicas if fresh else 0
    kept: dict[ChunkId, bytes] = {}
    for chunk_id, chunk in fresh.items():
        refs = references.pop(chunk_id, 0)
        if refs and not chunk.peers:
            kept[chunk_id] = bodies[chunk_id]
        elif not (refs or chunk.peers):
            # Sent and not named, and nobody holds it.
            continue
        # With peers, dead at once, so that its copies are deleted.
        copies = max(wanted, len(chunk.peers)) if chunk.coding is None else chunk.coding.count
        tx.rows.insert_chunk(chunk, refs, copies, None if refs else tx.now_ns)
        tx.counts.chunks += refs > 0
        tx.counts.tombstones += refs == 0
    keep_bodies(tx, kept, change_references(tx, references))


# --- truncate ------------------------------------------------------------------------------------


def check_size(record: InodeRecord, size: int, operation: str) -> None:
    """Raises IS_DIRECTORY, INVALID or TOO_LARGE when `record` cannot have `size`."""
    if record.is_directory:
        raise failure(Kind.IS_DIRECTORY, operation, record.ino)
    if record.kind is not FileKind.FILE or size < 0:
        raise failure(Kind.INVALID, operation, record.ino, "only a file has a size to set")
    if size > FILE_SIZE_BYTES_MAX:
        raise failure(Kind.TOO_LARGE, operation, record.ino)


def truncate(tx: Transaction, record: InodeRecord, size: int, time_ns: int) -> None:
    """Give a file, already being changed, another size: cut extents or make a hole.

    What a file held that is cut to nothing is kept, if its bucket keeps what it loses.
    """
    if record.allocated and not (size == 0 and keep_version(tx, record)):
        _cut(tx, record, size)
    if size == record.size:
        # ftruncate(2) changes the times all the same, but nobody's cached bytes are stale.
        record.mark_changed(time_ns)
        record.mtime_ns = time_ns
        return
    record.size = size
    record.mark_content_changed(time_ns)


def _cut(tx: Transaction, record: InodeRecord, size: int) -> None:
    if size >= record.size:
        return
    old = tx.rows.extents_touching(record.ino, size, FILE_SIZE_BYTES_MAX)
    removed = [row for row in old if row.end > size]
    added = [
        Extent(row.offset, size - row.offset, row.chunk_id, row.chunk_offset)
        for row in removed
        if row.offset < size
    ]
    change_rows(tx, record, removed, added)
    references: dict[ChunkId, int] = {}
    for row, difference in [(row, -1) for row in removed] + [(row, 1) for row in added]:
        references[row.chunk_id] = references.get(row.chunk_id, 0) + difference
    for chunk_id in change_references(tx, references):
        tx.rows.delete_inline(chunk_id)
