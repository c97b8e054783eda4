"""Opening the index of a peer, and making it anew when it is damaged.

Owns the names beside `index.sqlite`::

    index.sqlite.new                  the one being made; swept, or put in place when it is whole
    index.sqlite.damaged-TIME[-wal]   the old one, kept for whoever looks into it

What an index says is known elsewhere for the most part: the name of a chunk's file says all. Lost
are small chunks whose bytes cannot be read any more. Those of which at least the row is left are
taken for missing, and a router is told; the router finds the others when it compares, and both are
copied anew from other peers. Everything that was in service is read by a scrub at once, since
what damaged the index may have damaged more.

The order, so that a crash leaves an index that is whole, or none and the finished new one: the new
one durable → the old one aside → the new one in its place.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from mictlanfs.checksums import digest_of
from mictlanfs.durable import sync_file, sync_folder
from mictlanfs.errors import Kind, MictlanError
from mictlanfs_server.peer import badcopies
from mictlanfs_server.peer.folder import INDEX_NAME, read_identity
from mictlanfs_server.peer.index import Index, insert_row
from mictlanfs_server.peer.recovery import reconcile
from mictlanfs_server.peer.salvaging import Salvaged, salvaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from mictlanfs_server.peer.backends.base import Backend, StoredChunk
    from mictlanfs_server.peer.index import Transaction

log = logging.getLogger(__name__)

_NEW: Final = ".new"
# What SQLite keeps beside a database.
_BESIDE: Final = ("-wal", "-shm")
_OF_BEFORE: Final = "it was aside when the index was damaged"
_SLICE_COUNT: Final = 256


def open_index(folder: Path, peer_id: str, backend: Backend, *, fsync: bool) -> tuple[Index, bool]:
    """The index of a peer's folder, agreeing with the back end; whether it had to be made anew.

    Blocks; for as long as it takes to read the names of all chunks.

    Args:
        folder: which the caller has locked.
        peer_id: who opens it. A damaged index of somebody else, or of nobody knows whom, is left.
        backend: which has the chunks that are not small.
        fsync: as in `Index`.

    Raises:
        MictlanError: CORRUPT (it is damaged, and the folder may be that of another peer),
            UNSUPPORTED, NO_SPACE, INTERNAL.
        OSError: the folder cannot be used.
    """
    path = folder / INDEX_NAME
    _finish(path)
    try:
        return _opened(path, backend, fsync), False
    except MictlanError as error:
        if error.kind is not Kind.CORRUPT:
            raise
        _refuse_foreign(folder, peer_id, error)
        log.error("the index is damaged and is made anew from the chunks: %s", error)  # noqa: TRY400 - the reason says it all.
    _rebuild(path, backend, fsync)
    return _opened(path, backend, fsync), True


def _opened(path: Path, backend: Backend, fsync: bool) -> Index:
    index = Index(path, fsync=fsync)
    try:
        reconcile(index, backend)
    except BaseException:
        index.close()
        raise
    return index


def _refuse_foreign(folder: Path, peer_id: str, damage: MictlanError) -> None:
    identity = read_identity(folder)
    if identity is not None and identity.id == peer_id:
        return
    whose = f"that of peer {identity.id}" if identity else "of no peer that a router ever welcomed"
    detail = (
        f"{damage.detail or damage}; it is not made anew, since {folder} is {whose}, and this is "
        f"{peer_id}. Check --data and --id; to begin with what the chunk files say, move "
        f"{INDEX_NAME} away"
    )
    raise MictlanError(Kind.CORRUPT, "open index", str(folder), detail) from damage


# --- making it anew ------------------------------------------------------------------------------


def _rebuild(path: Path, backend: Backend, fsync: bool) -> None:
    new = path.with_name(path.name + _NEW)
    with closing(Index(new, fsync=fsync)) as index:
        _fill(index, backend, salvaged(path))
        count = index.totals.chunk_count
    # Closed, it is one file without a log.
    sync_file(new)
    sync_folder(path.parent)
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{moment}")
    path.replace(aside)
    _put_aside(path, aside)
    new.replace(path)
    sync_folder(path.parent)
    log.warning(
        "the index was made anew with %d chunks; small ones may be missing: the router has them "
        "copied from other peers when it compares (now: mictlanfs fsck --repair). The old: %s",
        count,
        aside,
    )


def _put_aside(path: Path, aside: Path) -> None:
    """The log of the old index must not be taken for that of the new one."""
    for suffix in _BESIDE:
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + suffix))


def _finish(path: Path) -> None:
    """Sweep what a crash left, or bring it to its end."""
    new = path.with_name(path.name + _NEW)
    if path.exists() or not new.exists():
        for suffix in ("", *_BESIDE):
            new.with_name(new.name + suffix).unlink(missing_ok=True)
        return
    log.warning("the index that was made anew is put in its place")
    _put_aside(path, path.with_name(f"{path.name}.damaged"))
    new.replace(path)
    sync_folder(path.parent)


def _fill(index: Index, backend: Backend, rows: Iterable[Salvaged]) -> None:
    there = set(backend.chunks())
    ids = {chunk.id for chunk in there}
    good = bad = 0
    part: list[Salvaged] = []

    def flush() -> None:
        nonlocal good, bad
        stored = index.change_now(_small(part))
        good, bad = good + stored, bad + len(part) - stored
        part.clear()

    for row in rows:
        # Files tell of themselves.
        if row.is_small or (row.chunk not in there and row.chunk.id not in ids):
            part.append(row)
        if len(part) >= _SLICE_COUNT:
            flush()
    flush()
    log.warning("of the old index: %d small chunks are good, %d chunks are missing", good, bad)
    # What is in quarantine may be all that is left of a chunk.
    aside = [chunk for chunk in backend.chunks_aside() if chunk.id not in ids]
    index.change_now(_aside(aside))


def _small(rows: Iterable[Salvaged]) -> Callable[[Transaction], int]:
    """A change that adds the rows whose bytes are right, and the others as missing."""

    def apply(transaction: Transaction) -> int:
        count = 0
        for chunk, _, body in rows:
            is_good = (
                body is not None and len(body) == chunk.length and digest_of([body]) == chunk.digest
            )
            if is_good:
                count += insert_row(transaction, chunk, body) is True
            else:
                _condemn(transaction, chunk, badcopies.MISSING, is_file=False)
        return count

    return apply


def _aside(chunks: Iterable[StoredChunk]) -> Callable[[Transaction], None]:
    """A change that notes chunks as bad whose files are in quarantine."""

    def apply(transaction: Transaction) -> None:
        for chunk in chunks:
            _condemn(transaction, chunk, _OF_BEFORE, is_file=True)

    return apply


def _condemn(transaction: Transaction, chunk: StoredChunk, reason: str, *, is_file: bool) -> None:
    if insert_row(transaction, chunk, None) is True:
        badcopies.condemn(chunk, reason, is_file=is_file)(transaction)
