"""The space of a v4 door that is in a peer: its routers, asked over the network.

Turns to the next router of the space when one does not answer. A request that changes something is
sent to another one all the same: sessions and batches are known by their numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from mictlanfs import wire
from mictlanfs.errors import MictlanError
from mictlanfs.model import PeerMap, Struct

if TYPE_CHECKING:
    from mictlanfs.client.transport import HttpTransport

T = TypeVar("T", bound=Struct)

# Longer than a router may have to wait for leases.
REQUEST_TIMEOUT_S: Final = 40.0
ATTEMPTS_MAX: Final = 3
DELAY_S: Final = 0.1


class RemoteSpace:
    """`SpaceAccess` over HTTP.

    Args:
        routers: URLs, at least one.
        transport: not closed here.
    """

    def __init__(self, routers: Sequence[str], transport: HttpTransport) -> None:
        self._routers = list(routers)
        self._transport = transport
        self._peer_map: PeerMap | None = None
        self._version_seen = -1

    async def ask(self, path: str, request: Struct, answer: type[T]) -> T:
        """See `SpaceAccess`."""
        body = wire.encode(request)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return wire.decode(await self._post(path, body), answer)
            except MictlanError as error:
                if not error.is_retryable or attempt == ATTEMPTS_MAX:
                    raise
                self._routers.append(self._routers.pop(0))
                await asyncio.sleep(DELAY_S * attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _post(self, path: str, body: bytes) -> bytes:
        response = await self._transport.request(
            "POST",
            self._routers[0] + path,
            body=body,
            headers={"content-type": wire.MSGPACK},
            timeout_s=REQUEST_TIMEOUT_S,
        )
        version = response.headers.get(wire.HEADER_PEER_MAP, "")
        if version.isdecimal():
            self._version_seen = max(self._version_seen, int(version))
        if response.status != 200:
            raise wire.decode_error(response.status, response.body)
        return bytes(response.body)

    async def peer_map(self) -> PeerMap:
        """See `SpaceAccess`."""
        known = self._peer_map
        if known is None or known.version < self._version_seen:
            known = self._peer_map = await self.ask(wire.Path.PEER_MAP, wire.Done(), PeerMap)
        return known
