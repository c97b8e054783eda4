"""Reading and writing against a plain bytearray, over a space that is slow and fails at random.

One program writes, truncates and flushes a file while others read it. Whatever the space does, a
read gives one state that the file had while it went on, and what reaches the space is in order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, InodeNumber
from mictlanfs_mount.handles import HandleNumber
from tests.support.mount_fakes import FakeMount, open_mount
from tests.support.mount_space import FakeSpace

# Tiny windows, so that short writes fill, cross and overlap them.
WINDOW = 16
SIZE = 100
DELAYS_S = (0.0, 0.0, 0.001, 0.05, 0.6, 3.0)


@dataclass
class Model:
    """Every state the file has had. A change under way may or may not have happened yet."""

    states: list[bytes] = field(default_factory=lambda: [b""])
    settled: int = 0

    @property
    def content(self) -> bytes:
        return self.states[-1]

    def begin(self, content: bytes) -> None:
        self.states.append(content)

    def end(self) -> None:
        self.settled = len(self.states) - 1


class CheckedSpace(FakeSpace):
    """Checks that no earlier write overtakes a later one: each writes its own number."""

    def apply(self, session: int, op: wire.Operation) -> tuple[Attributes, ...]:
        if not isinstance(op, wire.WriteExtents):
            return super().apply(session, op)
        before = self.content(op.ino)
        touched = super().apply(session, op)
        after = self.content(op.ino)
        assert len(after) >= len(before)
        assert all(new >= old for old, new in zip(before, after, strict=False))
        return touched


@dataclass
class Program:
    """What one example does to one file."""

    mount: FakeMount
    ino: InodeNumber
    handle: HandleNumber
    model: Model = field(default_factory=Model)
    write_count: int = 0

    async def do(self, step: tuple[str, int, int]) -> None:
        verb, first, second = step
        if verb == "write":
            await self.write(first, second)
        elif verb == "read":
            await self.read(first, second)
        elif verb == "truncate":
            await self.truncate(first)
        elif verb == "flush":
            await self.flush()
        else:
            await trio.sleep(second / 10)

    async def write(self, offset: int, length: int) -> None:
        self.write_count += 1
        data = bytes([self.write_count]) * length
        content = bytearray(self.model.content.ljust(offset, b"\0"))
        content[offset : offset + length] = data
        self.model.begin(bytes(content))
        await self.insist(lambda: self.mount.filesystem.write(self.handle, offset, data))
        self.model.end()

    async def truncate(self, size: int) -> None:
        self.model.begin(self.model.content[:size].ljust(size, b"\0"))
        await self.insist(lambda: self.mount.filesystem.setattr(self.ino, size=size))
        self.model.end()

    async def flush(self) -> None:
        await self.insist(lambda: self.mount.filesystem.fsync(self.handle))
        assert self.mount.space.content(self.ino) == self.model.content
        assert self.mount.content.writeback.budget.used_bytes == 0
        assert self.mount.content.writeback.get(self.ino) is None

    async def read(self, offset: int, length: int) -> None:
        first = self.model.settled
        data = await self.mount.filesystem.read(self.handle, offset, length)
        possible = [state[offset : offset + length] for state in self.model.states[first:]]
        assert bytes(data) in possible

    @staticmethod
    async def insist(verb: Callable[[], object]) -> None:
        """Do as an application that does not give up: what failed may be done again."""
        while True:
            try:
                await verb()  # type: ignore[misc]  # Every verb given is a coroutine function.
            except MictlanError as error:
                if error.kind not in {Kind.UNAVAILABLE, Kind.TIMED_OUT}:
                    raise
                await trio.sleep(0.1)
            else:
                return


Offsets, Lengths = st.integers(0, SIZE), st.integers(1, 40)
Steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), Offsets, Lengths),
        st.tuples(st.just("write"), Offsets.map(lambda n: n // WINDOW * WINDOW), st.just(WINDOW)),
        st.tuples(st.just("read"), Offsets, Lengths),
        st.tuples(st.just("truncate"), Offsets, st.just(0)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
        st.tuples(st.just("sleep"), st.just(0), st.integers(0, 30)),
    ),
    max_size=30,
)


async def run_program(
    steps: Sequence[tuple[str, int, int]], seed: int, failure_rate: float
) -> None:
    chance = random.Random(seed)
    space = CheckedSpace(chunk_size=WINDOW)
    # Few in one answer, so that reads need several.
    space.extents_page = 3
    ino = space.add(space.bucket, b"file")
    async with open_mount(space, dirty_size_bytes_max=5 * WINDOW, seals_aged=True) as mount:
        handle = (await mount.filesystem.open(ino, 0)).handle
        program = Program(mount, ino, handle)

        def failure(point: str) -> Exception | None:
            may_fail = point in {"store:asked", "WriteExtents:asked"}
            if may_fail and chance.random() < failure_rate:
                return MictlanError(Kind.UNAVAILABLE)
            return None

        async def read_on() -> None:
            while True:
                await program.read(chance.randrange(SIZE), chance.randrange(1, SIZE))
                await trio.sleep(chance.choice(DELAYS_S) + 0.0001)

        mount.script.delay_s = lambda _: chance.choice(DELAYS_S)
        mount.script.failure = failure
        async with trio.open_nursery() as readers:
            for _ in range(3):
                readers.start_soon(read_on)
            for step in steps:
                await program.do(step)
            readers.cancel_scope.cancel()
        mount.script.recover()
        assert await mount.filesystem.flush_all(1000) == 0
        await program.flush()
        assert await mount.read_all(ino) == program.model.content
        await mount.filesystem.release(handle)


@settings(max_examples=150, deadline=None)
@given(Steps, st.integers(0, 2**32), st.sampled_from([0.0, 0.3]))
def test_file_is_a_bytearray_whatever_the_space_does(
    steps: list[tuple[str, int, int]], seed: int, failure_rate: float
) -> None:
    trio.run(run_program, steps, seed, failure_rate, clock=MockClock(autojump_threshold=0))


@dataclass
class OtherMount:
    """Changes the file again and again; what it replaced is deleted from the peers at once."""

    space: FakeSpace
    ino: InodeNumber
    states: list[bytes] = field(default_factory=lambda: [b""])

    def change(self, chance: random.Random) -> None:
        if chance.random() < 0.3:
            size = chance.randrange(SIZE)
            self.space.apply(0, wire.SetAttributes(self.ino, len(self.states), size=size))
        else:
            data = bytes([1 + len(self.states) % 255]) * chance.randrange(1, 30)
            self.space.write(self.ino, chance.randrange(SIZE), data)
        self.states.append(self.space.content(self.ino))
        if chance.random() < 0.5:
            self.space.lose_unnamed_chunks()


async def read_what_another_mount_changes(seed: int, change_count: int) -> None:
    chance = random.Random(seed)
    space = FakeSpace(chunk_size=WINDOW)
    other = OtherMount(space, space.add(space.bucket, b"file"))
    space.extents_page = 2
    async with open_mount(space, attr_timeout_s=0.05) as mount:
        handle = (await mount.filesystem.open(other.ino, 0)).handle
        mount.script.delay_s = lambda _: chance.choice(DELAYS_S[:4])

        async def read_on() -> None:
            while True:
                offset, length = chance.randrange(SIZE), chance.randrange(1, SIZE)
                await mount.filesystem.getattr(other.ino)
                try:
                    data = bytes(await mount.filesystem.read(handle, offset, length))
                except MictlanError as error:
                    if error.kind not in {Kind.CORRUPT, Kind.BUSY}:
                        raise
                else:
                    assert data in {state[offset : offset + length] for state in other.states}
                await trio.sleep(0.004)

        async with trio.open_nursery() as readers:
            for _ in range(3):
                readers.start_soon(read_on)
            for _ in range(change_count):
                other.change(chance)
                await trio.sleep(chance.choice(DELAYS_S[:4]))
            readers.cancel_scope.cancel()
        mount.script.delay_s = None
        await mount.filesystem.open(other.ino, 0)
        assert await mount.filesystem.read(handle, 0, 2 * SIZE) == other.states[-1]


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_reader_sees_whole_states_of_a_file_that_another_mount_changes(
    seed: int, change_count: int
) -> None:
    clock = MockClock(autojump_threshold=0)
    trio.run(read_what_another_mount_changes, seed, change_count, clock=clock)
