"""Waiting for what another process does: there is no event to wait for, so it is looked at."""

from __future__ import annotations

from collections.abc import Callable

import trio

DEADLINE_S = 30.0
_INTERVAL_S = 0.01


async def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Return when `condition` is true; fail after the deadline."""
    with trio.fail_after(deadline_s):
        while not condition():  # noqa: ASYNC110 - see above.
            await trio.sleep(_INTERVAL_S)
