"""A space in memory: what router and peers keep, for tests of the mount without servers.

A small honest model of names, inodes, extents, chunks and sustained inodes. Operations take effect
at once and check everything before they change anything, as the router's do.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import msgspec

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import (
    KIB,
    ROOT_INODE,
    Attributes,
    BucketPolicy,
    Chunk,
    ChunkId,
    Extent,
    FileKind,
    InodeNumber,
    Node,
    PeerNumber,
    inline_bodies,
)
from tests.support.ranges import subtract

_offset_of = attrgetter("offset")
START_NS = 1_700_000_000_000_000_000
# Small chunks, so that tests meet their borders with little data.
CHUNK_SIZE_BYTES = 64 * KIB


def attributes_of(ino: int, kind: FileKind = FileKind.FILE, **changes: Any) -> Attributes:
    """Attributes of some inode; what is not named has a plain value."""
    plain = Attributes(InodeNumber(ino), kind, 0o644, 0, 0, 0, START_NS, START_NS, START_NS, 1)
    return msgspec.structs.replace(plain, **changes)


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

    def node(self, ino: InodeNumber, extents_max: int = 0, inline_max: int = 0) -> Node:
        record = self._record(ino)
        extents = tuple(record.extents[: min(extents_max, self.extents_page)])
        chunks = self._chunks_of(extents)
        return Node(
            record.attributes,
            record.target,
            extents,
            chunks,
            len(extents) == len(record.extents),
            None if ino == ROOT_INODE else self.policy,
            inline=self._bodies_of(chunks, inline_max),
        )

    def _bodies_of(self, chunks: Sequence[Chunk], inline_max: int) -> tuple[bytes, ...]:
        bodies = [self.chunks[chunk.id] for chunk in chunks if not chunk.peers]
        return tuple(bodies) if sum(map(len, bodies)) <= inline_max else ()

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
        chunks = self._chunks_of(page)
        bodies = self._bodies_of(chunks, request.inline_max)
        return wire.ExtentPage(page, chunks, end, version, bodies)

    def page(self, request: wire.ListDirectory) -> wire.ListPage:
        record = self._directory(request.ino)
        names = sorted(name for name in record.entries if name > request.after)
        page = names[: request.entries_max]
        entries = tuple(wire.Entry(name, self.node(record.entries[name])) for name in page)
        return wire.ListPage(entries, record.attributes, record.parent, len(page) == len(names))

    @property
    def used(self) -> int:
        """Bytes that extents cover."""
        return sum(extent.length for r in self._records.values() for extent in r.extents)

    def bucket_use(self, ino: InodeNumber) -> wire.BucketUse:
        self._record(ino)
        return wire.BucketUse(self.bucket, self.policy.quota, self.used)

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
        if op.if_content_version not in {-1, record.attributes.content_version}:
            raise MictlanError(Kind.CONFLICT, "write", str(op.ino))
        self.chunks |= {chunk.id: body for chunk, body in inline_bodies(op.chunks, op.inline)}
        lengths = {chunk.id: chunk.length for chunk in (*self._known_chunks.values(), *op.chunks)}
        before = 0
        for extent in op.extents:
            end = extent.chunk_offset + extent.length
            assert 0 <= extent.chunk_offset < end <= lengths[extent.chunk_id]
            # Nobody acknowledged metadata whose data is not there.
            assert extent.chunk_id in self.chunks
            before = max(before, extent.end)
        extents, used = list(record.extents), self.used
        for extent in op.extents:
            record.put(extent)
        if 0 < self.policy.quota < self.used and used < self.used:
            record.extents[:] = extents
            raise MictlanError(Kind.QUOTA_EXCEEDED, "write", str(op.ino))
        self._known_chunks |= {chunk.id: chunk for chunk in op.chunks}
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
        assert one.end <= other.offset or other.end <= one.offset
