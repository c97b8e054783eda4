"""The routers of a space: which one gets the next request, and what happens when one fails.

A request goes to the router with the fewest under way, of those the one that had the fewest so far.
When it fails in a way that another attempt may mend, the other routers are tried at once; when all
have failed, it waits and begins again. A router that failed comes last for a while.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from mictlanfs.client.retry import RetryPolicy
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.router import AsyncRouter

# One dead router then costs one time-out in that time, not one for each chunk.
AVOID_S = 3.0
# For the kinds that a caller adds: another copy may be better, but not the tenth.
ADDED_ATTEMPTS_MAX = 4

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Router:
    router: AsyncRouter
    under_way: int = 0
    total: int = 0
    avoided_until: float = 0.0


class RouterPool:
    """Routers, in the order of preference among equals. Used by any number of tasks.

    Args:
        routers: at least one.
        retry: how long a request is tried again.
    """

    def __init__(self, routers: Sequence[AsyncRouter], retry: RetryPolicy) -> None:
        self._routers = [_Router(router) for router in routers]
        self._retry = retry

    @property
    def routers(self) -> tuple[AsyncRouter, ...]:
        """All routers."""
        return tuple(known.router for known in self._routers)

    def request_counts(self) -> dict[str, int]:
        """How many requests each router has had, by its id."""
        return {known.router.id: known.total for known in self._routers}

    async def call(
        self,
        verb: Callable[[AsyncRouter, int], Awaitable[T]],
        *,
        also: Collection[Kind] = (),
    ) -> T:
        """Call `verb` with a router and the number of the attempt, from 0, until it succeeds.

        Args:
            verb: to be done; what it raises says whether it is done again.
            also: kinds of error that are tried again besides the retryable ones, up to
                `ADDED_ATTEMPTS_MAX` attempts in all.

        Cancellation: whatever holds for `verb`.

        Raises:
            MictlanError: the last failure.
        """
        give_up_at = trio.current_time() + self._retry.deadline_s
        attempt = 0
        for delay_s in self._retry.delays_s():
            untried = list(self._routers)
            while untried:
                known = min(untried, key=self._rank)
                untried.remove(known)
                try:
                    return await self._call_one(known, verb, attempt)
                except MictlanError as error:
                    attempt += 1
                    if not error.is_retryable and (
                        error.kind not in also or attempt >= ADDED_ATTEMPTS_MAX
                    ):
                        raise
                    if not untried and trio.current_time() + delay_s > give_up_at:
                        raise
                    log.debug("%s: %s; trying again", known.router.id, error)
            await trio.sleep(delay_s)
        raise AssertionError("the schedule of delays never ends")

    async def _call_one(
        self, known: _Router, verb: Callable[[AsyncRouter, int], Awaitable[T]], attempt: int
    ) -> T:
        known.under_way += 1
        known.total += 1
        try:
            result = await verb(known.router, attempt)
        except MictlanError as error:
            if error.is_retryable:
                known.avoided_until = trio.current_time() + AVOID_S
            raise
        else:
            known.avoided_until = 0.0
            return result
        finally:
            known.under_way -= 1

    def _rank(self, known: _Router) -> tuple[bool, int, int]:
        return known.avoided_until > trio.current_time(), known.under_way, known.total
