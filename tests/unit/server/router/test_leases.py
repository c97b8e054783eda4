from collections.abc import Callable, Iterable

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import InodeNumber, SessionId
from mictlanfs_server.router.leases import (
    HOLD_FACTOR_MAX,
    MARGIN_SHARE,
    MIN_HOLD_S,
    LeaseTable,
    Ticket,
)
from tests.unit.server.router.fakes import FakeClock

A, B, C = SessionId("a"), SessionId("b"), SessionId("c")
K, L = InodeNumber(5), InodeNumber(6)
NONE, READ, WRITE = wire.LeaseMode.NONE, wire.LeaseMode.READ, wire.LeaseMode.WRITE
TTL_S = 10.0


class Table(LeaseTable):
    """A table with three sessions, and a clock that tests move."""

    def __init__(self, before: Iterable[SessionId] = ()) -> None:
        self.clock = FakeClock()
        self.woken: list[SessionId] = []
        super().__init__(self.clock, TTL_S, before, self.woken.append)
        if not before:
            for session in (A, B, C):
                self.add(session)

    def want(self, session: SessionId | None, *keys: InodeNumber, is_write: bool = True) -> Ticket:
        return self.wait(session, keys, lambda: None, is_write=is_write)

    def write(self, session: SessionId, *keys: InodeNumber) -> int:
        return self.grant_writes(self.want(session, *keys))

    def recalls(self, session: SessionId, after: int = 0) -> list[wire.Recall]:
        return list(self.events(session, after).recalls)

    def obey(self, session: SessionId) -> None:
        for recall in self.recalls(session):
            self.release(session, recall.keys, recall.keep, recall.stamp)

    def overdue_sessions(self) -> list[SessionId]:
        return [session for session, _ in self.overdue()]


# --- granting ---


@pytest.mark.parametrize("is_write", [False, True])
def test_directory_just_made_is_recalled_for_who_saw_it_before_it_was_leased(
    is_write: bool,
) -> None:
    """The transaction is seen by a reader before its end is seen by the gate."""
    table = Table()
    table.write(A, K)
    ticket = table.want(B, K, L, is_write=is_write)
    table.grant_made(A, [L])
    table.clock.advance(MIN_HOLD_S)
    table.obey(A)
    assert table.is_clear(ticket)


def test_any_number_of_sessions_read_a_key() -> None:
    table = Table()
    stamps = [table.grant_reads(session, [K]).stamp for session in (A, B, C)]
    assert stamps == sorted(set(stamps))
    assert [table.mode(session, K) for session in (A, B, C)] == [READ] * 3
    assert table.counts(A) == (1, 0)


def test_nothing_is_granted_that_somebody_else_writes_or_waits_to_write() -> None:
    table = Table()
    table.write(A, K)
    assert table.grant_reads(B, [K]).keys == ()
    assert not table.is_readable(B, [K])
    assert table.grant_reads(A, [K]).keys == (K,)
    table.grant_reads(C, [L])
    table.want(A, L)
    assert table.grant_reads(B, [L]).keys == ()
    # C must give it up: what it is told now it could not tell from what it is asked for.
    assert table.grant_reads(C, [L]).keys == ()


def test_nothing_is_granted_where_a_commit_is_under_way() -> None:
    table = Table()
    table.begin_commit(SessionId("none"), frozenset([K]))
    assert table.grant_reads(A, [K, L]).keys == (L,)
    ticket = table.want(A, K)
    assert not table.is_clear(ticket)
    table.end_commit(SessionId("none"), frozenset([K]))
    assert table.is_clear(ticket)
    table.begin_commit(SessionId("none"), None)
    assert table.grant_reads(B, [InodeNumber(99)]).keys == ()
    assert not table.is_clear(ticket)
    table.end_commit(SessionId("none"), None)
    table.grant_writes(ticket)


def test_batch_sent_twice_does_not_wait_for_itself() -> None:
    table = Table()
    table.begin_commit(A, frozenset([K]))
    again = table.wait(A, [K], lambda: None, is_write=True, is_commit=True)
    other = table.wait(B, [K], lambda: None, is_write=True, is_commit=True)
    assert table.is_clear(again)
    assert not table.is_clear(other)


def test_own_reading_lease_is_raised_to_writing() -> None:
    table = Table()
    table.grant_reads(A, [K])
    table.grant_reads(B, [K])
    ticket = table.want(A, K)
    assert not table.is_clear(ticket)
    assert table.recalls(A) == []
    table.obey(B)
    table.grant_writes(ticket)
    assert (table.mode(A, K), table.mode(B, K)) == (WRITE, NONE)


# --- waiting ---


def test_reader_makes_a_writer_keep_a_lease_to_read() -> None:
    table = Table()
    table.write(A, K)
    ticket = table.want(B, K, is_write=False)
    table.clock.advance(MIN_HOLD_S)
    (recall,) = table.recalls(A)
    assert (recall.keys, recall.keep) == ((K,), READ)
    table.obey(A)
    assert table.is_clear(ticket)
    assert table.grant_reads(B, [K]).keys == (K,)
    table.withdraw(ticket)
    assert table.mode(A, K) == READ


def test_tickets_are_served_in_order_of_arrival() -> None:
    table = Table()
    table.write(A, K)
    first, second = table.want(B, K), table.want(C, K)
    table.clock.advance(1)
    table.obey(A)
    assert table.is_clear(first)
    assert not table.is_clear(second)
    table.grant_writes(first)
    table.clock.advance(1)
    table.obey(B)
    assert table.is_clear(second)


def test_sets_that_overlap_are_granted_whole_and_do_not_block_each_other() -> None:
    table = Table()
    table.write(A, K)
    table.write(B, L)
    first, second = table.want(A, K, L), table.want(B, K, L)
    table.clock.advance(1)
    table.obey(B)
    assert table.is_clear(first)
    table.grant_writes(first)
    table.clock.advance(1)
    table.obey(A)
    assert table.is_clear(second)
    table.grant_writes(second)
    assert (table.counts(A), table.counts(B)) == ((0, 0), (2, 0))


def test_ticket_with_other_keys_keeps_its_place() -> None:
    table = Table()
    table.write(A, K)
    first, second = table.want(B, K), table.want(C, L, K)
    table.change_keys(first, [L])
    assert table.is_clear(first)
    assert not table.is_clear(second)
    table.withdraw(first)
    table.withdraw(first)
    table.clock.advance(1)
    table.obey(A)
    assert table.is_clear(second)


def test_writer_gets_a_moment_before_it_has_to_give_up() -> None:
    table = Table()
    table.write(A, K)
    table.want(B, K)
    assert table.woken == [A]
    due_s = table.ripen(A)
    assert due_s is not None
    assert due_s == pytest.approx(table.clock.now_s + MIN_HOLD_S)
    assert table.recalls(A) == []
    table.clock.advance(MIN_HOLD_S)
    assert len(table.recalls(A)) == 1
    assert table.ripen(A) is None


@pytest.mark.parametrize("waiting", [1, 2, 7, HOLD_FACTOR_MAX + 3])
def test_writer_gets_a_moment_for_each_who_waits_and_no_more_than_some(waiting: int) -> None:
    table = Table()
    table.write(B, K)
    ticket = table.want(A, K)
    for number in range(waiting):
        session = SessionId(f"s{number}")
        table.add(session)
        table.want(session, K)
        # Who comes twice waits once.
        table.want(session, K, is_write=False)
    table.want(A, K)
    table.clock.advance(1)
    table.obey(B)
    assert table.is_clear(ticket)
    table.grant_writes(ticket)
    due_s = table.ripen(A)
    assert due_s is not None
    assert due_s == pytest.approx(table.clock.now_s + MIN_HOLD_S * min(waiting, HOLD_FACTOR_MAX))


# --- recalls and stamps ---


def test_many_keys_travel_in_one_recall_and_again_until_received() -> None:
    table = Table()
    keys = [InodeNumber(number) for number in range(1, wire.LEASES_COUNT_MAX + 11)]
    table.grant_reads(A, keys)
    table.want(B, *keys)
    first = table.events(A, 0)
    assert [len(recall.keys) for recall in first.recalls] == [wire.LEASES_COUNT_MAX, 10]
    assert table.events(A, 0) == first
    assert table.events(A, 1).recalls == first.recalls[1:]
    assert table.events(A, first.last).recalls == ()
    assert table.events(A, first.last).last == first.last


def test_recall_that_overtakes_a_grant_has_the_larger_stamp() -> None:
    table = Table()
    granted = table.grant_reads(A, [K])
    table.want(B, K)
    assert table.recalls(A)[0].stamp > granted.stamp


def test_lease_granted_after_the_release_was_sent_stays() -> None:
    table = Table()
    old = table.grant_reads(A, [K]).stamp
    table.grant_reads(A, [K])
    table.release(A, [K], NONE, old)
    assert table.mode(A, K) == READ
    table.release(A, [K], NONE, table.grant_reads(A, [K]).stamp)
    assert table.mode(A, K) == NONE


def test_release_of_what_is_not_held_changes_nothing() -> None:
    table = Table()
    table.release(A, [K], READ, 2**62)
    table.release(SessionId("gone"), [K], NONE, 2**62)
    assert table.mode(A, K) == NONE


def test_late_answer_to_an_old_recall_does_not_take_a_new_lease() -> None:
    table = Table()
    table.grant_reads(A, [K])
    ticket = table.want(B, K)
    (recall,) = table.recalls(A)
    table.release(A, [K], NONE, recall.stamp)
    table.withdraw(ticket)
    table.grant_reads(A, [K])
    table.release(A, [K], NONE, recall.stamp)
    assert table.mode(A, K) == READ


def test_recall_down_to_reading_is_followed_by_one_down_to_nothing() -> None:
    table = Table()
    table.write(A, K)
    table.clock.advance(1)
    reader = table.want(B, K, is_write=False)
    (first,) = table.recalls(A)
    writer = table.want(C, K)
    second = table.recalls(A)[-1]
    assert (first.keep, second.keep) == (READ, NONE)
    table.release(A, [K], READ, first.stamp)
    assert table.is_clear(reader)
    table.withdraw(reader)
    assert not table.is_clear(writer)
    table.release(A, [K], NONE, second.stamp)
    assert table.is_clear(writer)


def test_lease_to_write_granted_over_a_recall_is_recalled_anew() -> None:
    table = Table()
    table.grant_reads(A, [K])
    table.grant_reads(B, [K])
    first, own = table.want(C, K), table.want(A, K)
    (old,) = table.recalls(A)
    table.withdraw(first)
    table.obey(B)
    table.grant_writes(own)
    table.release(A, [K], NONE, old.stamp)
    assert table.mode(A, K) == WRITE
    table.want(B, K)
    table.clock.advance(1)
    assert table.recalls(A)[-1].stamp > old.stamp


# --- ends ---


def test_session_that_ends_loses_all_and_its_tickets_fail() -> None:
    table = Table()
    table.write(A, K)
    ticket, own = table.want(B, K), table.want(A, L)
    table.remove(A)
    assert table.is_clear(ticket)
    assert own.failed
    assert not table.is_clear(own)
    assert A not in table
    table.change_keys(own, [K])
    table.withdraw(own)


def test_silent_session_is_overdue_only_when_somebody_waits() -> None:
    table = Table()
    table.write(A, K)
    table.clock.advance(TTL_S * 5)
    assert table.overdue() == []
    ticket = table.want(B, K)
    table.clock.advance(MIN_HOLD_S)
    ((session, reason),) = table.overdue()
    assert session == A
    assert "silent" in reason
    table.withdraw(ticket)
    assert table.overdue() == []


def test_session_that_is_heard_but_does_not_answer_is_overdue_in_time() -> None:
    table = Table()
    table.write(A, K)
    table.want(B, K)
    for _ in range(9):
        table.clock.advance(TTL_S / 9)
        table.heard(A)
    assert table.overdue() == []
    table.clock.advance(MIN_HOLD_S)
    assert "did not give up" in table.overdue()[0][1]


def commit(table: Table) -> None:
    """A commit of nothing much."""
    table.commit_came(A)
    table.commit_went(A)


@pytest.mark.parametrize("sign", [commit, lambda table: table.at_work(A)], ids=["commit", "word"])
def test_session_that_goes_on_committing_or_says_so_gets_more_time(
    sign: Callable[[Table], None],
) -> None:
    table = Table()
    table.write(A, K)
    table.want(B, K)
    for _ in range(11):
        table.clock.advance(TTL_S / 2)
        sign(table)
    assert table.overdue() == []
    assert table.mode(A, K) == WRITE
    table.clock.advance(TTL_S / 2 + 1)
    sign(table)
    assert table.overdue_sessions() == [A]


def test_session_whose_commit_takes_long_gets_more_time() -> None:
    table = Table()
    table.write(A, K)
    table.want(B, K)
    table.commit_came(A)
    for _ in range(11):
        table.clock.advance(TTL_S / 2)
        table.heard(A)
    assert table.overdue() == []
    table.commit_went(A)
    for _ in range(2):
        table.clock.advance(TTL_S / 2)
        table.heard(A)
    assert table.overdue_sessions() == [A]


def test_leases_of_a_fenced_session_are_free_when_it_cannot_trust_them() -> None:
    table = Table()
    table.write(A, K)
    table.grant_reads(A, [L])
    ticket, other = table.want(B, K), table.want(C, L)
    own = table.want(A, InodeNumber(9))
    table.clock.advance(TTL_S)
    table.heard(A)
    table.fence(A)
    # It asks again, and is refused: that does not make it trust for longer.
    table.clock.advance(TTL_S)
    table.heard(A)
    assert own.failed
    assert table.free() == []
    assert not table.is_clear(ticket)
    assert not table.is_clear(other)
    assert table.grant_reads(A, [InodeNumber(9)]).keys == ()
    table.clock.advance(TTL_S * 0.1)
    assert table.free() == [A]
    assert table.overdue() == []
    table.remove(A)
    assert table.is_clear(ticket)
    assert table.is_clear(other)


def test_router_that_stood_still_blames_nobody() -> None:
    table = Table()
    table.write(A, K)
    table.want(B, K)
    table.clock.advance(TTL_S * 3)
    table.forgive(TTL_S * 3)
    assert table.overdue() == []


# --- restart ---


def claim(
    table: LeaseTable,
    session: SessionId,
    reads: Iterable[InodeNumber] = (),
    writes: Iterable[InodeNumber] = (),
    *,
    is_last: bool = True,
) -> None:
    table.claim(wire.Claim(session, 1, table.incarnation, tuple(reads), tuple(writes), is_last))


def test_nothing_is_granted_before_all_have_claimed() -> None:
    table = Table(before=[A, B])
    table.add(C)
    ticket, reader = table.want(C, K), table.want(None, is_write=False)
    claim(table, A, reads=[K], is_last=False)
    claim(table, A, writes=[L])
    assert not table.is_readable(None, ())
    assert table.grant_reads(C, [L]).keys == ()
    assert not table.is_clear(ticket)
    # What only it could hold is in nobody else's way.
    assert table.is_readable(B, [K])
    claim(table, B)
    assert table.is_clear(reader)
    assert (table.mode(A, K), table.mode(A, L)) == (READ, WRITE)
    assert not table.is_clear(ticket)
    table.obey(A)
    assert table.is_clear(ticket)


def test_claim_sent_twice_does_not_bring_back_what_was_released() -> None:
    table = Table(before=[A])
    claim(table, A, reads=[K])
    table.release(A, [K], NONE, 2**62)
    claim(table, A, reads=[K])
    assert table.mode(A, K) == NONE


def test_session_that_does_not_claim_is_fenced() -> None:
    table = Table(before=[A])
    table.clock.advance(TTL_S)
    assert table.overdue() == []
    table.clock.advance(TTL_S)
    assert table.overdue_sessions() == [A]
    table.fence(A)
    with pytest.raises(MictlanError) as raised:
        claim(table, A)
    assert raised.value.kind is Kind.CONFLICT
    assert table.free() == [A]
    table.remove(A)
    assert table.is_readable(None, ())


def test_claim_of_another_incarnation_or_of_what_another_holds_is_refused() -> None:
    table = Table(before=[A, B])
    claim(table, A, writes=[K])
    for wrong in (
        wire.Claim(B, 1, table.incarnation - 1, (), (), True),
        wire.Claim(B, 1, table.incarnation, (K,), (), True),
        wire.Claim(B, 1, table.incarnation, (), (K,), True),
    ):
        with pytest.raises(MictlanError) as raised:
            table.claim(wrong)
        assert raised.value.kind is Kind.CONFLICT
    assert table.mode(B, K) == NONE


def test_stamps_grow_over_restarts() -> None:
    clock = FakeClock()
    before = LeaseTable(clock, TTL_S)
    before.add(A)
    stamp = before.grant_reads(A, [K]).stamp
    clock.advance(1)
    after = LeaseTable(clock, TTL_S, [A])
    assert after.incarnation > stamp


@pytest.mark.parametrize("ttl_s", [1.0, 60.0])
def test_session_is_waited_for_as_long_as_any_router_told_it(ttl_s: float) -> None:
    clock = FakeClock()
    longest_s = max(ttl_s, TTL_S) * (1 + MARGIN_SHARE)
    table = LeaseTable(clock, ttl_s, [A, B], earlier_ttl_s=TTL_S)
    claim(table, A, writes=[K])
    clock.advance(longest_s - 0.01)
    assert table.overdue() == []
    assert not table.is_readable(None, ())
    # It may not have heard that it is trusted for less now.
    table.fence(A)
    assert table.free() == []
    clock.advance(0.01)
    assert table.free() == [A]
    assert [session for session, _ in table.overdue()] == [B]
    table.fence(B)
    assert set(table.free()) == {A, B}


def test_events_tell_the_lease_time_and_trust_ends_by_the_present_one_at_last() -> None:
    clock = FakeClock()
    table = LeaseTable(clock, 1.0, [A], earlier_ttl_s=TTL_S)
    claim(table, A)
    assert table.events(A, 0).lease_ttl_s == 1.0
    clock.advance(2 * TTL_S)
    table.heard(A)
    table.fence(A)
    clock.advance(1.1)
    assert table.free() == [A]
