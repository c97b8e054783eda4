"""Whether the servers of a space on this machine answer, asked over HTTP as any client would.

Never judges from a process or a record: only an answer counts. Every question is bounded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from mictlanfs import wire
from mictlanfs.client.retry import NO_RETRY
from mictlanfs.client.router import RouterClient
from mictlanfs.client.transport import HttpTransport
from mictlanfs.errors import MictlanError
from mictlanfs.model import PeerState
from mictlanfs.uri import ServerAddress

TIMEOUT_S = 3.0
INTERVAL_S = 0.1
_UP = "up"


class Probe:
    """Questions to the servers of one space."""

    def __init__(self, transport: HttpTransport, router: ServerAddress) -> None:
        self._transport = transport
        self._router = router
        self._client = RouterClient([router], transport, NO_RETRY)

    async def is_answering(self, server: ServerAddress) -> bool:
        """Whether a router or peer says that it works."""
        try:
            answer = await self._transport.request(
                "GET", server.base_url + wire.Path.HEALTH, timeout_s=TIMEOUT_S
            )
        except MictlanError:
            return False
        return answer.status == 200

    async def status(self) -> wire.SpaceStatus | None:
        """What the router says of the space; None when it does not answer."""
        status = None
        with trio.move_on_after(TIMEOUT_S):
            try:
                status = await self._client.status()
            except MictlanError:
                return None
        return status

    async def known_up(self) -> set[str]:
        """Names of the peers that writers use, as the router tells them; none if it is silent."""
        try:
            with trio.fail_after(TIMEOUT_S):
                peer_map = await self._client.peer_map()
        except (MictlanError, trio.TooSlowError):
            return set()
        return {peer.id for peer in peer_map.peers if peer.state is PeerState.UP}

    async def leave_cost(self, peer_id: str) -> wire.LeaveCost:
        """What the space would be short of without a peer, says the router.

        Raises:
            MictlanError: NOT_FOUND: it knows no such peer; UNAVAILABLE, TIMED_OUT.
        """
        return await self._client.leave_cost(peer_id)

    async def wait_for_router(self) -> None:
        """Return when the router answers."""
        await _until(lambda: self.is_answering(self._router))

    async def wait_for_peers(self, peers: Sequence[ServerAddress]) -> None:
        """Return when every one of `peers` answers and the router believes it up."""

        async def are_up() -> bool:
            for peer in peers:
                if not await self.is_answering(peer):
                    return False
            status = await self.status()
            return status is not None and {peer.id for peer in peers} <= peers_up(status)

        await _until(are_up)


def peers_up(status: wire.SpaceStatus) -> set[str | None]:
    """Names of the peers that the router believes up."""
    return {peer.id for peer in status.peers if peer.state.lower() == _UP}


@asynccontextmanager
async def open_probe(router: ServerAddress) -> AsyncIterator[Probe]:
    """A probe of the space of `router`; its connections are closed when the block ends."""
    transport = HttpTransport()
    try:
        yield Probe(transport, router)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(TIMEOUT_S):
            await transport.aclose()


async def _until(question: Callable[[], Awaitable[bool]]) -> None:
    while not await question():  # noqa: ASYNC110 - other processes answer.
        await trio.sleep(INTERVAL_S)
