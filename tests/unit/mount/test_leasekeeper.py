"""The keeper of leases: recalls in their order, restarts of the router, fences, trust."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs import wire
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import InodeNumber, PeerMap, SessionId
from mictlanfs_mount.leasekeeper import LeaseKeeper
from mictlanfs_mount.leases import Lease, LeaseTable
from tests.support.mount_fakes import FakeClock
from tests.support.mount_space import attributes_of

READ, WRITE, NONE = wire.LeaseMode.READ, wire.LeaseMode.WRITE, wire.LeaseMode.NONE
KEY, OTHER = InodeNumber(7), InodeNumber(8)
TTL_S = 10.0


def grant_of(number: int) -> wire.SessionGrant:
    return wire.SessionGrant(
        SessionId(f"s{number}"),
        number,
        "space",
        30.0,
        5.0,
        wire.InodeRange(100, 10),
        attributes_of(1),
        PeerMap(1, ()),
        TTL_S,
        1,
    )


@dataclass
class Rig:
    """A keeper, and everything around it: router, session and holdings, with one record of all."""

    done: list[object] = field(default_factory=list)
    grant: wire.SessionGrant = field(default_factory=lambda: grant_of(1))
    grant_asked_s: float = 0.0
    failures: list[MictlanError] = field(default_factory=list)
    acquired: list[wire.Acquired] = field(default_factory=list)
    # How long it waited for each answer about events at most.
    waits_s: list[float] = field(default_factory=list)
    # Files that are open under whatever lease ends.
    opened: tuple[InodeNumber, ...] = ()
    before_acquired: trio.Event = field(default_factory=trio.Event)
    stored: trio.Event = field(default_factory=trio.Event)
    forgotten: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.table = LeaseTable(self.clock, 100)
        self._send, self._events = trio.open_memory_channel[wire.Events](10)
        self.before_acquired.set()
        self.stored.set()
        self.forgotten.set()
        self.keeper = LeaseKeeper(
            cast("RouterClient", self), cast("Session", self), self.table, self.clock
        )

    # --- the session ---

    @property
    def ref(self) -> wire.SessionRef:
        return wire.SessionRef(self.grant.session, self.grant.epoch)

    async def replace(self, fenced: wire.SessionRef) -> None:
        await trio.lowlevel.checkpoint()
        if fenced == self.ref:
            self.grant_asked_s = self.clock.monotonic_s()
            self.grant = grant_of(self.grant.epoch + 1)
            self.keeper.on_grant(self.grant)

    # --- the router ---

    async def events(self, request: wire.AwaitEvents, wait_s: float) -> wire.Events:
        self.waits_s.append(wait_s)
        if self.failures:
            raise self.failures.pop(0)
        return await self._events.receive()

    async def tell(
        self, *recalls: wire.Recall, incarnation: int = 1, lease_ttl_s: float = 0.0
    ) -> None:
        """The router answers the request for events, and all that follows from it is done."""
        self._send.send_nowait(wire.Events(recalls, 1, incarnation, lease_ttl_s))
        await wait_all_tasks_blocked()

    async def release(self, request: wire.ReleaseLeases) -> None:
        told = (request.opened,) if request.opened else ()
        self.done.append(("release", request.keys, request.keep, request.stamp, *told))
        if self.failures:
            raise self.failures.pop(0)

    async def claim(self, request: wire.Claim) -> None:
        self.done.append(("claim", request.reads, request.writes, request.is_last))

    async def acquire(self, request: wire.Acquire) -> wire.Acquired:
        self.done.append(("acquire", request.session))
        await self.before_acquired.wait()
        if self.failures:
            raise self.failures.pop(0)
        return self.acquired.pop(0)

    # --- the holdings ---

    async def store_changes(self, leases: Sequence[Lease]) -> None:
        self.done.append(("store", [lease.key for lease in leases]))
        await self.stored.wait()

    def opened_under(self, leases: Sequence[Lease]) -> Sequence[InodeNumber]:
        assert all(lease.mode == NONE for lease in leases)
        return self.opened

    async def note_sustained(self, inodes: Sequence[InodeNumber], epoch: int) -> None:
        self.done.append(("sustained", tuple(inodes), epoch))

    async def let_kernel_forget(self, leases: Sequence[Lease], *, is_awaited: bool = True) -> None:
        assert all(lease.mode == NONE for lease in leases)
        self.done.append(("forget", [lease.key for lease in leases]))
        await self.forgotten.wait()

    def hold(self, key: InodeNumber, mode: int, stamp: int = 5) -> Lease:
        lease = self.table.granted(key, mode, stamp)
        assert lease is not None
        return lease


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.keeper.follow_events, rig)
        await wait_all_tasks_blocked()
        yield rig
        nursery.cancel_scope.cancel()


def recall(stamp: int, keep: int = NONE, *keys: InodeNumber) -> wire.Recall:
    return wire.Recall(keys or (KEY,), keep, stamp)


async def test_a_recall_stores_then_ends_then_forgets_then_releases() -> None:
    async with rig() as r:
        lease = r.hold(KEY, WRITE)
        r.stored = trio.Event()
        await r.tell(recall(6))
        assert r.done == [("store", [KEY])]
        assert (lease.is_recalled, lease.mode) == (True, WRITE)
        r.stored.set()
        await wait_all_tasks_blocked()
        assert r.done[1:] == [("forget", [KEY]), ("release", (KEY,), NONE, 6)]
        assert r.table.held(KEY) is None


async def test_what_was_only_read_has_nothing_to_store() -> None:
    async with rig() as r:
        r.hold(KEY, READ)
        await r.tell(recall(6))
        assert r.done == [("forget", [KEY]), ("release", (KEY,), NONE, 6)]


async def test_open_files_are_told_with_the_leases_that_end() -> None:
    async with rig() as r:
        r.opened = (InodeNumber(70), InodeNumber(71))
        r.hold(KEY, READ)
        await r.tell(recall(6))
        told = ("release", (KEY,), NONE, 6, r.opened)
        assert r.done == [("forget", [KEY]), told, ("sustained", r.opened, 1)]
        r.done.clear()
        r.hold(KEY, WRITE, stamp=7)
        # Nobody can remove anything while this one reads.
        await r.tell(recall(8, READ))
        assert r.done == [("store", [KEY]), ("release", (KEY,), READ, 8)]


async def test_no_lease_is_released_before_all_open_files_were_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "LEASES_COUNT_MAX", 2)
    async with rig() as r:
        r.opened = tuple(InodeNumber(number) for number in range(70, 75))
        keys = (KEY, OTHER, InodeNumber(60))
        for key in keys:
            r.hold(key, READ)
        await r.tell(recall(6, NONE, *keys))
        assert r.done[1:] == [
            ("release", (), NONE, 6, r.opened[:2]),
            ("release", (), NONE, 6, r.opened[2:4]),
            ("release", keys[:2], NONE, 6, r.opened[4:]),
            ("release", keys[2:], NONE, 6),
            ("sustained", r.opened, 1),
        ]


async def test_open_files_count_as_told_when_the_answer_is_lost() -> None:
    async with rig() as r:
        r.opened = (InodeNumber(70),)
        r.failures = [MictlanError(Kind.TIMED_OUT, "release", "")]
        await r.keeper.sustain(r.opened)
        assert r.done == [("release", (), NONE, 0, r.opened), ("sustained", r.opened, 1)]


async def test_a_lease_that_may_be_kept_for_reading_stays() -> None:
    async with rig() as r:
        lease = r.hold(KEY, WRITE)
        await r.tell(recall(6, READ))
        assert r.done == [("store", [KEY]), ("release", (KEY,), READ, 6)]
        assert (r.table.get(KEY), lease.mode, lease.is_recalled) == (lease, READ, False)


async def test_a_recall_of_what_is_not_held_or_was_granted_later_is_answered() -> None:
    async with rig() as r:
        lease = r.hold(KEY, WRITE, stamp=9)
        await r.tell(recall(6, NONE, KEY, OTHER))
        assert r.done == [("release", (KEY, OTHER), NONE, 6)]
        assert r.table.writable(KEY) is lease


async def test_a_recall_waits_until_the_kernel_has_forgotten_what_was_given_up() -> None:
    async with rig() as r:
        lease = r.hold(KEY, READ)
        r.forgotten = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(r.keeper.give_up, [lease])
            await wait_all_tasks_blocked()
            await r.tell(recall(9))
            assert r.done == [("forget", [KEY])]
            r.forgotten.set()
        await wait_all_tasks_blocked()
        assert ("release", (KEY,), NONE, 9) in r.done


async def test_a_release_that_fails_is_left_to_the_router() -> None:
    async with rig() as r:
        r.hold(KEY, READ)
        r.failures.append(MictlanError(Kind.UNAVAILABLE))
        # The failure is met by the release: the request for events is under way already.
        await r.tell(recall(6))
        assert r.table.held(KEY) is None


async def test_trust_runs_from_the_request_that_was_answered(autojump_clock: MockClock) -> None:
    async with rig() as r:
        r.hold(KEY, READ)
        trusted_s = r.table.trust_s
        await trio.sleep(3)
        await r.tell()
        assert r.table.trust_s == trusted_s - 3
        await trio.sleep(3)
        await r.tell()
        assert r.table.trust_s == trusted_s - 3
        await trio.sleep(TTL_S)
        assert r.table.get(KEY) is None


async def test_another_incarnation_is_told_what_is_held() -> None:
    async with rig() as r:
        r.hold(KEY, READ)
        r.hold(OTHER, WRITE)
        await r.tell(incarnation=2)
        assert r.done == [("claim", (KEY,), (OTHER,), True)]
        await r.tell(recall(6), incarnation=2)
        assert r.done[-1] == ("release", (KEY,), NONE, 6)


@pytest.mark.parametrize("lease_ttl_s", [4.0, 40.0])
async def test_the_lease_time_of_a_router_started_anew_is_adopted(
    autojump_clock: MockClock, lease_ttl_s: float
) -> None:
    async with rig() as r:
        r.hold(KEY, READ)
        before_s = r.table.trust_s
        await r.tell(incarnation=2, lease_ttl_s=lease_ttl_s)
        # What the other router told is trusted to its end: this one waits for it.
        assert r.table.trust_s == pytest.approx(max(before_s, lease_ttl_s * 0.95))
        await trio.sleep(TTL_S)
        # The request was sent when the claim had been answered.
        await r.tell(incarnation=2, lease_ttl_s=lease_ttl_s)
        assert (r.table.get(KEY) is not None) is (lease_ttl_s > TTL_S)
        await r.tell(incarnation=2, lease_ttl_s=lease_ttl_s)
        assert r.table.trust_s == pytest.approx(lease_ttl_s * 0.95)
        assert r.waits_s[-1] == lease_ttl_s


async def test_a_fenced_session_loses_all_leases(autojump_clock: MockClock) -> None:
    async with rig() as r:
        lease = r.hold(KEY, WRITE)
        r.failures.append(MictlanError(Kind.FENCED))
        await r.tell()
        await trio.sleep(1)
        assert (r.grant.epoch, lease.mode, len(r.table)) == (2, NONE, 0)
        assert r.done == [("forget", [KEY])]
        assert r.table.trust_s > 0


async def test_what_was_acquired_for_a_session_that_is_gone_is_not_held() -> None:
    async with rig() as r, trio.open_nursery() as nursery:
        r.acquired += [
            wire.Acquired((KEY,), (), (), 5),
            wire.Acquired((OTHER,), (), (), 8),
        ]
        r.before_acquired = trio.Event()
        nursery.start_soon(r.keeper.acquire, (KEY,), ())
        await wait_all_tasks_blocked()
        await r.replace(r.ref)
        r.before_acquired.set()
        await wait_all_tasks_blocked()
        assert r.done == [("acquire", "s1"), ("acquire", "s2")]
        assert (r.table.held(KEY), r.table.writable(OTHER) is None) == (None, False)


async def test_a_fence_is_met_once_when_acquiring() -> None:
    async with rig() as r:
        r.acquired.append(wire.Acquired((KEY,), (), (), 5))
        r.failures.append(MictlanError(Kind.FENCED))
        await r.keeper.acquire((KEY,), ())
        assert r.table.writable(KEY) is not None
        assert r.grant.epoch == 2


async def test_what_is_given_up_makes_older_grants_void() -> None:
    async with rig() as r:
        lease = r.hold(KEY, WRITE)
        await r.keeper.give_up([lease])
        assert r.done == [("store", [KEY]), ("forget", [KEY]), ("release", (KEY,), NONE, 5)]
        assert r.table.granted(KEY, READ, 5) is None
        assert r.table.granted(KEY, READ, 6) is not None


async def test_doubt_ends_the_use_of_a_lease_at_once_and_the_lease_soon() -> None:
    async with rig() as r, trio.open_nursery() as nursery:
        lease = r.hold(KEY, WRITE)
        r.stored = trio.Event()
        r.keeper.doubt([lease, lease])
        r.keeper.doubt([lease])
        assert r.table.get(KEY) is None
        assert r.keeper.held_since(KEY, 9) is None
        nursery.start_soon(r.keeper.until_given_up, KEY)
        await wait_all_tasks_blocked()
        assert r.done == [("store", [KEY])]
        r.stored.set()
    assert r.done == [("store", [KEY]), ("forget", [KEY]), ("release", (KEY,), NONE, 5)]


async def test_a_release_of_nothing_says_that_this_mount_is_at_work_and_never_fails() -> None:
    async with rig() as r:
        r.hold(KEY, WRITE)
        r.failures.append(MictlanError(Kind.UNAVAILABLE, "release"))
        await r.keeper.say_at_work()
        assert r.done == [("release", (), NONE, 0)]
        assert r.table.held(KEY) is not None


async def test_the_lease_of_what_is_gone_is_released_with_the_next_events() -> None:
    async with rig() as r:
        r.hold(KEY, WRITE)
        r.keeper.forget(KEY)
        assert (r.table.held(KEY), r.done) == (None, [])
        await r.tell()
        assert r.done == [("release", (KEY,), NONE, 5)]


async def test_who_tells_attributes_after_a_fence_waits_until_the_kernel_has_forgotten() -> None:
    async with rig() as r:
        r.hold(KEY, READ)
        r.forgotten = trio.Event()
        r.keeper.on_grant(r.grant)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0) as waiting:
            await r.keeper.until_forgotten(KEY)
        assert waiting.cancelled_caught
        r.forgotten.set()
        await wait_all_tasks_blocked()
        await r.keeper.until_forgotten(KEY)
        assert r.done[-1] == ("forget", [KEY])
