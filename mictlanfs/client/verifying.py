"""Verbs about the truth of what a space holds: check it, scrub its peers, collect orphans.

Owns no state: the router and the peers do the work, and are asked from time to time how it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from mictlanfs.client.peers import PeerClient
from mictlanfs.client.router import RouterClient
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import PeerInfo, PeerState
from mictlanfs.wireverify import CheckSpace, CheckState, Scrub, ScrubState

POLL_S_FIRST: Final = 0.05
POLL_S_MAX: Final = 1.0

Progress = Callable[[str], None]


class SpaceVerifier:
    """The verbs; all raise `MictlanError`."""

    def __init__(self, router: RouterClient, peers: PeerClient) -> None:
        self._router = router
        self._peers = peers

    async def check(self, request: CheckSpace, progress: Progress | None = None) -> CheckState:
        """Have the router check the space and wait for what it finds.

        A check that somebody else began is waited for first. `progress` is told what the router is
        at.

        Cancellation: the check goes on.

        Raises:
            MictlanError: TIMED_OUT; UNAVAILABLE, also when the router was started again meanwhile;
                INTERNAL when the check itself failed.
        """
        state = await self._router.check(request)
        while not state.is_begun:
            await self._finished(state, progress)
            state = await self._router.check(request)
        found = await self._finished(state, progress)
        if found.number != state.number:
            detail = "the router was started again meanwhile: what it would have found is not known"
            raise MictlanError(Kind.UNAVAILABLE, "check", detail=detail)
        if found.error:
            raise MictlanError(Kind.INTERNAL, "check", detail=found.error)
        return found

    async def _finished(self, state: CheckState, progress: Progress | None) -> CheckState:
        number, delay_s = state.number, POLL_S_FIRST
        while state.is_running:
            if progress is not None:
                progress(state.doing)
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, POLL_S_MAX)
            state = await self._router.check(CheckSpace(number=number))
        return state

    async def peers(self, peer_id: str | None = None) -> Sequence[PeerInfo]:
        """The peers that are not down, or the one of that id.

        Raises:
            MictlanError: NOT_FOUND; UNAVAILABLE when that one is down.
        """
        peers = (await self._router.peer_map()).peers
        if peer_id is None:
            return [peer for peer in peers if peer.state is not PeerState.DOWN]
        for peer in peers:
            if peer.id == peer_id:
                if peer.state is PeerState.DOWN:
                    raise MictlanError(Kind.UNAVAILABLE, "reach peer", peer_id, "it is down")
                return [peer]
        there = ", ".join(sorted(peer.id for peer in peers)) or "none"
        raise MictlanError(Kind.NOT_FOUND, "find peer", peer_id, f"there are {there}")

    async def scrub(self, peer: PeerInfo, *, begin: bool) -> ScrubState:
        """How the scrub of a peer stands; with `begin` a pass begins now."""
        return await self._peers.scrub(peer.url, Scrub(begin))

    async def scrubbed(
        self, peer: PeerInfo, progress: Callable[[PeerInfo, ScrubState], None] | None = None
    ) -> ScrubState:
        """Wait for the end of the pass that a peer is at, and until its router knows what is bad.

        Cancellation: the pass goes on.
        """
        delay_s = POLL_S_FIRST
        while True:
            state = await self.scrub(peer, begin=False)
            if not (state.is_running or state.untold_count):
                return state
            if progress is not None:
                progress(peer, state)
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, POLL_S_MAX)
