"""The metadata logic against a model of a few dictionaries: same results, same errors, no damage.

The model knows POSIX and nothing of rows. After each step the whole tree is compared, the content
of every file byte by byte, and every invariant of the database is checked.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from mictlanfs import wire
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
    SessionId,
    inline_bodies,
)
from tests.stateful.kept_model import NAMES, PICKS, Kept, KeptMachine
from tests.support.thoroughness import examples
from tests.unit.server.metadata.space import PEERS, SpaceMaker, inline_chunk, new_chunk, open_space

DIRECTORY, FILE = FileKind.DIRECTORY, FileKind.FILE
Entry = tuple[InodeNumber, bytes]
DEFAULT_POLICY = BucketPolicy()
CHUNK_LENGTH = 8
SIZE_MAX = 30
# A pick below this chooses an inode or an entry that the operation likely works on, else any.
USUAL_MAX = 850


@dataclass
class ModelInode:
    """An inode as the model knows it."""

    kind: FileKind
    entries: dict[bytes, int] = field(default_factory=dict)
    content: dict[int, tuple[ChunkId, int]] = field(default_factory=dict)
    size: int = 0
    mode: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sustained_by: set[str] = field(default_factory=set)
    # Size and body of each piece; empty: no record, or a stale one.
    record: tuple[wire.RecordPiece, ...] = ()
    part: "ModelPart | None" = None
    policy: BucketPolicy = DEFAULT_POLICY


@dataclass(frozen=True)
class ModelPart:
    """What a file is a part of."""

    parent: int
    name: bytes
    ball: bytes
    count: int
    index: int


class Model:
    """A file system of dictionaries. Methods raise the error that POSIX, or the root, demands."""

    def __init__(self) -> None:
        self.inodes: dict[int, ModelInode] = {ROOT_INODE: ModelInode(DIRECTORY)}
        # Where an inode counts that has names in several directories.
        self.homes: dict[int, int] = {}
        self.kept = Kept()

    # --- what is there ---

    def names_of(self, ino: int) -> list[tuple[int, bytes]]:
        return [
            (parent, name)
            for parent, inode in self.inodes.items()
            for name, target in inode.entries.items()
            if target == ino
        ]

    def nlink(self, ino: int) -> int:
        inode, names = self.inodes[ino], self.names_of(ino)
        if inode.kind is not DIRECTORY:
            return len(names)
        if not names and ino != ROOT_INODE:
            return 0
        return 2 + sum(self.inodes[i].kind is DIRECTORY for i in inode.entries.values())

    def get(self, ino: int) -> ModelInode:
        if ino not in self.inodes:
            raise MictlanError(Kind.NOT_FOUND)
        return self.inodes[ino]

    def directory(self, ino: int) -> ModelInode:
        inode = self.get(ino)
        if inode.kind is not DIRECTORY:
            raise MictlanError(Kind.NOT_DIRECTORY)
        return inode

    def open_directory(self, ino: int) -> ModelInode:
        inode = self.directory(ino)
        if self.nlink(ino) == 0:
            raise MictlanError(Kind.STALE)
        return inode

    def entry(self, parent: int, name: bytes) -> int:
        entries = self.directory(parent).entries
        if name not in entries:
            raise MictlanError(Kind.NOT_FOUND)
        return entries[name]

    def is_below(self, ino: int, ancestor: int) -> bool:
        while ino != ancestor:
            names = self.names_of(ino)
            if not names:
                return False
            ino = names[0][0]
        return True

    def bucket_of(self, ino: int) -> int | None:
        """The bucket that an inode is or counts in; None without a name."""
        while names := self.names_of(ino):
            parents = [parent for parent, _ in names]
            if ROOT_INODE in parents:
                return ino
            ino = self.homes[ino] if self.homes.get(ino) in parents else min(parents)
        return None

    def uses(self) -> dict[int, int]:
        """The bytes that each bucket uses."""
        found = dict.fromkeys(self.inodes[ROOT_INODE].entries.values(), 0)
        for ino, inode in self.inodes.items():
            bucket = self.bucket_of(ino) if inode.content else None
            if bucket is not None:
                found[bucket] += len(inode.content)
        return found

    @contextmanager
    def within_quota(self, *inos: int) -> Iterator[None]:
        """Undo what is done inside when a bucket of `inos` grows beyond its quota by it."""
        inodes, homes, before = deepcopy(self.inodes), dict(self.homes), self.uses()
        kept = deepcopy(self.kept)
        yield
        after = self.uses()
        for ino in inos:
            bucket = self.bucket_of(ino)
            if bucket is not None and after[bucket] > before[bucket]:
                quota = self.inodes[bucket].policy.quota
                if 0 < quota < after[bucket]:
                    self.inodes, self.homes, self.kept = inodes, homes, kept
                    raise MictlanError(Kind.QUOTA_EXCEEDED)

    # --- what can be done ---

    def make(self, parent: int, name: bytes, ino: int, kind: FileKind) -> None:
        directory = self.open_directory(parent)
        if name in directory.entries:
            raise MictlanError(Kind.EXISTS)
        if parent == ROOT_INODE and kind is not DIRECTORY:
            raise MictlanError(Kind.NOT_PERMITTED)
        self.inodes[ino] = ModelInode(kind, mode=0o644)
        self.homes[ino] = parent
        directory.entries[name] = ino

    def link(self, ino: int, parent: int, name: bytes) -> None:
        directory = self.open_directory(parent)
        if name in directory.entries:
            raise MictlanError(Kind.EXISTS)
        if self.get(ino).kind is DIRECTORY or parent == ROOT_INODE:
            raise MictlanError(Kind.NOT_PERMITTED)
        if self.nlink(ino) == 0:
            raise MictlanError(Kind.NOT_FOUND)
        directory.entries[name] = ino

    def unlink(self, parent: int, name: bytes, sustainer: str | None) -> None:
        ino = self.entry(parent, name)
        if self.inodes[ino].kind is DIRECTORY:
            raise MictlanError(Kind.IS_DIRECTORY)
        del self.inodes[parent].entries[name]
        self.kept.on_name_lost(self, ino, parent, name, wire.TrashReason.REMOVED)
        self.settle(ino, sustainer)

    def rmdir(self, parent: int, name: bytes, sustainer: str | None) -> None:
        ino = self.entry(parent, name)
        if self.inodes[ino].kind is not DIRECTORY:
            raise MictlanError(Kind.NOT_DIRECTORY)
        if self.inodes[ino].entries:
            raise MictlanError(Kind.NOT_EMPTY)
        if self.kept.has_snapshots(ino):
            raise MictlanError(Kind.NOT_EMPTY)
        del self.inodes[parent].entries[name]
        self.kept.on_name_lost(self, ino, parent, name, wire.TrashReason.REMOVED)
        self.settle(ino, sustainer)

    def settle(self, ino: int, sustainer: str | None = None) -> None:
        """An inode may have lost its last name or the last session that sustained it."""
        names = self.names_of(ino)
        parents = [parent for parent, _ in names]
        if names and self.homes[ino] not in parents:
            self.homes[ino] = min(parents)
        if ino == ROOT_INODE or names:
            return
        if sustainer is not None:
            self.inodes[ino].sustained_by.add(sustainer)
        if not self.inodes[ino].sustained_by:
            self.kept.on_inode_gone(ino, self.inodes.pop(ino))

    def release(self, ino: int, session: str) -> None:
        if ino in self.inodes:
            self.inodes[ino].sustained_by.discard(session)
            self.settle(ino)

    def rename(self, op: wire.Rename, sustainer: str | None) -> None:
        source = self.entry(op.parent, op.name)
        new_entries = self.open_directory(op.new_parent).entries
        target = new_entries.get(op.new_name)
        if op.mode == wire.RenameMode.NO_REPLACE and target is not None:
            raise MictlanError(Kind.EXISTS)
        if op.mode == wire.RenameMode.EXCHANGE and target is None:
            raise MictlanError(Kind.NOT_FOUND)
        self.check_loop(op, source, target)
        if target == source:
            return
        if (op.parent == ROOT_INODE) != (op.new_parent == ROOT_INODE):
            raise MictlanError(Kind.NOT_PERMITTED)
        if op.mode == wire.RenameMode.EXCHANGE:
            assert target is not None
            with self.within_quota(op.parent, op.new_parent):
                self.inodes[op.parent].entries[op.name] = target
                new_entries[op.new_name] = source
                self.homes[source], self.homes[target] = op.new_parent, op.parent
            return
        if target is not None:
            self.check_replaceable(source, target)
        with self.within_quota(op.new_parent):
            del self.inodes[op.parent].entries[op.name]
            new_entries[op.new_name] = source
            self.homes[source] = op.new_parent
            if target is not None:
                place = (op.new_parent, op.new_name)
                self.kept.on_name_lost(self, target, *place, wire.TrashReason.REPLACED)
                self.settle(target, sustainer)

    def check_loop(self, op: wire.Rename, source: int, target: int | None) -> None:
        moves = [(source, op.new_parent)]
        if op.mode == wire.RenameMode.EXCHANGE and target is not None:
            moves.append((target, op.parent))
        for ino, destination in moves:
            if self.inodes[ino].kind is DIRECTORY and self.is_below(destination, ino):
                raise MictlanError(Kind.INVALID)

    def check_replaceable(self, source: int, target: int) -> None:
        is_directory = self.inodes[source].kind is DIRECTORY
        replaced = self.inodes[target]
        if is_directory and replaced.kind is not DIRECTORY:
            raise MictlanError(Kind.NOT_DIRECTORY)
        if replaced.kind is DIRECTORY and not is_directory:
            raise MictlanError(Kind.IS_DIRECTORY)
        if replaced.entries or self.kept.has_snapshots(target):
            raise MictlanError(Kind.NOT_EMPTY)

    def write(self, ino: int, extents: list[Extent], size: int) -> None:
        inode = self.get(ino)
        if inode.kind is not FILE:
            raise MictlanError(Kind.INVALID)
        with self.within_quota(ino):
            for extent in extents:
                for index in range(extent.length):
                    place = (extent.chunk_id, extent.chunk_offset + index)
                    inode.content[extent.offset + index] = place
            inode.size = max(inode.size, size, *(extent.end for extent in extents))
            self.note_change(ino)

    def truncate(self, ino: int, size: int) -> None:
        inode = self.get(ino)
        if inode.kind is DIRECTORY:
            raise MictlanError(Kind.IS_DIRECTORY)
        if size == 0:
            self.kept.on_cut_to_nothing(self, ino)
        if size != inode.size:
            self.note_change(ino)
        inode.size = size
        inode.content = {at: place for at, place in inode.content.items() if at < size}

    # --- records and parts ---

    def note_change(self, ino: int) -> None:
        self.inodes[ino].record, self.inodes[ino].part = (), None

    def file(self, ino: int) -> ModelInode:
        inode = self.get(ino)
        if inode.kind is not FILE:
            raise MictlanError(Kind.INVALID)
        return inode

    def set_record(self, ino: int, pieces: tuple[wire.RecordPiece, ...]) -> None:
        inode = self.file(ino)
        if pieces and sum(piece.size for piece in pieces) != inode.size:
            raise MictlanError(Kind.INVALID)
        inode.record = pieces
        if not pieces:
            inode.part = None

    def is_intact(self, ino: int) -> bool:
        part = self.inodes[ino].part
        return part is not None and self.names_of(ino) == [(part.parent, part.name)]

    def put_part(self, op: wire.PutPart) -> None:
        directory, inode = self.open_directory(op.parent), self.file(op.ino)
        if self.names_of(op.ino) != [(op.parent, op.name)]:
            raise MictlanError(Kind.INVALID)
        new = ModelPart(op.parent, op.name, op.ball, op.count, op.index)
        place = (new.parent, new.ball, new.count)
        intact = {
            other: part
            for other, known in self.inodes.items()
            if (part := known.part) is not None and self.is_intact(other)
        }
        parts = {
            part.index: other
            for other, part in intact.items()
            if (part.parent, part.ball, part.count) == place
        }
        taken = directory.entries.get(op.ball)
        if op.ino in intact or op.index in parts or taken not in {None, op.ino, *parts.values()}:
            raise MictlanError(Kind.EXISTS)
        for other in self.inodes.values():
            if other.part is not None and (
                (other.part.parent, other.part.ball, other.part.count, other.part.index)
                == (*place, op.index)
            ):
                other.part = None
        inode.part, inode.record = new, (wire.RecordPiece(inode.size, op.body),)
        parts[op.index] = op.ino
        if len(parts) == op.count:
            self.assemble(op, [parts[index] for index in range(op.count)])

    def assemble(self, op: wire.PutPart, parts: list[int]) -> None:
        first = self.inodes[parts[0]]
        ball = ModelInode(FILE, mode=first.mode, xattrs=dict(first.xattrs))
        for ino in parts:
            part = self.inodes[ino]
            ball.content |= {ball.size + at: place for at, place in part.content.items()}
            ball.size += part.size
            ball.record += part.record
            for parent, name in self.names_of(ino):
                del self.inodes[parent].entries[name]
            self.settle(ino)
        self.inodes[op.ball_ino] = ball
        self.homes[op.ball_ino] = op.parent
        self.inodes[op.parent].entries[op.ball] = op.ball_ino

    def chunks(self) -> set[ChunkId]:
        live = {chunk for inode in self.inodes.values() for chunk, _ in inode.content.values()}
        return live | self.kept.chunks()

    def restore(self, op: wire.Restore, inode: ModelInode) -> None:
        """Give what was in the trash a name again."""
        self.make(op.parent, op.name, op.ino, inode.kind)
        if op.parent == ROOT_INODE:
            raise MictlanError(Kind.NOT_PERMITTED)
        made = self.inodes[op.ino]
        for name in ("size", "mode", "content", "xattrs", "record"):
            setattr(made, name, getattr(inode, name))


class MetadataMachine(KeptMachine):
    """Random operations on the store and on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = tempfile.mkdtemp(prefix="mictlanfs-model-")
        self.stack.callback(shutil.rmtree, folder)
        maker = SpaceMaker(Path(folder))
        self.space = self.stack.enter_context(open_space(maker.new_database()))
        self.model = Model()
        self.known: list[InodeNumber] = [ROOT_INODE]
        self.written: list[Chunk] = []
        self.bodies: dict[ChunkId, bytes] = {}
        self.second = self.space.open_session("second")
        self.session_count = 2

    def teardown(self) -> None:
        self.stack.close()

    @initialize()
    def make_buckets(self) -> None:
        for name in (b"a", b"b"):
            self.make(0, name, DIRECTORY)

    # --- the same on both sides ---

    def place(self, pick: int, kind: FileKind | None = None) -> InodeNumber:
        """An inode, most often one that exists and is of `kind`."""
        usual = [
            ino
            for ino in self.known
            if ino in self.model.inodes and kind in {None, self.model.inodes[ino].kind}
        ]
        candidates = usual if usual and pick < USUAL_MAX else self.known
        return candidates[pick % len(candidates)]

    def entry(self, pick: int, name: bytes, kind: FileKind | None = None) -> Entry:
        """A directory and a name, most often of something that exists, of `kind`."""
        usual = [
            (InodeNumber(parent), existing)
            for parent, inode in self.model.inodes.items()
            for existing, ino in inode.entries.items()
            if kind in {None, self.model.inodes[ino].kind}
        ]
        if usual and pick < USUAL_MAX:
            return usual[pick % len(usual)]
        return self.place(pick, DIRECTORY), name

    def session(self, is_second: bool) -> SessionId:
        return self.second if is_second else self.space.session

    def both(self, op: wire.Operation, apply_to_model: object, session: SessionId) -> bool:
        """Apply to store and model, compare error or the attributes that came back.

        Whether it was applied.
        """
        assert callable(apply_to_model)
        expected: Kind | None = None
        try:
            apply_to_model()
        except MictlanError as error:
            expected = error.kind
        (result,) = self.space.commit(self.space.batch(op, session=session)).results
        assert (result.error.to_error().kind if result.error else None) is expected
        for attributes in result.touched:
            if attributes.ino in self.model.inodes:
                assert self.space.attributes(attributes.ino) == attributes
        return expected is None

    # --- rules ---

    @rule(parent=PICKS, name=NAMES, kind=st.sampled_from([DIRECTORY, FILE, FILE, FileKind.FIFO]))
    def make(self, parent: int, name: bytes, kind: FileKind) -> None:
        op = self.space.make_op(self.place(parent, DIRECTORY), name, kind)
        self.both(
            op,
            lambda: self.model.make(op.parent, name, op.ino, kind),
            self.space.session,
        )
        if op.ino in self.model.inodes:
            self.known.append(op.ino)

    @rule(ino=PICKS, parent=PICKS, name=NAMES)
    def link(self, ino: int, parent: int, name: bytes) -> None:
        parents = self.place(parent, DIRECTORY)
        op = wire.Link(self.place(ino, FILE), parents, name, self.space.tick())
        self.both(op, lambda: self.model.link(op.ino, op.parent, name), self.space.session)

    @rule(parent=PICKS, name=NAMES, sustain=st.booleans(), second=st.booleans())
    def unlink(self, parent: int, name: bytes, sustain: bool, second: bool) -> None:
        session = self.session(second)
        entry = self.entry(parent, name, FILE)
        op = wire.Unlink(*entry, self.space.tick(), sustain)
        sustainer = session if sustain else None
        self.both(op, lambda: self.model.unlink(*entry, sustainer), session)

    @rule(parent=PICKS, name=NAMES, sustain=st.booleans())
    def rmdir(self, parent: int, name: bytes, sustain: bool) -> None:
        session = self.space.session
        entry = self.entry(parent, name, DIRECTORY)
        op = wire.RemoveDirectory(*entry, self.space.tick(), sustain)
        sustainer = session if sustain else None
        self.both(op, lambda: self.model.rmdir(*entry, sustainer), session)

    @rule(
        source=PICKS,
        destination=PICKS,
        names=st.tuples(NAMES, NAMES),
        is_free=st.booleans(),
        mode=st.sampled_from([0, 0, 1, 2]),
        sustain=st.booleans(),
    )
    def rename(
        self,
        source: int,
        destination: int,
        names: tuple[bytes, bytes],
        is_free: bool,
        mode: int,
        sustain: bool,
    ) -> None:
        session = self.space.session
        old = self.entry(source, names[0])
        new = self.entry(destination, b"c")
        if is_free:
            new = self.place(destination, DIRECTORY), names[1]
        op = self.space.rename_op(*old, *new, mode, sustain=sustain)
        sustainer = session if sustain else None
        self.both(op, lambda: self.model.rename(op, sustainer), session)

    @rule(
        ino=PICKS,
        offsets=st.lists(st.integers(0, SIZE_MAX), min_size=1, max_size=3),
        length=st.integers(1, CHUNK_LENGTH),
        skip=st.integers(0, CHUNK_LENGTH - 1),
        size=st.integers(0, SIZE_MAX),
        body=st.none() | st.binary(min_size=CHUNK_LENGTH, max_size=CHUNK_LENGTH),
    )
    def write(
        self,
        ino: int,
        offsets: list[int],
        length: int,
        skip: int,
        size: int,
        body: bytes | None,
    ) -> None:
        chunk = new_chunk(CHUNK_LENGTH)
        if body is not None:
            chunk = inline_chunk(body)
            self.bodies[chunk.id] = body
        length = min(length, CHUNK_LENGTH - skip)
        self.write_chunk(ino, offsets, chunk, (chunk,), length, skip, size)
        self.written.append(chunk)

    @precondition(lambda self: self.written)
    @rule(ino=PICKS, offset=st.integers(0, SIZE_MAX), index=st.integers(0, 50))
    def move_chunk_to_peers(self, ino: int, offset: int, index: int) -> None:
        chunk = self.written[index % len(self.written)]
        if chunk.id in self.model.chunks():
            moved = Chunk(chunk.id, chunk.length, chunk.digest, PEERS[:2])
            if self.write_chunk(ino, [offset], moved, (moved,), CHUNK_LENGTH, 0, 0):
                self.bodies.pop(chunk.id, None)

    @precondition(lambda self: self.written)
    @rule(ino=PICKS, offset=st.integers(0, SIZE_MAX), index=st.integers(0, 50))
    def write_known_chunk(self, ino: int, offset: int, index: int) -> None:
        chunk = self.written[index % len(self.written)]
        if chunk.id in self.model.chunks():
            self.write_chunk(ino, [offset], chunk, (), CHUNK_LENGTH, 0, 0)

    @precondition(lambda self: self.written)
    @rule(ino=PICKS, index=st.integers(0, 50))
    def write_dead_chunk(self, ino: int, index: int) -> None:
        chunk = self.written[index % len(self.written)]
        if chunk.id not in self.model.chunks():
            extents = (Extent(0, CHUNK_LENGTH, chunk.id, 0),)
            op = wire.WriteExtents(self.place(ino, FILE), extents, (), 0, self.space.tick())
            assert self.space.error_of(op) in {Kind.INVALID, Kind.NOT_FOUND}

    def write_chunk(
        self,
        ino: int,
        offsets: list[int],
        chunk: Chunk,
        described: tuple[Chunk, ...],
        length: int,
        skip: int,
        size: int,
    ) -> bool:
        extents = [Extent(offset, length, chunk.id, skip) for offset in offsets]
        bodies = tuple(self.bodies[chunk.id] for chunk in described if not chunk.peers)
        op = wire.WriteExtents(
            self.place(ino, FILE), tuple(extents), described, size, self.space.tick(), bodies
        )
        return self.both(op, lambda: self.model.write(op.ino, extents, size), self.space.session)

    @rule(ino=PICKS, size=st.integers(0, SIZE_MAX), mode=st.integers(0, 0o7777))
    def set_attributes(self, ino: int, size: int, mode: int) -> None:
        number, time_ns = self.place(ino, FILE), self.space.tick()
        inode = self.model.inodes.get(number)
        op = wire.SetAttributes(number, time_ns, mode=mode)
        if inode is not None and inode.kind is not FileKind.FIFO:
            op = wire.SetAttributes(number, time_ns, mode=mode, size=size)

        def apply_to_model() -> None:
            if op.size is not None:
                self.model.truncate(op.ino, size)
            self.model.get(op.ino).mode = mode

        self.both(op, apply_to_model, self.space.session)

    @rule(ino=PICKS, name=NAMES, value=st.none() | st.binary(max_size=3))
    def change_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        number, time_ns = self.place(ino), self.space.tick()

        def apply_to_model() -> None:
            xattrs = self.model.get(number).xattrs
            if value is not None:
                xattrs[name] = value
            elif xattrs.pop(name, None) is None:
                raise MictlanError(Kind.NO_DATA)

        op: wire.Operation = wire.RemoveXattr(number, name, time_ns)
        if value is not None:
            op = wire.SetXattr(number, name, value, time_ns)
        self.both(op, apply_to_model, self.space.session)

    @rule(ino=PICKS, cut=st.integers(0, SIZE_MAX), is_wrong=st.sampled_from([0, 0, 0, 1]))
    def set_record(self, ino: int, cut: int, is_wrong: int) -> None:
        number = self.place(ino, FILE)
        known = self.model.inodes.get(number)
        size = (known.size if known else 0) + is_wrong
        cut = min(cut, size)
        pieces = (wire.RecordPiece(cut, b"%d" % ino), wire.RecordPiece(size - cut, b""))
        op = wire.SetRecord(number, 0, pieces if cut else ())
        self.both(op, lambda: self.model.set_record(number, op.pieces), self.space.session)

    @rule(
        source=PICKS,
        name=NAMES,
        ball=st.sampled_from([b"a", b"ball"]),
        count=st.integers(1, 3),
        indexes=st.lists(st.integers(0, 2), min_size=1, max_size=3),
        is_new=st.booleans(),
    )
    def put_parts(
        self,
        source: int,
        name: bytes,
        ball: bytes,
        count: int,
        indexes: list[int],
        is_new: bool,
    ) -> None:
        """Files that are there, or new ones, become parts in one directory."""
        parent, name = self.entry(source, name, FILE)
        for index in [index for index in indexes if index < count]:
            if is_new:
                name = b"part %d" % index
                self.make_file(parent, name)
            named = self.model.inodes.get(parent, ModelInode(FILE)).entries.get(name, ROOT_INODE)
            self.put_part(InodeNumber(named), parent, name, ball, index, count)

    def make_file(self, parent: InodeNumber, name: bytes) -> None:
        """Make a file with some content, if that is possible."""
        make, chunk = self.space.make_op(parent, name), new_chunk(CHUNK_LENGTH)
        ino, extents = make.ino, (Extent(0, CHUNK_LENGTH, chunk.id, 0),)
        self.both(make, lambda: self.model.make(parent, name, ino, FILE), self.space.session)
        if ino in self.model.inodes:
            self.known.append(ino)
            write = wire.WriteExtents(ino, extents, (chunk,), 0, self.space.tick())
            self.both(write, lambda: self.model.write(ino, list(extents), 0), self.space.session)
            self.written.append(chunk)

    def put_part(
        self,
        ino: InodeNumber,
        parent: InodeNumber,
        name: bytes,
        ball: bytes,
        index: int,
        count: int,
    ) -> None:
        new, body = self.space.new_inode(), b"%d" % index
        op = wire.PutPart(ino, parent, name, ball, new, index, count, body, self.space.tick())
        self.both(op, lambda: self.model.put_part(op), self.space.session)
        if new in self.model.inodes:
            self.known.append(new)

    @rule(ino=PICKS, second=st.booleans())
    def release(self, ino: int, second: bool) -> None:
        number, session = self.place(ino), self.session(second)
        op = wire.Release(number)
        self.both(op, lambda: self.model.release(number, session), session)

    @rule(
        ino=PICKS,
        replicas=st.integers(1, 5),
        quota=st.sampled_from([0, 0, 1, 10, 40]),
        trash_days=st.integers(0, 1),
    )
    def set_policy(self, ino: int, replicas: int, quota: int, trash_days: int) -> None:
        buckets = list(self.model.inodes[ROOT_INODE].entries.values())
        number = self.place(ino, DIRECTORY)
        if buckets and ino < USUAL_MAX:
            number = InodeNumber(buckets[ino % len(buckets)])
        policy = BucketPolicy(replicas=replicas, quota=quota, trash_days=trash_days)

        def apply_to_model() -> None:
            if number not in buckets:
                raise MictlanError(Kind.NOT_FOUND)
            self.model.inodes[number].policy = policy

        op = wire.SetBucketPolicy(number, policy, self.space.tick())
        self.both(op, apply_to_model, self.space.session)

    @rule()
    def replace_second_session(self) -> None:
        self.space.close_session(self.second)
        for ino in list(self.model.inodes):
            self.model.release(ino, self.second)
        self.session_count += 1
        self.second = self.space.open_session(f"session {self.session_count}")

    # --- what must hold after each step ---

    @invariant()
    def database_is_sound(self) -> None:
        assert self.space.damage() == []

    @invariant()
    def store_and_model_hold_the_same(self) -> None:
        numbers = self.space.connection.execute(
            "SELECT ino FROM inode WHERE ino < ?", (2**61,)
        ).fetchall()
        assert {number for (number,) in numbers} == set(self.model.inodes)
        for number, inode in self.model.inodes.items():
            self.compare(InodeNumber(number), inode)

    def compare(self, ino: InodeNumber, inode: ModelInode) -> None:
        node = self.space.node(ino)
        attributes: Attributes = node.attributes
        assert (attributes.kind, attributes.nlink) == (inode.kind, self.model.nlink(ino))
        if ino != ROOT_INODE:
            assert attributes.mode == inode.mode
            bucket = self.model.bucket_of(ino)
            assert bucket is None or node.policy == self.model.inodes[bucket].policy
        assert self.space.reads.xattrs(wire.GetXattrs(ino)).values == inode.xattrs
        (record,) = self.space.reads.records(wire.GetRecords((ino,))).records
        version = attributes.content_version if inode.record else 0
        assert record == wire.FileRecord(version, inode.record)
        if inode.kind is DIRECTORY:
            assert self.space.names(ino) == inode.entries
            return
        assert attributes.size == inode.size
        content = {
            extent.offset + index: (extent.chunk_id, extent.chunk_offset + index)
            for extent in node.extents
            for index in range(extent.length)
        }
        assert content == inode.content
        bodies = {chunk.id: body for chunk, body in inline_bodies(node.chunks, node.inline)}
        named = {chunk_id for chunk_id, _ in content.values()}
        assert bodies == {chunk: body for chunk, body in self.bodies.items() if chunk in named}

    @invariant()
    def buckets_use_what_the_files_in_them_have(self) -> None:
        buckets = self.space.reads.buckets().buckets
        assert {info.attributes.ino: info.used for info in buckets} == self.model.uses()

    @invariant()
    def chunks_live_exactly_while_they_are_named(self) -> None:
        rows = self.space.connection.execute("SELECT id FROM chunk WHERE refs > 0").fetchall()
        assert {chunk for (chunk,) in rows} == self.model.chunks()


TestMetadataModel = MetadataMachine.TestCase
TestMetadataModel.settings = settings(
    max_examples=examples(48, 1200),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
