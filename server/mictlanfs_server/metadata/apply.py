"""What a session may ask of the metadata, as functions over rows: batches, sessions, inode numbers.

No database and no waiting here: every form of the store runs these functions inside one of its
transactions, in a thread of its choice. An operation that fails leaves no trace and its error is
its result; any other exception fails the whole transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import InodeNumber, SessionId
from mictlanfs_server.metadata import attributes, content, names, records, removal, restoring
from mictlanfs_server.metadata.rows import BatchRecord, InodeRecord
from mictlanfs_server.metadata.transaction import Transaction

if TYPE_CHECKING:
    from mictlanfs_server.metadata.rows import Rows

INODES_TAKEN_MAX = 64 * wire.INODE_BATCH_COUNT
# How much is let go at once when a session closes; the reclaimer does the rest.
RELEASE_AT_ONCE_MAX = 256


def _release(tx: Transaction, op: wire.Release) -> list[InodeRecord]:
    removal.release(tx, tx.session, op.ino)
    return []


# Who applies which operation.
APPLIED: dict[type[Any], Callable[[Transaction, Any], list[InodeRecord]]] = {
    wire.MakeNode: names.make_node,
    wire.Link: names.link,
    wire.Unlink: names.unlink,
    wire.RemoveDirectory: names.remove_directory,
    wire.Rename: names.rename,
    wire.SetAttributes: attributes.set_attributes,
    wire.SetXattr: attributes.set_xattr,
    wire.RemoveXattr: attributes.remove_xattr,
    wire.WriteExtents: content.write_extents,
    wire.Release: _release,
    wire.SetBucketPolicy: attributes.set_bucket_policy,
    wire.SetRecord: records.set_record,
    wire.PutPart: records.put_part,
    wire.Restore: restoring.restore,
}


# --- batches -------------------------------------------------------------------------------------


def commit_batch(rows: Rows, batch: wire.Commit, now_ns: int) -> bytes:
    """Apply a batch, or find the answer to it if it was the last one applied.

    An empty batch changes nothing and is not recorded. The next batch begins with the number
    behind the last one that has a result.

    Returns:
        The encoded `wire.CommitAnswer`, exactly as recorded.

    Raises:
        MictlanError: FENCED, CONFLICT, INVALID; nothing is applied.
    """
    if len(batch.ops) > wire.BATCH_OPS_MAX:
        detail = f"a batch has at most {wire.BATCH_OPS_MAX} operations"
        raise MictlanError(Kind.INVALID, "commit", detail=detail)
    check_epoch(rows, batch.session, batch.epoch)
    last = rows.batch(batch.session)
    next_number = last.next_number if last else 1
    if batch.first_number != next_number:
        if last and (batch.first_number, len(batch.ops)) == (last.first_number, last.op_count):
            return rows.batch_answer(batch.session)
        detail = f"batch {batch.first_number} came where {next_number} was expected"
        raise MictlanError(Kind.CONFLICT, "commit", batch.session, detail)
    results = apply_operations(rows, batch, now_ns)
    answer = wire.encode(wire.CommitAnswer(tuple(results)))
    if batch.ops:
        record = BatchRecord(next_number, len(batch.ops), next_number + len(results))
        rows.set_batch(batch.session, record, answer)
    return answer


def apply_operations(rows: Rows, batch: wire.Commit, now_ns: int) -> list[wire.OpResult]:
    """Apply the operations of a batch that is known to be next."""
    tx = Transaction(rows, batch.session, now_ns)
    results = []
    for op in batch.ops:
        tx.begin()
        try:
            touched = APPLIED[type(op)](tx, op)
        except MictlanError as error:
            tx.undo()
            results.append(wire.OpResult(error=wire.WireError.of(error)))
            if batch.stop_on_error:
                break
        else:
            tx.keep()
            results.append(wire.OpResult(tuple([record.attributes for record in touched])))
    tx.flush()
    return results


# --- sessions ------------------------------------------------------------------------------------


def check_epoch(rows: Rows, session: SessionId, epoch: int) -> None:
    """Raises FENCED unless the session is open with this epoch."""
    if rows.session_epoch(session) != epoch:
        detail = "the session has ended: open a new one"
        raise MictlanError(Kind.FENCED, "session", session, detail)


def open_session(rows: Rows, request: wire.OpenSession, session: SessionId, now_ns: int) -> int:
    """Record a new session. Returns its epoch, which no other session ever has."""
    epoch = rows.counter("next_epoch")
    rows.set_counter("next_epoch", epoch + 1)
    rows.insert_session(session, epoch, request, now_ns)
    return epoch


def close_session(rows: Rows, session: SessionId, now_ns: int) -> None:
    """End a session and let go of what it sustained, or of a part. An unknown one is no error."""
    if rows.session_epoch(session) is None:
        return
    rows.end_session(session)
    reclaim(rows, now_ns, RELEASE_AT_ONCE_MAX)


def sustain(rows: Rows, session: SessionId, epoch: int, inodes: Iterable[InodeNumber]) -> None:
    """Keep inodes that a session has open, when they lose their names. Raises FENCED.

    What is gone already is no error: who has it open is told when it asks for it.
    """
    check_epoch(rows, session, epoch)
    for ino in inodes:
        if rows.inode(ino) is not None:
            rows.add_sustained(session, ino)


def take_inodes(rows: Rows, count: int) -> wire.InodeRange:
    """Hand out inode numbers. Raises INVALID for an unreasonable count."""
    if not 0 < count <= INODES_TAKEN_MAX:
        detail = f"1 to {INODES_TAKEN_MAX} inode numbers can be taken at once"
        raise MictlanError(Kind.INVALID, "take inodes", detail=detail)
    first = rows.counter("next_ino")
    rows.set_counter("next_ino", first + count)
    return wire.InodeRange(first, count)


# --- the router itself ---------------------------------------------------------------------------


def reclaim(rows: Rows, now_ns: int, count_max: int) -> bool:
    """Let go of a slice of what nobody uses any more. Returns whether anything may be left."""
    tx = Transaction(rows, SessionId(""), now_ns)
    has_more = removal.reclaim(tx, count_max)
    tx.flush()
    return has_more
