"""The leases at work: requests that wait until nobody is in their way, and sessions being told.

Turns the tickets of `leases` into waiting tasks. What it rests on: reads of the store do not give
up the event loop, so looking at the space, finding the keys and granting are one step, in which
nothing else runs here. The writer's thread may apply a commit in the middle of it; but until this
loop has seen that commit end, its keys count as busy, or as held by its session.

The cost of no leases is one look at an empty table.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import InodeNumber, Node, SessionId, Struct
from mictlanfs_server.metadata.checks import check_name
from mictlanfs_server.router import leasekeys
from mictlanfs_server.router.leases import LeaseTable

if TYPE_CHECKING:
    from mictlanfs.clock import Clock
    from mictlanfs_server.metadata.base import MetadataStore
    from mictlanfs_server.router.leases import Ticket
    from mictlanfs_server.router.sessions import SessionTable

log = logging.getLogger(__name__)

# How often a request looks again because what it looks at had moved. Each time it keeps its place.
ROUNDS_MAX: Final = 64
# A request for events is answered after this share of the time to live at the latest.
POLL_SHARE: Final = 1 / 3
# Looks at those who do not answer, in one time to live.
TICKS_PER_TTL: Final = 20
# A tick this late means that the router, not the others, was silent.
PAUSE_MIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class LeasedAnswer:
    """The answer to a read, or its error, and the leases that come with it."""

    grants: wire.Grants
    answer: Struct | MictlanError


class LeaseGate:
    """Lets requests through when their keys are free. Belongs to one event loop.

    Args:
        ttl_s: the lease time.
        earlier_ttl_s: the longest one that sessions may still go by; see `agree_on_lease_time`.
    """

    def __init__(
        self,
        store: MetadataStore,
        sessions: SessionTable,
        clock: Clock,
        ttl_s: float,
        earlier_ttl_s: float = 0.0,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._clock = clock
        self._last_tick_s = clock.monotonic_s()
        members = sessions.with_leases()
        self.table = LeaseTable(clock, ttl_s, members, self._wake, earlier_ttl_s)
        self._has_longer_noted = earlier_ttl_s > ttl_s
        self._is_note_late = False
        self._polls: dict[SessionId, asyncio.Event] = {}
        self._waiting: set[asyncio.Event] = set()
        self._is_stopping = False

    # --- reads -----------------------------------------------------------------------------------

    async def read(
        self,
        session: SessionId | None,
        look: Callable[[], Awaitable[Struct]],
        keys_of: Callable[[Struct | MictlanError], Awaitable[Iterable[InodeNumber]]],
    ) -> LeasedAnswer:
        """Answer a read when nobody else may change what it looks at unseen.

        `look` and `keys_of` must not give up the event loop. Without a session, or one that has no
        leases, nothing is granted. Raises FENCED, UNAVAILABLE; what `look` raises is in the answer.
        """
        table = self.table
        ticket: Ticket | None = None
        event = asyncio.Event()
        try:
            for _ in range(ROUNDS_MAX):
                answer: Struct | MictlanError
                try:
                    answer = await look()
                except MictlanError as error:
                    answer = error
                if table.is_unused:
                    return LeasedAnswer(wire.Grants((), 0), answer)
                keys = await keys_of(answer)
                if table.is_readable(session, keys):
                    grants = wire.Grants((), 0)
                    if session is not None:
                        grants = table.grant_reads(session, keys)
                    return LeasedAnswer(grants, answer)
                if ticket is None:
                    ticket = table.wait(session, keys, event.set, is_write=False)
                else:
                    table.change_keys(ticket, keys)
                await self.until_clear(ticket, event)
            raise _restless("read")
        finally:
            if ticket is not None:
                table.withdraw(ticket)

    # --- writing ---------------------------------------------------------------------------------

    async def acquire(self, request: wire.Acquire) -> wire.Acquired:
        """Grant leases for writing. Raises FENCED, NOT_FOUND, NOT_DIRECTORY, INVALID."""
        self._check_member(request.session)
        if len(request.inodes) + len(request.places) > wire.ACQUIRE_COUNT_MAX:
            detail = f"at most {wire.ACQUIRE_COUNT_MAX} inodes and names are acquired at once"
            raise MictlanError(Kind.INVALID, "acquire", detail=detail)
        for place in request.places:
            check_name(place.name, "acquire")
        ticket: Ticket | None = None
        event = asyncio.Event()
        try:
            for _ in range(ROUNDS_MAX):
                nodes, found = await self._look_at(request)
                keys = {node.key for node in (*nodes, *found) if node is not None}
                if ticket is None:
                    ticket = self.table.wait(request.session, keys, event.set, is_write=True)
                elif ticket.keys != keys:
                    self.table.change_keys(ticket, keys)
                if self.table.is_clear(ticket):
                    stamp = self.table.grant_writes(ticket)
                    return wire.Acquired(tuple(sorted(keys)), nodes, found, stamp)
                await self.until_clear(ticket, event)
            raise _restless("acquire")
        finally:
            if ticket is not None:
                self.table.withdraw(ticket)

    async def _look_at(
        self, request: wire.Acquire
    ) -> tuple[tuple[Node, ...], tuple[Node | None, ...]]:
        """The nodes of a request, without giving up the event loop."""
        store, extents_max = self._store, request.extents_max
        nodes = [await store.node(wire.GetNode(ino, extents_max)) for ino in request.inodes]
        found: list[Node | None] = []
        for place in request.places:
            nodes.append(await store.node(wire.GetNode(place.parent)))
            try:
                found.append(await store.lookup(wire.Lookup(place.parent, place.name, extents_max)))
            except MictlanError as error:
                if error.kind is not Kind.NOT_FOUND:
                    raise
                found.append(None)
        return tuple(nodes), tuple(found)

    async def commit(self, batch: wire.Commit) -> bytes:
        """Apply a batch when nobody else holds a lease on what it touches.

        A batch whose session holds all the leases goes through at once.
        """
        table, session = self.table, batch.session
        table.commit_came(session)
        try:
            if not batch.ops:
                return await self._store.commit(batch)
            if batch.is_covered and session in table:
                answer = await self._store.commit(batch)
                if made := leasekeys.directories_made(batch.ops):
                    table.grant_made(session, made)
                return answer
            keys = None if table.is_unused else await self._enter(batch)
            table.begin_commit(session, keys)
            try:
                return await self._store.commit(batch)
            finally:
                table.end_commit(session, keys)
        finally:
            table.commit_went(session)

    async def _enter(self, batch: wire.Commit) -> frozenset[InodeNumber]:
        """Wait until the keys of a batch are free. Returns them; no await until they are busy."""
        wanted = leasekeys.touched_by(batch.ops)
        ticket: Ticket | None = None
        event = asyncio.Event()
        try:
            for _ in range(ROUNDS_MAX):
                found = await self._store.keys(wanted.inodes, wanted.places | wanted.removed)
                keys = leasekeys.keys_of_batch(wanted, found)
                if ticket is None:
                    ticket = self.table.wait(
                        batch.session, keys, event.set, is_write=True, is_commit=True
                    )
                elif ticket.keys != keys:
                    self.table.change_keys(ticket, keys)
                if self.table.is_clear(ticket):
                    return keys
                await self.until_clear(ticket, event)
            raise _restless("commit")
        finally:
            if ticket is not None:
                self.table.withdraw(ticket)

    async def until_clear(self, ticket: Ticket, event: asyncio.Event) -> None:
        """Wait until nothing is in the way of a ticket, whose `wake` sets `event`.

        Raises FENCED, UNAVAILABLE when the router stops.
        """
        self._waiting.add(event)
        try:
            while not (ticket.failed or self.table.is_clear(ticket) or self._is_stopping):
                event.clear()
                await event.wait()
        finally:
            self._waiting.discard(event)
        if ticket.failed:
            raise _fenced(ticket.session)
        if self._is_stopping:
            raise MictlanError(Kind.UNAVAILABLE, "lease", detail="the router stops")

    # --- what sessions are told, and tell --------------------------------------------------------

    async def await_events(self, request: wire.AwaitEvents) -> wire.Events:
        """Answer when a lease is recalled, or after a while. Raises FENCED, INVALID.

        Whoever hung up is answered into the void; what was in it is sent again, because the next
        request says what was received.
        """
        session, table = request.session, self.table
        self._check_member(session)
        table.heard(session)
        nothing = wire.Events((), request.after, table.incarnation, table.ttl_s)
        mine = asyncio.Event()
        if (other := self._polls.get(session)) is not None:
            other.set()
        self._polls[session] = mine
        end_s = self._clock.monotonic_s() + table.ttl_s * POLL_SHARE
        try:
            while request.incarnation == table.incarnation:
                due_s = table.ripen(session)
                events = table.events(session, request.after)
                left_s = end_s - self._clock.monotonic_s()
                if events.recalls or left_s <= 0 or self._is_stopping:
                    return events
                if due_s is not None:
                    left_s = min(left_s, due_s - self._clock.monotonic_s())
                mine.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(mine.wait(), max(left_s, 0))
                if self._polls.get(session) is not mine:
                    break
                if not self._sessions.is_open(session, request.epoch):
                    raise _fenced(session)
        finally:
            if self._polls.get(session) is mine:
                del self._polls[session]
        return nothing

    def _wake(self, session: SessionId) -> None:
        if (poll := self._polls.get(session)) is not None:
            poll.set()

    async def release(self, request: wire.ReleaseLeases) -> None:
        """A session gives up leases, or says that it is at it. Raises INVALID, FENCED."""
        self._check_member(request.session)
        _check_count(max(len(request.keys), len(request.opened)), "release")
        if request.keep not in (wire.LeaseMode.NONE, wire.LeaseMode.READ):
            raise MictlanError(Kind.INVALID, "release", detail="this is no lease to keep")
        if request.opened:
            # First: whoever waits for the keys may be about to remove these.
            await self._store.sustain(request.session, request.epoch, request.opened)
        if not (request.keys or request.opened):
            self.table.at_work(request.session)
        self.table.release(request.session, request.keys, request.keep, request.stamp)

    def claim(self, request: wire.Claim) -> None:
        """A session tells what it held before the router was started again."""
        self._check_member(request.session)
        _check_count(len(request.reads) + len(request.writes), "claim")
        self.table.claim(request)
        # As good as a request for events: its sender trusts its leases from here on.
        self.table.heard(request.session)

    def _check_member(self, session: SessionId) -> None:
        if session not in self.table:
            detail = "the session was opened without leases"
            raise MictlanError(Kind.INVALID, "lease", session, detail)

    # --- sessions that end -----------------------------------------------------------------------

    async def close(self, session: SessionId) -> None:
        """A session ends by its own wish: it trusts nothing any more."""
        # First in the store: behind every commit that the writer has already got.
        await self._store.close_session(session)
        self._refuse(session)
        self.table.remove(session)

    async def end(self, session: SessionId) -> None:
        """A session is ended that may not know: what it holds is free when it cannot trust it."""
        if session in self.table:
            self.table.fence(session)
            self._refuse(session)
        else:
            await self.close(session)

    def _refuse(self, session: SessionId) -> None:
        self._sessions.remove(session)
        self._wake(session)

    async def run(self) -> None:
        """Look after those who do not answer, until cancelled."""
        interval_s = self.table.ttl_s / TICKS_PER_TTL
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.tick(interval_s)
            except Exception:
                log.exception("looking after leases failed")

    async def tick(self, interval_s: float) -> None:
        """One look, `interval_s` after the last one."""
        now_s = self._clock.monotonic_s()
        pause_s = now_s - self._last_tick_s - interval_s
        self._last_tick_s = now_s
        if not self.table.is_unused:
            await self._look_after(pause_s)
        # Last: a disk that is full must not keep anybody from being fenced.
        if self._has_longer_noted and now_s >= self.table.earlier_end_s:
            await self._note_shorter_time()

    async def _note_shorter_time(self) -> None:
        """Note that nobody goes by an earlier, longer lease time any more; later, if it must be."""
        try:
            await self._store.note_lease_time(self.table.ttl_s)
        except MictlanError as error:
            if not self._is_note_late:
                detail = "a router that is started again waits for the earlier lease time"
                log.warning("cannot note the lease time, so %s: %s", detail, error)
            self._is_note_late = True
        else:
            self._has_longer_noted = False

    async def _look_after(self, pause_s: float) -> None:
        if pause_s > min(PAUSE_MIN_S, self.table.ttl_s / 2):
            self.table.forgive(pause_s)
        for session, reason in self.table.overdue():
            record = self._sessions.record(session)
            if record is not None:
                log.warning(
                    "session %s of %s on %s is fenced: %s",
                    *(session, record.label, record.host, reason),
                )
            self.table.fence(session)
            self._refuse(session)
        for session in self.table.free():
            # Only now in the store. A router that was started again in between has to wait for
            # what the session trusts, and would not know of a session that had ended there.
            await self.close(session)

    def stop(self) -> None:
        """The router stops: nobody waits any longer."""
        self._is_stopping = True
        for event in (*self._waiting, *self._polls.values()):
            event.set()


async def agree_on_lease_time(
    store: MetadataStore, sessions: SessionTable, ttl_s: float, unknown_ttl_s: float
) -> float:
    """Note the lease time of a router that starts, durably, before it tells anybody.

    Args:
        store: where it is noted.
        sessions: those of before the start.
        ttl_s: of this router.
        unknown_ttl_s: what the sessions there are may have been told at most, when that was never
            noted.

    Returns:
        The longest time for which a session may trust what an earlier router told it. It stays
        noted until that has passed: the next router would have to wait for it, too.
    """
    noted_s = store.lease_time_s
    if noted_s is None:
        noted_s = unknown_ttl_s if sessions.with_leases() else 0.0
    longest_s = max(noted_s, ttl_s)
    if longest_s != store.lease_time_s:
        await store.note_lease_time(longest_s)
    return noted_s


def _check_count(count: int, operation: str) -> None:
    if count > wire.LEASES_COUNT_MAX:
        detail = f"at most {wire.LEASES_COUNT_MAX} leases are named at once"
        raise MictlanError(Kind.INVALID, operation, detail=detail)


def _fenced(session: SessionId | None) -> MictlanError:
    detail = "the session has ended: open a new one"
    return MictlanError(Kind.FENCED, "session", session or "", detail)


def _restless(operation: str) -> MictlanError:
    detail = "what it is about moves all the time"
    return MictlanError(Kind.UNAVAILABLE, operation, detail=detail)
