"""Counting what is read: rates that fade, in bounded memory, never too high."""

import pytest

from mictlanfs.identifiers import new_chunk_id
from mictlanfs.wirepeers import HOT_COUNT_MAX
from mictlanfs_server.peer import popularity
from mictlanfs_server.peer.popularity import HALF_LIFE_S, KEPT_COUNT, ReadCounter
from tests.unit.server.router.fakes import FakeClock


def test_a_steady_rate_is_told_as_it_is() -> None:
    clock = FakeClock()
    counter, chunk = ReadCounter(clock), new_chunk_id()
    for _ in range(600):
        clock.advance(1.0)
        counter.note(chunk)
        counter.note(chunk)
        # As with each heartbeat.
        [told] = counter.hottest()
    assert told.id == chunk
    assert told.reads_per_min == pytest.approx(120, rel=0.02)
    clock.advance(HALF_LIFE_S)
    assert counter.hottest()[0].reads_per_min == pytest.approx(60, rel=0.02)


def test_what_is_read_no_more_is_forgotten() -> None:
    clock = FakeClock()
    counter = ReadCounter(clock)
    for _ in range(100):
        counter.note(new_chunk_id())
    clock.advance(20 * HALF_LIFE_S)
    assert counter.hottest() == ()
    assert counter._counts == {}


def test_a_part_counts_as_that_part_and_a_small_one_as_a_sixteenth() -> None:
    clock = FakeClock()
    counter, whole, parts, bits = ReadCounter(clock), *(new_chunk_id() for _ in range(3))
    for _ in range(320):
        counter.note(whole)
        counter.note(parts, 1 / 4)
        counter.note(bits, 1 / 1024)
    rates = {told.id: told.reads_per_min for told in counter.hottest()}
    assert rates[whole] == pytest.approx(4 * rates[parts])
    assert rates[whole] == pytest.approx(16 * rates[bits])


def test_what_is_read_often_is_found_among_very_many_and_memory_is_bounded() -> None:
    clock = FakeClock()
    counter, often = ReadCounter(clock), new_chunk_id()
    count = 20 * KEPT_COUNT
    for number in range(count):
        counter.note(new_chunk_id())
        if number % 100 == 0:
            counter.note(often)
        assert len(counter._counts) < 2 * KEPT_COUNT
    found = counter.hottest()
    assert found[0].id == often
    exact = count / 100 * 60 / popularity._SUM_S
    slack = count / KEPT_COUNT * 60 / popularity._SUM_S
    assert exact - slack <= found[0].reads_per_min <= exact
    assert len(found) <= HOT_COUNT_MAX


def test_a_chunk_that_was_deleted_is_not_told_of() -> None:
    counter, chunk = ReadCounter(FakeClock()), new_chunk_id()
    for _ in range(100):
        counter.note(chunk)
    counter.forget(chunk)
    assert counter.hottest() == ()
