from itertools import product
from math import isclose, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.errors import UsageError
from mictlanfs.model import BucketPolicy
from mictlanfs.protection import (
    LEVELS,
    Protection,
    choose,
    coded,
    failure_probability,
    level,
    parse_code,
    protection_of,
    survival,
)

rates = st.lists(st.floats(0, 1), max_size=6)


def test_a_code_survives_as_many_losses_coded_or_not() -> None:
    policy = parse_code("4+2").applied(BucketPolicy(quota=7))
    assert policy == BucketPolicy(3, 2, quota=7, data=4)
    assert (policy.parity, policy.fragments_min) == (2, 5)
    assert policy.is_coded(64 * 1024)
    assert not policy.is_coded(64 * 1024 - 1)
    assert protection_of(policy) == coded(4, 2)
    assert (str(coded(4, 2)), coded(4, 2).overhead) == ("4+2", 1.5)


def test_copies_are_no_code() -> None:
    policy = Protection(3).applied(coded(3, 2).applied(BucketPolicy()))
    assert policy == BucketPolicy(3, 1)
    assert policy.parity == 0
    assert not policy.is_coded(2**24)
    assert [str(Protection(n)) for n in (1, 2)] == ["1 copy", "2 copies"]


@pytest.mark.parametrize("text", ["3", "3+", "+2", "3-2", "1+2", "17+2", "3+0", "3+5", "3+2+1", ""])
def test_what_is_no_code_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"3\+2"):
        parse_code(text)


def test_a_minimum_is_between_what_is_needed_and_what_there_is() -> None:
    assert coded(3, 2).with_minimum(3).applied(BucketPolicy()).fragments_min == 3
    assert coded(3, 2).with_minimum(5).applied(BucketPolicy()).fragments_min == 5
    assert Protection(3).with_minimum(2).copies_min == 2
    for protection, count in ((coded(3, 2), 2), (coded(3, 2), 6), (Protection(3), 4)):
        with pytest.raises(UsageError, match="it must be from"):
            protection.with_minimum(count)


def test_levels_have_names_and_numbers_and_survive_more_and_more() -> None:
    assert [level(str(number)) for number in range(len(LEVELS))] == list(LEVELS.values())
    losses = [protection.copies - 1 for protection in LEVELS.values()]
    assert losses == sorted(set(losses))
    assert level("standard") == coded(3, 2)
    for text in ("4", "none", "-1"):
        with pytest.raises(UsageError, match="0 or single, 1 or standard"):
            level(text)


@given(rates, st.integers(0, 6))
def test_survival_is_the_sum_over_all_that_can_happen(peers: list[float], losses_max: int) -> None:
    expected = sum(
        prod(rate if is_lost else 1 - rate for rate, is_lost in zip(peers, lost, strict=True))
        for lost in product((True, False), repeat=len(peers))
        if sum(lost) <= losses_max
    )
    assert isclose(survival(peers, losses_max), expected, abs_tol=1e-9)


def test_a_failure_rate_is_that_of_a_year() -> None:
    assert failure_probability(0.1, 1.0) == pytest.approx(0.1)
    assert failure_probability(0.1, 2.0) == pytest.approx(0.19)
    assert failure_probability(0.0, 5.0) == 0.0


@given(
    st.lists(st.floats(0, 0.3), min_size=1, max_size=9),
    st.floats(0.5, 0.99999),
)
def test_what_is_chosen_reaches_the_target_wherever_it_lies(
    failure_rates: list[float], target: float
) -> None:
    try:
        choice = choose(failure_rates, target)
    except UsageError:
        # The best for so many peers: the most copies, or what a larger code comes to.
        count = min(5, len(failure_rates))
        assert survival(sorted(failure_rates)[-count:], count - 1) < target
        return
    count = choice.protection.peer_count
    assert count <= len(failure_rates)
    assert choice.reliability >= target
    for subset in (sorted(failure_rates)[:count], sorted(failure_rates)[-count:]):
        kept = survival(subset, choice.protection.copies - 1)
        assert kept >= choice.reliability - 1e-12


def test_the_least_space_is_chosen() -> None:
    # Ten peers, each lost with a chance of a twentieth.
    assert choose([0.05] * 10, 0.9).protection == Protection(1)
    assert choose([0.05] * 10, 0.99).protection == coded(7, 2)
    assert choose([0.05] * 10, 0.9999).protection == coded(6, 4)
    assert choose([0.05] * 3, 0.99).protection == coded(2, 1)
    assert choose([0.05] * 2, 0.99).protection == Protection(2)


def test_what_cannot_be_reached_is_said_with_the_best_there_is() -> None:
    with pytest.raises(UsageError, match=r"no protection on 2 peers reaches 0\.99999.*2 copies"):
        choose([0.1, 0.1], 0.99999)
    with pytest.raises(UsageError, match="no peers"):
        choose([], 0.5)
