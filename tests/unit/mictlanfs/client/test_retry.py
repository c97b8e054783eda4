import pytest
import trio

from mictlanfs.client.retry import FOR_EVER, NO_RETRY, RetryPolicy, retrying
from mictlanfs.errors import RETRYABLE, Kind, MictlanError


class Attempts:
    """Fails with each of `kinds` in turn, then succeeds."""

    def __init__(self, *kinds: Kind) -> None:
        self.kinds = list(kinds)
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(trio.current_time())
        if self.kinds:
            raise MictlanError(self.kinds.pop(0))
        return "done"


class ForEver(Attempts):
    """Never succeeds."""

    async def __call__(self) -> str:
        self.kinds.append(Kind.UNAVAILABLE)
        return await super().__call__()


async def test_what_succeeds_is_tried_once() -> None:
    attempts = Attempts()
    assert await retrying(RetryPolicy(), attempts) == "done"
    assert len(attempts.times) == 1


async def test_what_fails_for_a_while_succeeds_in_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    attempts = Attempts(Kind.UNAVAILABLE, Kind.TIMED_OUT, Kind.UNAVAILABLE)
    assert await retrying(RetryPolicy(), attempts) == "done"
    assert len(attempts.times) == 4


@pytest.mark.parametrize("kind", [kind for kind in Kind if not RETRYABLE[kind]])
async def test_what_cannot_pass_by_itself_is_not_tried_again(kind: Kind) -> None:
    attempts = Attempts(kind)
    with pytest.raises(MictlanError) as caught:
        await retrying(FOR_EVER, attempts)
    assert caught.value.kind is kind
    assert len(attempts.times) == 1


async def test_no_attempt_starts_after_the_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    attempts, start = ForEver(), trio.current_time()
    with pytest.raises(MictlanError):
        await retrying(RetryPolicy(deadline_s=10.0), attempts)
    assert len(attempts.times) > 5
    assert max(attempts.times) <= start + 10.0
    # It does not wait for an attempt that it will not make.
    assert trio.current_time() == max(attempts.times)


async def test_without_retry_there_is_one_attempt() -> None:
    attempts = ForEver()
    with pytest.raises(MictlanError):
        await retrying(NO_RETRY, attempts)
    assert len(attempts.times) == 1


async def test_for_ever_has_no_deadline(autojump_clock: trio.testing.MockClock) -> None:
    attempts = ForEver()
    with trio.move_on_after(10_000.0) as scope:
        await retrying(FOR_EVER, attempts)
    assert scope.cancelled_caught
    assert len(attempts.times) > 3_000


async def test_other_exceptions_are_defects_and_pass() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await retrying(FOR_EVER, broken)
