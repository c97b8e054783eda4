r"""One answer from several peers that could give it: the next is asked when the first is late.

::

    ask A --(answers in time)--> done
      |  \--(fails)--> ask the next, as if it were the first
      +--(late, and more is allowed)--> ask B as well --+--(A answers)--> B is cancelled
                                          |  (fails)    +--(B answers)--> A is cancelled, and slow
                                          +--> ask the next beside A

Invariants: at most two requests of a race are under way; extra requests are a bounded share of all;
when the race is over or its caller is cancelled, nothing of it is under way. Cancelling a request
closes its connection, and no other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import trio

from mictlanfs.client.lateness import Lateness, Timing
from mictlanfs.client.paces import Allowance
from mictlanfs.model import PeerInfo, PeerNumber

# Second requests for each first one, in the long run, and at once: as many as a mount with several
# readers has under way at one peer, when that begins to be slow.
EXTRA_SHARE: Final = 0.05
EXTRA_COUNT_MAX: Final = 32

T = TypeVar("T")
# Ask one peer, and say when it has answered, before the answer is looked at; None when it failed,
# which was noted elsewhere.
Ask = Callable[[PeerInfo, Timing], Awaitable[T | None]]


@dataclass(frozen=True, slots=True)
class RaceStats:
    """What became of second requests.

    Attributes:
        second_requests: made because the first was late.
        second_won: of these, how many answered first.
        refused: not made, because there were too many.
    """

    second_requests: int
    second_won: int
    refused: int


class Races:
    """Races for answers of one kind. For one trio loop.

    Args:
        nursery: for second requests.
        lateness: of requests of that kind.
        on_slow: called with a peer that was asked first and lost.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        lateness: Lateness,
        on_slow: Callable[[PeerNumber], None],
    ) -> None:
        self.nursery = nursery
        self.lateness = lateness
        self.on_slow = on_slow
        self._extra = Allowance(EXTRA_SHARE, EXTRA_COUNT_MAX)
        self._second_requests = self._second_won = self._refused = 0

    async def first(self, peers: Sequence[PeerInfo], ask: Ask[T], size: int) -> T | None:
        """The first answer; None when all failed.

        Args:
            peers: that could answer, best first.
            ask: asks one of them; called for several, for each once.
            size: of the answer, in bytes.

        Cancellation: whatever is under way is cancelled.
        """
        self._extra.earn()
        waiting = deque(peers)
        while waiting:
            body = await _Race(self, waiting, ask, size).run()
            if body is not None:
                return body
        return None

    def may_ask_again(self) -> bool:
        """Whether a second request may be made now; it then counts as made."""
        if not self._extra.spend():
            self._refused += 1
            return False
        self._second_requests += 1
        return True

    def lost(self, number: PeerNumber) -> None:
        """Another peer was quicker than the one that was asked first."""
        self._second_won += 1
        self.on_slow(number)

    def stats(self) -> RaceStats:
        """The counters of now."""
        return RaceStats(self._second_requests, self._second_won, self._refused)


class _Race(Generic[T]):
    """One request and, when it is late, a second one. Takes its peers out of `waiting`."""

    def __init__(self, races: Races, waiting: deque[PeerInfo], ask: Ask[T], size: int) -> None:
        self._races = races
        self._waiting = waiting
        self._ask = ask
        self._size = size
        self._numbers = [peer.number for peer in waiting]
        self._peer = waiting.popleft()
        self._first_scope = trio.CancelScope()
        self._second: trio.CancelScope | None = None
        self._second_done = trio.Event()
        self._second_body: T | None = None
        self._second_error: Exception | None = None

    async def run(self) -> T | None:
        on_late = self._on_late if self._waiting else None
        body: T | None = None
        try:
            with self._first_scope:
                body = await self._timed(self._peer, on_late)
            if body is not None or self._second is None:
                return body
            await self._second_done.wait()
            return self._result_of_second()
        finally:
            if self._second is not None:
                self._second.cancel()

    def _result_of_second(self) -> T | None:
        if self._second_error is not None:
            raise self._second_error
        if self._second_body is not None and self._first_scope.cancelled_caught:
            self._races.lost(self._peer.number)
        return self._second_body

    async def _timed(self, peer: PeerInfo, on_late: Callable[[], None] | None = None) -> T | None:
        timed = self._races.lateness.timing(peer.number, self._size, self._numbers, on_late)
        with timed as timing:
            return await self._ask(peer, timing)

    def _on_late(self) -> None:
        if self._waiting and self._races.may_ask_again():
            self._second = trio.CancelScope()
            self._races.nursery.start_soon(self._run_second, self._second)

    async def _run_second(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                while self._waiting and self._second_body is None:
                    self._second_body = await self._timed(self._waiting.popleft())
        except Exception as error:  # noqa: BLE001 - for the caller of the race, not the nursery.
            self._second_error = error
        finally:
            self._second_done.set()
            if self._second_body is not None:
                self._first_scope.cancel()
