import pytest
import trio

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.taskerrors import raising_single_errors, single_error

LOST = MictlanError(Kind.UNAVAILABLE)


def group(*errors: BaseException) -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup("tasks", errors)


def test_an_error_that_is_no_group_is_itself() -> None:
    assert single_error(LOST) is LOST


def test_the_only_error_of_groups_in_groups_is_found() -> None:
    assert single_error(group(group(group(LOST)))) is LOST


@pytest.mark.parametrize(
    ("errors", "index"),
    [
        ([MictlanError(Kind.BUSY), ValueError()], 1),
        ([ValueError(), KeyboardInterrupt()], 1),
        ([MictlanError(Kind.BUSY), SystemExit(3), ValueError()], 1),
        ([MictlanError(Kind.BUSY), MictlanError(Kind.STALE)], 0),
    ],
)
def test_of_several_the_one_that_says_most_wins(errors: list[BaseException], index: int) -> None:
    assert single_error(group(*errors)) is errors[index]
    assert single_error(group(group(*errors))) is errors[index]


def test_the_others_stay_as_notes() -> None:
    error = ValueError("bug")
    assert single_error(group(MictlanError(Kind.BUSY), error)) is error
    assert error.__notes__ == ["at the same time: MictlanError: busy"]


async def fail() -> None:
    raise LOST


async def fail_when_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise LOST


async def test_a_nursery_raises_the_plain_error() -> None:
    async def work() -> None:
        with raising_single_errors():
            async with trio.open_nursery() as outer, trio.open_nursery() as inner:
                outer.start_soon(trio.sleep_forever)
                inner.start_soon(trio.sleep_forever)
                inner.start_soon(fail)

    with pytest.raises(MictlanError) as caught:
        await work()
    assert caught.value is LOST


async def test_a_cancellation_passes_and_is_caught_by_its_scope() -> None:
    with trio.CancelScope() as scope, raising_single_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
    assert scope.cancelled_caught


async def test_an_error_during_a_cancellation_is_not_lost() -> None:
    async def work() -> None:
        with trio.CancelScope() as scope, raising_single_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(fail_when_cancelled)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

    with pytest.raises(MictlanError):
        await work()


def test_what_an_error_was_raised_from_stays_its_cause() -> None:
    cause = KeyError("cause")

    def work() -> None:
        with raising_single_errors():
            try:
                raise LOST from cause
            except MictlanError as error:
                raise group(error) from None

    with pytest.raises(MictlanError) as caught:
        work()
    assert caught.value.__cause__ is cause
