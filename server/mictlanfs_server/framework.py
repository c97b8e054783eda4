"""The web framework put off until a request needs it, and a lifespan without it.

Importing FastAPI takes longer than all else that a server does until it answers, and what mounts
and peers ask of each other goes past it. Owns when it comes; `http` owns how its answers look.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send


class LazyFramework:
    """An application that is made when it is first asked. Belongs to one event loop.

    Args:
        make: gives the application; called once, in a thread.
    """

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self._app is None:
            async with self._making:
                if self._app is None:
                    self._app = await asyncio.to_thread(self._make)
        await self._app(scope, receive, send)


async def run_lifespan(
    running: Callable[[], AbstractAsyncContextManager[object]], receive: Receive, send: Send
) -> None:
    """Speak the lifespan protocol of ASGI around `running`, which is entered once.

    Raises:
        Exception: what `running` raised, after it was told.
    """
    await receive()
    stage = "startup"
    try:
        async with running():
            await send({"type": "lifespan.startup.complete"})
            stage = "shutdown"
            await receive()
    except BaseException:
        await send({"type": f"lifespan.{stage}.failed", "message": traceback.format_exc()})
        raise
    await send({"type": "lifespan.shutdown.complete"})


def answering(handler: Callable[[], Awaitable[Response]]) -> ASGIApp:
    """The application that answers every request with what `handler` gives."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handler()
        await response(scope, receive, send)

    return answer
