"""What happens to an inode without a name: sustained for open handles, or let go.

::

    named --last name goes--> sustained --Release, end of session--> let go
      |                                                               ^
      +----------------------- nobody has it open --------------------+

Letting go of an inode with more than `EXTENTS_AT_ONCE_MAX` extents moves its number to `doomed`;
`reclaim` then removes the extents in slices, so that no transaction is unbounded. A chunk whose
last extent goes becomes a tombstone with the router's time, until the peers have deleted it; an
inline one goes at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mictlanfs.model import FileKind, InodeNumber, SessionId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mictlanfs.model import ChunkId
    from mictlanfs_server.metadata.rows import InodeRecord
    from mictlanfs_server.metadata.transaction import Transaction

EXTENTS_AT_ONCE_MAX = 64


def drop(tx: Transaction, record: InodeRecord, *, sustain: bool) -> None:
    """Sustain an inode that has lost its last name, or let it go."""
    if sustain and tx.session:
        tx.rows.add_sustained(tx.session, record.ino)
    elif not tx.rows.is_sustained(record.ino):
        _let_go(tx, record)


def release(tx: Transaction, session: SessionId, ino: InodeNumber) -> None:
    """End what `session` sustains of an inode; the last one to do so lets it go."""
    if not tx.rows.delete_sustained(session, ino):
        return
    record = tx.inode(ino)
    if record is not None and record.nlink == 0 and not tx.rows.is_sustained(ino):
        _let_go(tx, record)


def _let_go(tx: Transaction, record: InodeRecord) -> None:
    ino = record.ino
    if record.allocated:
        extents = tx.rows.first_extents(ino, EXTENTS_AT_ONCE_MAX + 1)
        if len(extents) > EXTENTS_AT_ONCE_MAX:
            tx.rows.add_doomed(ino)
        else:
            tx.rows.delete_extents(ino, extents)
            drop_references(tx, (extent.chunk_id for extent in extents))
        tx.counts.bytes_logical -= record.allocated
    if record.has_xattrs:
        tx.rows.delete_xattrs(ino)
    if record.kind is FileKind.FILE and tx.may_have_record():
        tx.rows.records.delete(ino)
    tx.delete(record)


def drop_references(tx: Transaction, chunk_ids: Iterable[ChunkId]) -> None:
    """Take one reference from a chunk for each time it is named."""
    change: dict[ChunkId, int] = {}
    for chunk_id in chunk_ids:
        change[chunk_id] = change.get(chunk_id, 0) - 1
    for chunk_id in change_references(tx, change):
        tx.rows.delete_inline(chunk_id)


def change_references(tx: Transaction, change: dict[ChunkId, int]) -> list[ChunkId]:
    """Add to the reference counts of known chunks; a chunk that gets to zero is dead for ever.

    Returns the inline chunks that are gone by that, whose bytes are left to the caller.
    """
    gone: list[ChunkId] = []
    for chunk_id, difference in change.items():
        if difference == 0:
            continue
        chunk = tx.rows.chunk(chunk_id)
        assert chunk is not None, "an extent names a chunk that is not there"
        assert not chunk.is_dead, "a dead chunk has references"
        refs = chunk.refs + difference
        assert refs >= 0, "a chunk has fewer references than extents"
        tx.counts.chunks -= refs == 0
        if refs or not chunk.is_inline:
            tx.rows.set_refs(chunk_id, refs, None if refs else tx.now_ns)
            tx.counts.tombstones += refs == 0
        else:
            # No peer has to be asked, so nothing has to be remembered. A reader that has the
            # extent and not the bytes looks again and finds what the file is now.
            tx.rows.delete_chunk(chunk_id)
            gone.append(chunk_id)
    return gone


def reclaim(tx: Transaction, count_max: int) -> bool:
    """Let go of a slice of what ended sessions sustained and of doomed inodes.

    Handles at most `count_max` inodes or extents. Returns whether anything is left.
    """
    session = tx.rows.ended_session()
    if session is not None:
        numbers = tx.rows.sustained_by(session, count_max)
        for ino in numbers:
            release(tx, session, ino)
        if len(numbers) < count_max:
            tx.rows.delete_session(session)
        return True
    doomed = tx.rows.any_doomed()
    if doomed is None:
        return False
    extents = tx.rows.first_extents(doomed, count_max)
    tx.rows.delete_extents(doomed, extents)
    drop_references(tx, (extent.chunk_id for extent in extents))
    if len(extents) < count_max:
        tx.rows.delete_doomed(doomed)
    return True
