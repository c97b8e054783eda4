"""A router in memory: sessions with numbered batches, a namespace, a peer map.

Simple where a real one is fast: no reference counts, and an operation checks before it changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from mictlanfs import wire
from mictlanfs.client.transport import Response
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import (
    ROOT_INODE,
    Attributes,
    BucketPolicy,
    Chunk,
    ChunkId,
    Extent,
    FileKind,
    InodeNumber,
    Node,
    PeerInfo,
    PeerMap,
    SessionId,
    Struct,
    inline_bodies,
)
from mictlanfs.wirecopies import (
    ClonePeer,
    Drain,
    DrainPeer,
    Locate,
    Located,
    Removed,
    RemovePeer,
    StartUpkeep,
    UpkeepStarted,
)
from mictlanfs.wireverify import ReportCopy
from tests.support.fakenet import Request
from tests.support.ranges import subtract

T = TypeVar("T", bound=Struct)
LIST_PAGE_MAX = 100


@dataclass
class Inode:
    """An inode and what hangs on it."""

    attributes: Attributes
    policy: BucketPolicy | None = None
    target: bytes = b""
    entries: dict[bytes, InodeNumber] = field(default_factory=dict)
    extents: list[Extent] = field(default_factory=list)
    parent: InodeNumber = ROOT_INODE

    def change(self, **values: Any) -> None:
        """Change attributes; every change counts as one of content too."""
        version = self.attributes.version + 1
        self.attributes = msgspec.structs.replace(
            self.attributes, version=version, content_version=version, **values
        )


@dataclass
class FakeRouter:
    """A router that keeps the contract of the protocol.

    Attributes:
        sessions: epoch of each open session.
        reports: complaints of copies.
        commits: every batch received, repeated ones too.
        used: what every bucket is said to use.
        upkeep: requests about copies and peers.
        statuses: what is told to those who ask for the status, in turn; behind them `status`.
        looks: numbers of the looks that requests for upkeep wait for, in turn; then 1.
        trash, snapshots: what is kept.
        before_apply: called with each operation before it is applied; may raise.
        inodes_per_grant, extents_page_max: smaller for tests of what comes after the first.
    """

    url: str = "http://router:60666"
    peers: tuple[PeerInfo, ...] = ()
    peer_map_version: int = 1
    sessions: dict[SessionId, int] = field(default_factory=dict)
    reports: list[ReportCopy] = field(default_factory=list)
    commits: list[wire.Commit] = field(default_factory=list)
    inodes: dict[InodeNumber, Inode] = field(default_factory=dict)
    chunks: dict[ChunkId, Chunk] = field(default_factory=dict)
    inline: dict[ChunkId, bytes] = field(default_factory=dict)
    status: wire.SpaceStatus | None = None
    inodes_per_grant: int = wire.INODE_BATCH_COUNT
    extents_page_max: int = wire.EXTENTS_PAGE_MAX
    used: int = 0
    upkeep: list[Struct] = field(default_factory=list)
    statuses: list[wire.SpaceStatus] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    trash: list[wire.TrashItem] = field(default_factory=list)
    snapshots: list[wire.SnapshotInfo] = field(default_factory=list)
    before_apply: Callable[[wire.Operation], None] = lambda op: None
    _inode_next: int = 2
    _epoch: int = 0
    _applied: dict[SessionId, tuple[int, int, wire.CommitAnswer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        root = Attributes(ROOT_INODE, FileKind.DIRECTORY, 0o755, 0, 0, 0, 0, 0, 0, 2)
        self.inodes[root.ino] = Inode(root)

    # --- for tests -------------------------------------------------------------------------------

    def forget_sessions(self) -> None:
        """Fence everybody, as a router does with sessions it has not heard of for long."""
        self.sessions.clear()

    def find(self, *names: bytes) -> Inode:
        """The inode at a path. KeyError when there is none."""
        inode = self.inodes[ROOT_INODE]
        for name in names:
            inode = self.inodes[inode.entries[name]]
        return inode

    def make(self, kind: FileKind, *names: bytes, mode: int = 0o755, target: bytes = b"") -> Inode:
        """Make an inode directly; the root's children are buckets."""
        parent = self.find(*names[:-1]).attributes.ino
        op = wire.MakeNode(
            parent,
            names[-1],
            InodeNumber(self._take(1).first),
            kind,
            mode,
            7,
            8,
            1000,
            target=target,
        )
        self._make(op)
        return self.find(*names)

    def tree(self, *names: bytes) -> list[bytes]:
        """Every path below a directory."""
        return sorted(self._tree(self.find(*names), b""))

    def _tree(self, inode: Inode, path: bytes) -> Iterator[bytes]:
        for name, ino in inode.entries.items():
            yield path + name
            yield from self._tree(self.inodes[ino], path + name + b"/")

    # --- requests --------------------------------------------------------------------------------

    def handle(self, request: Request) -> Response:
        if request.path == wire.Path.STATUS:
            if self.statuses:
                self.status = self.statuses.pop(0)
            assert self.status is not None
            return Response(200, {}, msgspec.json.encode(self.status))
        kind, answer = _HANDLERS[request.path]
        message = answer(self, wire.decode(request.body, kind))
        headers = {wire.HEADER_PEER_MAP: str(self.peer_map_version)}
        return Response(200, headers, wire.encode(message))

    def _peer_map(self, _: wire.Done) -> PeerMap:
        return PeerMap(self.peer_map_version, self.peers)

    def _open_session(self, request: wire.OpenSession) -> wire.SessionGrant:
        self._epoch += 1
        session = SessionId(f"session-{self._epoch}")
        self.sessions[session] = self._epoch
        return wire.SessionGrant(
            session,
            self._epoch,
            "space",
            30.0,
            5.0,
            self._take(self.inodes_per_grant),
            self.inodes[ROOT_INODE].attributes,
            self._peer_map(wire.Done()),
        )

    def _locate(self, request: Locate) -> Located:
        return Located(tuple([self.chunks.get(chunk_id) for chunk_id in request.ids]))

    def _start_upkeep(self, request: StartUpkeep) -> UpkeepStarted:
        self.upkeep.append(request)
        return UpkeepStarted(self.looks.pop(0) if self.looks else 1)

    def _drain(self, request: DrainPeer) -> Drain:
        self.upkeep.append(request)
        return Drain(7, 2)

    def _remove(self, request: RemovePeer) -> Removed:
        self.upkeep.append(request)
        if not request.force_lost:
            raise MictlanError(Kind.CONFLICT, "remove", request.id, "3 chunks have their only copy")
        return Removed(3)

    def _clone(self, request: ClonePeer) -> wire.Done:
        self.upkeep.append(request)
        return wire.Done()

    def _take(self, count: int) -> wire.InodeRange:
        taken = wire.InodeRange(self._inode_next, count)
        self._inode_next += count
        return taken

    def _take_inodes(self, request: wire.TakeInodes) -> wire.InodeRange:
        self._check(request.session, request.epoch)
        return self._take(request.count)

    def _heartbeat(self, request: wire.SessionRef) -> wire.Done:
        self._check(request.session, request.epoch)
        return wire.Done()

    def _close_session(self, request: wire.SessionRef) -> wire.Done:
        self.sessions.pop(request.session, None)
        return wire.Done()

    def _check(self, session: SessionId, epoch: int) -> None:
        if self.sessions.get(session) != epoch:
            raise MictlanError(Kind.FENCED, "use session", session)

    # --- reads -----------------------------------------------------------------------------------

    def _bodies_of(self, chunks: Sequence[Chunk], inline_max: int) -> tuple[bytes, ...]:
        bodies = [self.inline[chunk.id] for chunk in chunks if not chunk.peers]
        return tuple(bodies) if sum(map(len, bodies)) <= inline_max else ()

    def _get_inline(self, request: wire.GetInline) -> wire.InlineBodies:
        return wire.InlineBodies(tuple(self.inline.get(i, b"") for i in request.ids))

    def _node(self, inode: Inode, extents_max: int, inline_max: int) -> Node:
        extents = tuple(inode.extents[:extents_max])
        chunks = self._chunks_of(extents)
        is_whole = len(extents) == len(inode.extents)
        return Node(
            inode.attributes,
            inode.target,
            extents,
            chunks,
            is_whole,
            inode.policy,
            inline=self._bodies_of(chunks, inline_max),
        )

    def _chunks_of(self, extents: Sequence[Extent]) -> tuple[Chunk, ...]:
        ids = dict.fromkeys(extent.chunk_id for extent in extents)
        return tuple(self.chunks[chunk_id] for chunk_id in ids)

    def _resolve(self, request: wire.Resolve) -> wire.Resolved:
        nodes = [self._node(self.inodes[ROOT_INODE], request.extents_max, request.inline_max)]
        inode = self.inodes[ROOT_INODE]
        for name in request.names:
            ino = inode.entries.get(name)
            if ino is None:
                break
            inode = self.inodes[ino]
            nodes.append(self._node(inode, request.extents_max, request.inline_max))
        return wire.Resolved(tuple(nodes))

    def _get_node(self, request: wire.GetNode) -> Node:
        return self._node(self._existing(request.ino), request.extents_max, request.inline_max)

    def _lookup(self, request: wire.Lookup) -> Node:
        _, inode = self._entry(request.parent, request.name)
        return self._node(inode, request.extents_max, request.inline_max)

    def _path(self, request: wire.GetPath) -> wire.InodePath:
        names: list[bytes] = []
        ino = request.ino
        while ino != ROOT_INODE:
            above = [
                (parent, name)
                for parent, inode in self.inodes.items()
                for name, child in inode.entries.items()
                if child == ino
            ]
            if not above:
                raise MictlanError(Kind.NOT_FOUND, "find", str(request.ino))
            ino, name = above[0]
            names.append(name)
        return wire.InodePath(tuple(reversed(names)))

    def _list(self, request: wire.ListDirectory) -> wire.ListPage:
        inode = self._existing(request.ino)
        if inode.attributes.kind is not FileKind.DIRECTORY:
            raise MictlanError(Kind.NOT_DIRECTORY, "list")
        names = sorted(name for name in inode.entries if name > request.after)
        page = names[: min(LIST_PAGE_MAX, request.entries_max)]
        entries = tuple(
            wire.Entry(
                name,
                self._node(
                    self.inodes[inode.entries[name]], request.extents_max, request.inline_max
                ),
            )
            for name in page
        )
        return wire.ListPage(entries, inode.attributes, inode.parent, len(page) == len(names))

    def _extents(self, request: wire.GetExtents) -> wire.ExtentPage:
        inode = self._existing(request.ino)
        behind = [extent for extent in inode.extents if extent.end > request.offset]
        page = tuple(behind[: min(self.extents_page_max, request.extents_max)])
        end = None if len(page) == len(behind) else page[-1].end
        version = inode.attributes.content_version
        chunks = self._chunks_of(page)
        bodies = self._bodies_of(chunks, request.inline_max)
        return wire.ExtentPage(page, chunks, end, version, bodies)

    def _buckets(self, _: wire.Done) -> wire.Buckets:
        root = self.inodes[ROOT_INODE]
        found = []
        for name, ino in sorted(root.entries.items()):
            inode = self.inodes[ino]
            policy = inode.policy or BucketPolicy()
            found.append(wire.BucketInfo(name, inode.attributes, policy, self.used))
        return wire.Buckets(tuple(found))

    def _bucket_use(self, request: wire.GetBucketUse) -> wire.BucketUse:
        policy = self._existing(request.ino).policy or BucketPolicy()
        return wire.BucketUse(request.ino, policy.quota, self.used)

    # --- commits ---------------------------------------------------------------------------------

    def _commit(self, batch: wire.Commit) -> wire.CommitAnswer:
        self.commits.append(batch)
        self._check(batch.session, batch.epoch)
        first, next_number, answer = self._applied.get(batch.session, (0, 1, wire.CommitAnswer(())))
        if batch.first_number == first:
            return answer
        if batch.first_number != next_number:
            raise MictlanError(Kind.CONFLICT, "commit", str(batch.first_number))
        if not batch.ops:
            return wire.CommitAnswer(())
        results: list[wire.OpResult] = []
        for op in batch.ops:
            try:
                self.before_apply(op)
                results.append(wire.OpResult(_APPLY[type(op)](self, op)))
            except MictlanError as error:
                results.append(wire.OpResult(error=wire.WireError.of(error)))
                if batch.stop_on_error:
                    break
        answer = wire.CommitAnswer(tuple(results))
        number = batch.first_number
        self._applied[batch.session] = (number, number + len(results), answer)
        return answer

    def _existing(self, ino: InodeNumber) -> Inode:
        if ino not in self.inodes:
            raise MictlanError(Kind.NOT_FOUND, "find", str(ino))
        return self.inodes[ino]

    def _entry(self, parent: InodeNumber, name: bytes) -> tuple[Inode, Inode]:
        directory = self._existing(parent)
        if name not in directory.entries:
            raise MictlanError(Kind.NOT_FOUND, "find", repr(name))
        return directory, self.inodes[directory.entries[name]]

    def _make(self, op: wire.MakeNode) -> tuple[Attributes, ...]:
        parent = self._existing(op.parent)
        if op.name in parent.entries:
            raise MictlanError(Kind.EXISTS, "make", repr(op.name))
        if op.ino in self.inodes:
            raise MictlanError(Kind.INVALID, "make", str(op.ino))
        times = (op.time_ns, op.time_ns, op.time_ns)
        attributes = Attributes(
            op.ino, op.kind, op.mode, op.uid, op.gid, len(op.target), *times, 1, version=1
        )
        policy = BucketPolicy() if op.parent == ROOT_INODE else parent.policy
        self.inodes[op.ino] = Inode(attributes, policy, op.target, parent=op.parent)
        parent.entries[op.name] = op.ino
        parent.change(size=len(parent.entries))
        return self.inodes[op.ino].attributes, parent.attributes

    def _unlink(self, op: wire.Unlink) -> tuple[Attributes, ...]:
        parent, inode = self._entry(op.parent, op.name)
        if inode.attributes.kind is FileKind.DIRECTORY:
            raise MictlanError(Kind.IS_DIRECTORY, "unlink", repr(op.name))
        self._drop(parent, op.name)
        return inode.attributes, parent.attributes

    def _remove_directory(self, op: wire.RemoveDirectory) -> tuple[Attributes, ...]:
        parent, inode = self._entry(op.parent, op.name)
        if inode.attributes.kind is not FileKind.DIRECTORY:
            raise MictlanError(Kind.NOT_DIRECTORY, "rmdir", repr(op.name))
        if inode.entries:
            raise MictlanError(Kind.NOT_EMPTY, "rmdir", repr(op.name))
        self._drop(parent, op.name)
        return inode.attributes, parent.attributes

    def _drop(self, parent: Inode, name: bytes) -> None:
        del self.inodes[parent.entries.pop(name)]
        parent.change(size=len(parent.entries))

    def _rename(self, op: wire.Rename) -> tuple[Attributes, ...]:
        parent, inode = self._entry(op.parent, op.name)
        new_parent = self._existing(op.new_parent)
        replaced = new_parent.entries.get(op.new_name)
        if replaced is not None:
            if self.inodes[replaced].attributes.kind is FileKind.DIRECTORY:
                raise MictlanError(Kind.IS_DIRECTORY, "rename", repr(op.new_name))
            self._drop(new_parent, op.new_name)
        del parent.entries[op.name]
        new_parent.entries[op.new_name] = inode.attributes.ino
        return inode.attributes, parent.attributes, new_parent.attributes

    def _set_attributes(self, op: wire.SetAttributes) -> tuple[Attributes, ...]:
        inode = self._existing(op.ino)
        names = ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns")
        values = {name: getattr(op, name) for name in names}
        if op.size is not None:
            self._cut(inode, op.size, 2**63)
        inode.change(**{name: value for name, value in values.items() if value is not None})
        return (inode.attributes,)

    def _write(self, op: wire.WriteExtents) -> tuple[Attributes, ...]:
        inode = self._existing(op.ino)
        known = {chunk.id for chunk in op.chunks} | self.chunks.keys()
        if any(extent.chunk_id not in known for extent in op.extents):
            raise MictlanError(Kind.INVALID, "write", str(op.ino), "unknown chunk")
        self.chunks.update({chunk.id: chunk for chunk in op.chunks})
        self.inline.update({c.id: body for c, body in inline_bodies(op.chunks, op.inline)})
        for extent in op.extents:
            self._cut(inode, extent.offset, extent.end)
            inode.extents.append(extent)
        inode.extents.sort(key=lambda extent: extent.offset)
        inode.change(
            size=max(inode.attributes.size, op.size),
            allocated=sum(extent.length for extent in inode.extents),
            mtime_ns=op.time_ns,
        )
        return (inode.attributes,)

    def _cut(self, inode: Inode, start: int, end: int) -> None:
        """Take `[start, end)` out of the extents."""
        kept = []
        for old in inode.extents:
            for left, right in subtract(old.offset, old.end, start, end):
                shift = left - old.offset
                kept.append(Extent(left, right - left, old.chunk_id, old.chunk_offset + shift))
        inode.extents = kept

    def _set_policy(self, op: wire.SetBucketPolicy) -> tuple[Attributes, ...]:
        inode = self._existing(op.ino)
        if not 1 <= op.policy.replicas <= 5:
            raise MictlanError(Kind.INVALID, "set policy", json.dumps(op.policy.replicas))
        inode.policy = op.policy
        return (inode.attributes,)

    def _release(self, op: wire.Release) -> tuple[Attributes, ...]:
        return ()

    # --- what is kept: as a test says ------------------------------------------------------------

    def _list_trash(self, request: wire.ListTrash) -> wire.TrashPage:
        behind = [
            item
            for item in self.trash
            if (item.path + b"/").startswith(request.path and request.path + b"/")
            and (item.path, item.removed_ns, item.ino) > request.after
        ]
        # Two to a page, so that there are several.
        return wire.TrashPage(tuple(behind[:2]), len(behind) <= 2)

    def _empty_trash(self, request: wire.EmptyTrash) -> wire.Emptied:
        gone = [item for item in self.trash if item.removed_ns < request.before_ns]
        self.trash = [item for item in self.trash if item not in gone[:2]]
        return wire.Emptied(len(gone[:2]), sum(item.nbytes for item in gone[:2]), len(gone) <= 2)

    def _restore(self, op: wire.Restore) -> tuple[Attributes, ...]:
        (item,) = [item for item in self.trash if item.ino == op.item]
        if item.is_open:
            raise MictlanError(Kind.BUSY, "restore")
        made = wire.MakeNode(
            *(op.parent, op.name, op.ino, item.kind, item.mode, item.uid, item.gid, op.time_ns)
        )
        touched = self._make(made)
        self.trash.remove(item)
        return touched

    def _list_snapshots(self, request: wire.ListSnapshots) -> wire.Snapshots:
        found = [one for one in self.snapshots if request.bucket in {b"", one.bucket}]
        return wire.Snapshots(tuple(found))

    def _create_snapshot(self, request: wire.CreateSnapshot) -> wire.SnapshotInfo:
        path = b"/".join(request.path)
        self.snapshots.append(wire.SnapshotInfo(request.path[0], request.name, path, 0, 3, 2048))
        return self.snapshots[-1]

    def _remove_snapshot(self, request: wire.RemoveSnapshot) -> wire.Done:
        for one in self.snapshots:
            if (one.bucket, one.name) == (request.bucket, request.name):
                self.snapshots.remove(one)
                return wire.Done()
        raise MictlanError(Kind.NOT_FOUND, "snapshot")

    def _report(self, request: ReportCopy) -> wire.Done:
        self.reports.append(request)
        return wire.Done()


_HANDLERS: dict[str, tuple[type[Any], Callable[[FakeRouter, Any], Struct]]] = {
    wire.Path.REPORT: (ReportCopy, FakeRouter._report),
    wire.Path.SESSION_OPEN: (wire.OpenSession, FakeRouter._open_session),
    wire.Path.SESSION_HEARTBEAT: (wire.SessionRef, FakeRouter._heartbeat),
    wire.Path.SESSION_CLOSE: (wire.SessionRef, FakeRouter._close_session),
    wire.Path.SESSION_INODES: (wire.TakeInodes, FakeRouter._take_inodes),
    wire.Path.COMMIT: (wire.Commit, FakeRouter._commit),
    wire.Path.RESOLVE: (wire.Resolve, FakeRouter._resolve),
    wire.Path.NODE: (wire.GetNode, FakeRouter._get_node),
    wire.Path.LOOKUP: (wire.Lookup, FakeRouter._lookup),
    wire.Path.PATH: (wire.GetPath, FakeRouter._path),
    wire.Path.LIST: (wire.ListDirectory, FakeRouter._list),
    wire.Path.EXTENTS: (wire.GetExtents, FakeRouter._extents),
    wire.Path.INLINE: (wire.GetInline, FakeRouter._get_inline),
    wire.Path.BUCKETS: (wire.Done, FakeRouter._buckets),
    wire.Path.BUCKET_USE: (wire.GetBucketUse, FakeRouter._bucket_use),
    wire.Path.PEER_MAP: (wire.Done, FakeRouter._peer_map),
    wire.Path.LOCATE: (Locate, FakeRouter._locate),
    wire.Path.UPKEEP: (StartUpkeep, FakeRouter._start_upkeep),
    wire.Path.PEER_DRAIN: (DrainPeer, FakeRouter._drain),
    wire.Path.PEER_REMOVE: (RemovePeer, FakeRouter._remove),
    wire.Path.PEER_CLONE: (ClonePeer, FakeRouter._clone),
    wire.Path.TRASH_LIST: (wire.ListTrash, FakeRouter._list_trash),
    wire.Path.TRASH_EMPTY: (wire.EmptyTrash, FakeRouter._empty_trash),
    wire.Path.SNAPSHOT_LIST: (wire.ListSnapshots, FakeRouter._list_snapshots),
    wire.Path.SNAPSHOT_CREATE: (wire.CreateSnapshot, FakeRouter._create_snapshot),
    wire.Path.SNAPSHOT_REMOVE: (wire.RemoveSnapshot, FakeRouter._remove_snapshot),
}
_APPLY: dict[type[Any], Callable[[FakeRouter, Any], tuple[Attributes, ...]]] = {
    wire.MakeNode: FakeRouter._make,
    wire.Unlink: FakeRouter._unlink,
    wire.RemoveDirectory: FakeRouter._remove_directory,
    wire.Rename: FakeRouter._rename,
    wire.SetAttributes: FakeRouter._set_attributes,
    wire.WriteExtents: FakeRouter._write,
    wire.SetBucketPolicy: FakeRouter._set_policy,
    wire.Release: FakeRouter._release,
    wire.Restore: FakeRouter._restore,
}
