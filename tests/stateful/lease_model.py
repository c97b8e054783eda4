"""A router's leases, sessions that follow the rules, and a network that does what it likes.

The router is the real `LeaseTable` under a synchronous copy of the gate; the sessions are a
reference for the rules of `docs/protocol.md`. A key has a value, a number that grows with every
change, as the versions of attributes do. Messages are delivered in any order, lost, sent twice;
sessions stand still, the router is started again.

Checked at every step:

- no change reaches the database while another session trusts a lease on the key,
- nobody trusts a lease for writing while another trusts any on the same key,
- what a session trusts is the value in the database, or its own change of it,
- an answer never misses a change that a writer was told is done,
- leases for writing are granted in the order in which they were asked for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import InodeNumber, SessionId, Struct
from mictlanfs_server.router.leases import LeaseTable, Ticket
from tests.unit.server.router.fakes import FakeClock

TTL_S = 10.0
# What a router may be started again with.
TTLS_S = (TTL_S, 2.0, 20.0)
READ, WRITE = wire.LeaseMode.READ, wire.LeaseMode.WRITE
KEYS = (InodeNumber(1), InodeNumber(2))
# How fast the clocks of the sessions run: the router allows for a tenth.
RATES = (1.0, 0.96, 1.04)


@dataclass
class Call:
    """A request, as its sender remembers it."""

    number: int
    sender: Session
    session: SessionId
    kind: str
    keys: tuple[InodeNumber, ...] = ()
    sent_s: float = 0.0
    # Of a batch: its number and what a covered one writes.
    first: int = 0
    values: dict[InodeNumber, int] = field(default_factory=dict)
    # Of polls, releases and claims.
    message: Struct | None = None


@dataclass
class Answer:
    """What the router says to a call: an error, or a part of the rest."""

    error: Kind | None = None
    grants: wire.Grants | None = None
    values: dict[InodeNumber, int] = field(default_factory=dict)
    events: wire.Events | None = None


Message = tuple[Call, Answer | None]


@dataclass
class Known:
    """What survives a restart of the router, of one session."""

    has_leases: bool
    is_open: bool = True
    last: int = 0
    answer: dict[InodeNumber, int] = field(default_factory=dict)


@dataclass
class Work:
    """A request that the router has begun."""

    call: Call
    ticket: Ticket | None = None
    since_s: float = 0.0
    is_awake: bool = True


class Router:
    """The database, and everything else that is gone when it is started again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.database = dict.fromkeys(KEYS, 0)
        self.sessions: dict[SessionId, Known] = {}
        self.ttl_s = self.noted_ttl_s = TTL_S
        self.begin()

    def begin(self) -> None:
        """Start, knowing only what is in the database."""
        before = [s for s, known in self.sessions.items() if known.is_open and known.has_leases]
        earlier_s, self.noted_ttl_s = self.noted_ttl_s, max(self.noted_ttl_s, self.ttl_s)
        self.table = LeaseTable(self.world.clock, self.ttl_s, before, self._on_recall, earlier_s)
        self.works: list[Work] = []
        self.polls: dict[SessionId, Work] = {}
        # What the writer's thread has still to do, in order.
        self.queue: list[Callable[[], None]] = []
        self.refused: set[SessionId] = set()
        self.closing: set[SessionId] = set()

    def open(self, *, has_leases: bool) -> SessionId:
        session = SessionId(f"s{len(self.sessions)}")
        self.sessions[session] = Known(has_leases)
        if has_leases:
            self.table.add(session)
        return session

    def _on_recall(self, session: SessionId) -> None:
        if (poll := self.polls.get(session)) is not None:
            poll.is_awake = True

    # --- requests ---

    def receive(self, call: Call) -> None:
        if not self.sessions[call.session].is_open or call.session in self.refused:
            self.answer(call, Answer(Kind.FENCED))
            return
        message = call.message
        if isinstance(message, wire.ReleaseLeases):
            self.table.release(call.session, message.keys, message.keep, message.stamp)
            self.answer(call, Answer())
        elif isinstance(message, wire.Claim):
            try:
                self.table.claim(message)
            except MictlanError as error:
                self.answer(call, Answer(error.kind))
            else:
                self.answer(call, Answer())
        elif isinstance(message, wire.AwaitEvents):
            self._receive_poll(call, message)
        else:
            if call.kind in ("commit", "covered"):
                self.table.commit_came(call.session)
            self.works.append(Work(call))
        self.settle()

    def _receive_poll(self, call: Call, message: wire.AwaitEvents) -> None:
        self.table.heard(call.session)
        if (other := self.polls.pop(call.session, None)) is not None:
            self._answer_poll(other, ())
        work = Work(call, since_s=self.world.clock.now_s)
        if message.incarnation != self.table.incarnation:
            self._answer_poll(work, ())
        else:
            self.polls[call.session] = work

    def _answer_poll(self, work: Work, recalls: tuple[wire.Recall, ...], last: int = 0) -> None:
        events = wire.Events(recalls, last, self.table.incarnation, self.table.ttl_s)
        self.answer(work.call, Answer(events=events))

    def answer(self, call: Call, answer: Answer) -> None:
        self.world.messages.append((call, answer))

    # --- the loop ---

    def settle(self) -> None:
        """Run everything that can run."""
        for session, poll in list(self.polls.items()):
            if poll.is_awake:
                self._continue_poll(session, poll)
        while awake := [work for work in self.works if work.is_awake]:
            for work in awake:
                work.is_awake = False
                if self._proceed(work):
                    self.works.remove(work)
                    if work.ticket is not None:
                        self.table.withdraw(work.ticket)

    def _continue_poll(self, session: SessionId, poll: Work) -> None:
        poll.is_awake = False
        message = poll.call.message
        assert isinstance(message, wire.AwaitEvents)
        if session in self.refused or not self.sessions[session].is_open:
            del self.polls[session]
            self.answer(poll.call, Answer(Kind.FENCED))
            return
        events = self.table.events(session, message.after)
        if events.recalls or self.world.clock.now_s - poll.since_s >= self.ttl_s / 3:
            del self.polls[session]
            self.answer(poll.call, Answer(events=events))

    def _proceed(self, work: Work) -> bool:
        """Go on with a request. Returns whether it is done here."""
        call = work.call
        if work.ticket is not None and work.ticket.failed:
            self.answer(call, Answer(Kind.FENCED))
            return True
        if call.kind == "covered":
            self.queue.append(lambda: self._apply(call, None))
            return True
        if call.kind == "read":
            return self._read(work)
        if work.ticket is None:
            work.ticket = self._stand(work, is_write=True)
        if not self.table.is_clear(work.ticket):
            return False
        if call.kind == "acquire":
            self._check_order(work)
            stamp = self.table.grant_writes(work.ticket)
            grants = wire.Grants(call.keys, stamp)
            self.answer(
                call, Answer(grants=grants, values={k: self.database[k] for k in call.keys})
            )
            return True
        keys = frozenset(call.keys)
        self.table.begin_commit(call.session, keys)
        self.queue.append(lambda: self._apply(call, keys))
        return True

    def _stand(self, work: Work, *, is_write: bool) -> Ticket:
        call = work.call

        def wake() -> None:
            work.is_awake = True

        return self.table.wait(
            call.session, call.keys, wake, is_write=is_write, is_commit=call.kind == "commit"
        )

    def _read(self, work: Work) -> bool:
        call = work.call
        if not self.table.is_readable(call.session, call.keys):
            if work.ticket is None:
                work.ticket = self._stand(work, is_write=False)
            return False
        self.world.check_answer(call)
        grants = self.table.grant_reads(call.session, call.keys)
        self.answer(call, Answer(grants=grants, values={k: self.database[k] for k in call.keys}))
        return True

    def _check_order(self, work: Work) -> None:
        for earlier in self.works:
            if earlier is work:
                break
            assert not (
                earlier.ticket is not None
                and earlier.call.kind == "acquire"
                and earlier.call.session != work.call.session
                and set(earlier.call.keys) & set(work.call.keys)
            ), "somebody was overtaken"

    # --- the writer's thread ---

    def write(self) -> None:
        """The writer does one piece of work, and the loop hears of it."""
        if self.queue:
            self.queue.pop(0)()
            self.settle()

    def _apply(self, call: Call, keys: frozenset[InodeNumber] | None) -> None:
        known = self.sessions[call.session]
        answer = Answer(values=known.answer)
        if not known.is_open:
            answer = Answer(Kind.FENCED)
        elif call.first == known.last + 1:
            self.world.check_change(call)
            for key in call.keys:
                value = call.values.get(key) or self.world.new_value()
                assert value > self.database[key]
                self.database[key] = value
            known.last = call.first
            known.answer = {key: self.database[key] for key in call.keys}
            answer = Answer(values=known.answer)
        elif call.first != known.last:
            answer = Answer(Kind.CONFLICT)
        if keys is not None:
            self.table.end_commit(call.session, keys)
        self.table.commit_went(call.session)
        self.answer(call, answer)

    # --- time ---

    def tick(self) -> None:
        if self.world.clock.now_s >= self.table.earlier_end_s:
            self.noted_ttl_s = self.ttl_s
        for session, _ in self.table.overdue():
            self.world.fenced.append(session)
            self._refuse(session)
        for session in self.table.free():
            if session not in self.closing:
                self._close(session)
        for poll in self.polls.values():
            poll.is_awake = True
        self.settle()

    def end(self, session: SessionId) -> None:
        """A session is taken for gone, as one that was silent for long."""
        if self.sessions[session].has_leases and session in self.table:
            self._refuse(session)
            self.settle()

    def _refuse(self, session: SessionId) -> None:
        self.table.fence(session)
        self.refused.add(session)
        self._on_recall(session)

    def _close(self, session: SessionId) -> None:
        self.closing.add(session)

        def close() -> None:
            self.sessions[session].is_open = False
            self.table.remove(session)

        self.queue.append(close)

    def restart(self, *, is_applied: bool, ttl_s: float) -> None:
        """Begin anew; what the writer had got may be in the database or not."""
        if is_applied:
            for work in self.queue:
                work()
        self.ttl_s = ttl_s
        self.begin()


class Session:
    """One session after another of a mount: the rules, as short as they can be said."""

    def __init__(self, world: World, rate: float, *, has_leases: bool) -> None:
        self.world = world
        self.rate = rate
        self.has_leases = has_leases
        self.is_stopped = False
        self.calls: dict[int, Call] = {}
        self._begin()

    def _begin(self) -> None:
        self.id = self.world.router.open(has_leases=self.has_leases)
        self.incarnation = self.world.router.table.incarnation
        self.modes: dict[InodeNumber, int] = {}
        self.stamps: dict[InodeNumber, int] = {}
        # Largest value known, of every key ever seen: an answer may be older than what is known.
        self.values = dict.fromkeys(KEYS, 0)
        self.void: dict[InodeNumber, int] = {}
        self.dirty: dict[InodeNumber, int] = {}
        self.flushing: dict[InodeNumber, int] = {}
        self.due: dict[InodeNumber, tuple[int, int]] = {}
        self.after = 0
        self.trust_s = float("-inf")
        self.next_batch = 1
        self.calls.clear()
        if self.has_leases:
            self.poll()

    @property
    def now_s(self) -> float:
        return self.world.clock.now_s * self.rate

    @property
    def is_trusting(self) -> bool:
        return self.now_s < self.trust_s

    def trusts(self, key: InodeNumber) -> int:
        return self.modes.get(key, 0) if self.is_trusting else 0

    def is_calling(self, *kinds: str) -> bool:
        return any(call.kind in kinds for call in self.calls.values())

    # --- asking ---

    def call(self, kind: str, **fields: object) -> None:
        number = next(self.world.numbers)
        call = Call(number, self, self.id, kind, sent_s=self.now_s, **fields)  # type: ignore[arg-type] # as in Call
        self.calls[number] = call
        self.world.messages.append((call, None))

    def again(self, call: Call) -> None:
        """Nothing came back: ask again."""
        if self.calls.pop(call.number, None) is None:
            return
        if call.kind == "poll":
            self.poll()
        else:
            self.call(
                call.kind,
                keys=call.keys,
                first=call.first,
                values=call.values,
                message=call.message,
            )

    def poll(self) -> None:
        self.call("poll", message=wire.AwaitEvents(self.id, 1, self.after, self.incarnation))

    def read(self, key: InodeNumber) -> None:
        self.call("read", keys=(key,))

    def acquire(self, keys: tuple[InodeNumber, ...]) -> None:
        """Ask for leases to write: not while a commit without leases is under way."""
        if self.has_leases and not self.is_calling("commit"):
            self.call("acquire", keys=keys)

    def change(self, key: InodeNumber) -> None:
        """Change a key under a lease: done at once, told later."""
        if self.trusts(key) == WRITE and key not in self.due:
            self.dirty[key] = self.world.new_value()
            self.values[key] = self.dirty[key]

    def commit(self, keys: tuple[InodeNumber, ...]) -> None:
        """Change keys without leases: only by who has nothing that others may wait for."""
        is_writer = WRITE in self.modes.values() or self.is_calling("acquire")
        if not is_writer and not self.is_calling("commit", "covered"):
            self.call("commit", keys=keys, first=self.next_batch)

    def flush(self) -> None:
        if self.dirty and not self.is_stopped and not self.is_calling("commit", "covered"):
            self.flushing, self.dirty = self.dirty, {}
            self.call(
                "covered",
                keys=tuple(self.flushing),
                first=self.next_batch,
                values=dict(self.flushing),
            )

    # --- hearing ---

    def hear(self, call: Call, answer: Answer) -> None:
        if self.calls.pop(call.number, None) is None or call.session != self.id:
            return
        is_old_claim = (
            isinstance(call.message, wire.Claim) and call.message.incarnation != self.incarnation
        )
        if answer.error is not None:
            if not is_old_claim or answer.error is Kind.FENCED:
                assert answer.error is Kind.FENCED or call.kind == "claim"
                # What was not committed is lost, and said to be.
                self._begin()
            return
        if answer.events is not None:
            self._hear_events(call, answer.events)
        elif answer.grants is not None:
            self._hear_grants(call, answer)
        elif call.kind in ("commit", "covered"):
            self._hear_commit(call, answer)

    def _hear_grants(self, call: Call, answer: Answer) -> None:
        assert answer.grants is not None
        mode, stamp = (WRITE if call.kind == "acquire" else READ), answer.grants.stamp
        for key, value in answer.values.items():
            self.values[key] = max(self.values[key], value)
        for key in answer.grants.keys:
            if stamp < max(self.void.get(key, 0), self.incarnation):
                continue
            self.modes[key] = max(self.modes.get(key, 0), mode)
            self.stamps[key] = max(self.stamps.get(key, 0), stamp)

    def _hear_commit(self, call: Call, answer: Answer) -> None:
        self.next_batch = call.first + 1
        for key, value in answer.values.items():
            self.values[key] = max(self.values[key], value)
        self.flushing = {}
        for key, (keep, stamp) in list(self.due.items()):
            if key not in self.dirty:
                del self.due[key]
                self._give_up((key,), keep, stamp)
        if self.due:
            self.flush()

    def _hear_events(self, call: Call, events: wire.Events) -> None:
        assert isinstance(call.message, wire.AwaitEvents)
        if events.incarnation != call.message.incarnation:
            if events.incarnation > self.incarnation:
                self._claim(events.incarnation)
        else:
            for recall in events.recalls:
                self._hear_recall(recall)
            if events.recalls:
                self.after = max(self.after, events.last)
            if call.message.incarnation == self.incarnation:
                self.trust_s = max(self.trust_s, call.sent_s + events.lease_ttl_s)
        if not self.is_calling("poll"):
            self.poll()

    def _claim(self, incarnation: int) -> None:
        self.incarnation, self.after = incarnation, 0
        self.due.clear()
        reads = tuple(key for key, mode in self.modes.items() if mode == READ)
        writes = tuple(key for key, mode in self.modes.items() if mode == WRITE)
        self.call("claim", message=wire.Claim(self.id, 1, incarnation, reads, writes, True))

    def _hear_recall(self, recall: wire.Recall) -> None:
        at_once = []
        for key in recall.keys:
            self.void[key] = max(self.void.get(key, 0), recall.stamp)
            is_held = self.stamps.get(key, 0) < recall.stamp and key in self.modes
            if is_held and (key in self.dirty or key in self.flushing):
                self.due[key] = (recall.keep, recall.stamp)
            else:
                at_once.append(key)
        self._give_up(tuple(at_once), recall.keep, recall.stamp)
        if self.due:
            self.flush()

    def _give_up(self, keys: tuple[InodeNumber, ...], keep: int, stamp: int) -> None:
        if not keys:
            return
        for key in keys:
            if key in self.modes and self.stamps[key] < stamp:
                self.modes[key] = min(self.modes[key], keep)
                if not self.modes[key]:
                    del self.modes[key], self.stamps[key]
        self.call("release", message=wire.ReleaseLeases(self.id, 1, keys, keep, stamp))

    def give_up_unasked(self, key: InodeNumber) -> None:
        is_needed = key in self.dirty or key in self.flushing or key in self.due
        if key in self.modes and not is_needed:
            stamp = self.stamps.pop(key)
            del self.modes[key]
            # What was granted before, in an answer that is still on its way, is given up too.
            self.void[key] = max(self.void.get(key, 0), stamp + 1)
            self.call("release", message=wire.ReleaseLeases(self.id, 1, (key,), 0, stamp))


class World:
    """Everything; each public method is one step of a history."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.numbers = itertools.count(1)
        self.messages: list[Message] = []
        self.fenced: list[SessionId] = []
        self._value = 0
        self.router = Router(self)
        self.mounts = [Session(self, rate, has_leases=True) for rate in RATES]
        self.sessions = [*self.mounts, Session(self, 1.0, has_leases=False)]

    def new_value(self) -> int:
        self._value += 1
        return self._value

    # --- what must be true ---

    def check_change(self, call: Call) -> None:
        for session in self.mounts:
            for key in call.keys:
                assert session is call.sender or not session.trusts(key), "a trusted lease is stale"

    def check_answer(self, call: Call) -> None:
        for session in self.mounts:
            for key in call.keys:
                is_changed = key in session.dirty or key in session.flushing
                assert session is call.sender or not (session.trusts(key) and is_changed), (
                    "an answer misses what was done"
                )

    def check(self) -> None:
        for key in KEYS:
            trusting = [session for session in self.mounts if session.trusts(key)]
            if any(session.trusts(key) == WRITE for session in trusting):
                assert len(trusting) == 1, "a lease for writing is not alone"
            for session in trusting:
                is_own = key in session.dirty or key in session.flushing
                if not is_own and not session.is_calling("commit"):
                    assert session.values[key] == self.router.database[key]

    # --- steps ---

    def deliver(self, index: int) -> None:
        """One message arrives, or waits on for a session that stands still."""
        if not self.messages:
            return
        index %= len(self.messages)
        call, answer = self.messages[index]
        if answer is None:
            del self.messages[index]
            self.router.receive(call)
        elif not call.sender.is_stopped:
            del self.messages[index]
            call.sender.hear(call, answer)

    def lose(self, index: int) -> None:
        """One message is lost, and its sender asks again."""
        if self.messages:
            call, _ = self.messages.pop(index % len(self.messages))
            call.sender.again(call)

    def repeat(self, index: int) -> None:
        """A sender gives up waiting and asks again; what is on its way still arrives."""
        calls = [call for session in self.sessions for call in session.calls.values()]
        if calls:
            call = calls[index % len(calls)]
            call.sender.again(call)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.router.tick()

    def pause_router(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.router.table.forgive(seconds)
        self.router.tick()

    def restart(self, *, is_applied: bool, ttl_s: float) -> None:
        """The router begins anew, maybe with another lease time; who waited for it asks again."""
        self.clock.advance(0.001)
        self.router.restart(is_applied=is_applied, ttl_s=ttl_s)
        for session in self.sessions:
            for call in list(session.calls.values()):
                if not any(other is call for other, _ in self.messages):
                    session.again(call)

    # --- the end of a history ---

    def drain(self) -> None:
        """From now on all goes well: everything that was asked is answered, and soon."""
        for session in self.sessions:
            session.is_stopped = False
        table, present = self.router.table, {session.id for session in self.mounts}
        is_calm = table.is_readable(None, ()) and not any(
            session in table and (session in self.router.refused or session not in present)
            for session in self.router.sessions
        )
        # Only who is to be fenced may hold up others for long.
        for _ in range(100 if is_calm else 3000):
            for _ in range(len(self.messages)):
                self.deliver(0)
                self.check()
            self.router.write()
            for session in self.sessions:
                session.flush()
            if self.is_idle():
                return
            self.advance(0.05)
            self.check()
        raise AssertionError("somebody waits for ever")

    def is_idle(self) -> bool:
        """Whether nobody waits for anything but events."""
        return not self.router.queue and not any(
            call.kind != "poll" for session in self.sessions for call in session.calls.values()
        )

    def finish(self) -> None:
        """All ends; then every session in turn gets everything, and nobody has to be fenced."""
        self.drain()
        # Those whose fences were under way, or who have not heard of a restart.
        for _ in range(round(20 * max(TTLS_S) / self.router.ttl_s)):
            self.advance(self.router.ttl_s / 8)
            self.drain()
        self.fenced.clear()
        present = {session.id for session in self.mounts}
        for session in [*self.mounts, *self.mounts]:
            session.acquire(KEYS)
            self.drain()
            for key in KEYS:
                assert session.trusts(key) == WRITE, "a lease is lost"
                session.change(key)
        assert present.isdisjoint(self.fenced), "who obeys was fenced"
        assert present == {session.id for session in self.mounts}


def ask(session: Session, chance: random.Random) -> None:
    """A session that runs does something of its own."""
    keys = tuple(sorted(chance.sample(KEYS, chance.randint(1, 2))))
    key = keys[0]
    acts: list[Callable[[], None]] = [
        lambda: session.read(key),
        lambda: session.acquire(keys),
        lambda: session.change(key),
        lambda: session.change(key),
        lambda: session.commit(keys),
        session.flush,
        lambda: session.give_up_unasked(key),
        lambda: session.give_up_unasked(key),
    ]
    if not session.is_stopped:
        chance.choice(acts)()


def stop_or_go_on(session: Session) -> None:
    """A session is stopped, or goes on."""
    session.is_stopped = not session.is_stopped


def random_step(world: World, chance: random.Random) -> None:
    """One step of a history, most often one that leads on."""
    session = chance.choice(world.sessions)
    number = chance.randrange(1000)
    # How often of a thousand, and what.
    acts: list[tuple[int, Callable[[], None]]] = [
        (440, lambda: world.deliver(number)),
        (100, world.router.write),
        (250, lambda: ask(session, chance)),
        (100, lambda: world.advance(chance.choice([0.001, 0.006, 0.1, 1.0, 2.0, 4.0]))),
        (30, lambda: world.lose(number)),
        (30, lambda: world.repeat(number)),
        (20, lambda: stop_or_go_on(session)),
        (15, lambda: world.router.end(session.id)),
        (5, lambda: world.pause_router(chance.choice([0.5, 12.0]))),
        (10, lambda: world.restart(is_applied=chance.random() < 0.5, ttl_s=chance.choice(TTLS_S))),
    ]
    weights, choices = zip(*acts, strict=True)
    chance.choices(choices, weights)[0]()
    world.check()
