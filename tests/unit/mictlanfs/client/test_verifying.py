"""Checks that others begin at the same time, and routers that are started again."""

from __future__ import annotations

from typing import cast

import pytest
from msgspec.structs import replace
from trio.testing import MockClock

from mictlanfs.client.peers import PeerClient
from mictlanfs.client.router import RouterClient
from mictlanfs.client.verifying import SpaceVerifier
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.wireverify import CheckSpace, CheckState

REPAIR = CheckSpace(begin=True, peers=True, repair=True)


class Router:
    """A router whose checks end when they were asked for twice.

    Attributes:
        begun: the requests that began a check.
        others: how often somebody else begins a check just before this client would.
    """

    def __init__(self) -> None:
        self.begun: list[CheckSpace] = []
        self.others = 0
        self.states: dict[int, CheckState] = {}
        self._asked = 0

    async def check(self, request: CheckSpace) -> CheckState:
        if request.begin and self.others:
            self.others -= 1
            self._begin(CheckSpace(begin=True, metadata=True))
        running = [state for state in self.states.values() if state.is_running]
        if request.begin and not running:
            return replace(self._begin(request), is_begun=True)
        if request.begin:
            return running[0]
        state = self.states.get(request.number, CheckState())
        self._asked += 1
        if self._asked % 2 == 0 and state.is_running:
            state = self.states[request.number] = replace(state, is_running=False)
        return state

    def _begin(self, request: CheckSpace) -> CheckState:
        number = len(self.begun) + 1
        self.begun.append(request)
        is_repair = int(request.repair)
        state = CheckState(is_running=True, doing="peer-1", number=number, repaired_count=is_repair)
        self.states[number] = state
        return state


def verifier_of(router: Router) -> SpaceVerifier:
    return SpaceVerifier(cast("RouterClient", router), cast("PeerClient", None))


async def test_what_is_found_is_that_of_the_check_that_was_wanted(
    autojump_clock: MockClock,
) -> None:
    router, told = Router(), list[str]()
    router.others = 2
    found = await verifier_of(router).check(REPAIR, told.append)
    assert router.begun[-1] == REPAIR
    assert (found.number, found.repaired_count) == (3, 1)
    assert set(told) == {"peer-1"}


async def test_a_router_that_is_started_again_is_no_sound_space(autojump_clock: MockClock) -> None:
    router = Router()

    def start_again(_: str) -> None:
        router.states.clear()

    with pytest.raises(MictlanError) as raised:
        await verifier_of(router).check(REPAIR, start_again)
    assert raised.value.kind is Kind.UNAVAILABLE
    assert "started again" in raised.value.detail


async def test_a_check_that_failed_is_an_error(autojump_clock: MockClock) -> None:
    router = Router()

    def fail(_: str) -> None:
        router.states[1] = replace(router.states[1], error="the disk is gone")

    with pytest.raises(MictlanError, match="the disk is gone"):
        await verifier_of(router).check(REPAIR, fail)
