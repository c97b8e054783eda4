import pytest

from mictlanfs.client.paces import (
    ALLOWANCE_S_MAX,
    ALLOWANCE_S_MIN,
    REQUEST_COST_BYTES,
    SAMPLES_MIN,
    UNKNOWN_ALLOWANCE_S_MAX,
    Allowance,
    Paces,
)
from mictlanfs.model import KIB, MIB, PeerNumber

A, B, C = PeerNumber(1), PeerNumber(2), PeerNumber(3)
CHUNK = 4 * MIB
LOAD = CHUNK + REQUEST_COST_BYTES


def learned(paces: Paces, number: PeerNumber, elapsed_s: float, load: int = LOAD) -> None:
    for _ in range(4 * SAMPLES_MIN):
        paces.note(number, elapsed_s, load)


def test_of_a_steady_peer_anything_much_longer_is_late() -> None:
    paces = Paces()
    learned(paces, A, 0.1)
    assert 0.1 < paces.allowance_s([A], LOAD) < 0.1 + 2 * ALLOWANCE_S_MIN


def test_a_peer_that_varies_is_allowed_more() -> None:
    steady, varying = Paces(), Paces()
    learned(steady, A, 0.1)
    for index in range(4 * SAMPLES_MIN):
        varying.note(A, 0.05 if index % 2 else 0.15, LOAD)
    assert varying.allowance_s([A], LOAD) > steady.allowance_s([A], LOAD) + 0.1


def test_the_quickest_that_could_answer_says_what_is_late() -> None:
    paces = Paces()
    learned(paces, A, 0.1)
    learned(paces, B, 1.0)
    assert paces.allowance_s([B, A], LOAD) == paces.allowance_s([A], LOAD)
    assert paces.allowance_s([B], LOAD) > 1.0


def test_more_under_way_is_allowed_more_time_in_proportion() -> None:
    paces = Paces(allowance_s_min=0.0)
    learned(paces, A, 0.01)
    assert paces.allowance_s([A], 8 * LOAD) == pytest.approx(8 * paces.allowance_s([A], LOAD))


def test_nothing_is_late_sooner_than_a_processor_may_be_elsewhere() -> None:
    paces = Paces()
    learned(paces, A, 0.0)
    assert paces.allowance_s([A], 4 * KIB) == ALLOWANCE_S_MIN


def test_a_stranger_is_allowed_little_for_little_and_not_much_for_much() -> None:
    paces = Paces()
    paces.note(A, 0.001, LOAD)
    small = paces.allowance_s([A], REQUEST_COST_BYTES + 4 * KIB)
    assert ALLOWANCE_S_MIN < small < 0.05
    limit = ALLOWANCE_S_MIN + UNKNOWN_ALLOWANCE_S_MAX
    assert small < paces.allowance_s([A], LOAD) < limit
    assert paces.allowance_s([], 1000 * LOAD) == limit


def test_even_the_slowest_is_late_some_time() -> None:
    paces = Paces()
    learned(paces, A, 60.0)
    assert paces.allowance_s([A], LOAD) == ALLOWANCE_S_MIN + ALLOWANCE_S_MAX


def test_a_change_is_learned() -> None:
    paces = Paces()
    learned(paces, A, 0.1)
    learned(paces, A, 0.5)
    assert 0.45 < paces.allowance_s([A], LOAD) < 1.2


def test_what_is_under_way_is_counted_until_it_ends() -> None:
    paces = Paces()
    assert paces.begin(CHUNK) == LOAD
    assert paces.begin(4 * KIB) == paces.load == LOAD + 4 * KIB + REQUEST_COST_BYTES
    paces.end(CHUNK)
    paces.end(4 * KIB)
    assert paces.load == 0


def test_extra_requests_are_a_share_of_all_and_some_at_once() -> None:
    allowance = Allowance(share=0.1, count_max=5)
    assert [allowance.spend() for _ in range(7)] == [True] * 5 + [False] * 2
    spent = 0
    for _ in range(1000):
        allowance.earn()
        spent += allowance.spend()
    assert 98 <= spent <= 101
    for _ in range(1000):
        allowance.earn()
    assert sum(allowance.spend() for _ in range(100)) == 5
