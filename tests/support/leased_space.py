"""Mounts with leases over one space, in this process: everything but the kernel and the network.

The router is the real one (gate, leases, handlers, and the metadata rules over SQLite in memory),
its gate running under trio. Each mount has the real client, session and keeper of leases. What is
faked: the network, the peers, the chunk cache and the kernel. A `Script` for each mount decides
which requests are held up, fail or take long: a request is named after its path (`lookup`,
`acquire`, `commit`, `events`, `release`, see `NAMES`).
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest import mock

import trio

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.client.chunks import ChunkStore
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session, open_session
from mictlanfs.client.transport import HttpTransport, Response
from mictlanfs.errors import HTTP_STATUS, Kind, MictlanError
from mictlanfs.identifiers import new_token
from mictlanfs.model import (
    MIB,
    ROOT_INODE,
    Attributes,
    Buffer,
    Chunk,
    ChunkId,
    FileKind,
    InodeNumber,
    Node,
    PeerMap,
    PeerNumber,
    SessionId,
    Struct,
    inline_bodies,
)
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs.uri import parse_routers
from mictlanfs_mount.content import Content
from mictlanfs_mount.inodes import InodeTable
from mictlanfs_mount.leased import LeasedFileSystem
from mictlanfs_mount.leasekeeper import LeaseKeeper
from mictlanfs_mount.leases import LeaseTable
from mictlanfs_server.metadata import apply
from mictlanfs_server.metadata.base import KeysFound, MetadataStore, SessionRecord
from mictlanfs_server.metadata.migrations import migrate
from mictlanfs_server.metadata.sqlite_keys import SqliteKeys
from mictlanfs_server.metadata.sqlite_reads import SqliteReads
from mictlanfs_server.metadata.sqlite_rows import SqliteRows
from mictlanfs_server.metadata.sqlite_upkeep import save_peers
from mictlanfs_server.router import gate as gate_module
from mictlanfs_server.router.gate import LeasedAnswer, LeaseGate
from mictlanfs_server.router.handlers import RouterHandlers
from mictlanfs_server.router.sessions import SessionTable
from mictlanfs_server.router.settings import RouterSettings
from mictlanfs_server.router.upkeep.desk import UpkeepDesk
from mictlanfs_server.router.upkeep.healer import Healer
from tests.support.kernelreads import read_again
from tests.support.mount_fakes import FakeCache, FakeChunks, FakeClock, Script
from tests.support.mount_space import START_NS, FakeSpace
from tests.unit.server.metadata.space import PEERS, peer_info

T = TypeVar("T")
URI = "mictlanx://router@router:60666/?protocol=http"
BASE_URL = "http://router:60666"
# The last part of a path names the request in scripts.
NAMES = {path: path.rsplit("/", 1)[-1] for path in vars(wire.Path).values() if str(path)[:1] == "/"}


class _Event:
    """An event as those of asyncio are: it can be cleared."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        if self._event.is_set():
            self._event = trio.Event()

    async def wait(self) -> None:
        await self._event.wait()


class _Asyncio:
    """What the gate uses of asyncio, under trio."""

    Event = _Event
    sleep = staticmethod(trio.sleep)

    @staticmethod
    async def wait_for(work: Awaitable[T], timeout_s: float) -> T:
        with trio.move_on_after(timeout_s):
            return await work
        raise TimeoutError


@cache
def _template() -> sqlite3.Connection:
    """A database that was migrated once, to be copied."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metadata.db"
        migrate(path, START_NS)
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        with sqlite3.connect(path) as saved:
            saved.backup(connection)
        saved.close()
    return connection


class MemoryStore:
    """What the gate and the handlers ask of a store. Reads do not suspend; changes do."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        _template().backup(self._connection)
        self.rows = SqliteRows(self._connection)
        self.reads = SqliteReads(self._connection)
        self._keys = SqliteKeys(self._connection)
        self._writer = trio.Lock()
        self.space_id = "space"
        save_peers(self.rows, 2, [peer_info(number) for number in PEERS])

    def close(self) -> None:
        self._connection.close()

    async def _change(self, work: Callable[[], T]) -> T:
        async with self._writer:
            await trio.lowlevel.checkpoint()
            self._connection.execute("BEGIN")
            try:
                result = work()
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
            self.reads.forget_policies()
        await trio.lowlevel.checkpoint()
        return result

    async def open_session(self, request: wire.OpenSession) -> SessionRecord:
        session, now_ns = SessionId(new_token()), self._clock.wall_ns()
        epoch = await self._change(lambda: apply.open_session(self.rows, request, session, now_ns))
        return SessionRecord(session, epoch, "host", 1, request.label, now_ns, request.leases)

    async def close_session(self, session: SessionId) -> None:
        await self._change(lambda: apply.close_session(self.rows, session, self._clock.wall_ns()))

    async def sustain(self, session: SessionId, epoch: int, inodes: Sequence[InodeNumber]) -> None:
        await self._change(lambda: apply.sustain(self.rows, session, epoch, inodes))

    async def take_inodes(self, count: int) -> wire.InodeRange:
        return await self._change(lambda: apply.take_inodes(self.rows, count))

    async def commit(self, batch: wire.Commit) -> bytes:
        now_ns = self._clock.wall_ns()
        return await self._change(lambda: apply.commit_batch(self.rows, batch, now_ns))

    async def root(self) -> Attributes:
        return self.reads.root()

    async def lookup(self, request: wire.Lookup) -> Node:
        return self.reads.lookup(request)

    async def node(self, request: wire.GetNode) -> Node:
        return self.reads.node(request)

    async def extents(self, request: wire.GetExtents) -> wire.ExtentPage:
        return self.reads.extents(request)

    async def inline(self, request: wire.GetInline) -> wire.InlineBodies:
        return self.reads.inline(request)

    async def list_directory(self, request: wire.ListDirectory) -> wire.ListPage:
        return self.reads.list_directory(request)

    async def list_tree(
        self, request: wire.ListTree, is_free: Callable[[wire.Listing], bool]
    ) -> wire.TreePage:
        return self.reads.list_tree(request, is_free)

    async def xattrs(self, request: wire.GetXattrs) -> wire.Xattrs:
        return self.reads.xattrs(request)

    async def records(self, request: wire.GetRecords) -> wire.Records:
        return self.reads.records(request)

    async def path(self, request: wire.GetPath) -> wire.InodePath:
        return self.reads.path(request)

    async def resolve(self, request: wire.Resolve) -> wire.Resolved:
        return self.reads.resolve(request)

    async def keys(self, inodes: Any, places: Any) -> KeysFound:
        return self._keys.find(inodes, places)

    async def bucket_use(self, request: wire.GetBucketUse) -> wire.BucketUse:
        return self.reads.bucket_use(request)


class _NoPeers:
    """A peer map that nobody looks at."""

    peer_map = PeerMap(1, ())


@dataclass(eq=False)
class LeasedSpace:
    """A router and what peers keep.

    Attributes:
        applied: every operation of every batch that was answered, in order.
        refuse: called with each operation before its batch is applied; what it raises is the
            answer to the whole batch.
    """

    clock: FakeClock
    store: MemoryStore
    sessions: SessionTable
    gate: LeaseGate
    handlers: RouterHandlers
    chunks: FakeSpace = field(default_factory=FakeSpace)
    applied: list[wire.Operation] = field(default_factory=list)
    batches: list[wire.Commit] = field(default_factory=list)
    bucket: InodeNumber = ROOT_INODE

    @classmethod
    def new(cls, lease_ttl_s: float = 10.0) -> LeasedSpace:
        clock = FakeClock()
        store = MemoryStore(clock)
        settings = RouterSettings(Path(), lease_ttl_s=lease_ttl_s, session_ttl_s=1e6)
        sessions = SessionTable(clock, settings.session_ttl_s, [])
        metadata = cast("MetadataStore", store)
        gate = LeaseGate(metadata, sessions, clock, lease_ttl_s)
        no_peers = cast("Any", _NoPeers())
        healer = Healer(settings, metadata, no_peers, no_peers, clock)
        desk = UpkeepDesk(metadata, no_peers, no_peers, healer)
        handlers = RouterHandlers(settings, metadata, sessions, no_peers, no_peers, gate, desk)
        space = cls(clock, store, sessions, gate, handlers)
        space.chunks.keep = space.keep  # type: ignore[method-assign]
        return space

    def keep(self, content: bytes) -> Chunk:
        """Store a chunk."""
        chunk_id = ChunkId(len(self.chunks.chunks).to_bytes(16, "big"))
        self.chunks.chunks[chunk_id] = content
        return Chunk(chunk_id, len(content), digest_of([content]), (PeerNumber(1),))

    # --- what is in the database, without asking for leases ---

    def node(self, ino: InodeNumber) -> Node:
        """The inode. Raises NOT_FOUND."""
        return self.store.reads.node(wire.GetNode(ino, 1000, MIB))

    def exists(self, ino: InodeNumber) -> bool:
        try:
            self.node(ino)
        except MictlanError:
            return False
        return True

    def find(self, parent: InodeNumber, name: bytes) -> Node:
        """What a name stands for. Raises NOT_FOUND."""
        return self.store.reads.lookup(wire.Lookup(parent, name))

    def names(self, ino: InodeNumber) -> dict[bytes, InodeNumber]:
        """All names of a directory."""
        names: dict[bytes, InodeNumber] = {}
        after = b""
        while True:
            page = self.store.reads.list_directory(wire.ListDirectory(ino, after))
            names |= {entry.name: entry.node.attributes.ino for entry in page.entries}
            if page.is_last or not page.entries:
                return names
            after = page.entries[-1].name

    def content(self, ino: InodeNumber) -> bytes:
        """The bytes of a file."""
        node = self.node(ino)
        bodies = {chunk.id: self.chunks.chunks.get(chunk.id, b"") for chunk in node.chunks}
        inline = [chunk.id for chunk in node.chunks if not chunk.peers]
        bodies |= dict(
            zip(inline, self.store.reads.inline(wire.GetInline(tuple(inline))).bodies, strict=True)
        )
        content = bytearray(node.attributes.size)
        for extent in node.extents:
            body = bodies[extent.chunk_id][extent.chunk_offset :][: extent.length]
            content[extent.offset : extent.end] = body
        return bytes(content[: node.attributes.size])

    def mode(self, session: Session, key: InodeNumber) -> int:
        """What the router thinks that a session holds."""
        return self.gate.table.mode(session.ref.session, key)

    async def fence(self, session: Session) -> None:
        """End a session that does not know."""
        await self.gate.end(session.ref.session)

    # --- requests ---

    def _keep_inline(self, batch: wire.Commit) -> None:
        """The cache of a mount does not tell chunks of the router from those of peers."""
        for op in batch.ops:
            if isinstance(op, wire.WriteExtents):
                bodies = inline_bodies(op.chunks, op.inline)
                self.chunks.chunks |= {chunk.id: body for chunk, body in bodies}

    async def serve(self, path: str, body: bytes, header: str | None) -> Response:
        """Answer a request as the application of the router does."""
        try:
            for read in self.handlers.reads():
                if read.path == path:
                    session = None if header is None else header.encode()
                    found = await read.handler(wire.decode(body, read.request_type), session)
                    return _response(found)
            route = next(r for r in self.handlers.routes() if r.path == path)
            message = wire.decode(body, route.request_type)
            if isinstance(message, wire.Commit):
                self.batches.append(message)
                self._keep_inline(message)
            answer = await route.handler(message)
            if isinstance(message, wire.Commit):
                self.applied += message.ops
            return _response(answer)
        except MictlanError as error:
            return Response(HTTP_STATUS[error.kind], {}, wire.encode_error(error))


def _response(found: Struct | bytes | LeasedAnswer) -> Response:
    if not isinstance(found, LeasedAnswer):
        return Response(200, {}, found if isinstance(found, bytes) else wire.encode(found))
    if isinstance(found.answer, MictlanError):
        status, body = HTTP_STATUS[found.answer.kind], wire.encode_error(found.answer)
    else:
        status, body = 200, wire.encode(found.answer)
    return Response(status, {wire.HEADER_GRANTS: "1"}, b"".join(wire.frame(found.grants, [body])))


class LeasedNet(HttpTransport):
    """The way of one mount to the router."""

    def __init__(self, space: LeasedSpace, script: Script) -> None:
        self._space = space
        self._script = script

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: Buffer | Sequence[Buffer] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Response:
        path = url.removeprefix(BASE_URL)
        header = (headers or {}).get(wire.HEADER_SESSION)
        assert isinstance(body, bytes)
        with trio.move_on_after(timeout_s):
            await self._script.passing(f"{NAMES[path]}:asked")
            response = await self._space.serve(path, body, header)
            await self._script.passing(f"{NAMES[path]}:served")
            return response
        raise MictlanError(Kind.TIMED_OUT, method, url)

    async def aclose(self) -> None:
        """Nothing is open."""


@dataclass
class FakeKernel:
    """What the kernel was made to forget, in order.

    Attributes:
        keeps_names: as of a kernel that has epochs.
        hold: set, the kernel takes its time.
    """

    keeps_names: bool = True
    changed: list[InodeNumber] = field(default_factory=list)
    names: list[tuple[InodeNumber, bytes]] = field(default_factory=list)
    inodes: list[InodeNumber] = field(default_factory=list)
    pages: list[InodeNumber] = field(default_factory=list)
    dropped: list[tuple[InodeNumber, bytes]] = field(default_factory=list)
    # Whether the lock of a directory was held, each time.
    locked: list[bool] = field(default_factory=list)

    def attributes_changed(self, ino: InodeNumber) -> None:
        self.changed.append(ino)

    def store(self, ino: InodeNumber, body: Buffer) -> bool:
        return False

    async def forget(
        self,
        names: Sequence[tuple[InodeNumber, bytes]],
        inodes: Sequence[InodeNumber],
        *,
        is_awaited: bool = True,
        is_locked: bool = False,
    ) -> None:
        await trio.lowlevel.checkpoint()
        self.names += names
        self.inodes += inodes
        self.locked.append(is_locked)

    async def drop(self, names: Sequence[tuple[InodeNumber, bytes]]) -> None:
        await trio.lowlevel.checkpoint()
        self.dropped += names

    async def forget_pages(self, inodes: Sequence[InodeNumber]) -> None:
        await trio.lowlevel.checkpoint()
        self.pages += inodes


@dataclass
class LeasedMount:
    """One mount, and what it is made of."""

    space: LeasedSpace
    script: Script
    session: Session
    router: RouterClient
    cache: FakeCache
    inodes: InodeTable
    content: Content
    filesystem: LeasedFileSystem
    keeper: LeaseKeeper
    table: LeaseTable
    kernel: FakeKernel
    nursery: trio.Nursery

    async def flush(self) -> None:
        """Wait until everything done here is at the router, bytes as well."""
        for writer in self.content.writeback:
            await writer.store()
        await self.session.flush()

    async def read_all(self, ino: InodeNumber) -> bytes:
        """The file as a program sees it that opens it now."""
        handle = (await self.filesystem.open(ino, 0)).handle
        size = self.filesystem.attributes_of(self.filesystem.handles.file(handle).inode).size
        content = bytes(await read_again(self.filesystem, handle, 0, size + 1))
        await self.filesystem.release(handle)
        return content

    async def list(self, ino: InodeNumber) -> list[bytes]:
        """The names that a program finds that reads a directory now."""
        handle = await self.filesystem.opendir(ino)
        names, index = [], 0
        while True:
            directory = await self.filesystem.readdir(handle, index)
            if index >= directory.count:
                break
            names.append(self.filesystem.listed(directory, index)[0])
            index += 1
        await self.filesystem.releasedir(handle)
        return names


@contextmanager
def gate_under_trio() -> Iterator[None]:
    """Let the gate of the router run under trio."""
    with mock.patch.object(gate_module, "asyncio", _Asyncio):
        yield


@asynccontextmanager
async def open_leased_space(lease_ttl_s: float = 10.0) -> AsyncIterator[LeasedSpace]:
    """A space with one bucket, and the router's look after leases."""
    with gate_under_trio(), raising_single_errors():
        space = LeasedSpace.new(lease_ttl_s)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(space.gate.run)
                await _make_bucket(space)
                yield space
                nursery.cancel_scope.cancel()
        finally:
            space.store.close()


async def _make_bucket(space: LeasedSpace) -> None:
    request = wire.OpenSession(wire.PROTOCOL_VERSION, "host", 1, "maker", False)
    grant = await space.handlers.open_session(request)
    space.bucket = InodeNumber(grant.inodes.first)
    op = wire.MakeNode(
        ROOT_INODE, b"bucket", space.bucket, FileKind.DIRECTORY, 0o777, 0, 0, START_NS
    )
    await space.handlers.commit(wire.Commit(grant.session, grant.epoch, 1, (op,), False))
    await space.handlers.close_session(wire.SessionRef(grant.session, grant.epoch))


@asynccontextmanager
async def open_leased_mount(
    space: LeasedSpace,
    *,
    kind: type[LeasedFileSystem] = LeasedFileSystem,
    script: Script | None = None,
    names_max: int = 10_000,
    dirty_size_bytes_max: int = 64 * MIB,
    deadline_s: float = 30.0,
    inline_size_max: int = 4096,
    seals_aged: bool = False,
    writes_through: bool = False,
) -> AsyncIterator[LeasedMount]:
    """A mount of a space, without a kernel; its tasks are cancelled at the end."""
    script = script or Script()
    cache, inodes = FakeCache(space.chunks, script), InodeTable()
    router = RouterClient(
        parse_routers(URI), LeasedNet(space, script), RetryPolicy(deadline_s=deadline_s)
    )
    inodes.root = ROOT_INODE
    with raising_single_errors():
        async with (
            open_session(
                router, "mount", deadline_s=deadline_s, leases=True, clock=space.clock
            ) as session,
            trio.open_nursery() as nursery,
        ):
            content = Content(
                nursery,
                router,
                session,
                cast("ChunkStore", FakeChunks(space.chunks, script)),
                cache,
                inodes,
                space.clock,
                dirty_size_bytes_max=dirty_size_bytes_max,
                deadline_s=deadline_s,
                inline_size_max=inline_size_max,
            )
            filesystem = kind(router, session, content, inodes, space.clock, attr_timeout_s=1.0)
            table = LeaseTable(space.clock, names_max)
            keeper = filesystem.keeper = LeaseKeeper(router, session, table, space.clock)
            filesystem.writes_through = writes_through
            kernel = FakeKernel()
            filesystem.kernel = kernel
            router.lessee = keeper
            session.on_replaced = keeper.on_grant
            nursery.start_soon(keeper.follow_events, filesystem)
            if seals_aged:
                nursery.start_soon(content.writeback.seal_aged_windows)
            yield LeasedMount(
                space,
                script,
                session,
                router,
                cache,
                inodes,
                content,
                filesystem,
                keeper,
                table,
                kernel,
                nursery,
            )
            nursery.cancel_scope.cancel()
    assert script.violations == []
