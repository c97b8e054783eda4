"""The way into a v4 door: an application that is imported and made when it is first asked for.

Many servers are never asked, and starting one should cost no more for it. Owns which paths belong
to the door, and its opening and closing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

API: Final = "/api/v4"
HEALTH: Final = "/health"
ROOT_PATH: Final = "/mictlanx"
# They tell of the door too.
_DESCRIPTIONS: Final = frozenset({"/openapi.json", "/docs", "/redoc"})


class DoorApplication(Protocol):
    """An open door."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        ...

    def describe(self, document: dict[str, Any]) -> dict[str, Any]:
        """An OpenAPI document, with the door in it."""
        ...


class LazyDoor:
    """Opens a door when it is first needed. Belongs to one event loop."""

    def __init__(
        self, open_door: Callable[[], AbstractAsyncContextManager[DoorApplication]]
    ) -> None:
        self._open_door = open_door
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._door: DoorApplication | None = None

    async def opened(self) -> DoorApplication:
        """The door. Raises what opening it does."""
        if self._door is None:
            async with self._opening:
                if self._door is None:
                    self._door = await self._stack.enter_async_context(self._open_door())
        return self._door

    def describe(self, document: dict[str, Any]) -> dict[str, Any]:
        """An OpenAPI document, with the door in it: it is open when descriptions are read."""
        return document if self._door is None else self._door.describe(document)

    async def close(self) -> None:
        """Close the door if it is open."""
        await self._stack.aclose()


class Entry:
    """Leads requests of the v4 interface to a door, and all others on.

    Every path is answered below the root path as well: it is taken off for both, and put into
    descriptions.
    """

    def __init__(self, app: ASGIApp, door: LazyDoor, root_path: str = ROOT_PATH) -> None:
        self._app = app
        self._door = door
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Routing takes it off the path where it is there.
        scope["root_path"] = self._root_path
        path: str = scope["path"]
        if self._root_path and path.startswith(self._root_path + "/"):
            path = path.removeprefix(self._root_path)
        if path.startswith(API + "/") or path == HEALTH:
            door = await self._door.opened()
            await door(scope, receive, send)
            return
        if path in _DESCRIPTIONS:
            await self._door.opened()
        await self._app(scope, receive, send)
