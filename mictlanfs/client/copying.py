"""The copies of one chunk: at the best of its peers, and at more of them when one is late."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from mictlanfs.errors import MictlanError

if TYPE_CHECKING:
    from mictlanfs.client.paces import Allowance
    from mictlanfs.model import PeerInfo, PeerNumber


class Put(Protocol):
    """Stores a chunk at one peer; `on_late` is called when, and as long as, that takes too long."""

    async def __call__(self, peer: PeerInfo, *, on_late: Callable[[], None]) -> None:
        """Return when the peer has it durably. Raises MictlanError."""
        ...


class Copying:
    """Makes the copies of one chunk.

    An object, since functions that call each other would keep the bytes of the chunk in memory
    until the garbage is collected.

    Args:
        put: stores the chunk at one peer.
        more: how often a late peer gets company.
        untried: peers, the best first; those that are asked are taken away.
        holders: peers that have the chunk; those that come to have it are added.

    Attributes:
        errors: of the peers that did not store it.
    """

    def __init__(
        self, put: Put, more: Allowance, untried: list[PeerInfo], holders: list[PeerNumber]
    ) -> None:
        self._put = put
        self._more = more
        self._untried = untried
        self._holders = holders
        self._count = 0
        self.errors: list[MictlanError] = []

    async def make(self, count: int) -> None:
        """Bring `holders` to `count`, or to as many as there are.

        For a peer that is late another one is taken as well. Who is not needed any more is left: it
        may hold a copy that nobody names, which a router finds when it compares.

        Cancellation: as for whoever is left.
        """
        self._count = count
        while len(self._holders) < count and self._untried:
            async with trio.open_nursery() as nursery:
                for _ in range(min(count - len(self._holders), len(self._untried))):
                    nursery.start_soon(self._store, self._untried.pop(0), nursery)

    async def _store(self, peer: PeerInfo, nursery: trio.Nursery) -> None:
        self._more.earn()

        def also_elsewhere() -> None:
            if self._untried and self._more.spend():
                nursery.start_soon(self._store, self._untried.pop(0), nursery)

        try:
            await self._put(peer, on_late=also_elsewhere)
        except MictlanError as error:
            self.errors.append(error)
            return
        if len(self._holders) < self._count:
            self._holders.append(peer.number)
        if len(self._holders) >= self._count:
            nursery.cancel_scope.cancel()
