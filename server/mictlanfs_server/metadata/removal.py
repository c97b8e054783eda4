"""What happens to an inode without a name: sustained for open handles, or let go.

::

    named --last name goes--> sustained --Release, end of session--> let go, or kept (`trash`)
      |                                                               ^
      +----------------------- nobody has it open --------------------+

A session notes what it has open with the removal, when it removes a name itself, and when it gives
up the lease under which others may. So an inode may be noted as sustained and have a name; that
means nothing until it loses it.

Letting go of an inode with more than `EXTENTS_AT_ONCE_MAX` extents moves its number to `doomed`;
`reclaim` then removes the extents in slices, so that no transaction is unbounded. A chunk whose
last extent goes becomes a tombstone with the router's time, until the peers have deleted it; an
inline one goes at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mictlanfs.model import FileKind, InodeNumber, SessionId
from mictlanfs_server.metadata import trash

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mictlanfs.model import ChunkId
    from mictlanfs_server.metadata.rows import InodeRecord, TrashRecord
    from mictlanfs_server.metadata.transaction import Transaction

EXTENTS_AT_ONCE_MAX = 64


def drop(tx: Transaction, record: InodeRecord, item: TrashRecord | None, *, sustain: bool) -> None:
    """Sustain an inode that has lost its last name, or let it go; `item` is what is kept of it."""
    if sustain and tx.session:
        tx.rows.add_sustained(tx.session, record.ino)
    elif not tx.rows.is_sustained(record.ino):
        if item is None:
            _let_go(tx, record)
        else:
            trash.keep(tx, record, item, is_announced=False)
        return
    if item is not None:
        trash.announce(tx, item)


def release(tx: Transaction, session: SessionId, ino: InodeNumber) -> None:
    """End what `session` sustains of an inode; the last one to do so lets it go."""
    if not tx.rows.delete_sustained(session, ino):
        return
    record = tx.inode(ino)
    if record is None or record.nlink or tx.rows.is_sustained(ino):
        return
    item = tx.rows.trash.get(ino) if tx.may_have_trash() else None
    if item is None:
        _let_go(tx, record)
    else:
        trash.keep(tx, record, item, is_announced=True)


def _let_go(tx: Transaction, record: InodeRecord) -> None:
    if record.allocated:
        _let_content_go(tx, record.ino)
        tx.counts.bytes_logical -= record.allocated
    if record.has_xattrs:
        tx.rows.delete_xattrs(record.ino)
    if record.kind is FileKind.FILE and tx.may_have_record():
        tx.rows.records.delete(record.ino)
    tx.delete(record)


def _let_content_go(tx: Transaction, ino: InodeNumber) -> int:
    """Let go of all extents of a number, at once or by and by; returns how many at once."""
    extents = tx.rows.first_extents(ino, EXTENTS_AT_ONCE_MAX + 1)
    if len(extents) > EXTENTS_AT_ONCE_MAX:
        tx.rows.add_doomed(ino)
        return 0
    tx.rows.delete_extents(ino, extents)
    drop_references(tx, (extent.chunk_id for extent in extents))
    return len(extents)


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
    """Let go of a slice of what ended sessions sustained, of doomed inodes, of expired trash.

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
        return _reclaim_trash(tx, count_max)
    extents = tx.rows.first_extents(doomed, count_max)
    tx.rows.delete_extents(doomed, extents)
    drop_references(tx, (extent.chunk_id for extent in extents))
    if len(extents) < count_max:
        tx.rows.delete_doomed(doomed)
    return True


def _reclaim_trash(tx: Transaction, count_max: int) -> bool:
    """Let go of items of the trash whose time is over, as long as they have few extents."""
    left = count_max
    items = tx.rows.trash.expired(tx.now_ns, count_max)
    for item in items:
        tx.rows.trash.delete(item.ino)
        tx.counts.trash_items -= 1
        left -= 1
        # What is still open is let go when it is closed, as if it had not been kept.
        if tx.inode(item.ino) is None:
            left -= _let_item_go(tx, item)
        if left <= 0:
            break
    return bool(items)


def _let_item_go(tx: Transaction, item: TrashRecord) -> int:
    count = 0
    if item.allocated:
        count = _let_content_go(tx, item.ino)
        tx.counts.trash_bytes -= item.allocated
    if item.has_xattrs:
        tx.rows.delete_xattrs(item.ino)
    if item.kind is FileKind.FILE and tx.may_have_record():
        tx.rows.records.delete(item.ino)
    return count
