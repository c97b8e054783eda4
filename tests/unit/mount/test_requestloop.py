"""Waiting for requests with a device and a clock that do as told."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pyfuse3
import pytest
import trio
import trio.testing

from mictlanfs_mount.requestloop import (
    SPIN_S,
    WAIT_SHORT_S,
    YIELD_EVERY_S,
    QuickLock,
    RequestWaiter,
    quick_requests,
)

DEVICE = 7
REQUEST_S = 10e-6
POLL_S = 1e-6


class Scene:
    """A device on which the next request comes `gap_s` after the last was taken."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.ready_at_s = 0.0
        self.poll_count = 0
        self.park_count = 0
        self.waiter = RequestWaiter(self._poll, self._park, lambda: self.now_s)

    def _poll(self) -> bool:
        self.poll_count += 1
        self.now_s += POLL_S
        return self.now_s >= self.ready_at_s

    async def _park(self, descriptor: int) -> None:
        assert descriptor == DEVICE
        self.park_count += 1
        self.now_s = max(self.now_s, self.ready_at_s)

    async def take(self, count: int, gap_s: float) -> None:
        """Wait for some requests and answer each."""
        for _ in range(count):
            self.ready_at_s = self.now_s + gap_s
            await self.waiter.wait(DEVICE)
            assert self.now_s >= self.ready_at_s
            self.now_s += REQUEST_S


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_requests_that_are_there_are_taken_without_parking(scene: Scene) -> None:
    await scene.take(1, 0)
    parked = scene.park_count
    await scene.take(20, 0)
    assert scene.park_count == parked


async def test_requests_that_come_soon_are_spun_for(scene: Scene) -> None:
    await scene.take(10, SPIN_S / 2)
    parked = scene.park_count
    await scene.take(10, SPIN_S / 2)
    assert scene.park_count - parked <= 2


async def test_requests_that_come_late_are_not_spun_for(scene: Scene) -> None:
    await scene.take(20, SPIN_S / 2)
    await scene.take(20, WAIT_SHORT_S * 20)
    polled = scene.poll_count
    await scene.take(20, WAIT_SHORT_S * 20)
    assert scene.poll_count - polled <= 20


async def test_spinning_begins_again_when_it_would_have_paid(scene: Scene) -> None:
    await scene.take(20, 1.0)
    await scene.take(10, SPIN_S / 2)
    parked = scene.park_count
    await scene.take(5, SPIN_S / 2)
    assert scene.park_count - parked <= 1


@pytest.mark.parametrize("gap_s", [0, SPIN_S / 2])
async def test_others_have_their_turn_however_fast_requests_come(
    scene: Scene, gap_s: float
) -> None:
    await scene.take(1, gap_s)
    start_s, parked = scene.now_s, scene.park_count
    await scene.take(1000, gap_s)
    turns_min = (scene.now_s - start_s) / (YIELD_EVERY_S + SPIN_S + 2 * REQUEST_S)
    assert scene.park_count - parked >= int(turns_min)


async def test_a_free_lock_is_taken_without_a_checkpoint() -> None:
    lock = QuickLock()
    with trio.testing.assert_no_checkpoints():
        async with lock:
            pass
        async with lock:
            pass


async def test_a_lock_is_held_by_one_task_at_a_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lock = QuickLock()
    holders: list[int] = []
    taken = 0

    async def hold(number: int) -> None:
        nonlocal taken
        for _ in range(5):
            async with lock:
                holders.append(number)
                await trio.sleep(0.1)
                assert holders == [number]
                holders.pop()
                taken += 1

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(hold, number)
    assert taken == 20


async def test_a_lock_survives_that_a_waiting_task_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lock = QuickLock()

    async def take() -> None:
        async with lock:
            pass

    async with trio.open_nursery() as nursery, lock:
        nursery.start_soon(take)
        with trio.move_on_after(1) as scope:
            await take()
        assert scope.cancelled_caught
    with trio.testing.assert_no_checkpoints():
        async with lock:
            pass


def seen_by_pyfuse3() -> object:
    return vars(pyfuse3)["trio"]


def test_pyfuse3_has_its_own_trio_before_and_after() -> None:
    with quick_requests() as is_used:
        assert is_used
        assert seen_by_pyfuse3() is not trio
    assert seen_by_pyfuse3() is trio


def test_who_does_not_want_it_keeps_the_plain_loop() -> None:
    with quick_requests(is_wanted=False) as is_used:
        assert not is_used
        assert seen_by_pyfuse3() is trio


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(pyfuse3, "__version__", "4.0.0"),
        lambda patch: patch.delattr(pyfuse3, "__version__"),
        lambda patch: patch.delattr(pyfuse3, "trio"),
        lambda patch: patch.setattr(pyfuse3, "trio", object()),
    ],
    ids=["another version", "no version", "no seam", "already replaced"],
)
def test_a_pyfuse3_that_is_not_as_expected_keeps_its_own_loop(
    change: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(monkeypatch)
    before = vars(pyfuse3).get("trio")
    with caplog.at_level(logging.WARNING), quick_requests() as is_used:
        assert not is_used
        assert vars(pyfuse3).get("trio") is before
    assert "plain, slower way" in caplog.text
    caplog.clear()
