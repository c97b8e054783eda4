import errno
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Event as ThreadEvent

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mictlanfs.checksums import digest_of
from mictlanfs.model import KIB, MIB, Chunk, ChunkId
from mictlanfs_mount.chunkcache import disk as disk_module
from mictlanfs_mount.chunkcache.disk import CHUNK_SIZE_BYTES_MIN, DiskLevel, DiskLimits
from mictlanfs_mount.chunkcache.files import ChunkFiles, FoundFile, Space
from tests.unit.mount.chunkcache.making import (
    content,
    make_chunk,
    skip_unless_read_without_waiting,
)

SIZE = 64 * KIB
LIMITS = DiskLimits(size_max=MIB, free_min=0, free_ratio_min=0.0)

# Space of a file system in which there is no end of room.
ROOMY = Space(2**50, 2**49)


@contextmanager
def opened_files(
    directory: Path, kind: Callable[[Path], ChunkFiles] = ChunkFiles
) -> Iterator[ChunkFiles]:
    files = kind(directory)
    try:
        yield files
    finally:
        files.close()


@asynccontextmanager
async def opened(
    directory: Path,
    limits: DiskLimits = LIMITS,
    space: Callable[[], Space] | None = lambda: ROOMY,
    files_kind: Callable[[Path], ChunkFiles] = ChunkFiles,
) -> AsyncIterator[DiskLevel]:
    """A level as a mount uses it; leaving drains it."""
    with opened_files(directory, files_kind) as files:
        async with trio.open_nursery() as nursery:
            level = DiskLevel(files, limits, space_of=space)
            nursery.start_soon(level.run)
            yield level
            with trio.fail_after(10):
                await level.drain()
            nursery.cancel_scope.cancel()
            level.forget_all()


async def settled(level: DiskLevel) -> None:
    """Wait until everything put is written, without the order of use."""
    with trio.fail_after(10):
        await level.settle()


async def kept(level: DiskLevel, *made: tuple[Chunk, bytes]) -> None:
    for chunk, body in made:
        level.put_whole(chunk, memoryview(body))
    await settled(level)


def path_of(directory: Path, chunk: Chunk) -> Path:
    name = chunk.id.hex()
    return directory / "chunks" / name[-2:] / name


def files_in(directory: Path) -> set[str]:
    return {path.name for path in (directory / "chunks").rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _needs_reads_without_waiting(tmp_path: Path) -> None:
    skip_unless_read_without_waiting(tmp_path)


async def test_what_was_written_is_at_hand_without_waiting(tmp_path: Path) -> None:
    async with opened(tmp_path) as level:
        chunk, body = make_chunk(SIZE)
        await kept(level, (chunk, body))
        assert content(level.get(chunk, 10, 4106)) == body[10:4106]
        assert content(level.get(chunk, 0, SIZE)) == body


async def test_it_survives_a_remount_and_is_verified_once(tmp_path: Path) -> None:
    chunk, body = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))
    async with opened(tmp_path) as level:
        await settled(level)
        assert level.has_whole(chunk.id)
        assert level.get(chunk, 0, 10) is None, "an unverified file was served"
        assert content(await level.read(chunk, 5, 15)) == body[5:15]
        assert content(level.get(chunk, 0, 10)) == body[:10]
        assert level.stats().corrupt == 0


@pytest.mark.parametrize("damage", ["flip", "shorten", "lengthen", "empty"])
async def test_a_file_damaged_between_mounts_is_deleted_and_counted(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, body = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))
    with path_of(tmp_path, chunk).open("r+b") as file:
        if damage == "flip":
            file.seek(1000)
            file.write(bytes([body[1000] ^ 4]))
        elif damage == "lengthen":
            file.seek(0, os.SEEK_END)
            file.write(b"x")
        else:
            file.truncate(0 if damage == "empty" else SIZE - 1)
    async with opened(tmp_path) as level:
        await settled(level)
        assert await level.read(chunk, 2000, 2010) is None
        assert not level.has_whole(chunk.id)
        assert level.stats().corrupt == 1
        await settled(level)
        assert not path_of(tmp_path, chunk).exists()
        # The next fetch puts it back.
        await kept(level, (chunk, body))
        assert content(level.get(chunk, 2000, 2010)) == body[2000:2010]
    assert chunk.id.hex() in caplog.text


async def test_many_readers_of_an_unverified_file_verify_it_once(tmp_path: Path) -> None:
    verified = []

    class Counting(ChunkFiles):
        def is_good(self, chunk: Chunk) -> bool:
            verified.append(chunk.id)
            return super().is_good(chunk)

    chunk, body = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))
    async with opened(tmp_path, files_kind=Counting) as level:
        await settled(level)
        results = []

        async def read(start: int) -> None:
            results.append(
                content(await level.read(chunk, start, start + 5)) == body[start : start + 5]
            )

        async with trio.open_nursery() as nursery:
            for start in range(10):
                nursery.start_soon(read, start)
        assert results == [True] * 10
        assert verified == [chunk.id]


async def test_a_reader_cancelled_while_it_verifies_does_not_fail_the_others(
    tmp_path: Path,
) -> None:
    started, go_on = ThreadEvent(), ThreadEvent()

    class Slow(ChunkFiles):
        def is_good(self, chunk: Chunk) -> bool:
            started.set()
            assert go_on.wait(10)
            return super().is_good(chunk)

    chunk, body = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))
    async with opened(tmp_path, files_kind=Slow) as level:
        await settled(level)
        first = trio.CancelScope()
        results = []

        async def read_cancelled() -> None:
            with first:
                await level.read(chunk, 0, 5)

        async def read() -> None:
            results.append(content(await level.read(chunk, 0, 5)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_cancelled)
            await trio.to_thread.run_sync(started.wait)
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            first.cancel()
            go_on.set()
        assert results == [body[:5]]


async def test_the_files_never_take_more_than_the_limit(tmp_path: Path) -> None:
    made = [make_chunk(SIZE, seed) for seed in range(20)]
    async with opened(tmp_path, DiskLimits(5 * SIZE, free_min=0, free_ratio_min=0)) as level:
        for chunk, body in made:
            await kept(level, (chunk, body))
            assert level.stats().size_bytes <= 5 * SIZE
        assert len(files_in(tmp_path)) == 5
        assert [chunk for chunk, _ in made if level.has_whole(chunk.id)] == [
            chunk for chunk, _ in made[-5:]
        ]
        assert level.stats().evictions == 15


async def test_a_read_keeps_a_chunk_from_being_evicted(tmp_path: Path) -> None:
    first, second, third = made = [make_chunk(SIZE, seed) for seed in range(3)]
    async with opened(tmp_path, DiskLimits(2 * SIZE, free_min=0, free_ratio_min=0)) as level:
        await kept(level, first, second)
        assert level.get(first[0], 0, 1) is not None
        await kept(level, third)
        assert [level.has_whole(chunk.id) for chunk, _ in made] == [True, False, True]


async def test_the_number_of_files_is_bounded_too(tmp_path: Path) -> None:
    limits = DiskLimits(MIB, files_max=3, free_min=0, free_ratio_min=0)
    async with opened(tmp_path, limits) as level:
        for seed in range(5):
            await kept(level, make_chunk(CHUNK_SIZE_BYTES_MIN, seed))
        assert level.stats().entries == 3
    assert len(files_in(tmp_path)) == 3


async def test_a_smaller_limit_evicts_at_the_next_mount(tmp_path: Path) -> None:
    made = [make_chunk(SIZE, seed) for seed in range(6)]
    async with opened(tmp_path) as level:
        await kept(level, *made)
    async with opened(tmp_path, DiskLimits(2 * SIZE, free_min=0, free_ratio_min=0)) as level:
        await settled(level)
        assert level.stats().entries == 2
    assert len(files_in(tmp_path)) == 2


async def test_order_of_use_survives_a_remount(tmp_path: Path) -> None:
    first, second, third = made = [make_chunk(SIZE, seed) for seed in range(3)]
    async with opened(tmp_path) as level:
        await kept(level, first, second)
    for number, (chunk, _) in enumerate([first, second]):
        os.utime(path_of(tmp_path, chunk), (1000 + number, 1000 + number))
    async with opened(tmp_path) as level:
        await settled(level)
        assert await level.read(first[0], 0, 1) is not None
    async with opened(tmp_path, DiskLimits(2 * SIZE, free_min=0, free_ratio_min=0)) as level:
        await settled(level)
        await kept(level, third)
        assert [level.has_whole(chunk.id) for chunk, _ in made] == [True, False, True]


async def test_small_chunks_are_not_worth_a_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as level:
        await kept(level, make_chunk(CHUNK_SIZE_BYTES_MIN - 1), make_chunk(CHUNK_SIZE_BYTES_MIN))
    assert len(files_in(tmp_path)) == 1


# --- free space ----------------------------------------------------------------------------------


async def test_free_space_is_kept_by_evicting(tmp_path: Path) -> None:
    free = 10 * SIZE

    def space() -> Space:
        # Each file takes its part of what was free.
        return Space(100 * SIZE, free - len(files_in(tmp_path)) * SIZE)

    limits = DiskLimits(MIB, free_min=0, free_ratio_min=0.05)
    made = [make_chunk(SIZE, seed) for seed in range(8)]
    async with opened(tmp_path, limits, space) as level:
        for one in made:
            await kept(level, one)
            assert space().free >= 5 * SIZE
        assert level.stats().entries == 5
        assert level.stats().dropped == 0
        # Somebody else takes most of the rest.
        free = 7 * SIZE
        await kept(level, make_chunk(SIZE, 100))
        assert space().free >= 5 * SIZE
        assert level.stats().entries == 2


async def test_nothing_is_written_when_eviction_is_not_enough(tmp_path: Path) -> None:
    spaces = [Space(100 * SIZE, 50 * SIZE)]
    limits = DiskLimits(MIB, free_min=10 * SIZE, free_ratio_min=0)
    async with opened(tmp_path, limits, lambda: spaces[0]) as level:
        await kept(level, make_chunk(SIZE, 1), make_chunk(SIZE, 2))
        spaces[0] = Space(100 * SIZE, 5 * SIZE)
        await kept(level, make_chunk(SIZE, 3))
        assert files_in(tmp_path) == set()
        assert level.stats().dropped == 1
        assert level.stats().is_enabled
        spaces[0] = Space(100 * SIZE, 50 * SIZE)
        await kept(level, make_chunk(SIZE, 4))
        assert len(files_in(tmp_path)) == 1


@pytest.mark.parametrize(
    ("space", "wanted"),
    [
        (Space(100, 50), 20),
        (Space(1000, 50), 100),
    ],
)
def test_the_larger_of_ratio_and_bytes_stays_free(space: Space, wanted: int) -> None:
    assert DiskLimits(free_min=20, free_ratio_min=0.1).free_wanted(space) == wanted


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    target = tmp_path / "small"
    target.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4M", "none", target], check=False, capture_output=True
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


async def test_a_real_file_system_is_not_filled(small_file_system: Path) -> None:
    limits = DiskLimits(64 * MIB, free_min=MIB, free_ratio_min=0.1)
    async with opened(small_file_system / "cache", limits, space=None) as level:
        for seed in range(20):
            await kept(level, make_chunk(256 * KIB, seed))
            found = os.statvfs(small_file_system)
            assert found.f_bavail * found.f_frsize >= MIB
        assert level.stats().entries >= 10
        assert level.stats().is_enabled


async def test_a_full_file_system_switches_the_level_off_with_one_warning(
    small_file_system: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The guard is told that there is room where there is none.
    async with opened(small_file_system / "cache", DiskLimits(64 * MIB)) as level:
        for seed in range(30):
            await kept(level, make_chunk(256 * KIB, seed))
        assert not level.stats().is_enabled
        assert level.stats().entries == 0
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert str(small_file_system) in caplog.text


# --- errors of the disk --------------------------------------------------------------------------


async def test_a_vanished_directory_switches_the_level_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "cache"
    chunk, body = make_chunk(SIZE)
    async with opened(directory) as level:
        await kept(level, (chunk, body))
        subprocess.run(["rm", "-r", directory], check=True)
        await kept(level, make_chunk(SIZE, 1))
        assert not level.stats().is_enabled
        assert level.get(chunk, 0, 1) is None
        assert await level.read(chunk, 0, 1) is None
        assert not await level.warm(chunk)
    assert len(caplog.records) == 1


async def test_one_file_that_vanished_is_just_a_miss(tmp_path: Path) -> None:
    chunk, body = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))
        path_of(tmp_path, chunk).unlink()
        assert level.get(chunk, 0, 1) is None
        assert not level.has_whole(chunk.id)
        await settled(level)
        await kept(level, (chunk, body))
        assert content(level.get(chunk, 0, 1)) == body[:1]
        assert level.stats().is_enabled


async def test_an_error_while_reading_is_a_miss_and_switches_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, body = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "preadv", broken)
        assert level.get(chunk, 0, 1) is None
        assert not level.stats().is_enabled
    assert "Input/output error" in caplog.text


async def test_a_file_cut_after_it_was_trusted_is_found_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, body = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))
        os.truncate(path_of(tmp_path, chunk), 100)
        assert level.get(chunk, 90, 110) is None
        assert await level.read(chunk, 90, 110) is None
        assert level.stats().corrupt == 1
        assert not level.has_whole(chunk.id)


async def test_running_out_of_descriptors_is_a_miss_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk, body = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))

        def none_left(self: ChunkFiles, chunk_id: bytes) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(ChunkFiles, "open", none_left)
        assert level.get(chunk, 0, 1) is None
        assert await level.read(chunk, 0, 1) is None
        monkeypatch.undo()
        assert content(level.get(chunk, 0, 1)) == body[:1]


async def test_a_file_system_that_cannot_read_without_waiting_is_read_in_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk, body = make_chunk(SIZE)

    def unsupported(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))
        monkeypatch.setattr(os, "preadv", unsupported)
        assert level.get(chunk, 0, 9) is None
        assert content(await level.read(chunk, 0, 9)) == body[:9]
        assert level.stats().is_enabled


async def test_bytes_that_only_the_disk_has_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk, body = make_chunk(SIZE)

    def cold(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))
        monkeypatch.setattr(os, "preadv", cold)
        assert level.get(chunk, 0, 9) is None
        monkeypatch.setattr(os, "preadv", lambda *_: 4)
        assert level.get(chunk, 0, 9) is None
        assert level.has_whole(chunk.id)
        assert content(await level.read(chunk, 0, 9)) == body[:9]


# --- the queue -----------------------------------------------------------------------------------


class HeldUp(ChunkFiles):
    """Files that are written only when the test allows it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.started = ThreadEvent()
        self.go_on = ThreadEvent()

    def write(self, chunk_id: bytes, body: object) -> None:
        self.started.set()
        assert self.go_on.wait(10)
        super().write(chunk_id, body)  # type: ignore[arg-type]  # passed on as it is


async def test_what_does_not_fit_into_the_queue_is_not_kept(tmp_path: Path) -> None:
    limits = DiskLimits(MIB, free_min=0, free_ratio_min=0, queue_size_max=3 * SIZE)
    async with opened(tmp_path, limits) as level:
        for seed in range(5):
            level.put_whole(*viewed(make_chunk(SIZE, seed)))
        await settled(level)
        assert level.stats().entries == 3
        assert level.stats().dropped == 2
        await kept(level, make_chunk(SIZE, 9))
        assert level.stats().entries == 4


def viewed(made: tuple[Chunk, bytes]) -> tuple[Chunk, memoryview]:
    return made[0], memoryview(made[1])


async def test_a_chunk_put_twice_is_written_once(tmp_path: Path) -> None:
    made = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        await kept(level, made, made)
        await kept(level, made)
        assert level.stats().written_bytes == SIZE


async def test_a_chunk_discarded_while_it_waits_is_not_kept(tmp_path: Path) -> None:
    made = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        level.put_whole(*viewed(made))
        level.discard(made[0].id)
        await settled(level)
        assert not level.has_whole(made[0].id)
    assert files_in(tmp_path) == set()


async def test_a_chunk_discarded_while_it_is_written_is_not_kept(tmp_path: Path) -> None:
    held: list[HeldUp] = []

    def kind(directory: Path) -> HeldUp:
        held.append(HeldUp(directory))
        return held[0]

    made = make_chunk(SIZE)
    async with opened(tmp_path, files_kind=kind) as level:
        level.put_whole(*viewed(made))
        await trio.to_thread.run_sync(held[0].started.wait)
        level.discard(made[0].id)
        held[0].go_on.set()
        await settled(level)
        assert not level.has_whole(made[0].id)
        assert files_in(tmp_path) == set()
        # And it can come again.
        await kept(level, made)
        assert level.get(made[0], 0, 1) is not None


async def test_discard_deletes_the_file_and_closes_it(tmp_path: Path) -> None:
    made = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        before = len(os.listdir("/proc/self/fd"))
        await kept(level, made)
        assert level.get(made[0], 0, 1) is not None
        level.discard(made[0].id)
        level.discard(make_chunk(SIZE, 1)[0].id)
        await settled(level)
        assert files_in(tmp_path) == set()
        assert len(os.listdir("/proc/self/fd")) == before


async def test_open_descriptors_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "DESCRIPTORS_MAX", 3)
    made = [make_chunk(SIZE, seed) for seed in range(8)]
    async with opened(tmp_path) as level:
        await kept(level, *made)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            for chunk, body in made:
                assert content(level.get(chunk, 0, 9)) == body[:9]
        assert len(os.listdir("/proc/self/fd")) == before + 3


# --- starting ------------------------------------------------------------------------------------


async def test_a_long_listing_delays_nothing(tmp_path: Path) -> None:
    go_on = ThreadEvent()

    class Slow(ChunkFiles):
        def listing(self) -> list[FoundFile]:
            assert go_on.wait(10)
            return super().listing()

    old, new = make_chunk(SIZE, 1), make_chunk(SIZE, 2)
    async with opened(tmp_path) as level:
        await kept(level, old)
    async with opened(tmp_path, files_kind=Slow) as level:
        await wait_all_tasks_blocked()
        assert level.get(old[0], 0, 1) is None
        assert await level.read(old[0], 0, 1) is None
        level.put_whole(*viewed(new))
        go_on.set()
        await settled(level)
        assert content(await level.read(old[0], 0, 1)) == old[1][:1]
        assert content(level.get(new[0], 0, 1)) == new[1][:1]


async def test_a_listing_that_fails_switches_the_level_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(ChunkFiles):
        def listing(self) -> list[FoundFile]:
            raise OSError(errno.EIO, "Input/output error")

    async with opened(tmp_path, files_kind=Broken) as level:
        level.put_whole(*viewed(make_chunk(SIZE)))
        await settled(level)
        assert not level.stats().is_enabled
    assert "Input/output error" in caplog.text


async def test_a_clock_that_went_back_does_no_harm(tmp_path: Path) -> None:
    chunk, body = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))
    os.utime(path_of(tmp_path, chunk), (2**33, 2**33))
    async with opened(tmp_path) as level:
        await settled(level)
        assert content(await level.read(chunk, 0, 3)) == body[:3]


async def test_warming_verifies(tmp_path: Path) -> None:
    chunk, body = make_chunk(SIZE)
    async with opened(tmp_path) as level:
        await kept(level, (chunk, body))
    async with opened(tmp_path) as level:
        await settled(level)
        assert await level.warm(chunk)
        assert content(level.get(chunk, 0, 3)) == body[:3]
        assert await level.warm(chunk)
        assert not await level.warm(make_chunk(SIZE, 1)[0])
        path_of(tmp_path, chunk).unlink()
        assert not await level.warm(chunk)


async def test_what_is_to_be_kept_waits_for_room_in_the_queue(tmp_path: Path) -> None:
    limits = DiskLimits(MIB, free_min=0, free_ratio_min=0.0, queue_size_max=2 * SIZE)
    made = [make_chunk(SIZE, seed) for seed in range(8)]
    is_kept: dict[int, bool] = {}

    async def keep(seed: int) -> None:
        chunk, body = made[seed]
        is_kept[seed] = await level.keep(chunk, memoryview(body))

    async with opened(tmp_path, limits) as level:
        async with trio.open_nursery() as nursery:
            for seed in range(8):
                nursery.start_soon(keep, seed)
        assert is_kept == dict.fromkeys(range(8), True)
        assert level.stats().dropped == 0
        assert files_in(tmp_path) == {chunk.id.hex() for chunk, _ in made}
        assert await level.keep(*viewed(made[0]))


async def test_what_cannot_be_kept_is_told(tmp_path: Path) -> None:
    full = Space(2**30, 0)
    async with opened(tmp_path, space=lambda: full) as level:
        assert not await level.keep(*viewed(make_chunk(SIZE)))
        assert not await level.keep(*viewed(make_chunk(2 * MIB)))
        assert not await level.keep(*viewed(make_chunk(KIB)))


async def test_all_is_discarded_with_what_waits(tmp_path: Path) -> None:
    async with opened(tmp_path) as level:
        await kept(level, *(make_chunk(SIZE, seed) for seed in range(3)))
        late = make_chunk(SIZE, 4)
        level.put_whole(*viewed(late))
        assert level.discard_all() == 3 * SIZE
        await settled(level)
        assert files_in(tmp_path) == set()
        assert level.stats().size_bytes == 0
        await kept(level, late)
        assert files_in(tmp_path) == {late[0].id.hex()}


# --- crashes -------------------------------------------------------------------------------------

# Writes chunks whose id and content follow from a number, until it is killed.
WRITER = """
import sys, random, trio
from pathlib import Path
from mictlanfs.checksums import digest_of
from mictlanfs.model import Chunk
from mictlanfs_mount.chunkcache.disk import DiskLevel, DiskLimits
from mictlanfs_mount.chunkcache.files import ChunkFiles, Space

async def main(first):
    level = DiskLevel(
        ChunkFiles(Path(sys.argv[1])), DiskLimits(2**30, free_min=0, free_ratio_min=0)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(level.run)
        for number in range(first, first + 10_000):
            body = random.Random(number).randbytes(300_000)
            level.put_whole(Chunk(number.to_bytes(16, "big"), len(body), b"", ()), memoryview(body))
            await level.settle()
            print(number, flush=True)

trio.run(main, int(sys.argv[2]))
"""


def numbered(number: int) -> tuple[Chunk, bytes]:
    body = random.Random(number).randbytes(300_000)
    return Chunk(ChunkId(number.to_bytes(16, "big")), len(body), digest_of([body]), ()), body


async def test_after_kill_9_in_the_middle_of_writing_only_right_bytes_are_served(
    tmp_path: Path,
) -> None:
    written_count = 0
    for life in range(4):
        first = life * 10_000
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(first)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            for _ in range(3 + life):
                assert child.stdout.readline(), "the writer died by itself"
            child.kill()
            child.stdout.read()
        async with opened(tmp_path, DiskLimits(2**30, free_min=0, free_ratio_min=0)) as level:
            await settled(level)
            assert not [name for name in files_in(tmp_path) if name.endswith(".part")]
            for number in range(first, first + 3 + life):
                chunk, body = numbered(number)
                assert content(await level.read(chunk, 100, 299_000)) == body[100:299_000]
                written_count += 1
            assert level.stats().corrupt == 0
    assert written_count == 3 + 4 + 5 + 6


async def test_files_that_a_power_cut_left_short_or_empty_are_not_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = [make_chunk(SIZE, seed) for seed in range(6)]
    async with opened(tmp_path) as level:
        await kept(level, *made)
    for keep, (chunk, _) in zip((0, 1, 4096, SIZE - 4096), made, strict=False):
        # Names are on the disk, the blocks behind them are not, or read as zeros.
        os.truncate(path_of(tmp_path, chunk), keep)
        if keep == SIZE - 4096:
            os.truncate(path_of(tmp_path, chunk), SIZE)
    async with opened(tmp_path) as level:
        await settled(level)
        found = [content(await level.read(chunk, 0, 10)) for chunk, _ in made]
        assert found == [None] * 4 + [body[:10] for _, body in made[4:]]
        assert level.stats().corrupt == 4
