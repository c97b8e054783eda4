import os
import time
from pathlib import Path

from mictlanfs_mount.kernelclock import open_kernel_clock

# 100 in a second is the fewest that kernels are built with; and the test may be held up.
TICK_NS_MAX = 10_000_000
PATIENCE_NS = 5_000_000_000
EXACT_SINCE = (6, 13)


def kernel_version() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


def test_it_tells_the_time() -> None:
    with open_kernel_clock() as clock:
        before_ns, now_ns, after_ns = time.time_ns(), clock.wall_ns(), time.time_ns()
    assert before_ns - TICK_NS_MAX <= now_ns <= after_ns
    assert after_ns - before_ns < PATIENCE_NS


def test_no_reading_is_older_than_the_one_before_and_on_newer_kernels_each_is_later() -> None:
    with open_kernel_clock() as clock:
        readings = [clock.wall_ns() for _ in range(1000)]
    assert readings == sorted(readings)
    if kernel_version() >= EXACT_SINCE:
        assert len(set(readings)) == len(readings)


def test_files_that_the_kernel_stamps_are_in_order_with_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with open_kernel_clock() as clock:
        for _ in range(200):
            before_ns = clock.wall_ns()
            os.utime(path)
            assert before_ns <= path.stat().st_mtime_ns <= clock.wall_ns()


def test_the_file_is_closed_in_the_end() -> None:
    before = os.listdir("/proc/self/fd")
    with open_kernel_clock():
        pass
    assert os.listdir("/proc/self/fd") == before
