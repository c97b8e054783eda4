"""How pyfuse3 waits for requests: look at the device before going to sleep, and spin while it pays.

A request that is answered at once costs less than the way through trio's scheduler and epoll to the
next one, which is often there already or comes within microseconds. pyfuse3 finds `trio` by an
attribute of its module (its asyncio mode replaces it too). `quick_requests` puts the few names it
uses there, two of them changed:

- `wait_readable` polls with no time-out, then may spin for `SPIN_S`, and only then parks the task.
  It spins while the last waits were short (`_Prediction`), so an idle mount burns nothing.
- `Lock` does not yield when it is free.

Without yielding, requests that come without a pause would starve every other task. So the task
parks, ready or not, when `YIELD_EVERY_S` have passed since it did last: every other task that can
run does, and sockets are looked at.

    called --(device ready, or within the spin)--> request
       +----(not ready, or others' turn)---------> parked --(trio: readable)--> request

Where pyfuse3 is not as expected, it keeps its own loop. Owns no task; nothing here is for threads.
"""

from __future__ import annotations

import logging
import select
import time
import types
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager

import pyfuse3
import trio

from mictlanfs_mount.handshake import Handshake

log = logging.getLogger(__name__)

# What a request costs from the wake-up of a program to its next request, and a little more.
SPIN_S = 30e-6
# A parked task is woken so late that a spin would have paid when the wait was shorter than this.
WAIT_SHORT_S = 100e-6
# What a request that needs the network may lose to those that do not.
YIELD_EVERY_S = 500e-6
# Only these have the seam and the use of it that this module relies on.
KNOWN_VERSIONS = ("3.5.",)

Park = Callable[[int], Awaitable[None]]
Poll = Callable[[], object]


class _Ready:
    """Awaited, it neither suspends nor costs a coroutine."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return _NOTHING.__iter__()  # type: ignore[return-value]  # Any iterator will do.


_NOTHING: tuple[None, ...] = ()
_READY = _Ready()


class QuickLock:
    """A lock for tasks, of which a free one is taken without a checkpoint; not fair."""

    __slots__ = ("_is_held", "_waiting")

    def __init__(self) -> None:
        self._is_held = False
        self._waiting = trio.lowlevel.ParkingLot()

    def __aenter__(self) -> Awaitable[None]:
        if self._is_held:
            return self._wait()
        self._is_held = True
        return _READY

    def __aexit__(self, *_: object) -> Awaitable[None]:
        self._is_held = False
        if self._waiting:
            # It may find the lock held again, and then waits once more.
            self._waiting.unpark()
        return _READY

    async def _wait(self) -> None:
        while self._is_held:
            await self._waiting.park()
        self._is_held = True


class _Prediction:
    """Whether the next wait will be short, from the last ones: a saturating counter."""

    __slots__ = ("_short_waits",)
    _HIGHEST = 7
    _ENOUGH = 3

    def __init__(self) -> None:
        self._short_waits = 0

    @property
    def is_short(self) -> bool:
        return self._short_waits >= self._ENOUGH

    def was_short(self) -> None:
        if self._short_waits < self._HIGHEST:
            self._short_waits += 1

    def was_long(self) -> None:
        # A spin in vain costs about as much as two good ones save.
        self._short_waits = max(0, self._short_waits - 2)


class RequestWaiter:
    """Waits until the device has a request.

    Args:
        poll: whether the device is ready, at once; true also when it is broken.
        park: suspends the task until it is.
    """

    def __init__(
        self, poll: Poll, park: Park, clock_s: Callable[[], float] = time.perf_counter
    ) -> None:
        self._poll = poll
        self._park = park
        self._clock_s = clock_s
        self._prediction = _Prediction()
        self._yield_at_s = 0.0

    def wait(self, descriptor: int) -> Awaitable[None]:
        """Return when a request is there; it is usually there before anything is awaited."""
        now_s = self._clock_s()
        if now_s >= self._yield_at_s:
            return self._yield(descriptor)
        if self._poll():
            return _READY
        if not self._prediction.is_short:
            return self._sleep(descriptor, now_s)
        end_s = now_s + SPIN_S
        while self._clock_s() < end_s:
            if self._poll():
                self._prediction.was_short()
                return _READY
        self._prediction.was_long()
        return self._yield(descriptor)

    async def _sleep(self, descriptor: int, since_s: float) -> None:
        await self._yield(descriptor)
        if self._clock_s() - since_s < WAIT_SHORT_S:
            self._prediction.was_short()
        else:
            self._prediction.was_long()

    async def _yield(self, descriptor: int) -> None:
        # Parking at once, not after a checkpoint: a descriptor that is closed wakes who is parked.
        await self._park(descriptor)
        self._yield_at_s = self._clock_s() + YIELD_EVERY_S


class _Device:
    """Finds out of a descriptor whether it is ready, without waiting."""

    def __init__(self, handshake: Handshake | None) -> None:
        self._waiters: dict[int, RequestWaiter] = {}
        self._handshake = handshake
        self._is_begun = False

    def wait_readable(self, descriptor: int) -> Awaitable[None]:
        waiter = self._waiters.get(descriptor)
        if waiter is None:
            # The first two times: for the kernel's greeting, and when it was answered.
            if self._handshake is not None and not self._is_begun:
                self._is_begun = True
                if self._handshake.offer(descriptor):
                    return _READY
            elif self._handshake is not None:
                self._handshake.finish(descriptor)
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            waiter = RequestWaiter(lambda: poll.poll(0), trio.lowlevel.wait_readable)
            self._waiters[descriptor] = waiter
        return waiter.wait(descriptor)


@contextmanager
def quick_requests(*, is_wanted: bool = True, handshake: Handshake | None = None) -> Iterator[bool]:
    """Have pyfuse3 wait for requests in the quick way inside; says whether it does.

    To be entered before `pyfuse3.main`. The `handshake` is made when the first request is waited
    for, if this way is taken.
    """
    if not (is_wanted and _is_known_pyfuse3()):
        yield False
        return
    pyfuse3.trio = _stand_in(handshake)  # type: ignore[attr-defined]  # Not in its annotations.
    try:
        yield True
    finally:
        pyfuse3.trio = trio  # type: ignore[attr-defined]


def _is_known_pyfuse3() -> bool:
    version = getattr(pyfuse3, "__version__", "unknown")
    if version.startswith(KNOWN_VERSIONS) and getattr(pyfuse3, "trio", None) is trio:
        return True
    log.warning("requests are waited for in the plain, slower way: pyfuse3 %s is unknown", version)
    return False


def _stand_in(handshake: Handshake | None) -> types.SimpleNamespace:
    """All that pyfuse3 takes from trio."""
    return types.SimpleNamespace(
        Lock=QuickLock,
        ClosedResourceError=trio.ClosedResourceError,
        open_nursery=trio.open_nursery,
        lowlevel=types.SimpleNamespace(
            wait_readable=_Device(handshake).wait_readable,
            current_task=trio.lowlevel.current_task,
            current_trio_token=trio.lowlevel.current_trio_token,
            notify_closing=trio.lowlevel.notify_closing,
        ),
    )
