"""Making the index agree with the back end when a peer starts.

Compares names only; no chunk is read. What each difference means stands in `store.py`. A chunk that
is lost is out of service from here on, and a router is told of it like of one found bad later.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from mictlanfs_server.peer import badcopies

if TYPE_CHECKING:
    from mictlanfs.model import ChunkId
    from mictlanfs_server.peer.backends.base import Backend, StoredChunk
    from mictlanfs_server.peer.index import Index, Transaction

log = logging.getLogger(__name__)

# A disk that was not mounted loses them all: the first ones and their number say enough.
_LOGGED_MAX: Final = 20


def reconcile(index: Index, backend: Backend) -> None:
    """Add the rows that are missing, take out of service those that stand for nothing. Blocks.

    Raises:
        MictlanError: the index cannot be read or written.
        OSError: the back end cannot be listed.
    """
    rows: dict[ChunkId, StoredChunk] = {chunk.id: chunk for chunk in index.chunks_of_backend()}
    aside = set(backend.chunks_aside())
    unknown = []
    for chunk in backend.chunks():
        # Equal ids with another digest are two chunks: the row stays with the file it names.
        if rows.get(chunk.id) == chunk:
            del rows[chunk.id]
        else:
            unknown.append(chunk)
    lost = list(rows.values())
    if lost:
        _log_lost(lost)
    # What is aside for no row was let go of just before the end.
    backend.sweep_aside(badcopies.files_aside(index) | set(lost))
    if not unknown and not lost:
        return

    def condemn(transaction: Transaction, chunk: StoredChunk) -> None:
        badcopies.condemn(chunk, badcopies.MISSING, is_file=chunk in aside)(transaction)

    added = index.reconcile(unknown, lost, condemn)
    if added:
        log.info("the back end had chunks that the index did not know: %d", added)
    if added != len(unknown):
        log.warning("the back end has other bytes for known ids: %d", len(unknown) - added)


def _log_lost(lost: list[StoredChunk]) -> None:
    for chunk in lost[:_LOGGED_MAX]:
        log.error(
            "a chunk is lost: the index has it, the back end does not",
            extra={"key": chunk.id.hex(), "size": chunk.length},
        )
    if len(lost) > _LOGGED_MAX:
        log.error("chunks lost in all: %d", len(lost))
