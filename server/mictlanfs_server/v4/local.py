"""The space of a v4 door that is in the router's own process: its handlers, called directly.

Reads go through the gate of the leases as everybody's do: what mounts have not sent yet is waited
for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mictlanfs import wire
from mictlanfs.model import PeerMap, Struct

if TYPE_CHECKING:
    from mictlanfs_server.router.handlers import RouterHandlers

T = TypeVar("T", bound=Struct)


class LocalSpace:
    """`SpaceAccess` over the handlers of a running router."""

    def __init__(self, handlers: RouterHandlers) -> None:
        self._handlers = handlers
        self._messages: dict[str, Callable[[Any], Awaitable[Struct | bytes]]] = {
            route.path: route.handler for route in handlers.routes()
        }
        self._reads = {route.path: route.handler for route in handlers.reads()}

    async def ask(self, path: str, request: Struct, answer: type[T]) -> T:
        """See `SpaceAccess`."""
        found: Any
        if (read := self._reads.get(path)) is not None:
            found = await read(request, None)
        else:
            found = await self._messages[path](request)
        if isinstance(found, bytes):
            return wire.decode(found, answer)
        assert isinstance(found, answer)
        return found

    async def peer_map(self) -> PeerMap:
        """See `SpaceAccess`."""
        return await self._handlers.read_peer_map(wire.Done())
