"""What the model of the metadata knows of trash and snapshots, and how the store is compared to it.

Part of the model and of the machine of `test_metadata_model`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, ChunkId, FileKind, InodeNumber, SessionId
from mictlanfs_server.metadata.sqlite_trash import read_trash

if TYPE_CHECKING:
    from tests.stateful.test_metadata_model import Model, ModelInode
    from tests.unit.server.metadata.space import Space

NAMES = st.sampled_from([b"a", b"b", b"c"])
PICKS = st.integers(0, 999)
# As a test may compare it: path, reason, whether it is open, kind, mode, size, content.
Shown = tuple[bytes, int, bool, FileKind, int, int, tuple[tuple[int, tuple[ChunkId, int]], ...]]


@dataclass
class ModelItem:
    """An item of the trash; of an inode that is still there, until it has gone.

    Attributes:
        ino: of the inode that it was; a version has none.
        what: the inode as it was at its end.
    """

    path: bytes
    reason: wire.TrashReason
    ino: int | None
    what: ModelInode | None = None


@dataclass
class ModelSnapshot:
    """A snapshot; `inodes` by the numbers that they had outside, `root` among them."""

    bucket: int
    name: bytes
    root: int
    inodes: dict[int, ModelInode]


@dataclass
class Kept:
    """All that is kept."""

    items: list[ModelItem] = field(default_factory=list)
    snapshots: list[ModelSnapshot] = field(default_factory=list)

    # --- trash ---

    def on_name_lost(
        self, model: Model, ino: int, parent: int, name: bytes, reason: wire.TrashReason
    ) -> None:
        """A name was taken from an inode; it may have been the last."""
        if not model.names_of(ino) and parent != ROOT_INODE and _days(model, parent):
            self.items.append(ModelItem(_path(model, parent) + b"/" + name, reason, ino))

    def on_inode_gone(self, ino: int, inode: ModelInode) -> None:
        """An inode is not there any more; what was to be kept of it is kept now."""
        for item in self.items:
            if item.ino == ino:
                item.what, item.ino = inode, None

    def on_cut_to_nothing(self, model: Model, ino: int) -> None:
        """A file is about to be cut to nothing."""
        inode = model.inodes[ino]
        names = model.names_of(ino)
        if not (inode.content and names):
            return
        parent = model.homes[ino]
        if _days(model, parent):
            name = min(name for directory, name in names if directory == parent)
            path = _path(model, parent) + b"/" + name
            self.items.append(ModelItem(path, wire.TrashReason.OVERWRITTEN, None, deepcopy(inode)))

    def shown(self, model: Model) -> list[Shown]:
        """The trash as it should be listed."""
        return sorted(
            _shown(item.path, item.reason, item.ino is not None, inode)
            for item in self.items
            if (inode := item.what or model.inodes[item.ino or 0])
        )

    def take(self, model: Model, shown: Shown) -> ModelInode:
        """An item goes, by being restored; what it was."""
        for item in self.items:
            if item.what is not None and _shown(item.path, item.reason, False, item.what) == shown:
                self.items.remove(item)
                return item.what
        raise AssertionError("the store has an item that the model does not know")

    # --- snapshots ---

    def on_snapshot(self, model: Model, bucket: int, name: bytes, root: int) -> None:
        """A directory is kept."""
        inodes: dict[int, ModelInode] = {}
        coming = [root]
        while coming:
            ino = coming.pop()
            if ino not in inodes:
                inodes[ino] = deepcopy(model.inodes[ino])
                coming += inodes[ino].entries.values()
        self.snapshots.append(ModelSnapshot(bucket, name, root, inodes))

    def has_snapshots(self, bucket: int) -> bool:
        """Whether a bucket has any."""
        return any(snapshot.bucket == bucket for snapshot in self.snapshots)

    def chunks(self) -> set[ChunkId]:
        """The chunks that only what is kept may name."""
        kept = [item.what for item in self.items if item.what is not None]
        kept += [inode for snapshot in self.snapshots for inode in snapshot.inodes.values()]
        return {chunk for inode in kept for chunk, _ in inode.content.values()}


class KeptMachine(RuleBasedStateMachine):
    """Random operations on what is kept, for a machine that has all others."""

    space: Space
    model: Model
    known: list[InodeNumber]

    def place(self, pick: int, kind: FileKind | None = None) -> InodeNumber:
        """An inode, most often one that exists and is of `kind`."""
        raise NotImplementedError

    def both(self, op: wire.Operation, apply_to_model: object, session: SessionId) -> bool:
        """Apply to store and model; whether it was applied."""
        raise NotImplementedError

    @rule(pick=PICKS, parent=PICKS, name=NAMES)
    def restore(self, pick: int, parent: int, name: bytes) -> None:
        items = [item for item in trash_of(self.space).items() if not item[1][2]]
        if not items:
            return
        number, shown = items[pick % len(items)]
        ino, directory = self.space.new_inode(), self.place(parent, FileKind.DIRECTORY)
        op = wire.Restore(number, ino, directory, name, self.space.tick())
        model = deepcopy(self.model)

        def apply_to_model() -> None:
            model.restore(op, model.kept.take(model, shown))
            bucket = model.bucket_of(ino)
            assert bucket is not None
            quota, used = model.inodes[bucket].policy.quota, model.uses()[bucket]
            if model.inodes[ino].content and 0 < quota < used:
                raise MictlanError(Kind.QUOTA_EXCEEDED)
            self.model = model

        if self.both(op, apply_to_model, self.space.session):
            self.known.append(ino)

    @rule()
    def empty_trash(self) -> None:
        with self.space.transaction():
            self.space.rows.trash.give_up(b"", 2**63 - 1, 1000)
        while self.space.reclaim(2):
            pass
        self.model.kept.items.clear()

    @rule(ino=PICKS, name=NAMES)
    def take_snapshot(self, ino: int, name: bytes) -> None:
        root = self.place(ino, FileKind.DIRECTORY)
        inode = self.model.inodes.get(root)
        is_directory = inode is not None and inode.kind is FileKind.DIRECTORY
        bucket = self.model.bucket_of(root) if is_directory else None
        known = {(known.bucket, known.name) for known in self.model.kept.snapshots}
        if bucket is not None and (bucket, name) not in known:
            self.space.snapshot(bucket, name, root)
            self.model.kept.on_snapshot(self.model, bucket, name, root)

    @precondition(lambda self: self.model.kept.snapshots)
    @rule(pick=PICKS)
    def drop_snapshot(self, pick: int) -> None:
        snapshots = self.model.kept.snapshots
        snapshot = snapshots.pop(pick % len(snapshots))
        top = self.space.lookup(snapshot.bucket, b".snapshots")
        assert top is not None
        self.space.drop_snapshot(self.space.names(top)[snapshot.name])
        while self.space.let_snapshots_go(3):
            pass

    @invariant()
    def what_is_kept_is_as_it_was(self) -> None:
        assert sorted(trash_of(self.space).values()) == self.model.kept.shown(self.model)
        for snapshot in self.model.kept.snapshots:
            compare_snapshot(self.space, snapshot)


def trash_of(space: Space) -> dict[InodeNumber, Shown]:
    """The trash as the store has it, by the numbers of items."""
    found: dict[InodeNumber, Shown] = {}
    for item in read_trash(space.connection, wire.ListTrash()).items:
        rows = space.connection.execute(
            "SELECT offset, length, chunk, chunk_offset FROM extent WHERE ino = ?", (item.ino,)
        ).fetchall()
        content = {
            offset + index: (chunk, chunk_offset + index)
            for offset, length, chunk, chunk_offset in rows
            for index in range(length)
        }
        size = 0 if item.kind is FileKind.DIRECTORY else item.size
        found[item.ino] = (
            *(item.path, int(item.reason), item.is_open, item.kind, item.mode, size),
            tuple(sorted(content.items())),
        )
    return found


def compare_snapshot(space: Space, snapshot: ModelSnapshot) -> None:
    """The store shows a snapshot as the model has it."""
    top = space.lookup(snapshot.bucket, b".snapshots")
    assert top is not None
    root = space.names(top)[snapshot.name]
    base = root - snapshot.root
    for number, inode in snapshot.inodes.items():
        node = space.node(base + number)
        assert (node.attributes.kind, node.attributes.mode) == (inode.kind, inode.mode)
        assert space.reads.xattrs(wire.GetXattrs(InodeNumber(base + number))).values == inode.xattrs
        names = sum(
            target == number
            for directory in snapshot.inodes.values()
            for target in directory.entries.values()
        )
        if inode.kind is FileKind.DIRECTORY:
            expected = {name: base + ino for name, ino in inode.entries.items()}
            assert space.names(base + number) == expected
            assert number == snapshot.root or names == 1
            continue
        assert (node.attributes.size, node.attributes.nlink) == (inode.size, names)
        content = {
            extent.offset + index: (extent.chunk_id, extent.chunk_offset + index)
            for extent in node.extents
            for index in range(extent.length)
        }
        assert content == inode.content


def _shown(path: bytes, reason: wire.TrashReason, is_open: bool, inode: ModelInode) -> Shown:
    size = 0 if inode.kind is FileKind.DIRECTORY else inode.size
    content = tuple(sorted(inode.content.items()))
    return path, int(reason), is_open, inode.kind, inode.mode, size, content


def _days(model: Model, directory: int) -> int:
    bucket = model.bucket_of(directory)
    return 0 if bucket is None else model.inodes[bucket].policy.trash_days


def _path(model: Model, directory: int) -> bytes:
    names: list[bytes] = []
    while directory != ROOT_INODE:
        ((directory, name),) = model.names_of(directory)
        names.insert(0, name)
    return b"/".join(names)
