import errno
import os
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event as ThreadEvent

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from mictlanfs.blocksums import BLOCK_SIZE_BYTES, BlockSummer, block_count, is_good_block
from mictlanfs.client.localpeers import OpenChunk
from mictlanfs.clock import Clock
from mictlanfs.model import KIB, MIB, Buffer, Chunk, ChunkId, PeerNumber
from mictlanfs_mount.chunkcache import local
from mictlanfs_mount.chunkcache.local import (
    BELIEVED_S_MAX,
    DESCRIPTORS_MAX,
    UNUSED_S_MAX,
    LocalLevel,
)
from tests.support.waiting import until
from tests.unit.mount.chunkcache.making import (
    content,
    make_chunk,
    skip_unless_read_without_waiting,
)

SIZE = 200 * KIB + 3
PEER = PeerNumber(7)
WITH_AND_WITHOUT_SUMS = pytest.mark.parametrize("has_sums", [True, False])


class Peers:
    """Files of chunks, and the opening of them.

    Attributes:
        has_sums: whether checksums come with a descriptor.
        is_near: whether asking has any prospect.
        asked: the chunks that were asked for.
        gate: openings wait for it.
    """

    def __init__(self, folder: Path) -> None:
        self.has_sums = True
        self.is_near = True
        self.asked: list[Chunk] = []
        self.gate = trio.Event()
        self.gate.set()
        self._folder = folder
        self._sums: dict[ChunkId, bytes] = {}

    def add(self, length: int = SIZE, seed: int = 0) -> tuple[Chunk, bytes]:
        chunk, body = make_chunk(length, seed)
        self.path(chunk).write_bytes(body)
        summer = BlockSummer()
        summer.update(body)
        self._sums[chunk.id] = summer.sums()
        return chunk, body

    def path(self, chunk: Chunk) -> Path:
        return self._folder / chunk.id.hex()

    def flip_a_bit(self, chunk: Chunk, position: int) -> None:
        with self.path(chunk).open("r+b") as file:
            file.seek(position)
            [byte] = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 1]))

    def may_open(self, _: Chunk) -> bool:
        return self.is_near

    async def open(self, chunk: Chunk) -> OpenChunk | None:
        self.asked.append(chunk)
        await self.gate.wait()
        try:
            fd = os.open(self.path(chunk), os.O_RDONLY)
        except FileNotFoundError:
            return None
        return OpenChunk(fd, self._sums[chunk.id] if self.has_sums else b"", PEER)

    async def open_many(self, chunks: Sequence[Chunk]) -> list[OpenChunk | None]:
        return [await self.open(chunk) for chunk in chunks]


class ManualClock(Clock):
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ns(self) -> int:
        return int(self.now_s * 1e9)


@asynccontextmanager
async def opened(
    peers: Peers,
    clock: Clock | None = None,
    descriptors_max: int = 10,
    on_damaged: Callable[[ChunkId, PeerNumber], None] = lambda _chunk, _peer: None,
) -> AsyncIterator[LocalLevel]:
    """A level as a mount uses it, after which no descriptor is open."""
    before = descriptors()
    async with trio.open_nursery() as nursery:
        level = LocalLevel(
            nursery,
            peers.may_open,
            peers.open,
            peers.open_many,
            clock=clock,
            descriptors_max=descriptors_max,
            on_damaged=on_damaged,
        )
        nursery.start_soon(level.run)
        yield level
        nursery.cancel_scope.cancel()
    level.close()
    assert descriptors() == before


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


@pytest.fixture
def peers(tmp_path: Path) -> Peers:
    return Peers(tmp_path)


@pytest.fixture
def _inline(tmp_path: Path) -> None:
    skip_unless_read_without_waiting(tmp_path)


inline = pytest.mark.usefixtures("_inline")


@inline
@WITH_AND_WITHOUT_SUMS
async def test_what_is_open_and_in_the_page_cache_is_read_at_once(
    peers: Peers, *, has_sums: bool
) -> None:
    peers.has_sums = has_sums
    chunk, body = peers.add()
    async with opened(peers) as level:
        assert level.get(chunk, 0, 10) is None
        assert await level.ensure(chunk)
        with assert_no_checkpoints():
            assert content(level.get(chunk, 5, 15)) == body[5:15]
            assert content(level.get(chunk, SIZE - 1, SIZE)) == body[-1:]
            assert content(level.get(chunk, 0, SIZE)) == body
        assert level.stats().hits == 3
        assert level.stats().slow_hits == 0


@WITH_AND_WITHOUT_SUMS
async def test_a_chunk_is_opened_by_its_first_reader(peers: Peers, *, has_sums: bool) -> None:
    peers.has_sums = has_sums
    chunk, body = peers.add()
    async with opened(peers) as level:
        for start in (100_000, 0, SIZE - 10):
            assert content(await level.read(chunk, start, start + 10)) == body[start : start + 10]
        assert peers.asked == [chunk]
        assert level.stats().opened == 1
        assert level.stats().descriptors == 1


async def refuse_inline(error: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have reads without waiting fail; the list grows with each."""
    tries: list[int] = []

    def fail(*_: object) -> int:
        tries.append(error)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "preadv", fail)
    return tries


@pytest.mark.parametrize(("error", "tries_of_two"), [(errno.EAGAIN, 2), (errno.EOPNOTSUPP, 1)])
async def test_what_cannot_be_read_at_once_is_read_in_a_thread(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, error: int, tries_of_two: int
) -> None:
    chunk, body = peers.add()
    async with opened(peers) as level:
        tries = await refuse_inline(error, monkeypatch)
        assert content(await level.read(chunk, 70_000, 70_010)) == body[70_000:70_010]
        assert content(await level.read(chunk, 0, SIZE)) == body
        assert len(tries) == tries_of_two
        assert level.stats().slow_hits == level.stats().hits == 2


async def test_an_error_of_the_disk_is_damage(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, _ = peers.add()
    async with opened(peers) as level:
        await refuse_inline(errno.EIO, monkeypatch)
        assert await level.read(chunk, 0, 10) is None
        assert level.is_damaged(chunk.id)
        assert level.stats().descriptors == 0
    assert "Input/output error" in caplog.text
    caplog.clear()


async def test_an_error_of_the_disk_in_a_thread_is_damage(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    chunk, _ = peers.add()
    async with opened(peers) as level:
        await refuse_inline(errno.EAGAIN, monkeypatch)
        monkeypatch.setattr(os, "pread", fail)
        assert await level.read(chunk, 0, 10) is None
        assert level.is_damaged(chunk.id)
    caplog.clear()


@pytest.mark.parametrize("is_waiting", [False, True])
async def test_a_block_with_a_flipped_bit_is_not_served(
    peers: Peers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    is_waiting: bool,
) -> None:
    chunk, body = peers.add()
    peers.flip_a_bit(chunk, 70_000)
    if is_waiting:
        await refuse_inline(errno.EAGAIN, monkeypatch)
    async with opened(peers) as level:
        # The others are good.
        assert content(await level.read(chunk, 0, 10)) == body[:10]
        assert content(await level.read(chunk, SIZE - 10, SIZE)) == body[-10:]
        assert not level.is_damaged(chunk.id)
        # Not the byte itself, but of its block.
        assert await level.read(chunk, 65_536, 65_537) is None
        assert level.is_damaged(chunk.id)
        assert not level.is_possible(chunk)
        assert await level.read(chunk, 0, 10) is None
        assert not await level.warm(chunk)
        assert level.stats().corrupt == 1
        assert len(peers.asked) == 1
    assert len(caplog.records) == 1
    caplog.clear()


@pytest.mark.parametrize("damage", ["flip", "shorten", "lengthen", "empty"])
async def test_without_sums_a_damaged_file_is_not_taken_into_use(
    peers: Peers, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    peers.has_sums = False
    chunk, body = peers.add()
    if damage == "flip":
        peers.flip_a_bit(chunk, SIZE - 1)
    else:
        changed = {"shorten": body[:-1], "lengthen": body + b"x", "empty": b""}
        peers.path(chunk).write_bytes(changed[damage])
    async with opened(peers) as level:
        assert await level.read(chunk, 0, 10) is None
        assert level.is_damaged(chunk.id)
        assert level.stats().opened == 0
    caplog.clear()


async def test_a_file_that_is_cut_while_it_is_open_is_damage(
    peers: Peers, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, body = peers.add()
    async with opened(peers) as level:
        assert content(await level.read(chunk, 0, SIZE)) == body
        os.truncate(peers.path(chunk), 1000)
        # Whoever cut it may have done more to it.
        assert await level.read(chunk, 0, 1000) is None
        assert await level.read(chunk, 500, 1500) is None
        assert level.is_damaged(chunk.id)
    caplog.clear()


async def test_sums_of_another_length_are_as_none(peers: Peers) -> None:
    chunk, body = peers.add()
    peers._sums[chunk.id] = peers._sums[chunk.id][:-8]
    async with opened(peers) as level:
        assert content(await level.read(chunk, 0, SIZE)) == body


async def test_a_block_is_verified_once_while_nothing_became_of_it(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_read_without_waiting(peers.path(peers.add()[0]).parent)
    chunk, _ = peers.add(seed=1)
    compared = []

    def is_good(block: Buffer, index: int, sums: Buffer) -> bool:
        compared.append(index)
        return is_good_block(block, index, sums)

    monkeypatch.setattr(local, "is_good_block", is_good)
    async with opened(peers) as level:
        for _ in range(3):
            assert await level.read(chunk, 0, 10) is not None
        assert compared == [0]
        peers.flip_a_bit(chunk, 5)
        assert await level.read(chunk, 0, 10) is None
        assert level.stats().corrupt == 1


async def test_readers_of_a_chunk_open_it_once(peers: Peers) -> None:
    chunk, body = peers.add()
    peers.gate = trio.Event()
    found = []

    async def read(level: LocalLevel) -> None:
        found.append(content(await level.read(chunk, 1, 5)))

    async with opened(peers) as level:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(read, level)
            await wait_all_tasks_blocked()
            peers.gate.set()
        assert found == [body[1:5]] * 5
        assert peers.asked == [chunk]


async def test_the_opening_goes_on_when_its_reader_is_cancelled(peers: Peers) -> None:
    chunk, _ = peers.add()
    peers.gate = trio.Event()
    async with opened(peers) as level:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(level.read, chunk, 0, 10)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        peers.gate.set()
        assert await level.ensure(chunk)
        assert peers.asked == [chunk]


@WITH_AND_WITHOUT_SUMS
async def test_the_end_while_a_chunk_is_opened_leaves_nothing(
    peers: Peers, *, has_sums: bool
) -> None:
    peers.has_sums = has_sums
    chunk, _ = peers.add()
    async with opened(peers) as level, trio.open_nursery() as nursery:
        nursery.start_soon(level.read, chunk, 0, 10)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_what_nobody_opens_is_none(peers: Peers) -> None:
    known, _ = peers.add()
    unknown, _ = make_chunk(SIZE)
    small, _ = peers.add(64 * KIB - 1)
    async with opened(peers) as level:
        assert await level.read(unknown, 0, 10) is None
        assert not level.is_damaged(unknown.id)
        assert not level.is_possible(small)
        assert await level.read(small, 0, 10) is None
        peers.is_near = False
        assert not level.is_possible(known)
        assert await level.read(known, 0, 10) is None
        assert not await level.warm(known)
        assert peers.asked == [unknown]


@inline
async def test_what_is_warmed_is_read_at_once_soon(peers: Peers) -> None:
    chunk, body = peers.add()
    async with opened(peers) as level:
        assert await level.warm(chunk)
        await until(lambda: level.get(chunk, 0, SIZE) is not None)
        assert content(level.get(chunk, 0, SIZE)) == body


async def test_an_error_of_warming_is_none_of_the_readers(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ESPIPE, "no")

    monkeypatch.setattr(os, "posix_fadvise", fail)
    chunk, body = peers.add()
    async with opened(peers) as level:
        assert await level.warm(chunk)
        assert content(await level.read(chunk, 0, 10)) == body[:10]


async def fill(level: LocalLevel, chunks: Sequence[Chunk]) -> None:
    for chunk in chunks:
        assert await level.ensure(chunk)


def still_open(level: LocalLevel, peers: Peers, chunks: Sequence[Chunk]) -> list[bool]:
    peers.is_near = False
    found = [level.is_possible(chunk) for chunk in chunks]
    peers.is_near = True
    return found


async def test_the_descriptor_least_recently_used_is_closed_first(peers: Peers) -> None:
    chunks = [peers.add(seed=n)[0] for n in range(4)]
    async with opened(peers, descriptors_max=3) as level:
        await fill(level, chunks[:3])
        assert await level.read(chunks[0], 0, 10) is not None
        before = len(descriptors())
        await fill(level, chunks[3:])
        assert still_open(level, peers, chunks) == [True, False, True, True]
        assert level.stats().descriptors == 3
        assert len(descriptors()) == before
        # Opened anew, in the place of another.
        assert await level.read(chunks[1], 0, 10) is not None
        assert still_open(level, peers, chunks) == [True, True, False, True]


@pytest.mark.parametrize(
    ("process_max", "expected"), [(1024, 256), (100_000_000, DESCRIPTORS_MAX), (8, 2)]
)
async def test_no_more_than_a_quarter_of_all_descriptors_is_used(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, process_max: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (process_max, process_max))
    async with trio.open_nursery() as nursery:
        level = LocalLevel(nursery, peers.may_open, peers.open, peers.open_many)
        assert level._descriptors_max == expected


@WITH_AND_WITHOUT_SUMS
async def test_chunks_opened_ahead_are_read_without_being_asked_for(
    peers: Peers, *, has_sums: bool
) -> None:
    peers.has_sums = has_sums
    added = [peers.add(seed=n) for n in range(3)]
    chunks = [chunk for chunk, _ in added]
    async with opened(peers) as level:
        level.open_ahead(chunks)
        # Who reads meanwhile waits for that, and asks for nothing.
        for chunk, body in added:
            assert content(await level.read(chunk, 5, 90_000)) == body[5:90_000]
        level.open_ahead(chunks)
        await trio.testing.wait_all_tasks_blocked()
        assert peers.asked == chunks
        assert level.stats().opened == 3


async def test_of_chunks_opened_ahead_those_that_are_not_there_or_damaged_are_left_out(
    peers: Peers,
) -> None:
    peers.has_sums = False
    chunks = [peers.add(seed=n)[0] for n in range(4)]
    peers.path(chunks[1]).unlink()
    peers.flip_a_bit(chunks[2], 3)
    async with opened(peers) as level:
        level.open_ahead(chunks)
        assert [await level.read(chunk, 0, 9) is not None for chunk in chunks] == [
            True,
            False,
            False,
            True,
        ]
        assert level.is_damaged(chunks[2].id)


async def test_opening_ahead_leaves_room_for_what_is_in_use(peers: Peers) -> None:
    chunks = [peers.add(seed=n)[0] for n in range(6)]
    async with opened(peers, descriptors_max=6) as level:
        await fill(level, chunks[4:])
        level.open_ahead(chunks[:4])
        await trio.testing.wait_all_tasks_blocked()
        assert still_open(level, peers, chunks) == [True, True, True, False, True, True]


async def test_who_waits_for_what_is_opened_ahead_is_not_left_waiting_when_that_is_cut_short(
    peers: Peers,
) -> None:
    chunks = [peers.add(seed=n)[0] for n in range(2)]
    peers.gate = trio.Event()
    found: list[bool] = []

    async def wait_for(level: LocalLevel, chunk: Chunk) -> None:
        found.append(await level.ensure(chunk))

    with trio.fail_after(5):
        async with trio.open_nursery() as waiting, opened(peers) as level:
            level.open_ahead(chunks)
            for chunk in chunks:
                waiting.start_soon(wait_for, level, chunk)
            await trio.testing.wait_all_tasks_blocked()
    assert found == [False, False]


async def test_descriptors_that_came_together_are_closed_when_their_comparison_is_cut_short(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers.has_sums = False
    chunks = [peers.add(seed=n)[0] for n in range(3)]

    async def wait(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("mictlanfs_mount.chunkcache.local.trio.to_thread.run_sync", wait)
    # Leaving the block looks whether a descriptor is left.
    async with opened(peers) as level:
        level.open_ahead(chunks)
        await trio.testing.wait_all_tasks_blocked()
        assert peers.asked == chunks
        assert level.stats().opened == 0


async def test_what_is_not_used_is_closed(peers: Peers) -> None:
    chunks = [peers.add(seed=n)[0] for n in range(2)]
    clock = ManualClock()
    async with opened(peers, clock) as level:
        await fill(level, chunks)
        clock.now_s += UNUSED_S_MAX - 1
        assert await level.read(chunks[1], 0, 10) is not None
        level.sweep()
        assert still_open(level, peers, chunks) == [True, True]
        clock.now_s += 2
        level.sweep()
        assert still_open(level, peers, chunks) == [False, True]
        assert level.stats().descriptors == 1


async def test_sweeping_goes_on_by_itself(
    peers: Peers, autojump_clock: trio.testing.MockClock
) -> None:
    chunk, _ = peers.add()
    clock = ManualClock()
    async with opened(peers, clock) as level:
        await fill(level, [chunk])
        clock.now_s += 2 * UNUSED_S_MAX
        await trio.sleep(UNUSED_S_MAX)
        assert level.stats().descriptors == 0


class SlowThread:
    """A system call that waits in its thread until it is let go."""

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call
        self.reached = ThreadEvent()
        self.go = ThreadEvent()

    def __call__(self, *args: object) -> object:
        self.reached.set()
        assert self.go.wait(10)
        return self._call(*args)

    async def until_reached(self) -> None:
        await trio.to_thread.run_sync(self.reached.wait, 10)
        assert self.reached.is_set()


End = Callable[[LocalLevel, Peers], Awaitable[None]]


async def evict(level: LocalLevel, peers: Peers) -> None:
    await fill(level, [peers.add(seed=9)[0]])


async def discard(level: LocalLevel, peers: Peers) -> None:
    level.discard(peers.asked[0].id)


async def close(level: LocalLevel, peers: Peers) -> None:
    level.close()


@pytest.mark.parametrize("end", [evict, discard, close])
async def test_a_descriptor_that_a_thread_reads_is_closed_afterwards(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, end: End
) -> None:
    chunk, body = peers.add()
    found = []

    async def read(level: LocalLevel) -> None:
        found.append(content(await level.read(chunk, 0, 10)))

    async with opened(peers, descriptors_max=1) as level:
        await fill(level, [chunk])
        await refuse_inline(errno.EAGAIN, monkeypatch)
        slow = SlowThread(os.pread)
        monkeypatch.setattr(os, "pread", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, level)
            await slow.until_reached()
            await end(level, peers)
            assert level.stats().descriptors == (1 if end is evict else 0)
            # A number that is free would be taken by the next who opens something.
            other = os.open("/", os.O_RDONLY)
            slow.go.set()
        os.close(other)
        assert found == [body[:10]]


@pytest.mark.parametrize("call", ["pread", "posix_fadvise"])
async def test_a_reader_that_is_cancelled_leaves_no_descriptor(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    chunk, _ = peers.add()
    verb = LocalLevel.warm if call == "posix_fadvise" else LocalLevel.read
    arguments = () if call == "posix_fadvise" else (0, 10)
    async with opened(peers) as level:
        await fill(level, [chunk])
        await refuse_inline(errno.EAGAIN, monkeypatch)
        slow = SlowThread(getattr(os, call))
        monkeypatch.setattr(os, call, slow)
        before = len(descriptors())
        async with trio.open_nursery() as nursery:
            # More than there are threads: the others wait for one when they are cancelled.
            for _ in range(10):
                nursery.start_soon(verb, level, chunk, *arguments)
            await slow.until_reached()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            slow.go.set()
        assert len(descriptors()) == before


async def test_many_readers_of_a_damaged_block_find_one_damage(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, _ = peers.add()
    peers.flip_a_bit(chunk, 0)
    async with opened(peers) as level:
        await fill(level, [chunk])
        await refuse_inline(errno.EAGAIN, monkeypatch)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(level.read, chunk, 0, 10)
        assert level.stats().corrupt == 1
    assert len(caplog.records) == 1
    caplog.clear()


async def test_no_descriptor_is_needed_to_read_what_is_open(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk, body = peers.add()
    async with opened(peers) as level:
        await fill(level, [chunk])
        await refuse_inline(errno.EAGAIN, monkeypatch)
        # The threads of trio are there already.
        assert await level.read(chunk, 0, 1) is not None
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            assert content(await level.read(chunk, 100_000, SIZE)) == body[100_000:]
            assert await level.warm(chunk)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


LENGTH_MAX = 4 * BLOCK_SIZE_BYTES
ACTIONS = st.one_of(
    st.tuples(
        st.sampled_from(["get", "read"]), st.integers(0, LENGTH_MAX), st.integers(1, LENGTH_MAX)
    ),
    st.tuples(st.sampled_from(["sweep", "discard", "warm", "flip"]), st.just(0), st.just(0)),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    length=st.integers(64 * KIB, LENGTH_MAX),
    has_sums=st.booleans(),
    is_waiting=st.booleans(),
    actions=st.lists(ACTIONS, max_size=30),
)
async def test_whatever_is_served_is_right(
    tmp_path: Path,
    length: int,
    actions: list[tuple[str, int, int]],
    *,
    has_sums: bool,
    is_waiting: bool,
) -> None:
    """Nothing but the chunk's bytes comes, damaged or not; and without damage they do come."""
    peers = Peers(tmp_path)
    peers.has_sums = has_sums
    clock = ManualClock()
    chunk, body = peers.add(length)
    is_damaged = False
    async with opened(peers, clock) as level:
        level._reads_inline = not is_waiting
        for action, first, more in actions:
            start = first % length
            end = min(length, start + more)
            if action == "get":
                assert content(level.get(chunk, start, end)) in {None, body[start:end]}
            elif action == "read":
                found = content(await level.read(chunk, start, end))
                assert found == body[start:end] or (found is None and is_damaged)
            elif action == "sweep":
                clock.now_s += UNUSED_S_MAX + 1
                level.sweep()
            elif action == "discard":
                level.discard(chunk.id)
            elif action == "warm":
                assert await level.warm(chunk) or is_damaged
            elif not is_damaged and level.stats().descriptors == 0:
                # While a descriptor is open, what was verified once is believed.
                peers.flip_a_bit(chunk, length // 2)
                is_damaged = True
    peers.path(chunk).unlink()


async def test_a_large_chunk_is_read_in_pieces_of_any_size(peers: Peers) -> None:
    chunk, body = peers.add(4 * MIB)
    async with opened(peers) as level:
        for start in range(0, 4 * MIB, 100_003):
            end = min(4 * MIB, start + 100_003)
            assert content(await level.read(chunk, start, end)) == body[start:end]


# --- what happens to a file that was verified ----------------------------------------------------


@WITH_AND_WITHOUT_SUMS
async def test_a_bit_that_flips_behind_the_comparison_is_not_served(
    peers: Peers, has_sums: bool
) -> None:
    peers.has_sums = has_sums
    chunk, body = peers.add()
    damaged: list[tuple[ChunkId, PeerNumber]] = []
    async with opened(peers, on_damaged=lambda *copy: damaged.append(copy)) as level:
        assert content(await level.read(chunk, 0, SIZE)) == body
        peers.flip_a_bit(chunk, 70_000)
        assert await level.read(chunk, 65_536, 65_600) is None
        assert level.get(chunk, 65_536, 65_600) is None
        assert level.is_damaged(chunk.id)
    assert damaged == [(chunk.id, PEER)]


async def test_a_file_that_was_changed_and_is_right_is_read_on(peers: Peers) -> None:
    chunk, body = peers.add()
    async with opened(peers) as level:
        assert content(await level.read(chunk, 0, SIZE)) == body
        peers.flip_a_bit(chunk, 5)
        peers.flip_a_bit(chunk, 5)
        assert content(await level.read(chunk, 0, 10)) == body[:10]
        assert not level.is_damaged(chunk.id)


async def test_a_comparison_is_believed_for_a_while_only(peers: Peers) -> None:
    chunk, body = peers.add()
    skip_unless_read_without_waiting(peers.path(chunk).parent)
    clock = ManualClock()
    async with opened(peers, clock) as level:
        assert content(await level.read(chunk, 0, SIZE)) == body
        entry = level._entries[chunk.id]
        assert entry.unknown_count == 0
        clock.now_s += BELIEVED_S_MAX + 1
        assert content(level.get(chunk, 0, 10)) == body[:10]
        assert entry.unknown_count == block_count(SIZE) - 1


async def test_what_the_disk_is_asked_for_again_is_compared_again(peers: Peers) -> None:
    chunk, body = peers.add()
    async with opened(peers) as level:
        assert content(await level.read(chunk, 0, SIZE)) == body
        entry = level._entries[chunk.id]
        assert await level.warm(chunk)
        assert entry.unknown_count == block_count(SIZE)
        level._reads_inline = False
        assert content(await level.read(chunk, 0, 10)) == body[:10]
        assert entry.unknown_count == block_count(SIZE) - 1
