"""Close-to-open between two mounts, each under a kernel that believes all it may.

The kernels here keep pages and attributes for as long as they are told that they may, and never
look by themselves. So what a program reads after an open is what was closed before only if
`keep_cache` and what the mount itself remembers are right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from mictlanfs.model import InodeNumber
from mictlanfs_mount.filesystem import Opened
from tests.support.kernelreads import read_again
from tests.support.mount_fakes import FakeMount, open_mount
from tests.support.mount_space import FakeSpace

PAGE = 8
SIZE = 40


class Kernel:
    """The page cache above one mount, for one file."""

    def __init__(self, mount: FakeMount, ino: InodeNumber) -> None:
        self._mount = mount
        self._ino = ino
        self._pages: dict[int, bytes] = {}
        self._old: list[Opened] = []

    async def open(self, flags: int) -> Opened:
        opened = await self._mount.filesystem.open(self._ino, flags)
        if flags & os.O_TRUNC or not opened.keep_cache:
            self._pages.clear()
        return opened

    async def close(self, opened: Opened) -> None:
        await self._mount.filesystem.flush(opened.handle)
        await self._mount.filesystem.release(opened.handle)

    def keep_open(self, opened: Opened) -> None:
        self._old.append(opened)

    async def read_through_an_old_handle(self) -> None:
        """Fill the cache; how old what is read may be is not promised."""
        if self._old:
            await self.read(self._old[0])

    async def read(self, opened: Opened) -> bytes:
        inode = self._mount.filesystem.handles.file(opened.handle).inode
        size = self._mount.filesystem.attributes_of(inode).size
        content = b""
        for index in range(-(-size // PAGE)):
            if index not in self._pages:
                page = await read_again(self._mount.filesystem, opened.handle, index * PAGE, PAGE)
                self._pages[index] = bytes(page).ljust(PAGE, b"\0")
            content += self._pages[index]
        return content[:size]

    async def write(self, opened: Opened, offset: int, data: bytes) -> None:
        await self._mount.filesystem.write(opened.handle, offset, data)
        for index in range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1):
            page = self._pages.get(index)
            start = index * PAGE
            is_whole = offset <= start and start + PAGE <= offset + len(data)
            if page is None and not is_whole:
                continue
            new = bytearray(page or bytes(PAGE))
            low, high = max(offset, start), min(offset + len(data), start + PAGE)
            new[low - start : high - start] = data[low - offset : high - offset]
            self._pages[index] = bytes(new)

    async def truncate(self, size: int) -> None:
        await self._mount.filesystem.setattr(self._ino, size=size)
        # As the kernel does: whole pages go, the rest of the last one is cleared.
        self._pages = {
            index: page[: max(0, size - index * PAGE)].ljust(PAGE, b"\0")
            for index, page in self._pages.items()
            if index * PAGE < size
        }


Writes = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 20)), min_size=0, max_size=4)
Steps = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(
            st.tuples(st.just("read"), st.booleans()),
            st.tuples(st.just("read old"), st.just(False)),
            st.tuples(st.just("write"), Writes),
            st.tuples(st.just("replace"), Writes),
            st.tuples(st.just("truncate"), st.integers(0, SIZE)),
        ),
    ),
    max_size=20,
)


async def run_programs(steps: Sequence[tuple[int, tuple[str, object]]]) -> None:
    space = FakeSpace(chunk_size=16)
    ino = space.add(space.bucket, b"file")
    expected = bytearray()
    number = 0
    async with (
        open_mount(space, attr_timeout_s=1e9) as one,
        open_mount(space, attr_timeout_s=1e9) as two,
    ):
        kernels = [Kernel(one, ino), Kernel(two, ino)]
        for who, (verb, argument) in steps:
            kernel = kernels[who]
            if verb == "read old":
                await kernel.read_through_an_old_handle()
                continue
            flags = {"write": os.O_RDWR, "replace": os.O_RDWR | os.O_TRUNC}.get(verb, os.O_RDONLY)
            opened = await kernel.open(flags)
            if flags & os.O_TRUNC:
                expected.clear()
            if isinstance(argument, list):
                for offset, length in argument:
                    number += 1
                    data = bytes([number]) * length
                    await kernel.write(opened, offset, data)
                    expected.extend(bytes(max(0, offset - len(expected))))
                    expected[offset : offset + length] = data
            elif verb == "truncate":
                assert isinstance(argument, int)
                await kernel.truncate(argument)
                expected = expected[:argument].ljust(argument, b"\0")
            assert await kernel.read(opened) == expected
            if argument is True:
                kernel.keep_open(opened)
            else:
                await kernel.close(opened)


@settings(max_examples=200, deadline=None)
@given(Steps)
def test_what_is_read_after_an_open_is_what_was_closed_before(
    steps: list[tuple[int, tuple[str, object]]],
) -> None:
    trio.run(run_programs, steps)
