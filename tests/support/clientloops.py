"""The event loops that a client may run on, for tests whose servers run on trio."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import trio
import uvloop

T = TypeVar("T")
NAMES = ["trio", "asyncio", "uvloop"]


class ClientLoop(Protocol):
    """Where the client runs; the test itself is on trio."""

    async def run(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Call `function` there. Cancelling this cancels it."""
        ...


class SameLoop:
    """The client runs on trio, as the test does."""

    async def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        return await function(*args)


class OtherLoop:
    """The client runs on asyncio, in a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    async def run(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        token = trio.lowlevel.current_trio_token()
        ended = trio.Event()
        started: list[asyncio.Task[T]] = []

        def start() -> None:
            task = self._loop.create_task(function(*args))
            task.add_done_callback(lambda _: token.run_sync_soon(ended.set))
            started.append(task)

        self._loop.call_soon_threadsafe(start)
        try:
            await ended.wait()
        except trio.Cancelled:
            self._loop.call_soon_threadsafe(lambda: started[0].cancel())
            with trio.CancelScope(shield=True):
                await ended.wait()
            if not started[0].cancelled():
                started[0].result()
            raise
        return started[0].result()


@contextmanager
def client_loop(name: str) -> Iterator[ClientLoop]:
    """The loop called `name`, running for as long as the block does."""
    if name == "trio":
        yield SameLoop()
        return
    loop = uvloop.new_event_loop() if name == "uvloop" else asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield OtherLoop(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
