"""Who holds which lease, who waits for one, who has to give one up. Pure: no I/O, no waiting.

Owns holders, tickets and recalls. Never knows names or inodes: what a key is, is decided by
`leasekeys`, and `gate` turns tickets into waiting tasks.

A session's lease on a key::

    none --(answer to a read)--> READ --(Acquire)--> WRITE
    WRITE --(released down to READ, for a reader)--> READ
    READ, WRITE --(released, session ended)--> none

A ticket is somebody who waits: to write (`Acquire`, a commit without leases) or to read what
another session holds for writing. It is *clear* when no other session holds what conflicts, no
commit is under way there, and no earlier ticket of another session that conflicts names one of its
keys. All its keys are granted in one step.

Why nobody waits for ever: a ticket holds nothing by waiting, and what its session does hold is
recalled and given up all the same, whatever the session waits for. Tickets have one order; every
key of the earliest is recalled at once, and commits under way end by themselves; so the earliest
always gets on. Nothing new is granted on a key that another session waits to write, so the order
cannot be overtaken.

Stamps and the incarnation begin with the wall clock at the start of the router, and so grow over
restarts.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs_server.router.recalls import Inbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mictlanfs.clock import Clock
    from mictlanfs.model import InodeNumber, SessionId

NONE: Final = wire.LeaseMode.NONE
READ: Final = wire.LeaseMode.READ
WRITE: Final = wire.LeaseMode.WRITE

# Two sessions that write in turn into one directory get something done in each turn.
MIN_HOLD_S: Final = 0.001
# The more wait, the more is done in each turn, and the fewer turns there are: so many times as long
# as there are others who wait, up to this.
HOLD_FACTOR_MAX: Final = 8
# Clocks of two machines may differ this much in speed, and timers come late.
MARGIN_SHARE: Final = 0.1
# A session that goes on committing what it changed under a lease, or says that it is at it, gets
# this many times as long.
FLUSH_FACTOR: Final = 6


class Hold:
    """A lease: its mode, the stamp of its last grant, when it was first granted in that mode."""

    __slots__ = ("mode", "since_s", "stamp")

    def __init__(self, mode: int, stamp: int, since_s: float) -> None:
        self.mode = mode
        self.stamp = stamp
        self.since_s = since_s


class Ticket:
    """Somebody who waits. `is_write` also of a commit; `failed` once the session is gone.

    One that `is_standstill` stays in line when it is clear: until it is withdrawn everybody may
    read and nobody write.
    """

    __slots__ = (
        *("failed", "is_commit", "is_standstill", "is_write", "keys", "number", "session", "wake"),
    )

    def __init__(
        self,
        number: int,
        session: SessionId | None,
        keys: frozenset[InodeNumber],
        wake: Callable[[], None],
        *,
        is_write: bool,
        is_commit: bool,
        is_standstill: bool,
    ) -> None:
        self.number = number
        self.session = session
        self.keys = keys
        self.wake = wake
        self.is_write = is_write
        self.is_commit = is_commit
        self.is_standstill = is_standstill
        self.failed = False

    def __lt__(self, other: Ticket) -> bool:
        return self.number < other.number


class Member:
    """A session with leases."""

    __slots__ = (
        *("commit_count", "commit_s", "free_s", "heard_s", "holds", "inbox", "is_claimed"),
        "trusts_until_s",
    )

    def __init__(self, now_s: float, trusts_until_s: float, *, is_claimed: bool) -> None:
        self.holds: dict[InodeNumber, Hold] = {}
        self.inbox = Inbox()
        self.is_claimed = is_claimed
        # Last sign of life; the end of its own trust, whichever router gave it; last commit, and
        # how many are under way.
        self.heard_s = now_s
        self.trusts_until_s = trusts_until_s
        self.commit_s = float("-inf")
        self.commit_count = 0
        # When its leases are free after it was fenced.
        self.free_s: float | None = None


class LeaseTable:
    """All leases of a space.

    Args:
        sessions: those with leases that were open when the router started. Each is taken for the
            holder of everything until it claimed, or is fenced when the grace period is over.
        on_recall: called with a session that has new recalls to be told.
        earlier_ttl_s: for how long those may trust, from the start of the router on, what earlier
            routers told them.

    Attributes:
        ttl_s: for how long a session may trust its leases from a request for events on.
        earlier_end_s: when nobody trusts any more what earlier routers told (monotonic).
    """

    def __init__(
        self,
        clock: Clock,
        ttl_s: float,
        sessions: Iterable[SessionId] = (),
        on_recall: Callable[[SessionId], None] = lambda _: None,
        earlier_ttl_s: float = 0.0,
    ) -> None:
        self._clock = clock
        self.ttl_s = ttl_s
        self._margin_s = ttl_s * MARGIN_SHARE
        self.incarnation = self._stamp = clock.wall_ns()
        self.on_recall = on_recall
        self._number = 0
        now_s = clock.monotonic_s()
        end_s = self.earlier_end_s = now_s + max(ttl_s, earlier_ttl_s) * (1 + MARGIN_SHARE)
        self._members = {session: Member(now_s, end_s, is_claimed=False) for session in sessions}
        self._unclaimed: set[SessionId] = set(self._members)
        # Later when the router stood still meanwhile: nobody could claim then.
        self._grace_end_s = end_s
        self._holders: dict[InodeNumber, dict[SessionId, Hold]] = {}
        self._tickets: dict[InodeNumber, list[Ticket]] = {}
        self._waiting: dict[int, Ticket] = {}
        # Commits under way: by key; and those of whose keys nothing is known.
        self._busy: dict[InodeNumber, Counter[SessionId]] = {}
        self._wild_count = 0
        self._standstill_count = 0

    def _next_stamp(self) -> int:
        self._stamp += 1
        return self._stamp

    # --- sessions --------------------------------------------------------------------------------

    @property
    def is_unused(self) -> bool:
        """Whether no session could hold a lease, and nothing stands still."""
        return not self._members and not self._standstill_count

    def __contains__(self, session: SessionId | None) -> bool:
        return session in self._members

    def add(self, session: SessionId) -> None:
        """A session with leases was opened."""
        now_s = self._clock.monotonic_s()
        self._members[session] = Member(now_s, self._trusted_from(now_s), is_claimed=True)

    def remove(self, session: SessionId) -> None:
        """A session is gone for good: its leases are free, what it waits for fails."""
        self._fail_tickets(session)
        member = self._members.pop(session, None)
        if member is None:
            return
        self._unclaimed.discard(session)
        for key in member.holds:
            self._drop_holder(key, session)
        self._settle(None if not member.is_claimed else member.holds)

    def heard(self, session: SessionId) -> None:
        """A session asks for events: from now on it trusts its leases for the time to live."""
        if (member := self._members.get(session)) is not None and member.free_s is None:
            now_s = member.heard_s = self._clock.monotonic_s()
            # What an earlier router told it may last longer.
            member.trusts_until_s = max(member.trusts_until_s, self._trusted_from(now_s))

    def _trusted_from(self, now_s: float) -> float:
        """Until when a session trusts its leases that is answered now."""
        return now_s + self.ttl_s + self._margin_s

    def commit_came(self, session: SessionId) -> None:
        """A session commits; `commit_went` follows."""
        if (member := self._members.get(session)) is not None:
            member.heard_s = member.commit_s = self._clock.monotonic_s()
            member.commit_count += 1

    def at_work(self, session: SessionId) -> None:
        """A session is storing what it changed, and has nothing to commit yet."""
        if (member := self._members.get(session)) is not None:
            member.heard_s = member.commit_s = self._clock.monotonic_s()

    def commit_went(self, session: SessionId) -> None:
        """A commit was answered, however."""
        if (member := self._members.get(session)) is not None:
            member.heard_s = member.commit_s = self._clock.monotonic_s()
            member.commit_count -= 1

    def counts(self, session: SessionId) -> tuple[int, int]:
        """How many leases a session holds, and for how many it waits."""
        member = self._members.get(session)
        waits = sum(len(t.keys) for t in self._waiting.values() if t.session == session)
        return (len(member.holds) if member else 0), waits

    def mode(self, session: SessionId, key: InodeNumber) -> int:
        """What a session holds of a key."""
        member = self._members.get(session)
        hold = member.holds.get(key) if member else None
        return hold.mode if hold else NONE

    # --- reading ---------------------------------------------------------------------------------

    def is_readable(self, session: SessionId | None, keys: Iterable[InodeNumber]) -> bool:
        """Whether nobody else holds, or may hold, one of the keys for writing."""
        if self._unclaimed and self._unclaimed != {session}:
            return False
        for key in keys:
            for holder, hold in self._holders.get(key, _NOBODY).items():
                if hold.mode == WRITE and holder != session:
                    return False
        return True

    def grant_reads(self, session: SessionId, keys: Iterable[InodeNumber]) -> wire.Grants:
        """Grant READ of those keys that nobody else holds for writing or waits to write.

        A key that the session has to give up is not granted again before it did: it could not
        tell which of the two came last.
        """
        member = self._members.get(session)
        granted: list[InodeNumber] = []
        stamp = self._next_stamp()
        if member is None or member.free_s is not None or not self.is_readable(session, ()):
            return wire.Grants((), stamp)
        pending = member.inbox.pending
        for key in keys:
            if key in pending or not self._is_grantable(session, key):
                continue
            hold = member.holds.get(key)
            if hold is None:
                hold = Hold(READ, stamp, self._clock.monotonic_s())
                member.holds[key] = hold
                self._holders.setdefault(key, {})[session] = hold
            hold.stamp = stamp
            granted.append(key)
        return wire.Grants(tuple(granted), stamp)

    def is_free(self, session: SessionId | None, keys: Iterable[InodeNumber]) -> bool:
        """Whether all of these may be read and leased now, with nobody in the way or in line."""
        member = self._members.get(session) if session is not None else None
        pending = member.inbox.pending if member is not None else {}
        return all(key not in pending and self._is_grantable(session, key) for key in keys)

    def _is_grantable(self, session: SessionId | None, key: InodeNumber) -> bool:
        if self._wild_count or key in self._busy:
            return False
        if any(t.is_write and t.session != session for t in self._tickets.get(key, ())):
            return False
        return self.is_readable(session, (key,))

    # --- tickets ---------------------------------------------------------------------------------

    def wait(
        self,
        session: SessionId | None,
        keys: Iterable[InodeNumber],
        wake: Callable[[], None],
        *,
        is_write: bool,
        is_commit: bool = False,
        is_standstill: bool = False,
    ) -> Ticket:
        """Stand in line. `wake` is called, perhaps at once and more than once, when it is clear."""
        self._number += 1
        ticket = Ticket(
            self._number,
            session,
            frozenset(keys),
            wake,
            is_write=is_write,
            is_commit=is_commit,
            is_standstill=is_standstill,
        )
        self._waiting[ticket.number] = ticket
        self._standstill_count += is_standstill
        self._enqueue(ticket)
        return ticket

    def change_keys(self, ticket: Ticket, keys: Iterable[InodeNumber]) -> None:
        """The ticket turned out to need other keys; it keeps its place in the order."""
        if not ticket.failed:
            before = self._dequeue(ticket)
            ticket.keys = frozenset(keys)
            self._enqueue(ticket)
            self._settle(before)

    def withdraw(self, ticket: Ticket) -> None:
        """Whoever waited has got on, or has given up; can be repeated."""
        if self._waiting.pop(ticket.number, None) is not None:
            self._standstill_count -= ticket.is_standstill
            self._settle(self._dequeue(ticket))

    def _enqueue(self, ticket: Ticket) -> None:
        for key in ticket.keys:
            insort(self._tickets.setdefault(key, []), ticket)
        self._settle(ticket.keys)
        if not ticket.keys and self.is_clear(ticket):
            ticket.wake()

    def _dequeue(self, ticket: Ticket) -> frozenset[InodeNumber]:
        for key in ticket.keys:
            line = self._tickets[key]
            line.remove(ticket)
            if not line:
                del self._tickets[key]
        return ticket.keys

    def is_clear(self, ticket: Ticket) -> bool:
        """Whether nothing is in the way of a ticket."""
        if ticket.failed or (self._unclaimed and self._unclaimed != {ticket.session}):
            return False
        is_alone = ticket.is_write or ticket.is_standstill
        if is_alone and self._wild_count and not ticket.is_commit:
            return False
        return all(self._is_key_clear(ticket, key) for key in ticket.keys)

    def _is_key_clear(self, ticket: Ticket, key: InodeNumber) -> bool:
        least = READ if ticket.is_write else WRITE
        for holder, hold in self._holders.get(key, _NOBODY).items():
            if holder != ticket.session and hold.mode >= least:
                return False
        # A batch that one session sent twice is sorted out by its number.
        is_alone = ticket.is_write or ticket.is_standstill
        if any(
            is_alone and not (ticket.is_commit and other == ticket.session)
            for other in self._busy.get(key, ())
        ):
            return False
        for other in self._tickets.get(key, ()):
            if other.number >= ticket.number:
                break
            is_foreign = other.session != ticket.session or other.session is None
            if is_foreign and (other.is_write or ticket.is_write):
                return False
        return True

    def _settle(self, keys: Iterable[InodeNumber] | None) -> None:
        """Something changed on these keys (None: on any): wake who is clear, recall for others."""
        if keys is None:
            touched = sorted(self._waiting.values())
            keys = list(self._tickets)
        else:
            keys = [key for key in keys if key in self._tickets]
            touched = sorted({t for key in keys for t in self._tickets[key]})
        for key in keys:
            self._recall_holders(key)
        for ticket in touched:
            if self.is_clear(ticket):
                ticket.wake()

    def _fail_tickets(self, session: SessionId) -> None:
        for ticket in [t for t in self._waiting.values() if t.session == session]:
            ticket.failed = True
            self.withdraw(ticket)
            ticket.wake()

    # --- writing ---------------------------------------------------------------------------------

    def grant_writes(self, ticket: Ticket) -> int:
        """Give a clear ticket of a session with leases all its keys. Returns the stamp."""
        assert ticket.session is not None
        assert self.is_clear(ticket)
        member = self._members[ticket.session]
        stamp, now_s = self._next_stamp(), self._clock.monotonic_s()
        for key in ticket.keys:
            hold = member.holds.get(key)
            if hold is None:
                hold = member.holds[key] = Hold(WRITE, stamp, now_s)
                self._holders.setdefault(key, {})[ticket.session] = hold
            elif hold.mode != WRITE:
                hold.mode, hold.since_s = WRITE, now_s
            hold.stamp = stamp
            # What asked for the lease until now is void by the stamp; whoever still waits asks
            # again.
            member.inbox.settle(key)
        self.withdraw(ticket)
        return stamp

    def grant_made(self, session: SessionId, keys: Sequence[InodeNumber]) -> None:
        """Directories were made under leases for writing: they are leased with them.

        Who looked between the end of the transaction and this may wait for one of them already, and
        for the lease under which it was made.
        """
        member = self._members.get(session)
        if member is None:
            return
        now_s = self._clock.monotonic_s()
        for key in keys:
            hold = member.holds[key] = Hold(WRITE, self._stamp, now_s)
            self._holders.setdefault(key, {})[session] = hold
        self._settle(keys)

    def begin_commit(self, session: SessionId, keys: frozenset[InodeNumber] | None) -> None:
        """A commit is under way, without leases, on these keys; None: on any."""
        if keys is None:
            self._wild_count += 1
        else:
            for key in keys:
                self._busy.setdefault(key, Counter())[session] += 1

    def end_commit(self, session: SessionId, keys: frozenset[InodeNumber] | None) -> None:
        """It has been applied, or has failed."""
        if keys is None:
            self._wild_count -= 1
        else:
            for key in keys:
                busy = self._busy[key]
                busy[session] -= 1
                if not busy[session]:
                    del busy[session]
                if not busy:
                    del self._busy[key]
        if self._waiting:
            self._settle(keys)

    # --- giving up -------------------------------------------------------------------------------

    def release(
        self, session: SessionId, keys: Iterable[InodeNumber], keep: int, stamp: int
    ) -> None:
        """A session holds at most `keep` of each key, unless it was granted after `stamp`."""
        member = self._members.get(session)
        if member is None:
            return
        changed = []
        for key in keys:
            hold = member.holds.get(key)
            if hold is not None and hold.mode > keep and hold.stamp <= stamp:
                changed.append(key)
                hold.mode = keep
                if keep == NONE:
                    del member.holds[key]
                    self._drop_holder(key, session)
            pending = member.inbox.pending.get(key)
            if pending is None:
                continue
            if key not in member.holds or member.holds[key].mode <= pending.keep:
                member.inbox.settle(key)
                changed.append(key)
            elif stamp >= pending.stamp > 0 and pending.is_ready:
                # It did what it was asked for; now it is asked for more.
                pending.due_s = self._clock.monotonic_s()
        self._settle(changed)

    def _drop_holder(self, key: InodeNumber, session: SessionId) -> None:
        holders = self._holders[key]
        del holders[session]
        if not holders:
            del self._holders[key]

    def _recall_holders(self, key: InodeNumber) -> None:
        """Ask those who are in the way of the tickets for a key to give it up."""
        line = self._tickets.get(key, ())
        waiting = {ticket.session for ticket in line} if len(line) > 1 else _NOBODY
        for holder, hold in self._holders.get(key, _NOBODY).items():
            keep = WRITE
            for ticket in line:
                if ticket.session == holder:
                    # What it waits for itself comes before what comes later.
                    if ticket.is_write and not ticket.is_commit:
                        break
                    continue
                keep = min(keep, NONE if ticket.is_write else READ)
            if keep < hold.mode:
                share = max(1, len(waiting) - (holder in waiting))
                hold_s = MIN_HOLD_S * min(share, HOLD_FACTOR_MAX)
                self._recall(holder, key, keep, hold, hold_s)

    def _recall(
        self, holder: SessionId, key: InodeNumber, keep: int, hold: Hold, hold_s: float
    ) -> None:
        inbox, now_s = self._members[holder].inbox, self._clock.monotonic_s()
        due_s = hold.since_s + hold_s if hold.mode == WRITE else now_s
        if inbox.recall(key, keep, max(due_s, now_s)):
            inbox.ripen(now_s)
            # Also when it is held back: whoever listens sets a timer.
            self.on_recall(holder)

    def ripen(self, session: SessionId) -> float | None:
        """Make recalls of a session ready that are due. Returns when the next one is."""
        member = self._members.get(session)
        if member is None:
            return None
        member.inbox.ripen(self._clock.monotonic_s())
        return member.inbox.due_s()

    def events(self, session: SessionId, after: int) -> wire.Events:
        """What to tell a session that has received the event `after`."""
        self.ripen(session)
        recalls, last = self._members[session].inbox.receive(after, self._next_stamp)
        return wire.Events(tuple(recalls), last, self.incarnation, self.ttl_s)

    # --- the grace period ------------------------------------------------------------------------

    def claim(self, request: wire.Claim) -> None:
        """A session of before the restart tells what it held. Raises CONFLICT.

        One that has claimed is no error: its request came twice.
        """
        member = self._members.get(request.session)
        if request.incarnation != self.incarnation or member is None or member.free_s is not None:
            raise _refused(request.session, "it comes too late")
        if member.is_claimed:
            return
        stamp, now_s = self._next_stamp(), self._clock.monotonic_s()
        for mode, keys in ((READ, request.reads), (WRITE, request.writes)):
            for key in keys:
                holders = self._holders.get(key, _NOBODY)
                if any(
                    other != request.session and WRITE in (mode, hold.mode)
                    for other, hold in holders.items()
                ):
                    raise _refused(request.session, f"another session holds {key}")
                hold = member.holds.setdefault(key, Hold(mode, stamp, now_s))
                hold.mode = max(hold.mode, mode)
                self._holders.setdefault(key, {})[request.session] = hold
        if request.is_last:
            member.is_claimed = True
            self._unclaimed.discard(request.session)
            self._settle(None)

    # --- fencing ---------------------------------------------------------------------------------

    def overdue(self) -> list[tuple[SessionId, str]]:
        """The sessions to fence, and why: they hold up somebody, or did not claim in time."""
        now_s = self._clock.monotonic_s()
        found = []
        for session, member in self._members.items():
            if member.free_s is not None:
                continue
            if not member.is_claimed:
                if now_s >= self._grace_end_s:
                    found.append((session, "it did not claim its leases after a restart"))
            elif member.inbox.pending and (reason := self._delay(session, member, now_s)):
                found.append((session, reason))
        return found

    def _delay(self, session: SessionId, member: Member, now_s: float) -> str:
        """Why a session holds up others for too long; empty when it does not."""
        is_silent = now_s - member.heard_s >= self.ttl_s + self._margin_s
        is_committing = member.commit_count > 0 or now_s - member.commit_s < self.ttl_s
        limit_s = self.ttl_s * (FLUSH_FACTOR if is_committing else 1)
        member.inbox.ripen(now_s)
        for key, pending in member.inbox.pending.items():
            if not any(t.session != session for t in self._tickets.get(key, ())):
                continue
            waited_s = now_s - pending.due_s
            if is_silent:
                return f"others wait, and it was silent for {now_s - member.heard_s:.1f} s"
            if pending.is_ready and waited_s >= limit_s:
                return f"it did not give up a lease for {waited_s:.1f} s"
        return ""

    def fence(self, session: SessionId) -> None:
        """A session is refused from now on. Its leases are free only when it cannot trust them.

        It may not know yet, and goes on trusting what it holds for as long as it was told.
        """
        member = self._members.get(session)
        if member is None or member.free_s is not None:
            return
        member.free_s = max(self._clock.monotonic_s(), member.trusts_until_s)
        self._fail_tickets(session)

    def free(self) -> list[SessionId]:
        """The fenced sessions that trust nothing any more, to be removed."""
        now_s = self._clock.monotonic_s()
        members = self._members.items()
        return [s for s, m in members if m.free_s is not None and m.free_s <= now_s]

    def forgive(self, pause_s: float) -> None:
        """The router did not run for a while: nobody could be heard.

        The time for which sessions trust their leases has passed all the same.
        """
        self._grace_end_s += pause_s
        for member in self._members.values():
            member.heard_s += pause_s
            member.commit_s += pause_s
            member.inbox.forgive(pause_s)


_NOBODY: Final[dict[SessionId, Hold]] = {}


def _refused(session: SessionId, detail: str) -> MictlanError:
    return MictlanError(Kind.CONFLICT, "claim", session, detail)
