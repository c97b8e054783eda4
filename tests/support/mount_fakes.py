"""The parts of a mount that talk to a space, over a `FakeSpace`, for tests without a kernel.

Several mounts may share a space. Every call suspends at least twice, before it is served and before
its answer arrives, so that interleavings happen; a `Script` decides which calls are held up, fail
or take long.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import trio

from mictlanfs import wire
from mictlanfs.client.chunks import ChunkStore
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import (
    MIB,
    Attributes,
    BucketPolicy,
    Buffer,
    Chunk,
    ChunkId,
    InodeNumber,
    Node,
)
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs_mount.content import EXTENTS_MAX_DEFAULT, Content
from mictlanfs_mount.filesystem import Caller, FileSystem
from mictlanfs_mount.inodes import InodeTable
from tests.support.mount_space import START_NS, FakeSpace

CALLER = Caller(1000, 1001)


class FakeClock:
    """trio's clock as both clocks; no two wall times are equal."""

    def __init__(self) -> None:
        self._readings = itertools.count()

    def wall_ns(self) -> int:
        return START_NS + int(trio.current_time() * 1e9) + next(self._readings)

    def monotonic_s(self) -> float:
        return trio.current_time()


# --- what happens to calls -----------------------------------------------------------------------


class Hold:
    """One call, stopped at one point. `reached` is set when it is there."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self._released = trio.Event()

    def release(self) -> None:
        self._released.set()

    async def stop(self) -> None:
        self.reached.set()
        await self._released.wait()


class Script:
    """Where calls are held, what fails, how long each step takes.

    A call named NAME passes the point `NAME:asked` before it is served and `NAME:served` before
    its answer arrives. Calls are the verbs of the router (`node`, `lookup`, `extents`, `list`,
    `xattrs`, `statfs`), the operations of a session by class (`WriteExtents`), `sync`, `store` and
    `fetch`.

    Attributes:
        counts: how often each point was passed.
        delay_s: how long a point takes; None: one checkpoint.
        failure: the error, if any, that a call meets at a point.
        violations: what a caller did that it must not; they fail the test at its end.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.delay_s: Callable[[str], float] | None = None
        self.failure: Callable[[str], Exception | None] | None = None
        self.violations: list[str] = []
        self._holds: dict[str, list[Hold]] = defaultdict(list)
        self._failures: dict[str, list[Exception]] = defaultdict(list)

    def hold(self, point: str) -> Hold:
        """Stop the next call at `point`."""
        hold = Hold()
        self._holds[point].append(hold)
        return hold

    def fail(self, point: str, error: Exception, count: int = 1) -> None:
        """Let the next `count` calls fail at `point`."""
        self._failures[point] += [error] * count

    def recover(self) -> None:
        """Nothing fails any more."""
        self._failures.clear()
        self.failure = None

    def asked(self, *names: str) -> int:
        """How many calls of these names were made; without names: of all."""
        return sum(
            count
            for point, count in self.counts.items()
            if point.endswith(":asked") and (not names or point.removesuffix(":asked") in names)
        )

    async def passing(self, point: str) -> None:
        self.counts[point] += 1
        if self._holds[point]:
            await self._holds[point].pop(0).stop()
        if self.delay_s is None:
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(self.delay_s(point))
        if self._failures[point]:
            raise copy.copy(self._failures[point].pop(0))
        error = self.failure(point) if self.failure is not None else None
        if error is not None:
            raise copy.copy(error)


# --- the parts of a mount ------------------------------------------------------------------------


class FakeRouter:
    """The reads of `RouterClient`."""

    def __init__(self, space: FakeSpace, script: Script) -> None:
        self._space = space
        self._script = script

    async def lookup(self, request: wire.Lookup) -> Node:
        await self._script.passing("lookup:asked")
        node = self._space.lookup(request)
        await self._script.passing("lookup:served")
        return node

    async def node(self, request: wire.GetNode) -> Node:
        await self._script.passing("node:asked")
        node = self._space.node(request.ino, request.extents_max, request.inline_max)
        await self._script.passing("node:served")
        return node

    async def extents(self, request: wire.GetExtents) -> wire.ExtentPage:
        await self._script.passing("extents:asked")
        page = self._space.extents(request)
        await self._script.passing("extents:served")
        return page

    async def list(self, request: wire.ListDirectory) -> wire.ListPage:
        await self._script.passing("list:asked")
        page = self._space.page(request)
        await self._script.passing("list:served")
        return page

    async def xattrs(self, ino: InodeNumber) -> dict[bytes, bytes]:
        await self._script.passing("xattrs:asked")
        values = self._space.xattrs(ino)
        await self._script.passing("xattrs:served")
        return values

    async def statfs(self) -> wire.StatFs:
        await self._script.passing("statfs:asked")
        answer = wire.StatFs(100 * MIB, 60 * MIB, 10, 20)
        await self._script.passing("statfs:served")
        return answer

    async def bucket_use(self, ino: InodeNumber) -> wire.BucketUse:
        await self._script.passing("bucket_use:asked")
        use = self._space.bucket_use(ino)
        await self._script.passing("bucket_use:served")
        return use


@dataclass(eq=False)
class _Request:
    op: wire.Operation
    sync: bool
    done: trio.Event = field(default_factory=trio.Event)
    touched: tuple[Attributes, ...] = ()
    error: Exception | None = None


class FakeSession:
    """The changes of `Session`: applied in the order of the calls, answered in any.

    As there, an operation whose caller gave up may be applied nevertheless.
    """

    _numbers = itertools.count(1)

    def __init__(self, space: FakeSpace, script: Script, nursery: trio.Nursery) -> None:
        self._space = space
        self._script = script
        self._nursery = nursery
        self._waiting: deque[_Request] = deque()
        self._has_work = trio.Event()
        self._is_durable = True
        self.number = next(self._numbers)
        nursery.start_soon(self._serve)

    async def new_inode(self) -> InodeNumber:
        return self._space.new_inode()

    async def apply(
        self,
        op: wire.Operation,
        *,
        sync: bool = False,
        deadline_s: float | None = None,
        is_covered: bool = False,
    ) -> tuple[Attributes, ...]:
        request = _Request(op, sync)
        self._waiting.append(request)
        self._has_work.set()
        try:
            with trio.move_on_after(30.0 if deadline_s is None else deadline_s):
                await request.done.wait()
        finally:
            if request in self._waiting:
                self._waiting.remove(request)
        if request.error is not None:
            raise request.error
        if not request.done.is_set():
            raise MictlanError(Kind.TIMED_OUT, "commit")
        return request.touched

    @property
    def is_durable(self) -> bool:
        """Whether all that was applied was asked to be durable."""
        return self._is_durable

    def hurry(self) -> None:
        """Nothing is posted here."""

    async def sync(self) -> None:
        if self._is_durable:
            return
        await self._script.passing("sync:asked")
        self._is_durable = True
        await self._script.passing("sync:served")

    async def _serve(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work = trio.Event()
            while self._waiting:
                await self._apply(self._waiting.popleft())

    async def _apply(self, request: _Request) -> None:
        try:
            await self._script.passing(f"{type(request.op).__name__}:asked")
            request.touched = self._space.apply(self.number, request.op)
        except AssertionError:
            # What no mount may ask for must fail the test, not the caller, who would try again.
            raise
        except Exception as error:  # noqa: BLE001 - It is the caller's.
            request.error = error
            request.done.set()
        else:
            self._is_durable = request.sync
            self._nursery.start_soon(self._answer, request)

    async def _answer(self, request: _Request) -> None:
        try:
            await self._script.passing(f"{type(request.op).__name__}:served")
        except Exception as error:  # noqa: BLE001 - It is the caller's.
            request.error = error
        request.done.set()


class FakeChunks:
    """The storing side of `ChunkStore`."""

    def __init__(self, space: FakeSpace, script: Script) -> None:
        self._space = space
        self._script = script

    async def store(self, pieces: Sequence[Buffer], policy: BucketPolicy) -> Chunk:
        content = b"".join(pieces)
        await self._script.passing("store:asked")
        chunk = self._space.keep(content)
        await self._script.passing("store:served")
        if b"".join(pieces) != content:
            self._script.violations.append("pieces changed while they were stored")
        return chunk


class FakeCache:
    """A chunk cache that keeps what was read whole.

    Attributes:
        held: chunks at hand.
        reads: what was read that was not at hand: chunk, start, end, whether the whole was wanted.
        prefetched: what was to be fetched in the background, in order.
        opened_ahead: what was to be opened before it is read.
    """

    def __init__(self, space: FakeSpace, script: Script) -> None:
        self._space = space
        self._script = script
        self.held: dict[ChunkId, bytes] = {}
        self.reads: list[tuple[Chunk, int, int, bool]] = []
        self.prefetched: list[Chunk] = []
        self.opened_ahead: list[Chunk] = []

    def get_now(self, chunk: Chunk, start: int, end: int) -> Buffer | None:
        body = self.held.get(chunk.id)
        return None if body is None else memoryview(body)[start:end]

    async def read(self, chunk: Chunk, start: int, end: int, *, whole: bool) -> Buffer:
        assert 0 <= start < end <= chunk.length
        self.reads.append((chunk, start, end, whole))
        await self._script.passing("fetch:asked")
        body = self._space.chunks.get(chunk.id)
        await self._script.passing("fetch:served")
        if not body:
            raise MictlanError(Kind.CORRUPT, "get chunk", chunk.id.hex())
        if whole:
            self.held[chunk.id] = body
        return memoryview(body)[start:end]

    def prefetch(self, chunk: Chunk) -> bool:
        self.prefetched.append(chunk)
        return True

    def prefetch_together(self, chunks: Sequence[Chunk]) -> None:
        self.prefetched += chunks

    def open_ahead(self, chunks: Sequence[Chunk]) -> None:
        self.opened_ahead += chunks

    def insert(self, chunk: Chunk, pieces: Sequence[Buffer]) -> None:
        body = b"".join(pieces)
        assert len(body) == chunk.length
        self.held[chunk.id] = body


@dataclass
class FakeMount:
    """A file system over a fake space, and what it is made of."""

    space: FakeSpace
    script: Script
    session: FakeSession
    cache: FakeCache
    inodes: InodeTable
    content: Content
    filesystem: FileSystem
    nursery: trio.Nursery

    async def read_all(self, ino: InodeNumber) -> bytes:
        """The file as an application sees it that opens it now."""
        handle = (await self.filesystem.open(ino, 0)).handle
        size = self.filesystem.attributes_of(self.filesystem.handles.file(handle).inode).size
        content = bytes(await self.filesystem.read(handle, 0, size + 1))
        await self.filesystem.release(handle)
        return content


@asynccontextmanager
async def open_mount(
    space: FakeSpace | None = None,
    *,
    script: Script | None = None,
    attr_timeout_s: float = 1.0,
    dirty_size_bytes_max: int = 64 * MIB,
    deadline_s: float = 30.0,
    sync_on_close: bool = False,
    seals_aged: bool = False,
    inline_size_max: int = 0,
    extents_max: int = EXTENTS_MAX_DEFAULT,
) -> AsyncIterator[FakeMount]:
    """A mount of a space, without a kernel; its tasks are cancelled at the end.

    Args:
        seals_aged: whether old windows are sent by themselves. It never ends by itself, so a test
            with a jumping clock that waits for something that never comes would not fail.
    """
    space = space or FakeSpace()
    script = script or Script()
    cache, inodes = FakeCache(space, script), InodeTable()
    router = cast("RouterClient", FakeRouter(space, script))
    clock = FakeClock()
    with raising_single_errors():
        async with trio.open_nursery() as nursery:
            session = FakeSession(space, script, nursery)
            content = Content(
                nursery,
                router,
                cast("Session", session),
                cast("ChunkStore", FakeChunks(space, script)),
                cache,
                inodes,
                clock,
                dirty_size_bytes_max=dirty_size_bytes_max,
                deadline_s=deadline_s,
                inline_size_max=inline_size_max,
                extents_max=extents_max,
            )
            filesystem = FileSystem(
                router,
                cast("Session", session),
                content,
                inodes,
                clock,
                attr_timeout_s=attr_timeout_s,
                sync_on_close=sync_on_close,
            )
            if seals_aged:
                nursery.start_soon(content.writeback.seal_aged_windows)
            yield FakeMount(space, script, session, cache, inodes, content, filesystem, nursery)
            nursery.cancel_scope.cancel()
    assert script.violations == []
