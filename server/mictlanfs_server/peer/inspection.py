"""Verdicts on copies: reads all of a chunk and takes it out of service when it is bad.

Owns the queue of suspects: chunks that a reader found not to be as they should be. Who asks for a
verdict (the scrub, a router, a suspicion) makes no difference to what follows from it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.wireverify import Verdict
from mictlanfs_server.peer import badcopies
from mictlanfs_server.peer.backends.base import StoredChunk, is_same

if TYPE_CHECKING:
    from collections.abc import Callable

    from mictlanfs.model import ChunkId
    from mictlanfs_server.peer.store import ChunkStore

log = logging.getLogger(__name__)

# Further ones are forgotten: whoever meets them again, or the scrub, finds them again.
SUSPECTS_MAX: Final = 1024
_OTHER_BYTES: Final = "the metadata means other bytes by its id"


class Inspector:
    """Inspects the chunks of a store. `run` is the task that looks after suspects.

    Args:
        on_bad: called when a copy has gone out of service.

    Attributes:
        bad_count: copies found bad or missing since the peer started.
    """

    def __init__(self, store: ChunkStore, on_bad: Callable[[], None]) -> None:
        self._store = store
        self._on_bad = on_bad
        self._suspects: dict[ChunkId, None] = {}
        self._has_suspects = asyncio.Event()
        self.bad_count = 0
        store.on_suspect = self.suspect

    def suspect(self, chunk_id: ChunkId) -> None:
        """Have a chunk inspected soon."""
        if len(self._suspects) < SUSPECTS_MAX:
            self._suspects[chunk_id] = None
            self._has_suspects.set()

    async def run(self) -> None:
        """Inspect what is suspected, until cancelled."""
        while True:
            await self._has_suspects.wait()
            self._has_suspects.clear()
            while self._suspects:
                chunk_id = next(iter(self._suspects))
                try:
                    await self.inspect(self._store.find(chunk_id))
                except MictlanError as error:
                    log.info("no verdict on chunk %s: %s", chunk_id.hex(), error)
                finally:
                    # Not before: a chunk is suspected by many readers at the same time.
                    self._suspects.pop(chunk_id, None)

    async def judge(self, named: StoredChunk) -> Verdict:
        """The verdict on the copy of a chunk as the metadata names it."""
        try:
            known = self._store.find(named.id)
        except MictlanError as error:
            return Verdict.MISSING if error.kind is Kind.NOT_FOUND else Verdict.UNKNOWN
        if is_same(known, named):
            return await self.inspect(known)
        return await self._condemn(known, _OTHER_BYTES)

    async def inspect(self, chunk: StoredChunk) -> Verdict:
        """The verdict on a copy as the index names it; what is bad goes out of service.

        Cancellation: nothing is changed, or all of it.
        """
        try:
            reason = await self._store.check(chunk)
        except MictlanError as error:
            if error.kind is Kind.NOT_FOUND:
                return Verdict.MISSING
            log.info("no verdict on chunk %s: %s", chunk.id.hex(), error)
            return Verdict.UNKNOWN
        return await self._condemn(chunk, reason) if reason else Verdict.GOOD

    async def _condemn(self, chunk: StoredChunk, reason: str) -> Verdict:
        try:
            if not await self._store.condemn(chunk, reason):
                return Verdict.UNKNOWN
        except MictlanError as error:
            log.warning("chunk %s is bad and stays in service: %s", chunk.id.hex(), error)
            return Verdict.UNKNOWN
        log.error(
            "a copy is out of service: %s",
            reason,
            extra={"key": chunk.id.hex(), "size": chunk.length},
        )
        self.bad_count += 1
        self._on_bad()
        return Verdict.MISSING if reason == badcopies.MISSING else Verdict.BAD
