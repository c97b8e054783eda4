"""The verbs of the file system against dictionaries, over a space that is slow and fails at random.

In-process with a clock that jumps. Files have several names and several handles at a time, lose
their names while they are open, and are forgotten by the kernel in between. At the end every name
holds what the model says, and nothing is left of what has neither name nor handle.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import InodeNumber
from mictlanfs_mount.filesystem import Caller
from mictlanfs_mount.handles import HandleNumber
from tests.support.mount_fakes import FakeMount, open_mount
from tests.support.mount_space import FakeSpace
from tests.support.thoroughness import examples

WINDOW = 16
SIZE = 100
NAMES = (b"a", b"b", b"c")
DELAYS_S = (0.0, 0.0, 0.001, 0.3, 1.2)
ROOT = Caller(0, 0)
T = TypeVar("T")
PASSING = {Kind.UNAVAILABLE, Kind.TIMED_OUT}


@dataclass(eq=False)
class File:
    """What a file must hold, and how many names it must have."""

    ino: InodeNumber
    content: bytearray = field(default_factory=bytearray)
    nlink: int = 1


@dataclass
class Program:
    """What one example does, on the mount and in dictionaries."""

    mount: FakeMount
    names: dict[bytes, File] = field(default_factory=dict)
    handles: list[tuple[HandleNumber, File]] = field(default_factory=list)
    inos: list[InodeNumber] = field(default_factory=list)
    write_count: int = 0

    async def do(self, step: tuple[str, int, int]) -> None:
        verb, first, second = step
        await getattr(self, verb)(first, second)

    # --- what a program does ---------------------------------------------------------------------

    async def create(self, first: int, second: int) -> None:
        name = NAMES[first % 3]
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        verb = self.mount.filesystem.create(self.bucket, name, 0o644, flags, ROOT)
        if name in self.names:
            await fails_with(Kind.EXISTS, verb)
            return
        opened, inode = await verb
        self.names[name] = File(inode.ino)
        self.inos.append(inode.ino)
        self.handles.append((opened.handle, self.names[name]))

    async def open(self, first: int, second: int) -> None:
        name = NAMES[first % 3]
        if name not in self.names:
            await fails_with(Kind.NOT_FOUND, self.mount.filesystem.lookup(self.bucket, name))
            return
        file = self.names[name]
        inode = await self.mount.filesystem.lookup(self.bucket, name)
        assert inode.ino == file.ino
        # As rarely as programs do it.
        flags = os.O_RDWR | (os.O_TRUNC if second % 4 == 0 else 0)
        opened = await insisted(lambda: self.mount.filesystem.open(file.ino, flags))
        if flags & os.O_TRUNC:
            file.content.clear()
        self.handles.append((opened.handle, file))

    async def close(self, first: int, second: int) -> None:
        if not self.handles:
            return
        handle, _ = self.handles.pop(first % len(self.handles))
        await insisted(lambda: self.mount.filesystem.flush(handle))
        await self.mount.filesystem.release(handle)
        with pytest.raises(OSError, match="no open file") as raised:
            await self.mount.filesystem.read(handle, 0, 1)
        assert raised.value.errno == errno.EBADF

    async def write(self, first: int, second: int) -> None:
        if not self.handles:
            return
        handle, file = self.handles[first % len(self.handles)]
        self.write_count += 1
        data = bytes([self.write_count]) * (1 + second % 40)
        file.content += bytes(max(0, first - len(file.content)))
        file.content[first : first + len(data)] = data
        await insisted(lambda: self.mount.filesystem.write(handle, first, data))

    async def read(self, first: int, second: int) -> None:
        if not self.handles:
            return
        handle, file = self.handles[first % len(self.handles)]
        found = await self.mount.filesystem.read(handle, second, SIZE)
        assert bytes(found) == bytes(file.content[second : second + SIZE])

    async def truncate(self, first: int, second: int) -> None:
        if not self.handles:
            return
        _, file = self.handles[first % len(self.handles)]
        await insisted(lambda: self.mount.filesystem.setattr(file.ino, size=second))
        del file.content[second:]
        file.content += bytes(second - len(file.content))

    async def link(self, first: int, second: int) -> None:
        old, new = NAMES[first % 3], NAMES[second % 3]
        if old not in self.names:
            return
        file = self.names[old]
        verb = self.mount.filesystem.link(file.ino, self.bucket, new)
        if new in self.names:
            await fails_with(Kind.EXISTS, verb)
            return
        await verb
        file.nlink += 1
        self.names[new] = file

    async def unlink(self, first: int, second: int) -> None:
        name = NAMES[first % 3]
        verb = self.mount.filesystem.unlink(self.bucket, name)
        if name not in self.names:
            await fails_with(Kind.NOT_FOUND, verb)
            return
        await verb
        self.names.pop(name).nlink -= 1

    async def rename(self, first: int, second: int) -> None:
        old, new, mode = NAMES[first % 3], NAMES[second % 3], second // 3 % 3
        verb = self.mount.filesystem.rename(self.bucket, old, self.bucket, new, mode)
        if old not in self.names:
            await fails_with(Kind.NOT_FOUND, verb)
        elif mode == wire.RenameMode.NO_REPLACE and new in self.names:
            await fails_with(Kind.EXISTS, verb)
        elif mode == wire.RenameMode.EXCHANGE and new not in self.names:
            await fails_with(Kind.NOT_FOUND, verb)
        else:
            await verb
            self.note_renamed(old, new, mode)

    def note_renamed(self, old: bytes, new: bytes, mode: int) -> None:
        source, target = self.names[old], self.names.get(new)
        if source is target:
            return
        if mode == wire.RenameMode.EXCHANGE and target is not None:
            self.names[old], self.names[new] = target, source
            return
        self.names[new] = self.names.pop(old)
        if target is not None:
            target.nlink -= 1

    async def look(self, first: int, second: int) -> None:
        files = [*self.names.values(), *(file for _, file in self.handles)]
        if not files:
            return
        file = files[first % len(files)]
        inode = await self.mount.filesystem.getattr(file.ino)
        shown = self.mount.filesystem.attributes_of(inode)
        assert (shown.size, shown.nlink) == (len(file.content), file.nlink)

    async def sleep(self, first: int, second: int) -> None:
        await trio.sleep(second / 10)

    # --- what must be true -----------------------------------------------------------------------

    @property
    def bucket(self) -> InodeNumber:
        return self.mount.space.bucket

    async def finish(self) -> None:
        while self.handles:
            await self.close(0, 0)
        assert self.mount.content.writeback.budget.used_bytes == 0
        space = self.mount.space
        named = {file.ino for file in self.names.values()}
        assert {ino for ino in self.inos if space.exists(ino)} == named
        for name, file in self.names.items():
            assert space.lookup(wire.Lookup(self.bucket, name)).attributes.ino == file.ino
            assert space.content(file.ino) == file.content
            assert space.attributes(file.ino).nlink == file.nlink


async def fails_with(kind: Kind, verb: Awaitable[object]) -> None:
    with pytest.raises(MictlanError) as raised:
        await verb
    assert raised.value.kind is kind


async def insisted(verb: Callable[[], Awaitable[T]]) -> T:
    """Do as an application that does not give up: what failed may be done again."""
    while True:
        try:
            return await verb()
        except MictlanError as error:
            if error.kind not in PASSING:
                raise
            await trio.sleep(0.1)


VERBS = (
    *(
        "create",
        "create",
        "open",
        "open",
        "close",
        "close",
        "write",
        "write",
        "write",
        "read",
        "read",
    ),
    *("truncate", "link", "unlink", "unlink", "rename", "rename", "look", "sleep"),
)
Steps = st.lists(
    st.tuples(st.sampled_from(VERBS), st.integers(0, SIZE), st.integers(0, SIZE)),
    min_size=25,
    max_size=80,
)


async def run_program(
    steps: Sequence[tuple[str, int, int]], seed: int, failure_rate: float, attr_timeout_s: float
) -> None:
    chance = random.Random(seed)
    space = FakeSpace(chunk_size=WINDOW)
    space.extents_page = 3

    def failure(point: str) -> Exception | None:
        may_fail = point in {"store:asked", "WriteExtents:asked"}
        if may_fail and chance.random() < failure_rate:
            return MictlanError(Kind.UNAVAILABLE)
        return None

    async with open_mount(
        space, attr_timeout_s=attr_timeout_s, dirty_size_bytes_max=5 * WINDOW, seals_aged=True
    ) as mount:
        program = Program(mount)
        mount.script.delay_s = lambda _: chance.choice(DELAYS_S)
        mount.script.failure = failure
        for step in steps:
            await program.do(step)
        mount.script.recover()
        await program.finish()


@settings(max_examples=examples(60, 1500), deadline=None)
@given(Steps, st.integers(0, 2**32), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 1.0]))
def test_files_are_what_their_names_and_handles_made_them(
    steps: list[tuple[str, int, int]], seed: int, failure_rate: float, attr_timeout_s: float
) -> None:
    clock = MockClock(autojump_threshold=0)
    trio.run(run_program, steps, seed, failure_rate, attr_timeout_s, clock=clock)
