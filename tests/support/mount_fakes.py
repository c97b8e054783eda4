"""A space in memory, and the parts of a mount that talk to it, for tests without servers or kernel.

`FakeSpace` is a small honest model of what router and peers keep: names, inodes, extents, chunks,
sustained inodes. Several mounts may share one. Every call suspends at least twice, before it is
served and before its answer arrives, so that interleavings happen; a `Script` decides which calls
are held up, fail or take long.
"""

from __future__ import annotations

import copy
import itertools
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, cast

import msgspec
import trio

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.client.chunks import ChunkStore
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.intervals import overlap, subtract
from mictlanfs.model import (
    KIB,
    MIB,
    ROOT_INODE,
    Attributes,
    BucketPolicy,
    Buffer,
    Chunk,
    ChunkId,
    Extent,
    FileKind,
    InodeNumber,
    Node,
    PeerNumber,
)
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs_mount.content import Content
from mictlanfs_mount.filesystem import Caller, FileSystem
from mictlanfs_mount.inodes import InodeTable

_offset_of = attrgetter("offset")
START_NS = 1_700_000_000_000_000_000
CALLER = Caller(1000, 1001)
# Small chunks, so that tests meet their borders with little data.
CHUNK_SIZE_BYTES = 64 * KIB


def attributes_of(ino: int, kind: FileKind = FileKind.FILE, **changes: Any) -> Attributes:
    """Attributes of some inode; what is not named has a plain value."""
    plain = Attributes(InodeNumber(ino), kind, 0o644, 0, 0, 0, START_NS, START_NS, START_NS, 1)
    return msgspec.structs.replace(plain, **changes)


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


# --- the space -----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Record:
    """An inode as the router keeps it."""

    attributes: Attributes
    parent: InodeNumber
    target: bytes = b""
    entries: dict[bytes, InodeNumber] = field(default_factory=dict)
    extents: list[Extent] = field(default_factory=list)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return self.attributes.kind is FileKind.DIRECTORY

    def change(self, time_ns: int, *, content: bool = False, **changes: Any) -> None:
        old = self.attributes
        if content:
            changes = {"mtime_ns": time_ns, "content_version": old.content_version + 1, **changes}
        changes = {"ctime_ns": time_ns, "version": old.version + 1, **changes}
        self.attributes = msgspec.structs.replace(old, **changes)

    def change_content(self, time_ns: int, **changes: Any) -> None:
        allocated = sum(extent.length for extent in self.extents)
        self.change(time_ns, content=True, allocated=allocated, **changes)

    def change_names(self, time_ns: int, *, nlink: int = 0) -> None:
        changed = self.attributes.nlink + nlink
        self.change(time_ns, content=True, size=len(self.entries), nlink=changed)

    def cut_out(self, start: int, end: int) -> None:
        first = max(bisect_right(self.extents, start, key=_offset_of) - 1, 0)
        last = bisect_left(self.extents, end, key=_offset_of)
        self.extents[first:last] = [
            Extent(low, high - low, row.chunk_id, row.chunk_offset + low - row.offset)
            for row in self.extents[first:last]
            for low, high in subtract(row.offset, row.end, start, end)
        ]

    def put(self, extent: Extent) -> None:
        self.cut_out(extent.offset, extent.end)
        insort(self.extents, extent, key=_offset_of)


class FakeSpace:
    """What router and peers keep. Methods take effect at once.

    Attributes:
        chunks: bytes of every chunk stored; a lost one is empty.
        policy: of everything in it.
        extents_page: how many extents fit into one answer.
        applied: every operation that took effect, with the session that made it.
    """

    def __init__(self, chunk_size: int = CHUNK_SIZE_BYTES) -> None:
        root = attributes_of(ROOT_INODE, FileKind.DIRECTORY, mode=0o755, nlink=2, version=1)
        self._records = {ROOT_INODE: _Record(root, ROOT_INODE)}
        self._sustained: dict[InodeNumber, set[int]] = defaultdict(set)
        self._next_ino = itertools.count(2)
        self._known_chunks: dict[ChunkId, Chunk] = {}
        self.chunks: dict[ChunkId, bytes] = {}
        self.policy = BucketPolicy(chunk_size=chunk_size)
        self.extents_page = wire.EXTENTS_PAGE_MAX
        self.applied: list[tuple[int, wire.Operation]] = []
        self.bucket = self.add(ROOT_INODE, b"bucket", FileKind.DIRECTORY)

    # --- for tests ---

    def new_inode(self) -> InodeNumber:
        return InodeNumber(next(self._next_ino))

    def add(
        self,
        parent: InodeNumber,
        name: bytes,
        kind: FileKind = FileKind.FILE,
        content: bytes = b"",
        target: bytes = b"",
        mode: int = 0o755,
    ) -> InodeNumber:
        """Another mount made this."""
        ino = self.new_inode()
        self.apply(0, wire.MakeNode(parent, name, ino, kind, mode, 0, 0, START_NS, 0, target))
        if content:
            self.write(ino, 0, content)
        return ino

    def write(self, ino: InodeNumber, offset: int, content: bytes) -> None:
        """Another mount wrote and flushed this."""
        chunk = self.keep(content)
        extent = Extent(offset, len(content), chunk.id, 0)
        self.apply(0, wire.WriteExtents(ino, (extent,), (chunk,), extent.end, START_NS))

    def keep(self, content: bytes) -> Chunk:
        """Store a chunk."""
        chunk_id = ChunkId(len(self.chunks).to_bytes(16, "big"))
        self.chunks[chunk_id] = content
        return Chunk(chunk_id, len(content), digest_of([content]), (PeerNumber(1),))

    def exists(self, ino: InodeNumber) -> bool:
        return ino in self._records

    def attributes(self, ino: InodeNumber) -> Attributes:
        return self._record(ino).attributes

    def content(self, ino: InodeNumber) -> bytes:
        """The committed bytes of a file."""
        record = self._record(ino)
        content = bytearray(record.attributes.size)
        for extent in record.extents:
            start, end = extent.chunk_offset, extent.chunk_offset + extent.length
            content[extent.offset : extent.end] = self.chunks[extent.chunk_id][start:end]
        return bytes(content)

    def lose_unnamed_chunks(self) -> None:
        """The peers delete what no file refers to any more."""
        records = self._records.values()
        named = {extent.chunk_id for record in records for extent in record.extents}
        self.chunks.update(dict.fromkeys(self.chunks.keys() - named, b""))

    # --- reads ---

    def _record(self, ino: InodeNumber) -> _Record:
        if ino not in self._records:
            raise MictlanError(Kind.NOT_FOUND, "find", str(ino))
        return self._records[ino]

    def _directory(self, ino: InodeNumber) -> _Record:
        record = self._record(ino)
        if not record.is_directory:
            raise MictlanError(Kind.NOT_DIRECTORY, "find", str(ino))
        return record

    def _entry(self, parent: InodeNumber, name: bytes) -> _Record:
        ino = self._directory(parent).entries.get(name)
        if ino is None:
            raise MictlanError(Kind.NOT_FOUND, "find", name.decode())
        return self._record(ino)

    def node(self, ino: InodeNumber, extents_max: int = 0) -> Node:
        record = self._record(ino)
        extents = tuple(record.extents[: min(extents_max, self.extents_page)])
        return Node(
            record.attributes,
            record.target,
            extents,
            self._chunks_of(extents),
            len(extents) == len(record.extents),
            None if ino == ROOT_INODE else self.policy,
        )

    def _chunks_of(self, extents: Sequence[Extent]) -> tuple[Chunk, ...]:
        named = dict.fromkeys(extent.chunk_id for extent in extents)
        return tuple(self._known_chunks[chunk_id] for chunk_id in named)

    def lookup(self, request: wire.Lookup) -> Node:
        if request.name == b".":
            return self.node(self._directory(request.parent).attributes.ino)
        if request.name == b"..":
            return self.node(self._directory(request.parent).parent)
        return self.node(self._entry(request.parent, request.name).attributes.ino)

    def extents(self, request: wire.GetExtents) -> wire.ExtentPage:
        record = self._record(request.ino)
        found = [extent for extent in record.extents if extent.end > request.offset]
        count_max = min(request.extents_max, self.extents_page)
        end = found[count_max].offset if len(found) > count_max else None
        page = tuple(found[:count_max])
        version = record.attributes.content_version
        return wire.ExtentPage(page, self._chunks_of(page), end, version)

    def page(self, request: wire.ListDirectory) -> wire.ListPage:
        record = self._directory(request.ino)
        names = sorted(name for name in record.entries if name > request.after)
        page = names[: request.entries_max]
        entries = tuple(wire.Entry(name, self.node(record.entries[name])) for name in page)
        return wire.ListPage(entries, record.attributes, record.parent, len(page) == len(names))

    def xattrs(self, ino: InodeNumber) -> dict[bytes, bytes]:
        return dict(self._record(ino).xattrs)

    # --- operations: each checks everything, then changes ---

    def apply(self, session: int, op: wire.Operation) -> tuple[Attributes, ...]:
        """Apply an operation for a session; 0 is some other mount."""
        match op:
            case wire.MakeNode():
                touched = self._make(op)
            case wire.Link():
                touched = self._link(op)
            case wire.Unlink() | wire.RemoveDirectory():
                touched = self._remove(session, op)
            case wire.Rename():
                touched = self._rename(session, op)
            case wire.SetAttributes():
                touched = self._set_attributes(op)
            case wire.SetXattr() | wire.RemoveXattr():
                touched = self._change_xattr(op)
            case wire.WriteExtents():
                touched = self._write_extents(op)
            case wire.Release():
                touched = self._release(session, op)
            case _:
                raise MictlanError(Kind.UNSUPPORTED, "apply", type(op).__name__)
        self.applied.append((session, op))
        return tuple(record.attributes for record in touched)

    def _make(self, op: wire.MakeNode) -> list[_Record]:
        parent = self._directory(op.parent)
        if op.name in parent.entries:
            raise MictlanError(Kind.EXISTS, "make", op.name.decode())
        if op.parent == ROOT_INODE and op.kind is not FileKind.DIRECTORY:
            raise MictlanError(Kind.NOT_PERMITTED, "make", op.name.decode())
        assert op.ino not in self._records
        is_directory = op.kind is FileKind.DIRECTORY
        attributes = Attributes(
            op.ino, op.kind, op.mode, op.uid, op.gid, len(op.target), op.time_ns, op.time_ns,
            op.time_ns, 1 + is_directory, op.rdev, 0, 1, 1,
        )  # fmt: skip
        self._records[op.ino] = _Record(attributes, op.parent, op.target)
        parent.entries[op.name] = op.ino
        parent.change_names(op.time_ns, nlink=int(is_directory))
        return [self._records[op.ino], parent]

    def _link(self, op: wire.Link) -> list[_Record]:
        parent, record = self._directory(op.parent), self._record(op.ino)
        if op.name in parent.entries:
            raise MictlanError(Kind.EXISTS, "link", op.name.decode())
        if record.is_directory or op.parent == ROOT_INODE:
            raise MictlanError(Kind.NOT_PERMITTED, "link", op.name.decode())
        parent.entries[op.name] = op.ino
        record.change(op.time_ns, nlink=record.attributes.nlink + 1)
        parent.change_names(op.time_ns)
        return [record, parent]

    def _remove(self, session: int, op: wire.Unlink | wire.RemoveDirectory) -> list[_Record]:
        parent, record = self._directory(op.parent), self._entry(op.parent, op.name)
        is_rmdir = isinstance(op, wire.RemoveDirectory)
        if is_rmdir and not record.is_directory:
            raise MictlanError(Kind.NOT_DIRECTORY, "remove", op.name.decode())
        if record.is_directory and not is_rmdir:
            raise MictlanError(Kind.IS_DIRECTORY, "remove", op.name.decode())
        if record.entries:
            raise MictlanError(Kind.NOT_EMPTY, "remove", op.name.decode())
        del parent.entries[op.name]
        parent.change_names(op.time_ns, nlink=-int(is_rmdir))
        self._lose_name(session, record, op.time_ns, sustain=op.sustain)
        return [record, parent]

    def _lose_name(self, session: int, record: _Record, time_ns: int, *, sustain: bool) -> None:
        nlink = 0 if record.is_directory else record.attributes.nlink - 1
        record.change(time_ns, nlink=nlink)
        ino = record.attributes.ino
        if nlink == 0 and sustain:
            self._sustained[ino].add(session)
        elif nlink == 0 and not self._sustained[ino]:
            del self._records[ino]

    def _rename(self, session: int, op: wire.Rename) -> list[_Record]:
        parent, new_parent = self._directory(op.parent), self._directory(op.new_parent)
        source = self._entry(op.parent, op.name)
        target_ino = new_parent.entries.get(op.new_name)
        target = None if target_ino is None else self._record(target_ino)
        if op.mode == wire.RenameMode.NO_REPLACE and target is not None:
            raise MictlanError(Kind.EXISTS, "rename", op.new_name.decode())
        if op.mode == wire.RenameMode.EXCHANGE and target is None:
            raise MictlanError(Kind.NOT_FOUND, "rename", op.new_name.decode())
        if target is source:
            return [source, parent, new_parent]
        is_replaced = target is not None and op.mode == wire.RenameMode.REPLACE
        if target is not None and is_replaced:
            _check_replaceable(source, target)
        del parent.entries[op.name]
        new_parent.entries[op.new_name] = source.attributes.ino
        if target is not None and not is_replaced:
            parent.entries[op.name] = target.attributes.ino
            target.parent = op.parent
        source.parent = op.new_parent
        source.change(op.time_ns)
        for directory in (parent, new_parent):
            directory.change_names(op.time_ns)
        if target is None:
            return [source, parent, new_parent]
        if is_replaced:
            self._lose_name(session, target, op.time_ns, sustain=op.sustain)
        else:
            target.change(op.time_ns)
        return [source, parent, new_parent, target]

    def _set_attributes(self, op: wire.SetAttributes) -> list[_Record]:
        record = self._record(op.ino)
        named = ("mode", "uid", "gid", "atime_ns", "mtime_ns")
        changes = {name: getattr(op, name) for name in named if getattr(op, name) is not None}
        if op.size is None:
            record.change(op.time_ns, **changes)
            return [record]
        if record.is_directory:
            raise MictlanError(Kind.IS_DIRECTORY, "setattr", str(op.ino))
        record.cut_out(op.size, 2**63)
        record.change_content(op.time_ns, size=op.size, **changes)
        return [record]

    def _change_xattr(self, op: wire.SetXattr | wire.RemoveXattr) -> list[_Record]:
        record = self._record(op.ino)
        if isinstance(op, wire.SetXattr):
            record.xattrs[op.name] = op.value
        elif record.xattrs.pop(op.name, None) is None:
            raise MictlanError(Kind.NO_DATA, "removexattr", op.name.decode())
        record.change(op.time_ns, has_xattrs=bool(record.xattrs))
        return [record]

    def _write_extents(self, op: wire.WriteExtents) -> list[_Record]:
        record = self._record(op.ino)
        lengths = {chunk.id: chunk.length for chunk in (*self._known_chunks.values(), *op.chunks)}
        before = 0
        for extent in op.extents:
            end = extent.chunk_offset + extent.length
            assert 0 <= extent.chunk_offset < end <= lengths[extent.chunk_id]
            # Nobody acknowledged metadata whose data is not there.
            assert extent.chunk_id in self.chunks
            before = max(before, extent.end)
        self._known_chunks |= {chunk.id: chunk for chunk in op.chunks}
        for extent in op.extents:
            record.put(extent)
        _check_disjoint(record.extents)
        record.change_content(op.time_ns, size=max(record.attributes.size, op.size, before))
        return [record]

    def _release(self, session: int, op: wire.Release) -> list[_Record]:
        holders = self._sustained[op.ino]
        is_holder = session in holders
        holders.discard(session)
        if is_holder and not holders and self._record(op.ino).attributes.nlink == 0:
            del self._records[op.ino]
        return []


def _check_replaceable(source: _Record, target: _Record) -> None:
    if target.is_directory and not source.is_directory:
        raise MictlanError(Kind.IS_DIRECTORY, "rename")
    if source.is_directory and not target.is_directory:
        raise MictlanError(Kind.NOT_DIRECTORY, "rename")
    if target.entries:
        raise MictlanError(Kind.NOT_EMPTY, "rename")


def _check_disjoint(extents: Sequence[Extent]) -> None:
    for one, other in itertools.pairwise(extents):
        assert overlap(one.offset, one.end, other.offset, other.end) is None


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
        node = self._space.node(request.ino, request.extents_max)
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
        self, op: wire.Operation, *, sync: bool = False, deadline_s: float | None = None
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
    """

    def __init__(self, space: FakeSpace, script: Script) -> None:
        self._space = space
        self._script = script
        self.held: dict[ChunkId, bytes] = {}
        self.reads: list[tuple[Chunk, int, int, bool]] = []
        self.prefetched: list[Chunk] = []

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
