"""What a peer does for the truth of its copies, put together: inspector, scrub, reports, endpoints.

Owns the tasks of these; `app.py` runs them while the peer serves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mictlanfs_server.peer.badreports import BadReports
from mictlanfs_server.peer.inspection import Inspector
from mictlanfs_server.peer.scrubbing import Scrubber
from mictlanfs_server.peer.verifyhandlers import VerifyHandlers

if TYPE_CHECKING:
    from collections.abc import Callable

    from mictlanfs.client.transport import HttpTransport
    from mictlanfs_server.peer.settings import PeerSettings
    from mictlanfs_server.peer.store import ChunkStore


class Verification:
    """The parts.

    Args:
        router: URL of the router that the peer is registered with; None while there is none.
    """

    def __init__(
        self,
        store: ChunkStore,
        settings: PeerSettings,
        transport: HttpTransport,
        router: Callable[[], str | None],
    ) -> None:
        self._reports = BadReports(store, transport, router, settings.peer_id)
        self.inspector = Inspector(store, self._reports.wake)
        self.scrubber = Scrubber(
            store, self.inspector, settings.data, settings.scrub_rate, settings.scrub_period_s
        )
        self.handlers = VerifyHandlers(store, self.inspector, self.scrubber)

    async def run(self) -> None:
        """Do all of it until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.inspector.run(), name="peer-suspects")
            tasks.create_task(self._reports.run(), name="peer-reports")
            tasks.create_task(self.scrubber.run(), name="peer-scrub")
