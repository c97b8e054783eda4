"""The table of leases: which grants count, when they are trusted, and the count of names."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mictlanfs.model import InodeNumber
from mictlanfs.wire import LeaseMode
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.leases import RECALLS_REMEMBERED_MAX, Lease, LeaseTable
from tests.support.mount_space import attributes_of
from tests.unit.server.router.fakes import FakeClock

READ, WRITE, NONE = LeaseMode.READ, LeaseMode.WRITE, LeaseMode.NONE
KEY = InodeNumber(7)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def table(clock: FakeClock) -> LeaseTable:
    table = LeaseTable(clock, 100)
    table.trusted_until_s = clock.now_s + 10
    return table


def granted(table: LeaseTable, key: int = KEY, mode: int = WRITE, stamp: int = 5) -> Lease:
    lease = table.granted(InodeNumber(key), mode, stamp)
    assert lease is not None
    return lease


def test_a_grant_that_a_recall_overtook_is_void(table: LeaseTable) -> None:
    table.note_recall([KEY], 6)
    assert table.granted(KEY, READ, 5) is None
    assert table.granted(InodeNumber(8), READ, 5) is not None
    assert table.granted(KEY, READ, 6) is not None


def test_a_grant_older_than_the_lease_covers_nothing(table: LeaseTable) -> None:
    lease = granted(table, stamp=5)
    assert table.granted(KEY, READ, 4) is None
    assert (lease.since, lease.stamp, lease.mode) == (5, 5, WRITE)


def test_a_further_grant_never_takes_a_right_away(table: LeaseTable) -> None:
    lease = granted(table, mode=WRITE, stamp=5)
    assert table.granted(KEY, READ, 9) is lease
    assert (lease.since, lease.stamp, lease.mode) == (5, 9, WRITE)


def test_so_many_recalls_make_everything_older_void(table: LeaseTable) -> None:
    for number in range(RECALLS_REMEMBERED_MAX + 1):
        table.note_recall([InodeNumber(number + 100)], number + 1)
    assert table.granted(InodeNumber(5), READ, 0) is None
    assert table.granted(InodeNumber(5), READ, 1) is not None


def test_nothing_is_used_that_is_not_trusted_now(table: LeaseTable, clock: FakeClock) -> None:
    lease, inode = granted(table), Inode(attributes_of(9))
    inode.lease = lease
    assert (table.get(KEY), table.writable(KEY), table.covers(inode)) == (lease, lease, True)
    assert table.trust_s == 10
    clock.advance(10)
    assert (table.get(KEY), table.writable(KEY), table.covers(inode)) == (None, None, False)
    assert (table.trust_s, table.held(KEY)) == (0, lease)


def test_what_is_recalled_is_read_but_not_changed(table: LeaseTable) -> None:
    lease = granted(table)
    lease.is_recalled = True
    assert (table.get(KEY), table.writable(KEY)) == (lease, None)


def test_what_is_doubted_is_not_used_at_all(table: LeaseTable) -> None:
    lease, inode = granted(table), Inode(attributes_of(9))
    inode.lease = lease
    lease.is_doubted = lease.is_recalled = True
    assert (table.get(KEY), table.writable(KEY), table.covers(inode)) == (None, None, False)


def test_a_lease_that_ended_keeps_no_names(table: LeaseTable) -> None:
    lease, inode = granted(table), Inode(attributes_of(9))
    table.set_name(lease, b"a", inode)
    table.end(lease)
    table.set_name(lease, b"b", inode)
    assert (lease.names, inode.name_count, table.name_count) == ({}, 0, 0)
    assert granted(table, stamp=8) is not lease


def test_the_end_of_the_session_ends_every_lease_and_the_trust(table: LeaseTable) -> None:
    leases = [granted(table, key) for key in (7, 8)]
    assert table.end_all() == leases
    assert [lease.mode for lease in leases] == [NONE, NONE]
    assert (len(table), table.trust_s) == (0, 0)


def test_a_directory_made_here_is_known_as_a_whole(table: LeaseTable) -> None:
    parent = granted(table)
    made = table.made(InodeNumber(9), parent)
    assert (made.is_complete, made.parent, made.mode) == (True, KEY, WRITE)
    assert made.knows(b"anything")


def test_names_are_given_up_in_the_order_of_their_use(table: LeaseTable) -> None:
    leases = [granted(table, key) for key in (1, 2, 3, 4)]
    for lease in leases[:3]:
        table.set_name(lease, b"a", None)
    table.writable(leases[0].key)
    leases[2].is_recalled = True
    # The last one has no names, but takes room itself.
    assert list(table.least_used()) == [leases[1], leases[3], leases[0]]


NAMES = st.sampled_from([b"a", b"b", b"c"])
KEYS = st.sampled_from([InodeNumber(n) for n in (1, 2, 3)])


class NamesOfLeases(RuleBasedStateMachine):
    """Whatever happens to names and leases: every count is that of the names there are."""

    def __init__(self) -> None:
        super().__init__()
        clock = FakeClock()
        self.table = LeaseTable(clock, 3)
        self.table.trusted_until_s = clock.now_s + 1
        self.inodes = [Inode(attributes_of(number)) for number in (11, 12)]
        self.leases: list[Lease] = []
        self.stamp = 0

    @rule(key=KEYS, mode=st.sampled_from([READ, WRITE]))
    def grant(self, key: InodeNumber, mode: int) -> None:
        self.stamp += 1
        lease = self.table.granted(key, mode, self.stamp)
        assert lease is not None
        self.leases.append(lease)

    @rule(pick=st.integers(0, 9), name=NAMES, which=st.integers(0, 2))
    def set_name(self, pick: int, name: bytes, which: int) -> None:
        if self.leases:
            lease = self.leases[pick % len(self.leases)]
            inode = None if which == 2 else self.inodes[which]
            self.table.set_name(lease, name, inode)
            if lease.mode != NONE:
                assert lease.knows(name)
                assert lease.names.get(name) is inode

    @rule(pick=st.integers(0, 9))
    def complete(self, pick: int) -> None:
        if self.leases and (lease := self.leases[pick % len(self.leases)]).mode != NONE:
            lease.is_complete = True

    @rule(pick=st.integers(0, 9), forgets=st.booleans())
    def end(self, pick: int, *, forgets: bool) -> None:
        if self.leases:
            lease = self.leases[pick % len(self.leases)]
            (self.table.forget_names if forgets else self.table.end)(lease)

    @rule()
    def end_all(self) -> None:
        self.table.end_all()
        self.table.trusted_until_s = 1e9

    @invariant()
    def counts_are_exact(self) -> None:
        held = list(self.table)
        assert self.table.name_count == sum(len(lease.names) for lease in held)
        assert self.table.excess == self.table.name_count + len(held) - 3
        for inode in self.inodes:
            standing = [i for lease in held for i in lease.names.values() if i is inode]
            assert inode.name_count == len(standing)
        assert all(not lease.names for lease in self.leases if lease not in held)


TestNamesOfLeases = NamesOfLeases.TestCase
