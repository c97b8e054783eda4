"""Running the asynchronous work of a command: event loop, signals, the space.

Imports the client library when it is called and not before.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mictlanfs.cli.exits import Exit
from mictlanfs.errors import MictlanError

if TYPE_CHECKING:
    from mictlanfs.cli.options import SpaceChoice
    from mictlanfs.client.space import SpaceClient

T = TypeVar("T")


def run_on_space(choice: SpaceChoice, label: str, work: Callable[[SpaceClient], Awaitable[T]]) -> T:
    """Do `work` with a client of the chosen space and return what it returns.

    SIGTERM cancels the work, so that a put removes what it began, and ends the process.

    Raises:
        MictlanError: whatever `work` raises, without an exception group.
        SystemExit: after SIGTERM.
    """
    import trio

    from mictlanfs.client.retry import RetryPolicy
    from mictlanfs.client.space import open_space

    async def main() -> T:
        retry = RetryPolicy(deadline_s=choice.timeout_s)
        async with open_space(choice.uri, label=f"mictlanfs {label}", retry=retry) as space:
            return await work(space)

    try:
        return trio.run(_until_terminated, main)
    except MictlanError as error:
        if not error.is_retryable:
            raise
        detail = f"the space at {choice.uri} does not answer: {error.detail or error}"
        if choice.data is not None:
            detail += f". It is the one made last, {_remedy(choice.data)}"
        raise MictlanError(error.kind, detail=detail) from error


def _remedy(data: Path) -> str:
    if not data.exists():
        return f"and {data}, where its data was, is gone; name another with --uri URI"
    where = shlex.quote(str(data))
    return f"with its data in {where}: 'mictlanfs up --data {where}' starts it again"


async def _until_terminated(main: Callable[[], Awaitable[T]]) -> T:
    import signal

    import trio

    from mictlanfs.taskerrors import raising_single_errors

    results: list[T] = []

    async def watch(
        scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                scope.cancel()

    with raising_single_errors():
        async with trio.open_nursery() as nursery:
            await nursery.start(watch, nursery.cancel_scope)
            results.append(await main())
            nursery.cancel_scope.cancel()
    if not results:
        raise SystemExit(Exit.TERMINATED)
    return results[0]
