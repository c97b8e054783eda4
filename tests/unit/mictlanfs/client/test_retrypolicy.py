from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.client.retrypolicy import RetryPolicy

policies = st.builds(
    RetryPolicy,
    deadline_s=st.floats(0, 100),
    delay_s_first=st.floats(0.001, 1),
    delay_s_max=st.floats(1, 10),
)
draws = st.floats(0, 1, exclude_max=True)


@given(policies, draws)
def test_delays_double_up_to_the_largest_and_are_spread_by_half(
    policy: RetryPolicy, draw: float
) -> None:
    mean_s = policy.delay_s_first
    for delay_s in islice(policy.delays_s(lambda: draw), 20):
        assert 0.5 * mean_s <= delay_s <= 1.5 * mean_s
        assert 0 < delay_s <= 1.5 * policy.delay_s_max
        mean_s = min(2 * mean_s, policy.delay_s_max)


def test_delays_differ_from_each_other_by_default() -> None:
    first = {next(RetryPolicy().delays_s()) for _ in range(20)}
    assert len(first) > 10
