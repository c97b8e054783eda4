"""Trying again: the one loop that follows the schedule of a policy, on trio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from mictlanfs.client.retrypolicy import FOR_EVER, NO_RETRY, RetryPolicy
from mictlanfs.errors import MictlanError

__all__ = ["FOR_EVER", "NO_RETRY", "RetryPolicy", "retrying"]

T = TypeVar("T")


async def retrying(policy: RetryPolicy, attempt: Callable[[], Awaitable[T]]) -> T:
    """Call `attempt` until it succeeds, fails for good, or the deadline of `policy` is over.

    Cancellation: whatever holds for `attempt`.

    Raises:
        MictlanError: the last failure.
    """
    give_up_at = trio.current_time() + policy.deadline_s
    for delay_s in policy.delays_s():
        try:
            return await attempt()
        except MictlanError as error:
            if not error.is_retryable or trio.current_time() + delay_s > give_up_at:
                raise
        await trio.sleep(delay_s)
    raise AssertionError("the schedule of delays never ends")
