import time

from mictlanfs.clock import Clock, SystemClock


def test_the_wall_clock_is_that_of_the_system() -> None:
    clock: Clock = SystemClock()
    before, now, after = time.time_ns(), clock.wall_ns(), time.time_ns()
    assert before <= now <= after


def test_the_monotonic_clock_never_goes_back() -> None:
    clock: Clock = SystemClock()
    readings = [clock.monotonic_s() for _ in range(100)]
    assert readings == sorted(readings)
