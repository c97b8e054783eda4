"""Complaints of a reader: copies of chunks that were not as they should be, told to a router.

Owns the tasks that tell. Best effort: nobody waits for it, nothing fails by it, and what is not
told now is told when the copy is met again. The router believes nobody, it has the peer look.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mictlanfs.errors import MictlanError
from mictlanfs.model import ChunkId, PeerNumber
from mictlanfs.wireverify import ReportCopy

log = logging.getLogger(__name__)

# The same copy is not complained of again for as long; so many are remembered.
REPEAT_S_MIN: Final = 30.0
_REMEMBERED_MAX: Final = 1024
_SENDERS_MAX: Final = 16

Send = Callable[[ReportCopy], Awaitable[object]]


class Complaints:
    """Complains of copies.

    Args:
        nursery: for the tasks that tell.
        send: tells a router; None: complaints are forgotten.

    Attributes:
        sent_count: complaints that a router took.
    """

    def __init__(self, nursery: trio.Nursery, send: Send | None) -> None:
        self._nursery = nursery
        self._send = send
        self._noted_s: OrderedDict[tuple[ChunkId, PeerNumber], float] = OrderedDict()
        self._sender_count = 0
        self.sent_count = 0

    def note(self, chunk_id: ChunkId, peer: PeerNumber) -> None:
        """Have a router told, in a while. Never waits and never fails."""
        now_s = trio.current_time()
        key = (chunk_id, peer)
        noted_s = self._noted_s.get(key)
        if self._send is None or self._sender_count >= _SENDERS_MAX:
            return
        if noted_s is not None and now_s - noted_s < REPEAT_S_MIN:
            return
        self._noted_s[key] = now_s
        self._noted_s.move_to_end(key)
        if len(self._noted_s) > _REMEMBERED_MAX:
            self._noted_s.popitem(last=False)
        self._sender_count += 1
        self._nursery.start_soon(self._tell, self._send, ReportCopy(chunk_id, peer))

    async def _tell(self, send: Send, report: ReportCopy) -> None:
        try:
            await send(report)
            self.sent_count += 1
        except MictlanError as error:
            log.info("no router took note of a bad copy: %s", error)
        finally:
            self._sender_count -= 1
