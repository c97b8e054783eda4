"""Leases and bad luck with real processes: who dies, stands still, or comes back too late.

The space of these tests has leases of two seconds, so that what they wait for comes soon.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mictlanfs_mount.logfile import log_path_of
from tests.support.spaces import Mount, Space, running_space, several_mounted, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(120)]

LEASE_TTL_S = 2.0
SAY_SIZE = "import os, sys; print(os.stat(sys.argv[1]).st_size)"
# Beyond the lease itself: its tenth for clocks, the router's ticks, and a machine with other work.
PATIENCE_S = LEASE_TTL_S + 6.0


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """A space with short leases."""
    data = tmp_path_factory.mktemp("short") / "data"
    with running_space(data, 3, "--lease-ttl", f"{LEASE_TTL_S:g}") as started:
        yield started


@pytest.fixture
def mounts(space: Space, tmp_path: Path) -> Iterator[list[Mount]]:
    """Two mounts of this test's own: it may kill them."""
    with several_mounted(space.uri, tmp_path, 2) as started:
        yield started


@pytest.fixture
def sides(mounts: list[Mount], tmp_path: Path) -> tuple[Path, Path]:
    """The same empty bucket on both mounts."""
    (mounts[0].path / tmp_path.name).mkdir()
    assert os.listdir(mounts[1].path / tmp_path.name) == []
    return mounts[0].path / tmp_path.name, mounts[1].path / tmp_path.name


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done here takes at most so long."""
    start_s = time.monotonic()
    yield
    assert time.monotonic() - start_s < seconds


def write_durably(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def pid_of(mount: Mount) -> int:
    pid = mount.pid()
    assert pid is not None
    return pid


def log_of(mount: Mount) -> str:
    return log_path_of(mount.path).read_text(encoding="utf-8")


def test_killed_mount_is_waited_for_as_long_as_its_lease(
    mounts: list[Mount], sides: tuple[Path, Path]
) -> None:
    one, two = sides
    for index in range(20):
        write_durably(one / f"durable-{index}", b"%d" % index)
        (one / f"gone-{index}").touch()
    mounts[0].kill()
    with within(PATIENCE_S):
        (two / "new").write_bytes(b"new")
    for index in range(20):
        assert (two / f"durable-{index}").read_bytes() == b"%d" % index
    for name in os.listdir(two):
        (two / name).unlink()
    assert os.listdir(two) == []


def test_stopped_mount_finds_itself_fenced_and_says_so(
    mounts: list[Mount], sides: tuple[Path, Path]
) -> None:
    one, two = sides
    (one / "d").mkdir()
    (one / "d" / "kept").touch()
    write_durably(one / "f", b"before")
    with (one / "f").open("r+b", buffering=0) as opened:
        assert os.pread(opened.fileno(), 10, 0) == b"before"
        with stopped(pid_of(mounts[0])):
            with within(PATIENCE_S):
                (two / "f").write_bytes(b"after!")
            (two / "new").touch()
            (two / "d").rename(two / "e")
        assert os.pread(opened.fileno(), 10, 0) == b"after!"
        assert sorted(os.listdir(one)) == ["e", "f", "new"]
        assert os.listdir(one / "e") == ["kept"]
        assert not (one / "d").exists()
        os.pwrite(opened.fileno(), b"fenced", 0)
        assert (two / "f").read_bytes() == b"fenced"
    wait_until(lambda: "fenced" in log_of(mounts[0]), "the mount says that it was fenced")
    (one / "again").write_bytes(b"again")
    assert (two / "again").read_bytes() == b"again"


def test_kernel_of_a_stopped_mount_uses_nothing_after_the_lease(
    mounts: list[Mount], sides: tuple[Path, Path]
) -> None:
    """What a kernel was told to keep ends with the trust, also when nobody can tell it so."""
    one, two = sides
    write_durably(one / "f", b"12345")
    assert (one / "f").stat().st_size == 5
    assert not (one / "new").exists()
    pid = pid_of(mounts[0])
    with stopped(pid):
        with within(PATIENCE_S):
            (two / "f").write_bytes(b"1234567")
        (two / "new").touch()
        looking = subprocess.Popen(
            [sys.executable, "-c", SAY_SIZE, one / "f"],
            stdout=subprocess.PIPE,
        )
        # It is answered by nobody, or it is wrong.
        with pytest.raises(subprocess.TimeoutExpired):
            looking.wait(0.5)
    output, _ = looking.communicate(timeout=PATIENCE_S)
    assert output == b"7\n"
    assert (one / "new").exists()


def test_router_killed_in_the_middle_of_batches_loses_nothing(
    space: Space, sides: tuple[Path, Path]
) -> None:
    count = 60
    failures: list[BaseException] = []
    written = [0, 0]

    def work(number: int) -> None:
        try:
            for index in range(count):
                write_durably(sides[number] / f"{number}-{index}", b"%d %d" % (number, index))
                (sides[number] / f"{number}-{index}").rename(sides[number] / f"{number}={index}")
                written[number] = index
        except BaseException as error:
            failures.append(error)
            raise

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for share in (10, 30):
        wait_until(lambda share=share: max(written) >= share or failures, "files were written")
        space.kill("router")
    for worker in workers:
        worker.join()
    assert failures == []
    expected = sorted(f"{number}={index}" for number in range(2) for index in range(count))
    for side in sides:
        assert sorted(os.listdir(side)) == expected
        for number in range(2):
            for index in range(count):
                assert (side / f"{number}={index}").read_bytes() == b"%d %d" % (number, index)
    (sides[0] / "f").write_bytes(b"on")
    assert (sides[1] / "f").read_bytes() == b"on"


def test_router_that_stood_still_for_longer_than_a_lease(
    space: Space, sides: tuple[Path, Path]
) -> None:
    one, two = sides
    (one / "f").write_bytes(b"before")
    assert (two / "f").read_bytes() == b"before"
    with stopped(space.pid_of("router")):
        done = threading.Event()

        def change() -> None:
            (two / "f").write_bytes(b"after")
            done.set()

        worker = threading.Thread(target=change)
        worker.start()
        # Nobody can be told, so nothing is changed.
        assert not done.wait(1.5 * LEASE_TTL_S)
    worker.join(PATIENCE_S)
    assert done.is_set()
    assert (one / "f").read_bytes() == b"after"
    for index in range(20):
        first, second = (one, two) if index % 2 else (two, one)
        (first / f"{index}").touch()
        assert (second / f"{index}").exists()


def test_eight_mounts_create_in_one_directory(space: Space, tmp_path: Path) -> None:
    count = 50
    with several_mounted(space.uri, tmp_path, 8) as mounts:
        (mounts[0].path / tmp_path.name).mkdir()
        start = threading.Barrier(len(mounts))
        ends_s = [0.0] * len(mounts)

        def create(number: int) -> None:
            start.wait()
            for index in range(count):
                path = mounts[number].path / tmp_path.name / f"{number}-{index}"
                path.write_bytes(b"%d" % index)
            ends_s[number] = time.monotonic()

        start_s = time.monotonic()
        with ThreadPoolExecutor(len(mounts)) as pool:
            list(pool.map(create, range(len(mounts))))
        took_s = [end_s - start_s for end_s in ends_s]
        expected = sorted(f"{number}-{index}" for number in range(8) for index in range(count))
        for mount in mounts:
            assert sorted(os.listdir(mount.path / tmp_path.name)) == expected
        assert (mounts[0].path / tmp_path.name / "7-49").read_bytes() == b"49"
    # Nobody had done before the others had begun.
    assert min(took_s) > max(took_s) / 4


def compete(renames: Sequence[tuple[Path, Path]]) -> list[bool]:
    """Do all at the same time; which of them were a success, the others said ENOENT."""
    start = threading.Barrier(len(renames))

    def attempt(rename: tuple[Path, Path]) -> bool:
        start.wait()
        try:
            os.rename(*rename)
        except FileNotFoundError:
            return False
        return True

    with ThreadPoolExecutor(len(renames)) as pool:
        return list(pool.map(attempt, renames))


def test_of_two_mounts_that_rename_one_tree_one_wins(sides: tuple[Path, Path]) -> None:
    one, two = sides
    (one / "tree" / "a" / "b").mkdir(parents=True)
    (one / "tree" / "a" / "b" / "file").write_bytes(b"kept")
    now = "tree"
    for round_ in range(20):
        # Others names each time: Linux takes a rename to a name of the same file for done.
        names = [f"one-{round_}", f"two-{round_}"]
        won = compete([(side / now, side / name) for side, name in zip(sides, names, strict=True)])
        assert sorted(won) == [False, True]
        now = names[won.index(True)]
        assert os.listdir(one) == os.listdir(two) == [now]
        for side in sides:
            assert (side / now / "a" / "b" / "file").read_bytes() == b"kept"


def test_appends_of_two_mounts_in_turn_and_at_once_are_all_kept(sides: tuple[Path, Path]) -> None:
    for index in range(60):
        with (sides[index % 2] / "log").open("ab") as file:
            file.write(b"%04d\n" % index)
    expected = b"".join(b"%04d\n" % index for index in range(60))
    for side in sides:
        assert (side / "log").read_bytes() == expected


def test_files_held_open_for_appending_by_both_mounts_lose_nothing(
    sides: tuple[Path, Path],
) -> None:
    (sides[0] / "log").touch()
    # Lines of 32 bytes never cross a page, where the kernel cuts a write in two.
    expected = {b"%d %04d" % (who, index) for who in range(4) for index in range(50)}

    def append(who: int) -> None:
        with (sides[who % 2] / "log").open("ab", buffering=0) as file:
            for index in range(50):
                line = b"%d %04d" % (who, index)
                assert file.write(line.ljust(31) + b"\n") == 32

    with ThreadPoolExecutor(4) as pool:
        for appending in [pool.submit(append, who) for who in range(4)]:
            appending.result()
    for side in sides:
        lines = [line.strip() for line in (side / "log").read_bytes().splitlines()]
        assert sorted(lines) == sorted(expected)
        # Each writer's lines are in its order.
        for who in range(4):
            own = [line for line in lines if line.startswith(b"%d " % who)]
            assert own == sorted(own)


def test_files_opened_and_closed_for_appending_by_both_mounts_lose_nothing(
    sides: tuple[Path, Path],
) -> None:
    def append(who: int) -> None:
        for _ in range(20):
            with (sides[who % 2] / "log").open("ab", buffering=0) as file:
                assert file.write(b"x" * 50) == 50

    with ThreadPoolExecutor(4) as pool:
        for appending in [pool.submit(append, who) for who in range(4)]:
            appending.result()
    for side in sides:
        assert (side / "log").read_bytes() == b"x" * 50 * 4 * 20
