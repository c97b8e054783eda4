"""Tells a router of the copies that went out of service, and lets go of what was kept of them.

Owns one task. A copy is told until a router has answered, over restarts of the peer: by then the
router has durably stopped to name it. Only then its bytes may go, after `ASIDE_S_MAX`, or earlier
when all that is aside is more than `ASIDE_SIZE_BYTES_MAX`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.client.retrypolicy import RetryPolicy
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import GIB
from mictlanfs.wireverify import BAD_COPIES_MAX, BadCopies, LastCopies
from mictlanfs_server.peer import badcopies

if TYPE_CHECKING:
    from collections.abc import Callable

    from mictlanfs.client.transport import HttpTransport
    from mictlanfs.model import ChunkId
    from mictlanfs_server.peer.store import ChunkStore

log = logging.getLogger(__name__)

ASIDE_S_MAX: Final = 7 * 86_400
ASIDE_SIZE_BYTES_MAX: Final = 1 * GIB
REPORT_TIMEOUT_S: Final = 10.0
_SWEEP_INTERVAL_S: Final = 3600.0
_RETRY: Final = RetryPolicy(delay_s_first=0.1, delay_s_max=5.0)


class BadReports:
    """Reports the bad copies of a store. `run` is the task.

    Args:
        router: URL of the router that the peer is registered with; None while there is none.
    """

    def __init__(
        self,
        store: ChunkStore,
        transport: HttpTransport,
        router: Callable[[], str | None],
        peer_id: str,
    ) -> None:
        self._store = store
        self._transport = transport
        self._router = router
        self._peer_id = peer_id
        self._news = asyncio.Event()
        # What the process before could not tell.
        self._news.set()

    def wake(self) -> None:
        """There is something to report."""
        self._news.set()

    async def run(self) -> None:
        """Report and let go until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _SWEEP_INTERVAL_S)
            self._news.clear()
            delays_s = _RETRY.delays_s()
            while True:
                try:
                    await self.report()
                    await self.sweep(int(time.time()))
                    break
                except Exception as error:  # noqa: BLE001 - it must go on whatever it meets.
                    log.info("bad copies are not told of yet: %s", error)
                    await asyncio.sleep(next(delays_s))

    async def report(self) -> None:
        """Tell a router of all that none knows.

        Raises:
            MictlanError: UNAVAILABLE, TIMED_OUT, or what the router answers.
        """
        index = self._store.index
        while ids := await asyncio.to_thread(badcopies.not_told, index, BAD_COPIES_MAX):
            last = set(await self._tell(ids))
            await index.change(badcopies.told(ids, last))
            if last:
                log.error("chunks without any good copy: %d", len(last))

    async def _tell(self, ids: list[ChunkId]) -> tuple[ChunkId, ...]:
        router = self._router()
        if router is None:
            raise MictlanError(Kind.UNAVAILABLE, "report", detail="no router knows this peer yet")
        response = await self._transport.request(
            "POST",
            router + wire.Path.PEER_BAD,
            body=wire.encode(BadCopies(self._peer_id, tuple(ids))),
            headers={"content-type": wire.MSGPACK},
            timeout_s=REPORT_TIMEOUT_S,
        )
        if response.status != 200:
            raise wire.decode_error(response.status, response.body)
        return wire.decode(response.body, LastCopies).chunks

    async def sweep(self, now_s: int) -> None:
        """Let go of what was kept aside long enough, or is too much. `now_s` since the epoch.

        Raises:
            MictlanError: NO_SPACE, INTERNAL.
        """
        index, backend = self._store.index, self._store.backend
        aside = await asyncio.to_thread(badcopies.kept_aside, index)
        _, size, _ = await asyncio.to_thread(badcopies.totals, index)
        for copy in aside:
            if now_s - copy.found_s < ASIDE_S_MAX and size <= ASIDE_SIZE_BYTES_MAX:
                continue
            await index.change(badcopies.forget([copy.chunk.id]))
            if copy.is_file:
                await backend.drop_aside(copy.chunk)
            size -= copy.chunk.length
