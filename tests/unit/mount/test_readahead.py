"""The read-ahead policy: which patterns it recognises, how far and how fast it reaches ahead."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.intervals import merge
from mictlanfs.model import KIB, MIB
from mictlanfs_mount.readahead import (
    TOLERANCE_SIZE_BYTES,
    WINDOW_SIZE_BYTES_FIRST,
    WINDOW_SIZE_BYTES_MAX,
    Advice,
    ReadAhead,
)

REQUEST = 128 * KIB


def read_on(readahead: ReadAhead, start: int, end: int, request: int = REQUEST) -> list[Advice]:
    """Read a range from start to end."""
    return [readahead.on_read(offset, request) for offset in range(start, end, request)]


def announced(advices: list[Advice]) -> list[tuple[int, int]]:
    """The ranges that were to be fetched in the background, in order."""
    pairs = [(advice.prefetch_start, advice.prefetch_end) for advice in advices]
    return [(start, end) for start, end in pairs if start != end]


def test_first_read_at_the_start_is_sequential_and_reaches_not_ahead() -> None:
    assert ReadAhead().on_read(0, REQUEST) == Advice(is_sequential=True)


def test_who_jumps_again_is_said_to_read_here_and_there_once() -> None:
    readahead = ReadAhead()
    advices = [readahead.on_read(offset * MIB, REQUEST) for offset in (50, 9, 80, 30)]
    assert [advice.is_scattered for advice in advices] == [False, True, False, False]
    assert not any(advice.is_sequential for advice in advices)


def test_first_read_elsewhere_is_random() -> None:
    assert ReadAhead().on_read(MIB, REQUEST) == Advice(is_sequential=False)


def test_second_read_that_follows_on_reaches_one_window_ahead() -> None:
    readahead = ReadAhead()
    readahead.on_read(8 * MIB, REQUEST)
    advice = readahead.on_read(8 * MIB + REQUEST, REQUEST)
    end = 8 * MIB + 2 * REQUEST
    assert advice == Advice(
        is_sequential=True, prefetch_start=end, prefetch_end=end + WINDOW_SIZE_BYTES_FIRST
    )


def test_window_doubles_up_to_its_limit() -> None:
    advices = read_on(ReadAhead(), 0, 256 * MIB)
    reach = [
        advice.prefetch_end - (number + 1) * REQUEST
        for number, advice in enumerate(advices)
        if advice.prefetch_start != advice.prefetch_end
    ]
    assert reach[:4] == [4 * MIB, 8 * MIB, 16 * MIB, 32 * MIB]
    assert max(reach) == WINDOW_SIZE_BYTES_MAX


def test_sequential_reader_is_announced_every_byte_once() -> None:
    ranges = announced(read_on(ReadAhead(), 0, 200 * MIB))
    assert all(one[1] == other[0] for one, other in pairwise(ranges))
    assert ranges[0][0] <= 2 * REQUEST
    assert ranges[-1][1] >= 200 * MIB


def test_reader_never_gets_ahead_of_what_was_announced() -> None:
    readahead = ReadAhead()
    announced_end = 2 * REQUEST
    for offset in range(0, 200 * MIB, REQUEST):
        assert offset + REQUEST <= announced_end
        announced_end = max(announced_end, readahead.on_read(offset, REQUEST).prefetch_end)


def test_neighbouring_requests_out_of_order_are_one_stream() -> None:
    readahead = ReadAhead()
    offsets = list(range(0, 64 * MIB, REQUEST))
    for index in range(0, len(offsets) - 4, 4):
        offsets[index + 1], offsets[index + 3] = offsets[index + 3], offsets[index + 1]
    advices = [readahead.on_read(offset, REQUEST) for offset in offsets]
    assert all(advice.is_sequential for advice in advices)
    ranges = announced(advices)
    assert sum(end - start for start, end in ranges) == sum(b - a for a, b in merge(ranges))


def test_two_places_read_in_turn_are_two_streams() -> None:
    readahead = ReadAhead()
    first = read_on(readahead, 0, REQUEST)
    second = read_on(readahead, 512 * MIB, 512 * MIB + REQUEST)
    for offset in range(REQUEST, 32 * MIB, REQUEST):
        first.append(readahead.on_read(offset, REQUEST))
        second.append(readahead.on_read(512 * MIB + offset, REQUEST))
    assert all(advice.is_sequential for advice in first + second[1:])
    assert announced(first)[-1][1] >= 32 * MIB
    assert announced(second)[-1][1] >= (512 + 32) * MIB


def test_random_reads_fetch_nothing_ahead() -> None:
    generator = random.Random(1)
    readahead = ReadAhead()
    for _ in range(500):
        # Far apart, so that no two are neighbours by chance.
        offset = (1 + generator.randrange(10_000)) * 4 * TOLERANCE_SIZE_BYTES
        advice = readahead.on_read(offset, 4 * KIB)
        assert not advice.is_sequential
        assert not announced([advice])


def test_a_jump_within_a_large_file_does_not_count_as_reading_on() -> None:
    readahead = ReadAhead()
    read_on(readahead, 0, 8 * MIB)
    assert not readahead.on_read(8 * MIB + TOLERANCE_SIZE_BYTES + 1, REQUEST).is_sequential


def test_second_pass_over_a_file_is_sequential_from_its_first_read() -> None:
    readahead = ReadAhead()
    read_on(readahead, 0, 64 * MIB)
    again = read_on(readahead, 0, 64 * MIB)
    assert all(advice.is_sequential for advice in again)
    assert announced(again)[-1][1] >= 64 * MIB


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 2**40), st.integers(0, 64).map(lambda n: n * REQUEST)),
            st.integers(1, 2 * MIB),
        ),
        max_size=60,
    )
)
def test_advice_is_bounded_whatever_is_read(reads: list[tuple[int, int]]) -> None:
    readahead = ReadAhead()
    for offset, length in reads:
        advice = readahead.on_read(offset, length)
        ahead = advice.prefetch_end - advice.prefetch_start
        assert 0 <= ahead <= WINDOW_SIZE_BYTES_MAX
        if ahead:
            assert advice.is_sequential
            # Within reach of this read: nothing far away is fetched on account of it.
            assert advice.prefetch_start >= offset
            reach = TOLERANCE_SIZE_BYTES + length + WINDOW_SIZE_BYTES_MAX
            assert advice.prefetch_end <= offset + reach
