"""Getting, keeping and giving up leases: the side of `leases` that talks to the router.

Owns the one request for events that is always under way, and one task for each recall. Decides
nothing about files: what has to be stored before a lease is given up, and what the kernel has to
forget, is the business of the `Holdings` it is given.

The order of a recall, which `docs/concurrency.md` argues: nothing new is changed under the lease;
what was changed is committed; the lease ends; the kernel forgets; the router is told.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

import trio

from mictlanfs import wire
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session
from mictlanfs.clock import Clock
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import InodeNumber, Struct
from mictlanfs.wire import LeaseMode
from mictlanfs_mount.leases import Lease, LeaseTable

log = logging.getLogger(__name__)

T = TypeVar("T")

# Subtracted from the trust that the router gives, for clocks that run at different speeds.
TRUST_MARGIN_SHARE = 0.05
# How long a change waits for leases that were granted and cannot be trusted.
TRUST_WAIT_S_MAX = 30.0
RETRY_S_FIRST = 0.05
RETRY_S_MAX = 1.0


class Holdings(Protocol):
    """What depends on leases."""

    async def store_changes(self, leases: Sequence[Lease]) -> None:
        """Commit everything that was changed under these leases; may take long."""
        ...

    def opened_under(self, leases: Sequence[Lease]) -> Sequence[InodeNumber]:
        """Files that are open, and may be removed elsewhere now that these leases have ended."""
        ...

    async def note_sustained(self, inodes: Sequence[InodeNumber], epoch: int) -> None:
        """The router keeps these for the session of this epoch, whatever becomes of their names."""
        ...

    async def let_kernel_forget(self, leases: Sequence[Lease], *, is_awaited: bool = True) -> None:
        """Nothing that these leases, which have just ended, covered may be used any more."""
        ...


class LeaseKeeper:
    """The leases of one mount, as the router and the mount agree on them."""

    def __init__(
        self, router: RouterClient, session: Session, table: LeaseTable, clock: Clock
    ) -> None:
        self._router = router
        self._session = session
        self._clock = clock
        self._holdings: Holdings | None = None
        self._last_event = 0
        self._incarnation = session.grant.incarnation
        self._trust_given_s = session.grant.lease_ttl_s
        self._trust_grew = trio.Event()
        self._gave_up = trio.Event()
        self._forgotten: list[InodeNumber] = []
        # Of leases that ended, while the kernel is made to forget what they covered.
        self._forgetting: dict[InodeNumber, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self.table = table
        self._trust_since(session.grant_asked_s)

    def _trust_since(self, sent_s: float) -> None:
        """The router answered a request of this session that was sent then."""
        until_s = sent_s + self._trust_given_s * (1 - TRUST_MARGIN_SHARE)
        self.table.trusted_until_s = max(self.table.trusted_until_s, until_s)
        self._trust_grew.set()
        self._trust_grew = trio.Event()

    # --- asking ----------------------------------------------------------------------------------

    @property
    def ref(self) -> wire.SessionRef:
        """The session that leases are asked for."""
        return self._session.ref

    def on_grants(self, grants: wire.Grants) -> None:
        """Leases came with the answer to a read."""
        for key in grants.keys:
            self.table.granted(key, LeaseMode.READ, grants.stamp)

    async def replace(self, fenced: wire.SessionRef) -> None:
        """The session was fenced: open another one. Raises when the router cannot be reached."""
        await self._session.replace(fenced)

    async def ask(
        self, path: str, request: Struct, answer: type[T]
    ) -> tuple[T | MictlanError, wire.Grants]:
        """Any read of the protocol: its answer or its error, and the leases that came along.

        They are in the table when this returns.
        """
        leased = await self._router.leased(path, request, answer)
        return leased.answer, leased.grants

    async def read(self, path: str, request: Struct, answer: type[T]) -> tuple[T, wire.Grants]:
        """As `ask`; an error is raised."""
        found, grants = await self.ask(path, request, answer)
        if isinstance(found, MictlanError):
            raise found
        return found, grants

    def covering(self, key: InodeNumber, grants: wire.Grants) -> Lease | None:
        """The lease that covers what came with `grants` about `key`, if one does."""
        if key not in grants.keys:
            return None
        return self.held_since(key, grants.stamp)

    def held_since(self, key: InodeNumber, stamp: int) -> Lease | None:
        """The lease on a key, if it was held when an answer got its stamp, and is not doubted."""
        lease = self.table.held(key)
        is_good = lease is not None and lease.since <= stamp and not lease.is_doubted
        return lease if is_good else None

    async def acquire(
        self, inodes: tuple[InodeNumber, ...], places: tuple[wire.Place, ...]
    ) -> wire.Acquired:
        """Get leases for writing on all of these; they are in the table when this returns.

        Any of them may be recalled again by then: look. Raises as `wire.Acquire` says.
        """
        got = await self._acquired(inodes, places)
        for key in got.keys:
            self.table.granted(key, LeaseMode.WRITE, got.stamp)
        # The router is back, and the next answer to the request for events is on its way.
        with trio.move_on_after(TRUST_WAIT_S_MAX):
            while not self.table.trust_s:
                await self._trust_grew.wait()
            return got
        detail = "the router answers, and tells nothing of leases"
        raise MictlanError(Kind.TIMED_OUT, "lease", "", detail)

    async def _acquired(
        self, inodes: tuple[InodeNumber, ...], places: tuple[wire.Place, ...]
    ) -> wire.Acquired:
        fences_left = 1
        while True:
            ref = self._session.ref
            request = wire.Acquire(ref.session, ref.epoch, inodes, places, extents_max=1)
            try:
                got = await self._router.acquire(request)
            except MictlanError as error:
                if error.kind is not Kind.FENCED or not fences_left:
                    raise
                fences_left -= 1
                await self.replace(ref)
                continue
            if ref == self._session.ref:
                return got
            # Meanwhile the session was replaced: what was granted to it is gone.

    async def give_up(self, leases: Sequence[Lease]) -> None:
        """End leases that nobody asked for, to save memory."""
        if not leases:
            return
        for lease in leases:
            lease.is_recalled = True
        keys, stamp = tuple(lease.key for lease in leases), self.table.last_stamp
        self.table.note_recall(keys, stamp + 1)
        opened = await self._end(leases, LeaseMode.NONE, is_awaited=False)
        await self._release(keys, LeaseMode.NONE, stamp, opened)

    def doubt(self, leases: Iterable[Lease]) -> None:
        """What is known under these is used no more, and they are given up when all is stored."""
        found = dict.fromkeys(leases)
        doubted = [lease for lease in found if lease.mode and not lease.is_doubted]
        for lease in doubted:
            lease.is_doubted = lease.is_recalled = True
        if doubted and self._nursery is not None:
            self._nursery.start_soon(self.give_up, doubted)

    async def until_given_up(self, key: InodeNumber) -> None:
        """Wait while a lease is being given up: asked for now, it would be granted and useless."""
        while (lease := self.table.held(key)) is not None and lease.is_recalled:
            await self._gave_up.wait()

    def forget(self, key: InodeNumber) -> None:
        """The inode is gone, and its lease with it; the router is told when there is time."""
        lease = self.table.held(key)
        if lease is not None:
            self.table.end(lease)
            self._forgotten.append(key)

    def start_soon(self, work: Callable[[T], Awaitable[None]], argument: T) -> None:
        """Do something in the background, for as long as events are followed."""
        if self._nursery is not None:
            self._nursery.start_soon(work, argument)

    # --- events ----------------------------------------------------------------------------------

    async def follow_events(self, holdings: Holdings) -> None:
        """Do what the router says, for as long as the mount lives."""
        self._holdings = holdings
        delay_s = RETRY_S_FIRST
        async with trio.open_nursery() as self._nursery:
            while True:
                ref = self._session.ref
                try:
                    await self._next_events(self._nursery, ref)
                    delay_s = RETRY_S_FIRST
                except MictlanError as error:
                    log.info("no events: %s", error)
                    if error.kind is Kind.FENCED:
                        await self._replace_if_reachable(ref)
                    await trio.sleep(delay_s)
                    delay_s = min(2 * delay_s, RETRY_S_MAX)

    async def _next_events(self, nursery: trio.Nursery, ref: wire.SessionRef) -> None:
        sent_s = self._clock.monotonic_s()
        request = wire.AwaitEvents(ref.session, ref.epoch, self._last_event, self._incarnation)
        events = await self._router.events(request, self._trust_given_s)
        if ref != self._session.ref:
            return
        # Also of a claim: its router is this one, or refuses it.
        self._trust_given_s = events.lease_ttl_s or self._trust_given_s
        if events.incarnation != self._incarnation:
            await self._claim(ref, events.incarnation)
            return
        # Without an await from the answer on: what is recalled must not be used by anybody who
        # sees the longer trust.
        self._last_event = events.last
        for recall in events.recalls:
            self._begin_recall(nursery, recall)
        self._trust_since(sent_s)
        if self._forgotten:
            keys, self._forgotten = tuple(self._forgotten), []
            nursery.start_soon(self._release, keys, LeaseMode.NONE, self.table.last_stamp)

    async def _claim(self, ref: wire.SessionRef, incarnation: int) -> None:
        log.warning("the router was started again; claiming %d leases", len(self.table))
        # Those that are being given up as well: what was changed under them is not stored yet.
        held = list(self.table)
        sent_s = self._clock.monotonic_s()
        for start in range(0, max(1, len(held)), wire.LEASES_COUNT_MAX):
            part = held[start : start + wire.LEASES_COUNT_MAX]
            claim = wire.Claim(
                ref.session,
                ref.epoch,
                incarnation,
                tuple(lease.key for lease in part if lease.mode == LeaseMode.READ),
                tuple(lease.key for lease in part if lease.mode == LeaseMode.WRITE),
                is_last=start + wire.LEASES_COUNT_MAX >= len(held),
            )
            await self._router.claim(claim)
        if ref != self._session.ref:
            return
        self.table.void_before(incarnation)
        self._incarnation = incarnation
        self._last_event = 0
        # A claim counts as a request for events: those who wait for trust need not wait longer.
        self._trust_since(sent_s)

    def _begin_recall(self, nursery: trio.Nursery, recall: wire.Recall) -> None:
        self.table.note_recall(recall.keys, recall.stamp)
        leases = []
        for key in recall.keys:
            lease = self.table.held(key)
            if lease is None or lease.since > recall.stamp:
                continue
            if lease.mode > recall.keep:
                lease.is_recalled = True
                leases.append(lease)
        nursery.start_soon(self._recall, recall, leases)

    async def _recall(self, recall: wire.Recall, leases: list[Lease]) -> None:
        opened = await self._end(leases, recall.keep)
        await self.until_forgotten(*recall.keys)
        await self._release(recall.keys, recall.keep, recall.stamp, opened)

    async def _end(
        self, leases: Sequence[Lease], keep: int, *, is_awaited: bool = True
    ) -> Sequence[InodeNumber]:
        """Let go of leases under which nothing is changed any more, or of the right to write.

        Returns the files that are to be sustained: what is opened later is asked for anew.
        """
        assert self._holdings is not None
        written = [lease for lease in leases if lease.mode == LeaseMode.WRITE]
        if written:
            # It ends when all is stored, or when the session does, and the leases with it.
            await self._holdings.store_changes(written)
        ended = []
        for lease in leases:
            if lease.mode == LeaseMode.NONE:
                continue
            if keep == LeaseMode.READ:
                lease.mode = LeaseMode.READ
                lease.is_recalled = False
            else:
                self.table.end(lease)
                ended.append(lease)
        self._note_given_up()
        if not ended:
            return ()
        opened = self._holdings.opened_under(ended)
        await self._let_kernel_forget(ended, self._begin_forgetting(ended), is_awaited)
        return opened

    def _begin_forgetting(self, ended: Sequence[Lease]) -> trio.Event:
        """Let others wait until the kernel has forgotten what these leases covered."""
        done = trio.Event()
        self._forgetting.update((lease.key, done) for lease in ended)
        return done

    async def _let_kernel_forget(
        self, ended: Sequence[Lease], done: trio.Event, is_awaited: bool = True
    ) -> None:
        assert self._holdings is not None
        try:
            await self._holdings.let_kernel_forget(ended, is_awaited=is_awaited)
        finally:
            done.set()
            for lease in ended:
                if self._forgetting.get(lease.key) is done:
                    del self._forgetting[lease.key]

    async def until_forgotten(self, *keys: InodeNumber) -> None:
        """Wait until the kernel has forgotten what leases covered that have ended.

        Attributes that it is told meanwhile it may ignore, for the sake of what is forgotten, and
        go on with pages that are still there.
        """
        for key in keys:
            if (done := self._forgetting.get(key)) is not None:
                await done.wait()

    async def say_at_work(self) -> None:
        """Have the router wait for leases that it has recalled: what they cover is being stored."""
        ref = self._session.ref
        nothing = wire.ReleaseLeases(ref.session, ref.epoch, (), LeaseMode.NONE, 0)
        with suppress(MictlanError):
            await self._router.release(nothing)

    def _note_given_up(self) -> None:
        self._gave_up.set()
        self._gave_up = trio.Event()

    async def sustain(self, opened: Sequence[InodeNumber]) -> None:
        """Have the router keep files that are open, whatever becomes of their names.

        Those that are gone are not kept: look. A failure is that of who looks.
        """
        await self._release((), LeaseMode.NONE, 0, opened)

    async def _release(
        self,
        keys: tuple[InodeNumber, ...],
        keep: int,
        stamp: int,
        opened: Sequence[InodeNumber] = (),
    ) -> None:
        ref = self._session.ref
        *more, last = _parts_of(opened)
        requests: list[tuple[tuple[InodeNumber, ...], tuple[InodeNumber, ...]]]
        requests = [((), noted) for noted in more]
        for part in _parts_of(keys):
            # No key is given up before the last of the files is noted.
            requests.append((part, last))
            last = ()
        for part, noted in requests:
            release = wire.ReleaseLeases(ref.session, ref.epoch, part, keep, stamp, noted)
            try:
                await self._router.release(release)
            except MictlanError as error:
                # The router fences us if it matters; the next events tell.
                log.info("leases were not released: %s", error)
        if opened and self._holdings is not None:
            # Also after a failure: it may have been noted.
            await self._holdings.note_sustained(opened, ref.epoch)

    # --- the end of a session --------------------------------------------------------------------

    def on_grant(self, grant: wire.SessionGrant) -> None:
        """A session was granted in the place of one that was fenced: nothing is held any more."""
        ended = self.table.end_all()
        self._note_given_up()
        self._incarnation = grant.incarnation
        self._trust_given_s = grant.lease_ttl_s
        self._last_event = 0
        self._forgotten.clear()
        self._trust_since(self._session.grant_asked_s)
        if ended and self._nursery is not None and self._holdings is not None:
            log.warning("%d leases were lost with the session", len(ended))
            done = self._begin_forgetting(ended)
            self._nursery.start_soon(self._let_kernel_forget, ended, done)

    async def _replace_if_reachable(self, ref: wire.SessionRef) -> None:
        try:
            await self.replace(ref)
        except MictlanError as error:
            log.info("no new session: %s", error)


def _parts_of(keys: Sequence[InodeNumber]) -> list[tuple[InodeNumber, ...]]:
    """At least one part, each of as many as one request may name."""
    count = wire.LEASES_COUNT_MAX
    return [tuple(keys[start : start + count]) for start in range(0, max(1, len(keys)), count)]
